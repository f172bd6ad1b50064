"""What the unit tests run in lockstep, on a GPU: the same memory must come out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from infc.backends.cuda.runtime.driver import Device

pytestmark = [pytest.mark.gpu, pytest.mark.slow]
PROJECT = Path(__file__).resolve().parents[2]


def test_recorded_launches_agree(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device.facts.capability != (9, 0):
        pytest.skip("cases are recorded for compute capability 9.0")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "cuda_recording", "-k", "cuda"]
    command += ["--record-launches", str(tmp_path), "tests/unit", "tests/differential"]
    monkeypatch.setenv("PYTHONPATH", str(PROJECT / "tests"))
    subprocess.run(command, cwd=PROJECT, check=True)
    monkeypatch.syspath_prepend(str(PROJECT / "benchmarks"))
    from gpu_cases import run_cases

    found = run_cases(tmp_path, device)
    assert found["cases"] > 50
    assert found["failed"] == []
