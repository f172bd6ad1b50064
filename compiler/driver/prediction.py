"""What an artifact's cost estimate says of a given use."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from infc.artifact import Artifact
from infc.cost.estimate import Estimate, total
from infc.cost.roofline import Work, estimate_work
from infc.target.schema import Target


@dataclass(frozen=True)
class PhasePrediction:
    """One phase, all its tokens together.

    Attributes:
        seconds, seconds_low, seconds_high: expected time and its bounds.
        bytes: moved from and to the largest memory.
        operations: of all dtypes.
        bound: the resource that binds.
    """

    seconds: float
    seconds_low: float
    seconds_high: float
    bytes: float
    operations: float
    bound: str


def predict(
    artifact: Artifact, *, prompt_tokens: int, new_tokens: int, threads: int
) -> dict[str, PhasePrediction | None]:
    """Predictions of greedy generation for both phases; None where the artifact holds no
    estimate."""
    limits = artifact.manifest.programs["prefill"]
    chunk = int(limits["max_tokens"][0])
    calls = {"prefill": -(-prompt_tokens // chunk), "decode": new_tokens}
    tokens = {"prefill": prompt_tokens, "decode": new_tokens}
    return {
        phase: _predict_phase(artifact, phase, calls[phase], tokens[phase], threads)
        for phase in calls
    }


def _predict_phase(
    artifact: Artifact, phase: str, calls: int, tokens: int, threads: int
) -> PhasePrediction | None:
    kernels = greedy_kernels(artifact, phase)
    if not kernels:
        return None
    target = Target.from_json(json.dumps(artifact.manifest.targets[phase]))
    works = [(scaled_work(k, phase, calls, tokens), k["launches"]) for k in kernels]
    estimates = [estimate_work(work, target, threads).scale(count) for work, count in works]
    program = estimate_work(Work(launches=calls), target, threads)
    whole: Estimate = total([program, *estimates])
    return PhasePrediction(
        seconds=whole.mid,
        seconds_low=whole.low,
        seconds_high=whole.high,
        bytes=sum(sum(work.bytes.values()) * count for work, count in works),
        operations=sum(sum(work.operations.values()) * count for work, count in works),
        bound=whole.bound,
    )


def greedy_kernels(artifact: Artifact, phase: str) -> list[Mapping[str, Any]]:
    """The kernels that run where a call asks for the best token."""
    kernels: list[Mapping[str, Any]] = artifact.manifest.cost_estimate.get(phase, [])
    return [kernel for kernel in kernels if "argmax" in kernel["outputs"]]


def scaled_work(kernel: Mapping[str, Any], phase: str, calls: int, tokens: int) -> Work:
    """A kernel's work for all calls of a phase, one launch a call.

    Weights are read once a call; operations grow with the tokens, those of attention in prefill
    with their square. Kernels that work on logit rows keep their rows: only the last position's
    are made.
    """
    rows = int(kernel["rows"])
    factor = tokens / rows if phase == "decode" or rows > 1 else 1.0
    if kernel["kind"] == "attention" and phase == "prefill":
        factor *= tokens / rows
    return Work(
        bytes={name: moved * calls for name, moved in kernel["bytes"].items()},
        operations={name: count * factor for name, count in kernel["operations"].items()},
        barriers=int(kernel["barriers"]) * calls,
    )
