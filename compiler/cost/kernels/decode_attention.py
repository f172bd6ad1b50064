"""Attention of one new position: reading the KV cache, beside the latency of walking along it.

Query heads that share a key head are computed together where a tile holds them. The cache of a
sequence is split over idle compute units, at the price of a reduction::

    walk    = min over splits of  waves * (block_seconds + ceil(context / 128 / splits) * step)
              + reduction where split
    memory  = (keys + values + queries + results) / (memory_share * bandwidth)
    seconds = launches * launch + (walk^p + memory^p)^(1/p)
"""

from __future__ import annotations

from typing import Final

import numpy as np

from infc.cost.kernels.classes import Columns, ConstantSpec, KernelClass, Times, Values
from infc.cost.kernels.machine import Machine
from infc.cost.kernels.queries import DTYPE_BYTES, DecodeAttention

STEP: Final = 128
"""Positions of the cache that one step reads."""
LARGEST_GROUP: Final = 32
"""Query heads of one key head that one block computes together."""
_SPLITS: Final = 2.0 ** np.arange(9)

CONSTANTS: Final = (
    ConstantSpec("launches", "1", 0.5, 6.0, "launches that one call costs"),
    ConstantSpec("memory_share", "1", 0.5, 1.0, "share of the memory's bandwidth that streams get"),
    ConstantSpec("block_seconds", "s", 5e-7, 1e-5, "to set up and finish one block of heads"),
    ConstantSpec("step_seconds", "s", 5e-8, 3e-6, "latency of one step along the cache"),
    ConstantSpec("split_seconds", "s", 5e-7, 1e-5, "to add the parts of a split sequence"),
    ConstantSpec("overlap", "1", 1.0, 10.0, "exponent p: 1 in turns, large at the same time"),
)
REGIMES: Final = ("launch", "memory", "walk")


def sizes(query: DecodeAttention, machine: Machine) -> dict[str, float]:
    """The sizes of one kernel."""
    unit = machine.unit(query.dtype)
    return {
        "batch": query.batch,
        "context": min(query.context, query.window) if query.window else query.context,
        "heads": query.heads,
        "kv_heads": query.kv_heads,
        "head_dim": query.head_dim,
        "bytes": DTYPE_BYTES[query.dtype],
        "kv_bytes": DTYPE_BYTES[query.kv_dtype],
        "units": unit.count,
    }


def times(rows: Columns, machine: Machine, constants: Values) -> Times:
    """Seconds of attention in decoding."""
    launch = np.full_like(rows["batch"], constants["launches"] * machine.launch_seconds)
    group = rows["heads"] / rows["kv_heads"]
    grouped = (group > 1) & (group <= LARGEST_GROUP)
    blocks = (rows["batch"] * np.where(grouped, rows["kv_heads"], rows["heads"]))[:, None]
    steps = np.ceil(rows["context"] / STEP)[:, None]
    waves = np.ceil(blocks * _SPLITS / rows["units"][:, None])
    walks = waves * (
        constants["block_seconds"] + np.ceil(steps / _SPLITS) * constants["step_seconds"]
    ) + np.where(_SPLITS > 1, constants["split_seconds"], 0.0)
    walk = walks.min(axis=1)
    moved = (
        rows["batch"]
        * rows["head_dim"]
        * 2.0
        * (rows["context"] * rows["kv_heads"] * rows["kv_bytes"] + rows["heads"] * rows["bytes"])
    )
    memory = moved / (constants["memory_share"] * machine.bytes_per_s)
    p = constants["overlap"]
    body = (walk**p + memory**p) ** (1.0 / p)
    regime = np.where(body < launch, 0, np.where(memory > walk, 1, 2))
    return Times(launch + body, {"launch": launch, "memory": memory, "compute": walk}, regime)


def _dtype(query: DecodeAttention, machine: Machine) -> str:
    return query.dtype


DECODE_ATTENTION: Final = KernelClass("decode-attention", CONSTANTS, REGIMES, _dtype, sizes, times)
