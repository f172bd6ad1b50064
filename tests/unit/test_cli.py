"""The commands, with a driver that answers from a fake model."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result
from fake_driver import ARTIFACT, REMARKS, FakeDriver
from fake_model import FakeRunnable

import infc
from infc.cli import main
from infc.cli.quantization import quantization_text
from infc.memory.fit import fit_report
from infc.target.provider import ProviderStatus
from infc.target.schema import TargetStatus

Invoke = Callable[..., Result]


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    fake = FakeDriver()
    monkeypatch.setattr(infc, "driver", fake, raising=False)
    return fake


@pytest.fixture
def invoke(driver: FakeDriver) -> Invoke:
    def run(*arguments: object, stdin: str | bytes | None = None) -> Result:
        return CliRunner().invoke(main, [str(argument) for argument in arguments], input=stdin)

    return run


def test_run_streams_text_to_stdout_and_speed_to_stderr(invoke: Invoke, driver: FakeDriver) -> None:
    result = invoke("run", "m.infc", "--prompt", "Hi", "--threads", 1)
    assert (result.exit_code, result.stdout) == (0, "there\n")
    assert driver.calls == [("load", Path("m.infc"), 1)]
    assert result.stderr.startswith("prompt: 3 tokens in ")
    assert "; new: 5 tokens in " in result.stderr
    assert result.stderr.endswith(" tokens/s)\n")


def test_run_compiles_a_model_through_the_cache(
    invoke: Invoke, driver: FakeDriver, tmp_path: Path
) -> None:
    model = tmp_path / "m.gguf"
    model.write_bytes(b"GGUF")
    assert invoke("run", model, "--prompt", "Hi").stdout == "there\n"
    assert driver.calls == [("cached_compile", model, None), ("load", ARTIFACT, None)]


@pytest.mark.parametrize("kind", ["zip", "folder"])
def test_run_knows_an_artifact_of_another_name(
    invoke: Invoke, driver: FakeDriver, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "artifact"
    if kind == "zip":
        path.write_bytes(b"PK\x03\x04...")
    else:
        path.mkdir()
        (path / "manifest.json").write_text("{}")
    invoke("run", path, "--prompt", "Hi")
    assert driver.calls == [("load", path, None)]


@pytest.mark.parametrize(
    ("stdin", "position"), [("Hi\n", 2), ("Hi", 2), ("Hi\r\n", 2), ("Hi\n\n", 3)]
)
def test_run_reads_the_prompt_from_stdin_without_its_last_line_end(
    invoke: Invoke, driver: FakeDriver, stdin: str, position: int
) -> None:
    driver.runnable = FakeRunnable()
    invoke("run", "m.infc", "--prompt", "-", "--max-new-tokens", 1, stdin=stdin.encode())
    tokens = [call.tokens.tolist() for _, call, _ in driver.runnable.calls]
    assert len(tokens[0]) == 1 + position


def test_run_passes_the_sampling_options_on(invoke: Invoke, driver: FakeDriver) -> None:
    def text(*options: object) -> str:
        driver.runnable = FakeRunnable()
        return invoke("run", "m.infc", "--prompt", "Hi", "--max-new-tokens", 30, *options).stdout

    greedy = text()
    assert text("--temperature", 2.0, "--top-k", 1) == greedy
    assert text("--temperature", 2.0, "--top-p", 1e-9) == greedy
    assert text("--temperature", 2.0, "--min-p", 1.0) == greedy
    assert text("--temperature", 2.0, "--seed", 1) == text("--temperature", 2.0, "--seed", 1)
    assert text("--temperature", 2.0, "--seed", 1) != text("--temperature", 2.0, "--seed", 2)
    assert text("--repetition-penalty", 100.0) != greedy


def test_run_stops_at_any_of_the_stop_texts(invoke: Invoke) -> None:
    result = invoke("run", "m.infc", "--prompt", "Hi", "--stop", "zz", "--stop", "er")
    assert result.stdout == "th\n"


def test_run_uses_the_chat_template(invoke: Invoke) -> None:
    assert invoke("run", "m.infc", "--chat", "--prompt", "Hi").stdout == "there\n"


def test_compile_prints_where_and_what(invoke: Invoke, driver: FakeDriver) -> None:
    result = invoke("compile", "some/model.gguf", "--target", "toy", "--max-context", 99)
    assert result.exit_code == 0
    assert result.stdout.startswith("model.infc: compiled for toy:a in ")
    (call,) = driver.calls
    assert call[:2] == ("compile", Path("some/model.gguf"))
    assert call[2] == {
        "target": "toy",
        "prefill_target": None,
        "decode_target": None,
        "output": Path("model.infc"),
        "max_context": 99,
        "max_batch": 1,
        "chunk": 512,
        "prompt_tokens": 512,
        "new_tokens": 128,
        "batch": 1,
        "quantize": "keep",
        "kv_dtype": "auto",
        "dump": None,
        "verify": False,
        "verified": [],
        "resume_from": None,
        "progress": None,
        "remarks": REMARKS,
        "tuning": None,
    }
    assert result.stderr == "note: the code is slow\n"


def test_compile_json(invoke: Invoke, driver: FakeDriver) -> None:
    fit = fit_report(4096, 2048, 2, 0, 99, 1)
    driver.fit = fit
    report = json.loads(invoke("compile", "m.gguf", "-o", "out/x.infc", "--json").stdout)
    assert report.pop("seconds") > 0
    assert report.pop("peak_memory_bytes") > 1 << 20
    assert report == {
        "schema_version": 1,
        "artifact": "out/x.infc",
        "targets": {"prefill": "toy:a", "decode": "toy:a"},
        "digest": "c0ffee",
        "quantization": None,
        "memory_fit": asdict(fit),
        "verified": None,
        "notes": ["the code is slow"],
        "tuning": None,
        "assumptions": [],
    }


def test_compile_says_what_fits(invoke: Invoke, driver: FakeDriver) -> None:
    driver.fit = fit_report(4096, 2048, 2, 0, 99, 1)
    said = invoke("compile", "m.gguf", "-o", "x.infc").stdout.splitlines()[1]
    assert said == (
        "fits with context 99 and batch 1: 2.19 KiB of 4 KiB; room for context 1024 or batch 10"
    )
    driver.fit = fit_report(2048, 2040, 2, 0, 99, 1)
    said = invoke("compile", "m.gguf", "-o", "x.infc").stdout.splitlines()[1]
    assert said == "warning: fits with context 4; context 99 needs 190 B more"


LOSSES = {"q4_k": {"tensors": 7, "numbers": 12_500_000, "relative_rms_error": 0.0747}}
WEIGHTS_LINE = "  q4_k: 7 matrices, 12.5 million weights, relative RMS error 7.47%\n"


@pytest.mark.parametrize(
    ("losses", "change", "text"),
    [
        ({}, None, "  all matrices take as few bits already: none was converted\n"),
        (
            LOSSES,
            SimpleNamespace(tokens=192, mean_divergence=0.02916, same_choice=0.896),
            WEIGHTS_LINE + "  change of the predictions: mean KL 0.0292 nats over 192 tokens, "
            "the same likeliest token for 90%\n",
        ),
        (
            {"q6_k": {"tensors": 1, "numbers": 100_000, "relative_rms_error": 0.0173}},
            None,
            "  q6_k: 1 matrix, 0.1 million weights, relative RMS error 1.73%\n",
        ),
        (
            LOSSES,
            "the model has no tokenizer to read a text with",
            WEIGHTS_LINE + "  change of the predictions: not measured, "
            "the model has no tokenizer to read a text with\n",
        ),
    ],
)
def test_what_quantising_changed_in_words(losses: Any, change: Any, text: str) -> None:
    assert quantization_text(losses, change) == text


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("infc.artifact.open_artifact", lambda path: ARTIFACT)
    return


@pytest.mark.usefixtures("opened")
def test_bench_json(invoke: Invoke, driver: FakeDriver) -> None:
    driver.runnable, driver.slowdowns = FakeRunnable(), {"prefill": 2.0}
    result = invoke(
        "bench", "m.infc", "--prompt-tokens", 9, "--new-tokens", 4, "--threads", 3, "--json"
    )
    report = json.loads(result.stdout)
    for phase, tokens in (("prefill", 9), ("decode", 4)):
        measured = report[phase].pop("measured")
        assert measured["tokens_per_second"] == pytest.approx(tokens / measured["seconds"])
    assert report.pop("load_seconds") > 0
    mapped, private = (report.pop(f"resident_{kind}_bytes") for kind in ("mapped", "private"))
    # The kernel counts in batches: a moment's figures may exceed the peak by a few pages.
    assert 1 << 20 < mapped < report["peak_memory_bytes"]
    assert 1 << 20 < private < report.pop("peak_memory_bytes")
    assert report == {
        "schema_version": 1,
        "prefill": {
            "tokens": 9,
            "predicted": {"seconds": 0.25, "seconds_low": 0.2, "seconds_high": None},
            "predicted_meanwhile": {
                "slowdown": 2.0,
                "seconds": 0.5,
                "seconds_low": 0.4,
                "seconds_high": None,
            },
            "bytes": 170 << 20,
            "operations": 3_400_000_000,
            "bound": "memory",
        },
        "decode": {
            "tokens": 4,
            "predicted": {"seconds": None, "seconds_low": None, "seconds_high": None},
            "predicted_meanwhile": {
                "slowdown": None,
                "seconds": None,
                "seconds_low": None,
                "seconds_high": None,
            },
            "bytes": None,
            "operations": None,
            "bound": None,
        },
        "planned_memory_bytes": 4096,
        "threads": 3,
        "target": "toy:a",
        "assumptions": [
            "decode.predicted, bytes, operations, bound: the artifact holds no cost estimate",
            "decode.predicted_meanwhile: the target was not calibrated with 3 threads",
        ],
    }
    assert driver.calls[-1] == (
        "predict",
        ARTIFACT,
        {"prompt_tokens": 9, "new_tokens": 4, "threads": 3},
    )


@pytest.mark.usefixtures("opened")
def test_bench_for_people(invoke: Invoke, driver: FakeDriver) -> None:
    driver.runnable = FakeRunnable()
    lines = invoke("bench", "m.infc", "--prompt-tokens", 9, "--new-tokens", 4).stdout.splitlines()
    assert lines[0].split() == [
        "phase", "tokens", "tokens/s", "measured", "predicted", "range", "bytes", "ops", "bound",
    ]  # fmt: skip
    assert lines[1].split()[:2] == ["prefill", "9"]
    assert lines[1].split()[-5:] == ["170", "MiB", "3.4", "G", "memory"]
    assert lines[2].split()[-5:] == ["unknown"] * 5
    assert lines[3].startswith("target toy:a, threads 2, loaded in ")
    assert re.fullmatch(
        r"memory: planned 4 KiB, resident \S+ [MG]iB mapped and \S+ [MG]iB private, "
        r"peak \S+ [MG]iB",
        lines[4],
    )
    driver.slowdowns = {"prefill": 1.5}
    lines = invoke("bench", "m.infc", "--prompt-tokens", 9, "--new-tokens", 4).stdout.splitlines()
    assert lines[3] == (
        "prefill: the machine was 1.50 times as slow as undisturbed; predicted for that: "
        "375 ms (300 ms to inf s)"
    )
    assert lines[4].startswith("target toy:a, threads 2, loaded in ")


def test_targets(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    statuses = [
        TargetStatus("toy:a", "toy", "cpu", True),
        TargetStatus("toy:[b]", "toy", "cpu", False, "no such machine"),
    ]
    providers = [ProviderStatus("toys", "toy", False, "toys is not installed")]
    monkeypatch.setattr("infc.target.discovery.list_targets", lambda: statuses)
    monkeypatch.setattr("infc.target.discovery.list_providers", lambda: providers)
    assert invoke("targets").stdout == (
        "target   backend  kind  available  reason\n"
        "toy:a    toy      cpu   yes\n"
        "toy:[b]  toy      cpu   no         no such machine\n"
        "\n"
        "kernels from  for  available  reason\n"
        "toys          toy  no         toys is not installed\n"
    )
    assert json.loads(invoke("targets", "--json").stdout) == {
        "schema_version": 1,
        "targets": [
            {"name": "toy:a", "backend": "toy", "kind": "cpu", "available": True, "reason": ""},
            {
                "name": "toy:[b]",
                "backend": "toy",
                "kind": "cpu",
                "available": False,
                "reason": "no such machine",
            },
        ],
        "providers": [
            {
                "name": "toys",
                "backend": "toy",
                "available": False,
                "reason": "toys is not installed",
                "versions": {},
            }
        ],
    }


def test_opt_writes_to_stdout_or_a_file(invoke: Invoke, driver: FakeDriver, tmp_path: Path) -> None:
    source, output = tmp_path / "in.mlir", tmp_path / "out.mlir"
    source.write_text("module { }")
    assert invoke("opt", source, "--pipeline", "a,b").stdout == "module {}\n"
    assert driver.calls == [("run_opt", "module { }", "a,b", str(source))]
    assert invoke("opt", source, "--pipeline", "a,b", "-o", output).stdout == ""
    assert output.read_text() == "module {}\n"


def test_remarks_of_one_pass_or_of_all(invoke: Invoke, driver: FakeDriver, tmp_path: Path) -> None:
    source = tmp_path / "in.mlir"
    source.write_text("module { }")
    fused = "remark[fuse-kernels]: layers.0.rope: needs whole rows\n"
    other = "remark[quantize-activations]: unknown: weights are kept as f32\n"
    for command in (("opt", source, "--pipeline", "a"), ("compile", "m.gguf", "--json")):
        assert invoke(*command).stderr == ""
        assert invoke(*command, "--remarks", "fuse-kernels").stderr == fused
        assert invoke(*command, "--remarks", "all").stderr == fused + other
        assert invoke(*command, "--remarks", "canonicalize").stderr == ""
    assert len(driver.calls) == 8
    wrong = invoke("compile", "m.gguf", "--remarks", "fuse")
    assert wrong.exit_code == 1
    assert wrong.stderr.startswith(
        "error[INF2004]: there is no pass 'fuse'\n   = hint: the passes "
    )
    assert len(driver.calls) == 8


def test_explain_an_artifact(invoke: Invoke) -> None:
    assert invoke("explain", "m.infc").stdout == (
        "program  kernel          launches  bytes    ops  bound    floor  predicted  measured  "
        "of floor\n"
        "decode   mlp (layers.0)        18  2 KiB  1.5 M  memory  1.2 ms     1.5 ms\n"
        "\n"
        "program  function  threads  registers  local memory  shared memory\n"
        "decode   step          288        168          48 B          2 KiB\n"
        "decode   mlp           288                                   2 KiB\n"
        "\n"
        "program  buffer                 offset  size  from launch  to launch\n"
        "decode   main: %hidden (arena)      64  2560            0          3\n"
        "\n"
        "KV cache: f16, 4 KiB for 1 slot\n"
        "decode of 1 token on toy:a: predicted 1.5 ms (1 ms to 2 ms)\n"
        "the code is slow\n"
        "nothing was measured: there is no device to run on: none\n"
    )


def test_explain_says_how_near_the_floor_a_kernel_is(invoke: Invoke, driver: FakeDriver) -> None:
    lines = invoke("explain", "m.infc", "--threads", 2).stdout.splitlines()
    assert lines[1].endswith("1.2 ms     1.5 ms    2.4 ms       50%")
    assert lines[-2] == (
        "decode of 1 token on toy:a: predicted 1.5 ms (1 ms to 2 ms), measured 2.4 ms"
    )
    assert driver.calls == [("explain", Path("m.infc"), 2)]
