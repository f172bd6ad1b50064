"""`--verify` for machines that are not here: what is compared, and what is said not to be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from small_models import SmallModels

import infc
from infc.backends.cuda import emulation, packing
from infc.backends.cuda.kernels.packing import HEADER_BYTES
from infc.cli import main
from infc.diagnostics import Code, UserError
from infc.target.backend import LoadedPrograms

PASSES = "verified: every pass keeps the numbers of a short prompt and a step"
NO_DEVICE = "there is no device to run on: none"
LIMITS = {"max_context": 64, "chunk": 8}


@pytest.fixture(autouse=True)
def nothing_runs_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """No device, no assembler, and no PTX, which takes a while and which nobody looks at."""
    programs = {"prefill": "", "decode": ""}
    monkeypatch.setattr("infc.backends.cuda.emission.to_ptx", lambda module, arch: programs)
    monkeypatch.setattr("infc.backends.cuda.emission.assemble", lambda ptx, arch: None)

    def absent() -> None:
        raise UserError(Code.ARTIFACT_HOST, NO_DEVICE)

    monkeypatch.setattr("infc.backends.cuda.runtime.probe.open_device", absent)


def verified(model: Path, target: str, output: Path, **options: Any) -> str:
    said: list[str] = []
    infc.compile(
        model, target=target, output=output, verify=True, verified=said, **LIMITS, **options
    )
    (sentence,) = said
    return sentence


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_kernels_of_a_device_are_executed(
    small_models: SmallModels, tmp_path: Path, arch: str
) -> None:
    model = small_models.model("llama3", "BF16", num_hidden_layers=1)
    assert verified(model, f"cuda:{arch}", tmp_path / "a.infc") == (
        f"{PASSES}, and the kernels were executed by an interpreter, as they are before LLVM. "
        f"Not verified: machine code, which was not run: {NO_DEVICE}"
    )


def test_weights_that_are_packed_wrongly_are_found(
    small_models: SmallModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = packing.pack

    def wrong(layout: Any, rows: Any, n: int, k: int, out: NDArray[np.uint8]) -> None:
        right(layout, rows, n, k, out)
        out[HEADER_BYTES:] = np.roll(out[HEADER_BYTES:], layout.block_bytes)

    monkeypatch.setattr(packing, "pack", wrong)
    model = small_models.model("llama3", "BF16", num_hidden_layers=1)
    output = tmp_path / "never.infc"
    with pytest.raises(UserError) as error:
        verified(model, "cuda:sm_90a", output)
    assert str(error.value).startswith("error[INF2005]: code generation changed the logits by ")
    assert not output.exists()


def test_a_model_that_takes_too_long_to_execute_is_not(
    small_models: SmallModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emulation, "MOST_WEIGHT_BYTES", 1024)
    model = small_models.model("llama3", "BF16", num_hidden_layers=1)
    sentence = verified(model, "cuda:sm_90a", tmp_path / "a.infc")
    assert sentence.startswith(
        f"{PASSES}, down to the memory level. Not verified: machine code, which was not run: "
        f"{NO_DEVICE}; the interpreter of kernels takes models of up to 1 KiB of weights, this "
        "one has "
    )


def test_programs_of_another_processor(
    small_models: SmallModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(self: object, programs: LoadedPrograms) -> None:
        raise UserError(Code.ARTIFACT_HOST, "the artifact needs amx, which this processor lacks")

    monkeypatch.setattr("infc.backends.cpu.backend.CpuBackend.load", absent)
    model = small_models.model("llama3", "BF16", num_hidden_layers=1)
    path = tmp_path / "a.infc"
    options = ["--target", "cpu:x86-64-v3", "--verify", "--max-context", "64", "--chunk", "8"]
    result = CliRunner().invoke(main, ["compile", str(model), *options, "-o", str(path)])
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[1] == (
        f"{PASSES}, down to the memory level. Not verified: machine code, which was not run: the "
        "artifact needs amx, which this processor lacks"
    )
    assert path.exists()


def test_programs_that_run_here_are_run(small_models: SmallModels, tmp_path: Path) -> None:
    model = small_models.model("llama3", "BF16", num_hidden_layers=1)
    assert (
        verified(model, "cpu", tmp_path / "a.infc") == f"{PASSES}, and so do the compiled programs"
    )
