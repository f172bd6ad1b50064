"""Every sample, run as its documentation says, on a tiny model."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from oracle.families import make_family
from oracle.files import write_gguf

import infc
from infc.backends.cpu.lowering import abi
from infc.runtime.sampling import Sampler, SamplingOptions

SAMPLES = Path(__file__).resolve().parents[2] / "samples"
PROMPT = [1, *range(5, 42)]
NEW_TOKENS = 12


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command with this environment's `infc` first in the path."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PATH": path, **environment},
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config, tensors = make_family("llama2", num_hidden_layers=1)
    path = tmp_path_factory.mktemp("samples") / "tiny.gguf"
    write_gguf(path, config, tensors, with_tokenizer=True)
    return path


@pytest.fixture(scope="module")
def artifact(model: Path) -> Path:
    """Prompts of these tests are several chunks long."""
    path = model.with_name("chunked.infc")
    infc.compile(model, target="cpu", output=path, max_context=64, chunk=16)
    return path


@pytest.fixture(scope="module")
def generate(artifact: Path) -> list[str | Path]:
    """The C program, built against the unpacked artifact, and the artifact's folder."""
    folder = artifact.with_name("unpacked")
    with zipfile.ZipFile(artifact) as file:
        file.extractall(folder)
    program = artifact.with_name("generate")
    flags: list[str | Path] = ["-O2", "-Wall", "-Wextra", "-Werror", "-I", folder / "programs"]
    built = run("gcc", *flags, SAMPLES / "c" / "generate.c", "-o", program, "-ldl", "-lpthread")
    assert built.returncode == 0, built.stderr
    return [program, folder]


@pytest.mark.parametrize("threads", ["1", "2"])
def test_c_generates_what_a_session_does(
    artifact: Path, generate: list[str | Path], threads: str
) -> None:
    session = infc.load(artifact, threads=1)
    greedy = Sampler(SamplingOptions(temperature=0.0))
    session.prefill(PROMPT)
    want = [session.next_token(greedy) for _ in range(NEW_TOKENS)]
    done = run(*generate, threads, str(NEW_TOKENS), *map(str, PROMPT))
    assert done.returncode == 0, done.stderr
    assert [int(line) for line in done.stdout.splitlines()] == want


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["1", "4", "5", "320"], "generate: the program refused the call"),
        (["1", "63", "5", "6"], "generate: the context is too small"),
        (["65", "4", "5"], "generate: too few or too many threads"),
        (["1", "4"], "generate: usage: "),
    ],
)
def test_c_refuses(generate: list[str | Path], arguments: list[str], message: str) -> None:
    done = run(*generate, *arguments)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(message)


def test_the_header_has_the_fields_that_programs_use(artifact: Path, tmp_path: Path) -> None:
    """The C structures against the offsets that code is generated with."""
    calls = [(name, getattr(abi.InfcCall, name).offset) for name, _ in abi.InfcCall._fields_]
    checks = [f"offsetof(infc_call, {name}) == {offset}" for name, offset in calls]
    checks += [f"sizeof(infc_call) == {ctypes.sizeof(abi.InfcCall)}"]
    checks += [
        f"offsetof(infc_model_info, {name}) == {8 * index}"
        for index, name in enumerate(abi.INFO_FIELDS)
    ]
    checks += [f"sizeof(infc_model_info) == {8 * len(abi.INFO_FIELDS)}"]
    with zipfile.ZipFile(artifact) as file:
        (tmp_path / "infc.h").write_bytes(file.read("programs/infc.h"))
    source = tmp_path / "checks.c"
    lines = [f'_Static_assert({check}, "");' for check in checks]
    source.write_text('#include <stddef.h>\n#include "infc.h"\n' + "\n".join(lines) + "\n")
    done = run("gcc", "-std=c11", "-c", source, "-o", tmp_path / "checks.o")
    assert done.returncode == 0, done.stderr


def test_c_is_short() -> None:
    assert len((SAMPLES / "c" / "generate.c").read_text().splitlines()) < 100


@pytest.mark.slow
def test_build_step(model: Path, tmp_path: Path) -> None:
    script: list[str | Path] = [sys.executable, SAMPLES / "build.py", model]
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    built = run(*script, tmp_path / "a.infc", "--max-context", "64", **cache)
    assert built.returncode == 0, built.stderr
    record = json.loads(built.stdout)
    assert record["targets"] == {"prefill": "cpu", "decode": "cpu"}
    assert 0 <= record["first_token"] < 320
    again: list[str | Path] = [tmp_path / "b.infc", "--max-context", "64", "--expect-digest"]
    assert run(*script, *again, record["digest"], **cache).returncode == 0
    assert (tmp_path / "b.infc").read_bytes() == (tmp_path / "a.infc").read_bytes()


def test_build_step_without_a_model(tmp_path: Path) -> None:
    missing = run(sys.executable, SAMPLES / "build.py", tmp_path / "none.gguf", tmp_path / "a.infc")
    assert missing.returncode == 1
    assert json.loads(missing.stdout)["error"]["code"] == "INF1001"
    assert missing.stderr.startswith("error[INF1001]: ")


@pytest.mark.slow
def test_build_step_of_another_digest(model: Path, tmp_path: Path) -> None:
    options = ["--max-context", "64", "--expect-digest", "0"]
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = run(sys.executable, SAMPLES / "build.py", model, tmp_path / "a.infc", *options, **cache)
    assert done.returncode == 3
    assert done.stderr.startswith("expected digest 0, got ")
    assert not (tmp_path / "a.infc").exists()


@pytest.mark.slow
def test_command_line(model: Path) -> None:
    limits = {"MAX_CONTEXT": "64", "NEW_TOKENS": "8"}
    script = SAMPLES / "compile_and_generate.sh"
    first = run(script, model, "the tin can", **limits)
    assert first.returncode == 0, first.stderr
    assert first.stdout.endswith("\n")
    assert "compiled for cpu" in first.stderr
    second = run(script, model, "the tin can", **limits)
    assert second.stdout == first.stdout
    assert "compiled for cpu" not in second.stderr


def test_limits(tmp_path: Path) -> None:
    phase = {
        "tokens": 100,
        "measured": {"seconds": 4.0, "tokens_per_second": 25.0},
        "predicted": {"seconds": 2.0, "seconds_low": 1.0, "seconds_high": 5.0},
    }
    report = {
        "prefill": {**phase, "bytes": 1e9, "operations": 2e12},
        "decode": {**phase, "bytes": 2e10, "operations": 1e9},
        "target": "cpu",
        "threads": 2,
    }
    bench, probe = tmp_path / "bench.json", tmp_path / "probe.json"
    bench.write_text(json.dumps(report))
    probe.write_text('{"read_bytes_per_s": 1e10, "int8_operations_per_s": 1e12}')
    done = run(sys.executable, SAMPLES / "limits.py", bench, probe)
    assert done.returncode == 0, done.stderr
    _, prefill, decode, _ = done.stdout.splitlines()
    assert " ".join(prefill.split()) == (
        "prefill 100 25.0 50 (20 to 100) 50.0 50% 2e+03 G operations at 1000 G/s"
    )
    assert " ".join(decode.split()) == (
        "decode 100 25.0 50 (20 to 100) 50.0 50% 20 GB to read at 10.0 GB/s"
    )
    probe.write_text('{"read_bytes_per_s": 1e10, "int8_operations_per_s": null}')
    done = run(sys.executable, SAMPLES / "limits.py", bench, probe)
    assert "1 GB to read at 10.0 GB/s" in done.stdout.splitlines()[1]
