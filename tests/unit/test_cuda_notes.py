"""What `infc compile` and `infc explain` say of code for GPUs beside its figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from small_models import SmallModels

from infc.cli import main

UNASSEMBLED = (
    "the programs are PTX alone, as ptxas was not found: the driver compiles them when they are "
    "first loaded, and what they take of registers and spill is not known; pip install "
    "nvidia-cuda-nvcc, or put ptxas on the search path"
)


def test_what_code_lacks_is_said(
    small_models: SmallModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By `compile` and by `explain`: a step that is not one kernel, programs without machine
    code."""
    model = small_models.model("llama3", "BF16", num_hidden_layers=1)
    path = tmp_path / "a.infc"
    monkeypatch.setattr("infc.backends.cuda.emission.assemble", lambda ptx, arch: None)
    monkeypatch.setattr(
        "infc.backends.cuda.lowering.passes.obstacle",
        lambda program, shared_bytes: "its kernels need 9 bytes of shared memory, and there are 8",
    )
    options = ["--target", "cuda:sm_90a", "--max-context", "64", "--chunk", "8", "-o", str(path)]
    result = CliRunner().invoke(main, ["compile", str(model), *options])
    separate = (
        "decode is a launch for each kernel, not one persistent kernel: its kernels need 9 bytes "
        "of shared memory, and there are 8"
    )
    notes = [line for line in result.stderr.splitlines() if line.startswith("note: ")]
    assert notes == [f"note: {UNASSEMBLED}", f"note: {separate}"]
    text = CliRunner().invoke(main, ["explain", str(path)]).stdout
    assert f"\n{UNASSEMBLED}\n{separate}\n" in text
    found = json.loads(CliRunner().invoke(main, ["explain", str(path), "--json"]).stdout)
    assert found["notes"] == [UNASSEMBLED, separate]
