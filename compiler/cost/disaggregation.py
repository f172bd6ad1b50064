"""Prefill on one kind of device, decoding on another, the KV cache handed over between machines.

    first token = prefill of the prompts + KV cache of the prompts over the slower of the two links
    token       = decode step of the requests that run, with no prefill between
    requests/s  = the least of what the prefill machine starts, what the decode machine ends, and
                  what the users ask for in a closed loop

The cache goes over the links between machines of all devices of either side at once, after the
prefill; that what is made first could go first is left out. (Zhong et al.: DistServe,
arXiv 2401.09670; Patel et al.: Splitwise, arXiv 2311.18677.)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from infc.cost.deployment import DeploymentEstimate, power_watts
from infc.cost.estimate import Estimate, binding_resource
from infc.cost.model_shape import ModelShape
from infc.cost.workload import Workload
from infc.diagnostics import Code, UserError
from infc.target.schema import Link, Target

TRANSFER = "kv transfer"
"""The resource that the hand-over is booked under."""
_QUEUE = "queue"


@dataclass(frozen=True)
class Side:
    """One phase on its devices.

    Attributes:
        target: one of the devices.
        estimate: of this phase's part of the workload, see `prefill_part` and `decode_part`.
    """

    target: Target
    estimate: DeploymentEstimate

    @property
    def devices(self) -> int:
        """All of them."""
        return self.estimate.split.devices


@dataclass(frozen=True)
class Handover:
    """What lies between the phases.

    Attributes:
        seconds: that the KV cache of a prefill is on its way.
        bytes: of that cache.
        busiest: `prefill`, `decode` or `users`: what limits the requests per second.
    """

    seconds: float
    bytes: int
    busiest: str


def prefill_part(workload: Workload) -> Workload:
    """What the prefill machine does at a time: the prompts of a batch, or of one of the users."""
    batch = 1 if workload.concurrency > 1 else workload.batch
    return Workload(batch, workload.prompt, 0, workload.context)


def decode_part(workload: Workload) -> Workload:
    """What the decode machine does at a time: one token of every running request."""
    running = workload.at_once
    return Workload(running, workload.prompt, workload.new_tokens, workload.context)


def disaggregate(
    shape: ModelShape, workload: Workload, prefill: Side, decode: Side
) -> tuple[DeploymentEstimate, Handover]:
    """Both sides as one deployment, whose split and memory are those of the decode side.

    Raises:
        UserError: a target has no link between machines (INF3004).
    """
    batch = prefill_part(workload).batch
    length = workload.context + workload.prompt
    position, ring = shape.kv_bytes(length, decode.estimate.split.kv_dtype)
    moved = batch * (ring + position * length)
    transfer = _transfer_seconds(moved, prefill, decode)
    start, token = prefill.estimate.ttft, decode.estimate.tpot
    output, running = max(1, workload.new_tokens), decode_part(workload).batch
    request = start.mid + transfer + (output - 1) * token.mid
    rates = {"users": running / request, "prefill": batch / start.mid}
    rates["decode"] = running / (max(1, output - 1) * token.mid)
    if workload.concurrency == 1:
        rates = {"users": rates["users"]}  # a batch by itself has nothing to overlap with
    busiest = min(rates, key=lambda name: rates[name])
    wait = max(0.0, running / rates[busiest] - request)
    rate = output * rates[busiest]
    sides = (prefill, decode)
    watts = _sum((power_watts(side.target), side.devices) for side in sides)
    price = _sum((side.target.price_usd_per_hour, side.devices) for side in sides)
    both = (prefill.estimate, decode.estimate)
    estimate = replace(
        decode.estimate,
        ttft=_later(_later(start, TRANSFER, transfer), _QUEUE, wait),
        running=running,
        wait_seconds=wait,
        tokens_per_s=rate,
        tokens_per_s_per_watt=None if watts is None else rate / watts,
        power_basis="; ".join(dict.fromkeys(part.power_basis for part in both)),
        dollars_per_million_tokens=None if price is None else price / 3600.0 / rate * 1e6,
        memory_bytes=sum(part.memory_bytes for part in both),
        fits=all(part.fits for part in both),
        assumptions=(
            *dict.fromkeys(text for part in both for text in part.assumptions),
            "the KV cache is handed over after the whole prefill, over the links between machines",
        ),
    )
    return estimate, Handover(transfer, round(moved), busiest)


def _transfer_seconds(moved: float, prefill: Side, decode: Side) -> float:
    """Of so many bytes over the slower side, with the latency of both."""
    links = [(_link(side.target), side.devices) for side in (prefill, decode)]
    slower = min(link.bandwidth_bytes_per_s * devices for link, devices in links)
    return moved / slower + sum(link.latency_ns for link, _ in links) * 1e-9


def _link(target: Target) -> Link:
    link = target.link("machines")
    if link is None:
        raise UserError(
            Code.TARGET_UNSUPPORTED,
            f"target {target.name!r} has no link between machines for the KV cache",
            hint='a target file needs [[links]] with joins = "machines"',
        )
    return link


def _later(times: Estimate, resource: str, seconds: float) -> Estimate:
    """The same work after so many seconds of one resource."""
    busy = dict(times.by_resource) | ({resource: seconds} if seconds else {})
    return replace(
        times,
        low=times.low + seconds,
        mid=times.mid + seconds,
        high=times.high + seconds,
        bound=binding_resource(busy),
        by_resource=busy,
    )


def _sum(each: Iterable[tuple[float | None, int]]) -> float | None:
    """Of all devices, unless one side's figure is not known."""
    parts = [(value, devices) for value, devices in each]
    known = [value * devices for value, devices in parts if value is not None]
    return sum(known) if len(known) == len(parts) else None
