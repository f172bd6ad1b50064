"""What an artifact's cost estimate says of a given use."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from infc.artifact import Artifact
from infc.cost.ahead import with_fetching_ahead
from infc.cost.estimate import Estimate, total
from infc.cost.roofline import Work, estimate_work
from infc.driver.sections import check_sections
from infc.target.backend import CallPrediction, PredictingBackend
from infc.target.discovery import load_backend
from infc.target.schema import Target

Output = Literal["argmax", "logits"]
_PREFILL_SAMPLES = 64
"""Calls of a prompt that are estimated one by one: longer ones have few contexts for all."""
_DECODE_SAMPLES = 8
"""Contexts at which decoding is estimated: time grows with the context, and bends at windows."""


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


@dataclass(frozen=True)
class Turns:
    """Calls of a phase that are alike.

    Attributes:
        calls: how many.
        tokens: of each one; of decode calls, of as many sequences.
        context: positions behind each one.
    """

    calls: float
    tokens: int
    context: int


@dataclass(frozen=True)
class Slowdown:
    """How many times as long as predicted kernels took at some time.

    Attributes:
        classes: by class of kernel.
        others: of all other kernels, and of calls themselves.
    """

    classes: Mapping[str, float] = field(default_factory=dict)
    others: float = 1.0


UNDISTURBED = Slowdown()


def predict(
    artifact: Artifact,
    *,
    prompt_tokens: int,
    new_tokens: int,
    threads: int,
    output: Output = "argmax",
    slowdowns: Mapping[str, Slowdown] = MappingProxyType({}),
) -> dict[str, PhasePrediction | None]:
    """Predictions of generation for both phases; None where the artifact holds no estimate.

    Args:
        output: what calls are asked for: the best token, or the logits of all. Backends that
            predict whole calls take the best token for both.
        slowdowns: of a machine that was disturbed, by phase; not for backends that predict whole
            calls.

    Raises:
        UserError: as `check_sections`.
    """
    check_sections(artifact)
    return _predict(artifact, None, prompt_tokens, new_tokens, threads, output, slowdowns)


def predict_on(
    artifact: Artifact,
    target: Target,
    *,
    prompt_tokens: int,
    new_tokens: int,
    threads: int,
    output: Output = "argmax",
) -> dict[str, PhasePrediction | None]:
    """As `predict`, of both phases on another target than the artifact was compiled for."""
    check_sections(artifact)
    return _predict(artifact, target, prompt_tokens, new_tokens, threads, output, {})


def _predict(
    artifact: Artifact,
    target: Target | None,
    prompt_tokens: int,
    new_tokens: int,
    threads: int,
    output: Output,
    slowdowns: Mapping[str, Slowdown],
) -> dict[str, PhasePrediction | None]:
    limits = artifact.manifest.programs["prefill"]
    chunk = int(limits["max_tokens"][0])
    turns = {
        "prefill": prefill_turns(prompt_tokens, chunk),
        "decode": decode_turns(prompt_tokens, new_tokens),
    }
    return {
        phase: _predict_phase(
            artifact,
            phase,
            each,
            target or phase_target(artifact, phase),
            threads,
            output,
            slowdowns.get(phase, UNDISTURBED),
        )
        for phase, each in turns.items()
    }


def phase_target(artifact: Artifact, phase: str) -> Target:
    """What a phase was compiled for."""
    return Target.from_json(json.dumps(artifact.manifest.targets[phase]))


def prefill_turns(prompt: int, chunk: int, past: int = 0) -> list[Turns]:
    """A prompt in pieces of a call's size, behind so many positions; of a very long one several
    pieces stand for those around them, but the last for itself."""
    whole = max(0, prompt - 1) // chunk
    size = max(1, -(-whole // _PREFILL_SAMPLES))
    groups = [(first, min(size, whole - first)) for first in range(0, whole, size)]
    turns = [
        Turns(count, chunk, past + chunk * (first + count // 2 + 1)) for first, count in groups
    ]
    return [*turns, Turns(1, prompt - whole * chunk, past + prompt)] if prompt else []


def decode_turns(prompt: int, new_tokens: int) -> list[Turns]:
    """Tokens one after the other, at a few contexts that stand for all."""
    samples = min(new_tokens, _DECODE_SAMPLES)
    step = new_tokens / samples
    return [Turns(step, 1, prompt + round((i + 0.5) * step + 0.5)) for i in range(samples)]


def _predict_phase(
    artifact: Artifact,
    phase: str,
    turns: Sequence[Turns],
    target: Target,
    threads: int,
    output: Output,
    slowdown: Slowdown,
) -> PhasePrediction | None:
    kernels = kernels_for(artifact.manifest.cost_estimate.get(phase, []), output)
    if not kernels:
        return _predict_whole(artifact, phase, turns, target)
    calls = round(sum(turn.calls for turn in turns))
    tokens = round(sum(turn.calls * turn.tokens for turn in turns))
    works = [(scaled_work(k, phase, calls, tokens), k["launches"]) for k in kernels]
    # A program takes all units of a machine but those of the host, which threads stand for.
    units = threads if target.kind == "cpu" else None
    whole = program_seconds(kernels, phase, turns, target, units, slowdown)
    return PhasePrediction(
        seconds=whole.mid,
        seconds_low=whole.low,
        seconds_high=whole.high,
        bytes=sum(sum(work.bytes.values()) * count for work, count in works),
        operations=sum(sum(work.operations.values()) * count for work, count in works),
        bound=whole.bound,
    )


def program_seconds(
    kernels: Sequence[Mapping[str, Any]],
    phase: str,
    turns: Sequence[Turns],
    target: Target,
    threads: int | None,
    slowdown: Slowdown = UNDISTURBED,
) -> Estimate:
    """All calls of a program, by its kernels; `threads` as in `estimate_work`."""
    calls = sum(turn.calls for turn in turns)
    estimates = [
        kernel_seconds(kernel, phase, turns, target, threads).scale(
            kernel["launches"]
            * slowdown.classes.get(class_of(kernel, phase, turns), slowdown.others)
        )
        for kernel in kernels
    ]
    launches = estimate_work(Work(launches=round(calls)), target, threads).scale(slowdown.others)
    ahead = [
        (kernel, estimate, calls * kernel["launches"])
        for kernel, estimate in zip(kernels, estimates, strict=True)
        if "ahead" in kernel
    ]
    return with_fetching_ahead(total([launches, *estimates]), ahead, target, threads)


def _predict_whole(
    artifact: Artifact, phase: str, turns: Sequence[Turns], target: Target
) -> PhasePrediction | None:
    """A phase of programs whose time is no sum over kernels, by their backend."""
    calls = [
        (turn.calls, predict_call(artifact, phase, turn, target, wanted=turn is turns[-1]))
        for turn in turns
    ]
    known = [(count, call) for count, call in calls if call is not None]
    if not known:
        return None
    whole = total(call.time.scale(count) for count, call in known)
    return PhasePrediction(
        seconds=whole.mid,
        seconds_low=whole.low,
        seconds_high=whole.high,
        bytes=sum(count * call.bytes for count, call in known),
        operations=sum(count * call.operations for count, call in known),
        bound=whole.bound,
    )


def predict_call(
    artifact: Artifact, phase: str, turn: Turns, target: Target, *, wanted: bool
) -> CallPrediction | None:
    """One call, where the target's backend predicts whole calls.

    Args:
        wanted: whether a prefill call is asked for the next token.
    """
    backend = load_backend(target.backend)
    if not isinstance(backend, PredictingBackend):
        return None
    with artifact.named():
        return backend.predict_call(
            artifact.manifest.programs[phase],
            target,
            phase,
            tokens=turn.tokens,
            position=turn.context - turn.tokens,
            logit_rows=int(wanted or phase == "decode"),
        )


def greedy_kernels(artifact: Artifact, phase: str) -> list[Mapping[str, Any]]:
    """The kernels that run where a call asks for the best token."""
    return kernels_for(artifact.manifest.cost_estimate.get(phase, []), "argmax")


def kernels_for(kernels: Sequence[Mapping[str, Any]], output: Output) -> list[Mapping[str, Any]]:
    """Those of a program's kernels that run where a call asks for an output."""
    return [kernel for kernel in kernels if output in kernel["outputs"]]


