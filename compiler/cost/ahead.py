"""Weights that are fetched while all units wait for one another.

Where a part of each unit fetches what kernels will read, and waits for free room alone, memory goes
on through barriers, until the room is full. Of `waits` seconds at barriers these hide nothing else
than memory's seconds::

    seconds = rest + fetching + waits - hidden
    hidden  = max(0, min(waits, kernels * room, fetching - using))

`room` is what is fetched until the room is full: its bytes over the memory's bandwidth, less the
memory's latency, for which it is filled in any case. Between two kernels that fetch ahead there are
the waits of `waits / kernels` on average. What was fetched is still to be used, which takes the
units `using` seconds in all, so no more than `fetching - using` can be caught up. No room leaves
the sum of both, endless room (and units that are endlessly fast) the longer of both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from infc.cost.estimate import Estimate, binding_resource
from infc.cost.peaks import memory_bandwidth
from infc.target.schema import Target

_BARRIER = "barrier"


@dataclass(frozen=True)
class Ahead:
    """How far ahead a kernel's weights are fetched.

    Attributes:
        bytes: that there is room for, over all units.
        bytes_per_s: at which all units together use what was fetched.
    """

    bytes: int
    bytes_per_s: int


def hidden_seconds(
    *, waits: float, kernels: float, room: float, fetching: float, using: float
) -> float:
    """Seconds of waits in which weights are fetched; see the module for the names."""
    return max(0.0, min(waits, kernels * max(0.0, room), fetching - using))


def with_fetching_ahead(
    whole: Estimate,
    kernels: Sequence[tuple[Mapping[str, Any], Estimate, float]],
    target: Target,
    threads: int | None,
) -> Estimate:
    """The time of a program whose kernels fetch ahead.

    Args:
        whole: its kernels one after the other.
        kernels: those that fetch ahead, as an artifact lists them, with the time of all their
            launches and how many these are.
        target, threads: as in `estimate_work`.
    """
    if not kernels or not whole.by_resource.get(_BARRIER):
        return whole
    memory = target.holding_memory()
    bandwidth = memory_bandwidth(memory, target, threads)
    waits, launches = whole.by_resource[_BARRIER], sum(count for _, _, count in kernels)
    using = sum(
        kernel["bytes"][memory.name] * count / kernel["ahead"]["bytes_per_s"]
        for kernel, _, count in kernels
    )

    def hidden(share: float, latency_ns: float, using: float) -> float:
        """Where memory reaches a share of its bandwidth."""
        usual = sum(each.by_resource.get(memory.name, 0.0) for _, each, _ in kernels)
        room = sum(kernel["ahead"]["bytes"] * count for kernel, _, count in kernels) / launches
        return hidden_seconds(
            waits=waits,
            kernels=launches,
            room=room / (bandwidth * share) - latency_ns * 1e-9,
            fetching=usual * memory.efficiency.mid / share,
            using=using,
        )

    expected = hidden(memory.efficiency.mid, memory.latency_ns or 0.0, using)
    most = hidden(memory.efficiency.high, 0.0, 0.0)
    # Of two that go on at a time the shorter one is hidden: what is left binds.
    hid = _BARRIER if expected >= waits else memory.name
    busy = {**whole.by_resource, hid: whole.by_resource[hid] - expected}
    busy = {name: seconds for name, seconds in busy.items() if seconds > 0}
    return replace(
        whole,
        low=whole.low - most,
        mid=whole.mid - expected,
        bound=binding_resource(busy),
        by_resource=busy,
    )
