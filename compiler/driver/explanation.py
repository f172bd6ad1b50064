"""What is in an artifact: each kernel's work beside its bound, and the map of its memory."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from infc.artifact import open_artifact
from infc.cost.roofline import Work, estimate_work
from infc.target.schema import Target


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


def explain(path: str | Path) -> Explanation:
    """Read an artifact's own report.

    Raises:
        UserError: the artifact cannot be opened.
    """
    with open_artifact(path) as artifact:
        manifest = artifact.manifest
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
                )
            )
        for function, plan in manifest.memory_plan.get(phase, {}).items():
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