def kernel_seconds(
    kernel: Mapping[str, Any],
    phase: str,
    turns: Sequence[Turns],
    target: Target,
    threads: int | None,
) -> Estimate:
    """One launch of a kernel in each call: by its class where the target was measured, else by the
    roofline of all calls together."""
    if kernel.get("class", "") in target.kernels:
        return total(
            estimate_work(sized_work(kernel, phase, turn), target, threads).scale(turn.calls)
            for turn in turns
        )
    calls = round(sum(turn.calls for turn in turns))
    tokens = round(sum(turn.calls * turn.tokens for turn in turns))
    return estimate_work(scaled_work(kernel, phase, calls, tokens), target, threads)


def class_of(kernel: Mapping[str, Any], phase: str, turns: Sequence[Turns]) -> str:
    """The class that the first calls of a kernel are of; empty where it has none."""
    return sized_work(kernel, phase, turns[0]).kernel if kernel.get("class") else ""


def sized_work(kernel: Mapping[str, Any], phase: str, turn: Turns) -> Work:
    """A kernel's work in one call, with the sizes that the call has."""
    work = scaled_work(kernel, phase, 1, turn.tokens)
    sizes = dict(kernel["sizes"])
    if phase == "decode" or int(kernel["rows"]) > 1:
        sizes["rows"] = turn.tokens
    if "context" in sizes:
        sizes["context"] = turn.context
        sizes["caches"] = turn.tokens if _has_a_cache_each(kernel, phase) else 1
    name = kernel["class"]
    for way in kernel.get("ways", ()):
        if way["rows"] <= sizes["rows"]:
            name, sizes["height"] = way["kernel"], way["height"]
    return Work(work.bytes, work.operations, 0, work.barriers, name, sizes)


def scaled_work(kernel: Mapping[str, Any], phase: str, calls: int, tokens: int) -> Work:
    """A kernel's work for all calls of a phase, one launch a call.

    Weights are read once a call, in decoding the cache of each sequence too, a head that is
    searched as far as its one row takes; operations grow with the tokens, those of attention in
    prefill with their square. Kernels that work on logit rows keep their rows: only the last
    position's are made.
    """
    rows = int(kernel["rows"])
    factor = tokens / rows if phase == "decode" or rows > 1 else 1.0
    if kernel["kind"] == "attention" and phase == "prefill":
        factor *= tokens / rows
    reads = tokens / rows if _has_a_cache_each(kernel, phase) else calls
    sizes, moved = kernel.get("sizes", {}), kernel["bytes"]
    if "searched_bytes" in sizes:
        alone = tokens == calls if phase == "decode" else rows == 1
        moved = dict.fromkeys(moved, sizes["searched_bytes" if alone else "whole_bytes"])
    return Work(
        bytes={name: count * reads for name, count in moved.items()},
        operations={name: count * factor for name, count in kernel["operations"].items()},
        barriers=int(kernel["barriers"]) * calls,
    )


def _has_a_cache_each(kernel: Mapping[str, Any], phase: str) -> bool:
    """Whether the tokens of a call are those of sequences with a cache of their own."""
    return bool(kernel["kind"] == "attention" and phase == "decode")
