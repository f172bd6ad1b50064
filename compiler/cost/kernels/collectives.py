"""Exchanges between chips: a latency, and each chip's bytes over the link in chunks.

A ring moves `(devices - 1) / devices` of a tensor through every link, twice for an all-reduce. What
travels in chunks pays the pipeline's filling once for the best number of chunks, so that beside the
bytes at the link's rate there is a term in the square root of them::

    ring     = launches * launch + steps * hops * latency of the link
               + wire + 2 sqrt(fill_seconds * wire),   wire = bytes on the wire / (share * link)
    one shot = direct_launches * launch + devices' bytes read at once / (direct_share * link)

An all-reduce takes the faster of the two; the ring in its optimum of chunks is that of Thakur,
Rabenseifner, Gropp (doi 10.1177/1094342005051521).
"""

from __future__ import annotations

from typing import Final

import numpy as np

from infc.cost.kernels.classes import Array, Columns, ConstantSpec, KernelClass, Times, Values
from infc.cost.kernels.machine import Machine
from infc.cost.kernels.queries import Collective
from infc.diagnostics import Code, UserError

_RING: Final = (
    ConstantSpec("launches", "1", 0.5, 6.0, "launches that one call costs"),
    ConstantSpec("hops", "1", 0.01, 10.0, "latencies of the link that a step of the ring takes"),
    ConstantSpec("link_share", "1", 0.4, 1.2, "share of the link's bandwidth that streams get"),
    ConstantSpec("fill_seconds", "s", 1e-8, 1e-4, "to fill the pipeline of chunks"),
)
EXCHANGE_CONSTANTS: Final = _RING
"""Of all but the all-reduce."""
ALL_REDUCE_CONSTANTS: Final = (
    *_RING,
    ConstantSpec("direct_launches", "1", 0.5, 6.0, "launches that a one-shot exchange costs"),
    ConstantSpec("direct_share", "1", 0.2, 1.2, "share of the link that one shot gets"),
)
REGIMES: Final = ("latency", "link")
_WIRE: Final = {
    "all-reduce": 2.0,
    "all-gather": 1.0,
    "reduce-scatter": 1.0,
    "all-to-all": 1.0,
}
"""Parts of `(devices - 1) / devices` of the tensor that pass each link."""


def sizes(query: Collective, machine: Machine) -> dict[str, float]:
    """The sizes of one exchange; of one device with itself there is nothing to do."""
    others = query.devices - 1
    if others and not machine.link:
        raise UserError(
            Code.TARGET_UNSUPPORTED,
            f"target {machine.name!r} has no link, so several of it cannot work together",
            hint="--link NAME gives it one; infc targets lists chips that have links",
        )
    wire, steps = min(others, 1.0), min(others, 1.0)
    if query.kind != "send":
        wire = _WIRE[query.kind] * others / query.devices
        steps = _WIRE[query.kind] * others
    return {
        "bytes": query.bytes,
        "devices": query.devices,
        "wire_bytes": wire * query.bytes,
        "steps": steps,
    }


def exchange_times(rows: Columns, machine: Machine, constants: Values) -> Times:
    """Seconds of exchanges by a ring."""
    launch, hops, link = _ring(rows, machine, constants)
    return _times(rows, launch, hops, link)


def all_reduce_times(rows: Columns, machine: Machine, constants: Values) -> Times:
    """Seconds of all-reduces, in one shot or by a ring."""
    launch, hops, ring_link = _ring(rows, machine, constants)
    latency = np.full_like(launch, constants["direct_launches"] * machine.launch_seconds)
    link = (
        rows["bytes"]
        * (rows["devices"] - 1)
        / (constants["direct_share"] * machine.link_bytes_per_s)
    )
    direct = latency + link < launch + hops + ring_link
    return _times(
        rows,
        np.where(direct, latency, launch),
        np.where(direct, 0.0, hops),
        np.where(direct, link, ring_link),
    )


def _ring(rows: Columns, machine: Machine, constants: Values) -> tuple[Array, Array, Array]:
    """Seconds of launches, of the link's latency and of its bytes, `float64[rows]` each."""
    launch = np.full_like(rows["steps"], constants["launches"] * machine.launch_seconds)
    hops = rows["steps"] * constants["hops"] * machine.link_seconds
    wire = rows["wire_bytes"] / (constants["link_share"] * machine.link_bytes_per_s)
    return launch, hops, wire + 2.0 * np.sqrt(constants["fill_seconds"] * wire)


def _times(rows: Columns, launch: Array, hops: Array, link: Array) -> Times:
    launch, hops, link = (np.where(rows["devices"] > 1, part, 0.0) for part in (launch, hops, link))
    latency = launch + hops
    busy = {"launch": launch, "hops": hops, "link": link}
    return Times(latency + link, busy, np.where(link < latency, 0, 1))


def _dtype(query: Collective, machine: Machine) -> str:
    return ""


ALL_REDUCE: Final = KernelClass(
    "all-reduce", ALL_REDUCE_CONSTANTS, REGIMES, _dtype, sizes, all_reduce_times
)
EXCHANGE: Final = KernelClass(
    "exchange", EXCHANGE_CONSTANTS, REGIMES, _dtype, sizes, exchange_times
)
