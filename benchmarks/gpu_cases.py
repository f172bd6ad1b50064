"""Runs recorded launches (`tests/cuda_recording.py`) on a device and compares what they wrote.

A case was executed in lockstep on a CPU, in the same order of operations but for sums of the matrix
unit, exponentials and roots: numbers differ by roundings.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infc.backends.cuda.runtime.driver import Device, KernelLaunch

FLOATS = 1e-2
"""Allowed `norm(got - expected) / norm(expected)`: operands may be rounded to bf16 another way."""
STEPS = 2
"""Allowed difference of 16-bit patterns: neighbours of a float are neighbours as integers."""
_SMALL = 0x3000
"""Patterns of numbers near zero."""


def run_cases(folder: Path, device: Device, *, every: int = 1) -> dict[str, Any]:
    """Run each case, or one of `every`; how many agreed, and what did not."""
    cases = json.loads((folder / "cases.json").read_text())[::every]
    modules: dict[str, Any] = {}
    failed = []
    for number, case in enumerate(cases):
        name = case["module"]
        if name not in modules:
            modules[name] = device.load_module(name, _member_of(folder))
        with np.load(folder / f"case{number * every}.npz") as arrays:
            problems = list(_run(case, arrays, modules[name], device))
        failed += [{"test": case["test"], "problem": problem} for problem in problems]
    return {"cases": len(cases), "failed": failed}


def _member_of(folder: Path) -> Any:
    def member(name: str) -> memoryview | None:
        path = folder / name
        return memoryview(path.read_bytes()) if path.exists() else None

    return member


def _run(case: dict[str, Any], arrays: Any, module: Any, device: Device) -> Iterator[str]:
    """Run one case; what is wrong with it."""
    image = arrays["image"]
    base = device.allocate(len(image))
    try:
        device.upload(base, image)
        function = device.function(module, case["kernel"], case["shared_bytes"])
        device.launch(
            KernelLaunch(
                function,
                case["grid"],
                case["threads"],
                case["shared_bytes"],
                [_moved(a, case["base"], len(image), base) for a in case["arguments"]],
                # Blocks of a case may wait for each other.
                cooperative=device.facts.cooperative,
            )
        )
        device.synchronize()
        for number, address in enumerate(case["reads"]):
            expected = arrays[f"read{number}"]
            got = np.empty_like(expected)
            device.download(got, _moved(address, case["base"], len(image), base))
            device.synchronize()
            problem = difference(got, expected)
            if problem:
                yield f"read {number}, {expected.dtype}{list(expected.shape)}: {problem}"
    finally:
        device.free(base)


def _moved(value: int, base: int, size: int, to: int) -> int:
    """An argument on the device: addresses move with the memory they point to."""
    return value - base + to if base <= value < base + size else value


def difference(got: NDArray[Any], expected: NDArray[Any]) -> str:
    """What is wrong with an array, or nothing.

    Floats agree up to `FLOATS`. Numbers of 32 bits and more are indices: they are equal. Smaller
    ones are patterns of 16-bit floats.
    """
    if expected.dtype.kind == "f":
        if (np.isfinite(got) != np.isfinite(expected)).any():
            return f"{int((~np.isfinite(got)).sum())} numbers are not finite"
        finite = np.isfinite(expected)
        a, b = got[finite].astype(np.float64), expected[finite].astype(np.float64)
        error = float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-30))
        return f"relative error {error:.2e}" if error > FLOATS else ""
    if expected.dtype.itemsize >= 4 or expected.nbytes % 2:
        wrong = int((got != expected).sum())
        return f"{wrong} of {expected.size} differ" if wrong else ""
    a, b = (np.ascontiguousarray(x).reshape(-1).view(np.int16).astype(int) for x in (got, expected))
    # Differences around zero have other signs: there the value is what counts.
    near = (np.abs(a - b) <= STEPS) | (
        (np.abs(a & 0x7FFF) < 0x3000) & (np.abs(b & 0x7FFF) < 0x3000)
    )
    wrong = int((~near).sum())
    return f"{wrong} of {near.size} differ" if wrong > near.size // 100 else ""
