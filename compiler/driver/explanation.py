"""What is in an artifact: each kernel's work beside its bound, and the map of its memory."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from infc.artifact import Artifact, open_artifact
from infc.cost.roofline import Work, estimate_work
from infc.diagnostics import Code, UserError
from infc.driver.loading import available_threads, load_runnable
from infc.target.runnable import Call, Phase
from infc.target.schema import Target

REPEATS = 3
"""Calls a figure is the median of."""


@dataclass(frozen=True)
class KernelRow:
    """One kernel of one program, all its launches of a call together."""

    program: str
    kernel: str
    launches: int
    bytes: float
    operations: float
    bound: str
    predicted_seconds: float
    measured_seconds: float | None = None


@dataclass(frozen=True)
class BufferRow:
    """One planned buffer: bytes `[offset, offset + size)` of its frame, live for some steps."""

    program: str
    buffer: str
    offset_bytes: int
    size_bytes: int
    first_launch: int
    last_launch: int


@dataclass(frozen=True)
class Explanation:
    """All rows, in the order of the programs."""

    kernels: tuple[KernelRow, ...]
    buffers: tuple[BufferRow, ...]


def explain(path: str | Path, *, threads: int | None = None) -> Explanation:
    """Read an artifact's own report and, where this host can run it, measure its kernels.

    Raises:
        UserError: the artifact cannot be opened.
    """
    artifact = open_artifact(path)
    manifest = artifact.manifest
    try:
        measured = measure_kernels(artifact, threads=threads)
    except UserError as error:
        if error.code is not Code.ARTIFACT_HOST:
            raise
        measured = {}
    kernels, buffers = [], []
    for phase in ("prefill", "decode"):
        target = Target.from_json(json.dumps(manifest.targets[phase]))
        for kernel in manifest.cost_estimate.get(phase, []):
            work = Work(kernel["bytes"], kernel["operations"], barriers=kernel["barriers"])
            estimate = estimate_work(work, target).scale(kernel["launches"])
            kernels.append(
                KernelRow(
                    phase,
                    f"{kernel['kernel']} ({kernel['location']})",
                    kernel["launches"],
                    sum(work.bytes.values()) * kernel["launches"],
                    sum(work.operations.values()) * kernel["launches"],
                    estimate.bound,
                    estimate.mid,
                    measured.get(phase, {}).get(kernel["kernel"]),
                )
            )
        for function, plan in manifest.memory_plan.get(phase, {}).get("plans", {}).items():
            for buffer in plan["buffers"]:
                buffers.append(
                    BufferRow(
                        phase,
                        f"{function}: {buffer['buffer']} ({buffer['space']})",
                        buffer["offset_bytes"],
                        buffer["size_bytes"],
                        buffer["first"],
                        buffer["last"],
                    )
                )
    return Explanation(tuple(kernels), tuple(buffers))


def measure_kernels(
    artifact: Artifact, *, threads: int | None = None
) -> dict[str, dict[str, float]]:
    """Seconds of each kernel by phase and name, all its launches of a call together.

    A prefill call of the expected prompt, then decode calls behind it; medians of `REPEATS` calls.
    Empty where the backend cannot tell.
    """
    runnable = load_runnable(artifact)
    threads = threads or available_threads(runnable)
    kv = runnable.new_kv()
    prompt = min(int(artifact.manifest.options["prompt"]), runnable.limits.max_tokens[0])
    prompt = max(1, min(prompt, runnable.limits.max_context - REPEATS))
    measured: dict[str, dict[str, float]] = {}
    for phase in Phase:
        name = phase.name.lower()
        order = artifact.manifest.memory_plan.get(name, {}).get("order", [])
        runs = [
            runnable.trace(phase, _call(phase, prompt, run), kv, threads=threads)
            for run in range(REPEATS)
        ]
        seconds = [run for run in runs if run is not None]
        if not seconds:
            return {}
        for kernel, value in zip(order, np.median(np.array(seconds), axis=0), strict=True):
            by_kernel = measured.setdefault(name, {})
            by_kernel[kernel] = by_kernel.get(kernel, 0.0) + float(value)
    return measured


def _call(phase: Phase, prompt: int, run: int) -> Call:
    start, count = (0, prompt) if phase is Phase.PREFILL else (prompt + run, 1)
    return Call(
        tokens=np.zeros(count, np.int32),
        row_offsets=np.array([0, count], np.int32),
        slots=np.zeros(1, np.int32),
        positions=np.arange(start, start + count, dtype=np.int32),
        logit_rows=np.array([count - 1], np.int32),
    )
