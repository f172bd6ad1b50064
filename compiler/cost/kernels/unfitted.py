"""Kernels on a target that no profile fits: the roofline of their operations and bytes.

Efficiencies are those of the target file. A link has none there; `LINK_SHARE` stands in. What a
launch or a hop takes is known to a factor: `KNOWN_LATENCY` where the figure has a source, which is
of other software than what will run, `ASSUMED_LATENCY` where it is assumed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from infc.cost.estimate import Estimate, binding_resource
from infc.cost.kernels.collectives import sizes as exchange_sizes
from infc.cost.kernels.machine import HOPS, Machine, machine_of
from infc.cost.kernels.queries import (
    DTYPE_BYTES,
    Collective,
    DecodeAttention,
    Gemm,
    PrefillAttention,
    Query,
)
from infc.cost.roofline import Work, estimate_work
from infc.target.schema import Efficiency, Target

LINK_SHARE: Final = Efficiency(low=0.5, mid=0.75, high=1.0)
"""Of a link's bandwidth: what ring exchanges of large tensors reach lies about the middle."""
KNOWN_LATENCY: Final = 1.5
"""A kernel starts after 2.1 us in a stream and 1.3 us in a graph on the same chip (H100)."""
ASSUMED_LATENCY: Final = 3.0
"""So far do launches of chips lie about their middle: 0.2 us of one that is scheduled statically,
2.1 us of a GPU."""


def unfitted_estimate(query: Query, target: Target) -> Estimate:
    """The roofline of one kernel, without energy and rent; raises as `kernel_estimate`."""
    machine = machine_of(target)
    if isinstance(query, Collective):
        return _exchange(query, target, machine)
    work = _work(query, machine)
    found, launch = estimate_work(work, target), work.launches * machine.launch_seconds
    factor = _doubt(target, "launch_ns")
    low, high = found.low - launch + launch / factor, found.high - launch + launch * factor
    return replace(found, low=low, high=high)


def _doubt(target: Target, path: str) -> float:
    """The factor that a latency is known to."""
    while True:
        if path in target.assumptions:
            return ASSUMED_LATENCY
        if path in target.sources or not path:
            return KNOWN_LATENCY
        path = path.rpartition(".")[0]


def _work(query: Query, machine: Machine) -> Work:
    """Bytes of main memory and operations of a kernel, each byte moved once."""
    match query:
        case Gemm(m, n, k, dtype):
            moved = m * k * DTYPE_BYTES[dtype] + query.read_bytes + m * n * DTYPE_BYTES["bf16"]
            return _launched(machine, moved, dtype, 2.0 * m * n * k)
        case PrefillAttention():
            last = query.past + query.length
            seen = query.length * (query.past + last + 1) / 2.0
            if query.window:
                before = max(last - query.window, 0)
                hidden = min(before, query.length)
                seen -= hidden * (2 * before - hidden + 1) / 2.0
            rows, keys = query.batch * query.length, query.batch * last
            operations = 4.0 * query.batch * query.heads * seen * query.head_dim
        case DecodeAttention():
            keys = query.batch * min(query.context, query.window or query.context)
            rows = query.batch
            operations = 4.0 * keys * query.heads * query.head_dim
        case _:
            return Work(bytes={machine.memory: query.bytes}, launches=1)
    moved = 2.0 * rows * query.heads * query.head_dim * DTYPE_BYTES[query.dtype]
    moved += 2.0 * keys * query.kv_heads * query.head_dim * DTYPE_BYTES[query.kv_dtype]
    dtype = query.kv_dtype if query.kv_dtype in machine.units else query.dtype
    return _launched(machine, moved, dtype, operations)


def _launched(machine: Machine, moved: float, dtype: str, operations: float) -> Work:
    return Work(bytes={machine.memory: moved}, operations={dtype: operations}, launches=1)


def _exchange(query: Collective, target: Target, machine: Machine) -> Estimate:
    """A launch, the latency of every step, and the bytes on the wire."""
    sizes = exchange_sizes(query, machine)
    launch = hops = wire = 0.0
    if sizes["steps"]:
        launch, hops = machine.launch_seconds, sizes["steps"] * machine.link_seconds
        wire = sizes["wire_bytes"] / machine.link_bytes_per_s
    known = (
        (launch, _doubt(target, "launch_ns")),
        (hops, _doubt(target, f"links.{machine.link}.latency_ns")),
    )
    by_resource = {"launch": launch, HOPS: hops, machine.link: wire / LINK_SHARE.mid}
    return Estimate(
        sum(seconds / factor for seconds, factor in known) + wire / LINK_SHARE.high,
        launch + hops + wire / LINK_SHARE.mid,
        sum(seconds * factor for seconds, factor in known) + wire / LINK_SHARE.low,
        binding_resource(by_resource),
        {name: seconds for name, seconds in by_resource.items() if seconds > 0},
    )
