"""`--tune`: measured once, then the same bytes; the results are those of the untuned model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from small_models import SmallModels

import infc
from infc.backends.cpu import measure
from infc.cli.app import main
from infc.driver import Tuning
from infc.driver.tuning_database import TuningDatabase

TINY = {"num_hidden_layers": 1}
LIMITS = {"max_context": 64, "chunk": 16, "prompt_tokens": 16}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no more copies of weights than it takes to see that they are used."""
    monkeypatch.setattr(measure, "_MOST_BYTES", 1 << 18)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_the_same_database_gives_the_same_bytes(small_models: SmallModels, tmp_path: Path) -> None:
    model = small_models.model("qwen3", **TINY)
    first, again = Tuning(3), Tuning(3)
    one = infc.compile(model, output=tmp_path / "1.infc", tuning=first, **LIMITS)
    two = infc.compile(model, output=tmp_path / "2.infc", tuning=again, **LIMITS)
    assert (tmp_path / "1.infc").read_bytes() == (tmp_path / "2.infc").read_bytes()
    assert first.kernels
    assert not any(kernel.known for kernel in first.kernels)
    assert all(kernel.known for kernel in again.kernels)
    assert [kernel.measured for kernel in first.kernels] == [
        kernel.measured for kernel in again.kernels
    ]
    for kernel, record in zip(first.kernels, one.manifest.tuning, strict=True):
        assert record == json.loads(json.dumps(kernel.record()))
        assert 2 <= len(kernel.mappings) <= 3 <= max(kernel.candidates, 3)
        assert kernel.measured[kernel.chosen] <= kernel.measured[0]
    assert two.manifest.tuning == one.manifest.tuning


def test_a_tuned_model_computes_the_same(small_models: SmallModels, tmp_path: Path) -> None:
    """Mappings of products never show in a result; those of attention may, by rounding."""
    model = small_models.model("qwen3", **TINY)
    logits = []
    for name, tuning in (("plain", None), ("tuned", Tuning(4))):
        artifact = infc.compile(model, output=tmp_path / f"{name}.infc", tuning=tuning, **LIMITS)
        logits.append(infc.load(artifact).prefill(list(range(1, 12))))
    np.testing.assert_allclose(logits[1], logits[0], rtol=0, atol=2e-2)


def test_it_says_what_it_measured(small_models: SmallModels, tmp_path: Path) -> None:
    model = small_models.model("qwen3", **TINY)
    arguments = ["compile", str(model), "--tune", "2", "--max-context", "64", "--chunk", "16"]
    arguments += ["-o", str(tmp_path / "a.infc")]
    text = CliRunner().invoke(main, arguments)
    assert text.exit_code == 0
    assert text.stderr == ""
    lines = text.stdout.splitlines()
    kernels = [line for line in lines if ", its choice +" in line]
    assert "  tuned " in lines[-2]
    assert lines[-1].startswith("  the model's times were off by ")
    report = json.loads(CliRunner().invoke(main, [*arguments, "--json"]).stdout)["tuning"]
    assert report["best"] == 2
    assert len(report["kernels"]) == len(kernels) > 4
    for kernel in report["kernels"]:
        assert kernel["from_database"]
        assert kernel["mapping"] in [each["mapping"] for each in kernel["mappings"]]
        assert len(kernel["mappings"]) == kernel["measured"] <= 2


def test_a_damaged_database_is_a_note(small_models: SmallModels, tmp_path: Path) -> None:
    path = tmp_path / "cache" / "infc" / "tuning.sqlite"
    path.parent.mkdir(parents=True)
    path.write_text("nothing of use" * 1000)
    model = small_models.model("qwen3", **TINY)
    arguments = ["compile", str(model), "--tune", "2", "-o", str(tmp_path / "a.infc")]
    result = CliRunner().invoke(main, [*arguments, "--max-context", "64", "--chunk", "16"])
    assert result.exit_code == 0
    assert result.stderr == (f"note: the tuning database was damaged; set aside as {path}.aside1\n")
    with TuningDatabase(path) as database:
        assert database.notes == []


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (
            ["--target", "cpu:x86-64-v3"],
            "error[INF3004]: kernels are measured on this host: expected target 'cpu', "
            "got 'cpu:x86-64-v3'\n"
            "   = hint: tune with --target cpu on the machine that will run the model\n",
        ),
        (
            ["--target", "reference"],
            "error[INF3004]: target reference cannot measure kernels\n"
            "   = hint: leave out --tune, or tune for this machine: --target cpu\n",
        ),
        (
            ["--resume-from", "a.mlir"],
            "error[INF5001]: a resumed compilation keeps the mappings of its dump\n"
            "   = hint: leave out --tune, or edit infc.mapping in the dump\n",
        ),
    ],
)
def test_what_cannot_be_measured_is_one_error(
    small_models: SmallModels, tmp_path: Path, options: list[str], error: str
) -> None:
    model = small_models.model("qwen3", **TINY)
    output = tmp_path / "a.infc"
    arguments = ["compile", str(model), "--tune", "2", "-o", str(output), *options]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert (result.stdout, result.stderr) == ("", error)
    assert not output.exists()
