"""What `infc compile` and `infc explain` say of code for GPUs beside its figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from small_models import SmallModels

import infc
from infc.artifact import open_artifact
from infc.backends.cuda.lowering.matmul_form import LEAST_RING_BYTES
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
    # Separate launches fetch nothing ahead.
    assert not any("ahead" in kernel for kernel in cost_of_steps(path))


def test_a_persistent_step_says_how_much_its_ring_holds(
    small_models: SmallModels, tmp_path: Path
) -> None:
    path = tmp_path / "a.infc"
    model = small_models.model("llama3", "BF16", num_hidden_layers=1)
    infc.compile(model, target="cuda:sm_90a", output=path, max_context=64, chunk=8)
    step = open_artifact(path).manifest.programs["decode"]["phases"]["decode"]["persistent"]
    held = {kernel["ahead"]["bytes"] for kernel in cost_of_steps(path) if "ahead" in kernel}
    (ring_bytes,) = (size / 132 for size in held)
    assert LEAST_RING_BYTES <= ring_bytes < step["shared_bytes"]


def cost_of_steps(path: Path) -> list[dict[str, Any]]:
    return list(open_artifact(path).manifest.cost_estimate["decode"])
