"""From steps to serving: what a request sees among others.

A closed loop: `concurrency` users send a request, wait for its end and send the next. Prefills and
decode steps of all requests share the devices (continuous batching), as many requests run at a time
as their KV caches fit::

    running = min(concurrency, batch, room for the caches of requests with half of their output)
    ahead   = min(running, together + queue_share * running)
    TTFT    = first_token_seconds + decode step + ahead * prefill of one prompt + wait
    TPOT    = decode step of `running` + request_seconds * running
              + (running - ahead) / output tokens * prefill of one prompt
    wait    = (concurrency - running) / running * time of a request    (Little's law)

While one request makes its output, every other one that runs starts once. Some of those prefills
come before the request's own first token: they are `ahead` of it. All others come between its
tokens: what is not in the one time is in the other. Requests that are equally long end and start
together (`together` is then `prompts_ahead`); where lengths vary they do not, and `together` is 1,
one's own prompt. The stages of a pipeline work on different requests: a prefill is in the way of
the others for its time in one stage.

A step with an engine is the work of its kernels, `launch_share` of the launches that were measured
with each kernel alone (engines replay recorded graphs of kernels), `collective_share` of the
measured collectives (engines bring their own), and `layer_seconds` for each block.

With an engine, `low` and `high` are the residuals of measured rows that took no part in its fit,
wider where the target's facts are not those of the measurements (`infc.cost.kernels.predict`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from infc.cost.bounds import ENGINE, QUEUE, Machinery, bounded
from infc.cost.engine import TPOT, TTFT
from infc.cost.estimate import Estimate, binding_resource, total
from infc.cost.kernels.predict import kernel_estimate
from infc.cost.kernels.profile import Profile
from infc.cost.kernels.queries import Collective
from infc.cost.model_shape import ModelShape
from infc.cost.transformer import Rows, Split, step_kernels
from infc.cost.workload import Workload
from infc.target.schema import Target

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]
_LAUNCH = "launch"
_IDEAL: Mapping[str, float] = {
    "request_seconds": 0.0,
    "first_token_seconds": 0.0,
    "prompts_ahead": 1.0,
    "queue_share": 0.0,
}
"""Of no engine: nothing comes before a request but its own prompt."""


@dataclass(frozen=True)
class Served:
    """What requests see.

    Attributes:
        running: requests in prefill or decoding at a time.
        first_token: a request's arrival to its first token, waiting included.
        wait: seconds of it until there was room in the KV cache.
        output_token: from one token of a request to its next.
        tokens_per_s: output of all requests together.
    """

    running: int
    first_token: Estimate
    wait: float
    output_token: Estimate
    tokens_per_s: float


@dataclass(frozen=True)
class StepParts:
    """One step, apart by what an engine changes.

    Attributes:
        work: of the kernels, without their launches.
        launches: of the kernels, as measured with each of them alone.
        exchanges: collectives with all that belongs to them.
    """

    work: Estimate
    launches: Estimate
    exchanges: Estimate


def step_parts(
    shape: ModelShape, split: Split, rows: Rows, target: Target, profile: Profile | None
) -> StepParts:
    """One step of all stages, one after the other, for one group of sequences.

    Raises:
        UserError: the target lacks a dtype or a link (INF3004).
    """
    between = _with_link_of_stages(target, split)
    work, launches, exchanges = [], [], []
    for query, count in step_kernels(shape, split, rows).items():
        if isinstance(query, Collective):
            joined = between if query.kind == "send" else target
            exchanges.append(kernel_estimate(query, joined, profile).scale(count))
        else:
            body, launch = _apart(kernel_estimate(query, target, profile).scale(count))
            work.append(body)
            launches.append(launch)
    return StepParts(total(work), total(launches), total(exchanges))


def step_estimate(shape: ModelShape, split: Split, rows: Rows, machinery: Machinery) -> Estimate:
    """One step with what the engine makes of it; arguments and errors are those of `step_parts`."""
    if machinery.programs is not None:
        return machinery.programs.step(rows, machinery.target)
    parts = step_parts(shape, split, rows, machinery.target, machinery.profile)
    if machinery.engine is None:
        return total([parts.work, parts.launches, parts.exchanges])
    values = machinery.engine.values
    return total(
        [
            parts.work,
            parts.launches.scale(values["launch_share"]),
            parts.exchanges.scale(values["collective_share"]),
            spent(ENGINE, shape.layers * values["layer_seconds"]),
        ]
    )


def _apart(kernel: Estimate) -> tuple[Estimate, Estimate]:
    """The work of a kernel and its launch, each as uncertain as both together."""
    launch = min(kernel.by_resource.get(_LAUNCH, 0.0), kernel.mid)
    busy = {name: seconds for name, seconds in kernel.by_resource.items() if name != _LAUNCH}
    low, high = (
        bound / kernel.mid if kernel.mid > 0 else 0.0 for bound in (kernel.low, kernel.high)
    )
    work = kernel.mid - launch
    return (
        Estimate(low * work, work, high * work, binding_resource(busy), busy),
        Estimate(low * launch, launch, high * launch, _LAUNCH, {_LAUNCH: launch}),
    )


def _with_link_of_stages(target: Target, split: Split) -> Target:
    """The target as stages see it: beyond one machine they send over what joins machines."""
    link = target.link("machines") if split.devices > target.count else None
    if link is None:
        return target
    return target.model_copy(update={"links": (link.model_copy(update={"joins": "chips"}),)})


def serve(
    shape: ModelShape,
    split: Split,
    workload: Workload,
    machinery: Machinery,
    *,
    room: int,
    equal_lengths: bool = True,
) -> Served:
    """What requests see: one batch by itself, or `concurrency` users in a closed loop.

    Args:
        shape, split, machinery: what runs where.
        workload: one user sends `batch` requests at once; several send one each, of which up to
            `batch` run at a time.
        room: requests whose KV caches fit at a time; at least 1.
        equal_lengths: all requests have exactly the prompt and output of the workload, as in most
            benchmarks; otherwise these are means.
    """
    step = lru_cache(None)(lambda rows: step_estimate(shape, split, rows, machinery))
    if workload.concurrency > 1:
        served = _closed_loop(split, workload, machinery, step, room, equal_lengths)
    else:
        served = _one_batch(workload, machinery, step)
    return replace(
        served,
        first_token=bounded(served.first_token, TTFT, split, machinery),
        output_token=bounded(served.output_token, TPOT, split, machinery),
    )


Step = Callable[[Rows], Estimate]


def _one_batch(workload: Workload, machinery: Machinery, step: Step) -> Served:
    """All prompts in one call, then all sequences together."""
    batch, engine = workload.batch, machinery.engine
    first = step(Rows(batch, workload.prompt, workload.context))
    token = step(Rows(batch, 1, workload.mean_decode_context - 1))
    if engine is not None:
        first += spent(ENGINE, engine.values["first_token_seconds"])
        token += spent(ENGINE, batch * engine.values["request_seconds"])
    rate = _tokens_per_s(workload, batch, first, token)
    return Served(batch, first, 0.0, token, rate)


def _closed_loop(
    split: Split,
    workload: Workload,
    machinery: Machinery,
    step: Step,
    room: int,
    equal_lengths: bool,
) -> Served:
    constants = _IDEAL if machinery.engine is None else machinery.engine.values
    users, output = workload.concurrency, max(1, workload.new_tokens)
    running = min(workload.at_once, room)
    group = math.ceil(running / split.pipeline)
    decode = step(Rows(group, 1, workload.mean_decode_context - 1))
    prefill = step(Rows(1, workload.prompt, workload.context))
    ahead, between = map(float, prefills(constants, running, output, equal_lengths=equal_lengths))
    each = spent(ENGINE, running * constants["request_seconds"])
    token = total([decode, prefill.scale(between / split.pipeline), each])
    start = total([decode, prefill.scale(ahead), spent(ENGINE, constants["first_token_seconds"])])
    wait = (users - running) / running * (start.mid + (output - 1) * token.mid)
    first = start + _waiting(wait, token)
    return Served(running, first, wait, token, _tokens_per_s(workload, users, first, token))


def prefills(
    constants: Mapping[str, float],
    running: float | Array,
    output: float | Array,
    *,
    equal_lengths: bool | Flags,
) -> tuple[float | Array, float | Array]:
    """Prefills before a request's first token, its own included, and between two of its tokens.

    Takes and gives numbers, or arrays of equal shape.
    """
    together = np.where(equal_lengths, constants["prompts_ahead"], 1.0)
    ahead = np.minimum(running, together + constants["queue_share"] * running)
    return ahead, (running - ahead) / output


def _waiting(seconds: float, token: Estimate) -> Estimate:
    """A wait for others to end, as uncertain as their tokens are."""
    share = seconds / token.mid if token.mid > 0 else 0.0
    return Estimate(
        token.low * share, seconds, token.high * share, QUEUE, {QUEUE: seconds} if seconds else {}
    )


def _tokens_per_s(workload: Workload, users: int, first: Estimate, token: Estimate) -> float:
    """Output of all users, who send the next request when they have the last one's answer."""
    output = max(1, workload.new_tokens)
    return users * output / (first.mid + (output - 1) * token.mid)


def spent(resource: str, seconds: float) -> Estimate:
    """Seconds of one resource that are taken as known."""
    return Estimate(seconds, seconds, seconds, resource, {resource: seconds} if seconds else {})
