"""Attention of one new position: reading the KV cache, beside the latency of walking along it.

Engines have two kernels. A *grouped* one computes the query heads of one key head together on
matrix units and exists for groups of 2 to 32; with a 16-bit cache it is chosen only where its
blocks fill a quarter of the chip. A *plain* one computes each query head alone, element by element.
Both split long sequences over idle units and add the parts up::

    blocks  = batch * key heads (grouped) or batch * heads (plain);   load = blocks * splits / units
    walk    = max(load, 1) * block_seconds + max(load / resident, 1) * walk of one part
              + splits * split_seconds, where there are several
    memory  = (keys + values + queries + results) / (memory_share * bandwidth)
    seconds = launches * launch + (walk^p + memory^p)^(1/p)

The set-up of a grouped block grows with its tile of queries: head elements, rounded up to a power
of two, times rows, rounded up to 16 for a 16-bit cache and to 8 for an 8-bit one. The rules for
choosing kernel and splits are those of the engine that was measured (TensorRT-LLM's XQA runner).
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from infc.cost.kernels.classes import Array, Columns, ConstantSpec, KernelClass, Times, Values
from infc.cost.kernels.machine import Machine
from infc.cost.kernels.queries import DTYPE_BYTES, DecodeAttention

LARGEST_GROUP: Final = 32
"""Query heads of one key head that the grouped kernel takes."""
PART: Final = 128
"""Positions that a part of a split sequence has at least."""
FILL: Final = 4
"""The grouped kernel is worth it where its blocks fill one in so many units."""
MOST_WAVES: Final = 8
"""Splitting stops at so many blocks a unit, and at the root of so many times the units."""
WIDE_HEAD: Final = 128
"""Elements of a head from which the grouped kernel has a wide tile for an 8-bit cache."""
_PLAIN_SPLITS: Final = 2.0 ** np.arange(8)

CONSTANTS: Final = (
    ConstantSpec("launches", "1", 0.5, 6.0, "launches that one call costs"),
    ConstantSpec("memory_share", "1", 0.5, 1.0, "share of the memory's bandwidth that streams get"),
    ConstantSpec("overlap", "1", 1.0, 10.0, "exponent p: 1 in turns, large at the same time"),
    ConstantSpec("resident", "1", 1.0, 8.0, "blocks that one unit walks at the same time"),
    ConstantSpec("split_seconds", "s", 1e-8, 1e-6, "to add one more part of a split sequence"),
    ConstantSpec("plain_seconds", "s", 1e-7, 1e-5, "to prepare a kernel without a wide 8-bit tile"),
    ConstantSpec("plain_block_seconds", "s", 1e-7, 1e-5, "to set up one query head"),
    ConstantSpec("plain_elements_per_s", "1/s", 1e9, 1e11, "cache elements that one block walks"),
    ConstantSpec(
        "block_seconds_16bit", "s", 1e-7, 1e-5, "to set up one grouped block, 16-bit cache"
    ),
    ConstantSpec("block_seconds_8bit", "s", 1e-8, 1e-5, "to set up one grouped block, 8-bit cache"),
    ConstantSpec("tile_elements_per_s", "1/s", 1e8, 1e11, "query elements of a tile set up"),
    ConstantSpec("grouped_bytes_per_s", "B/s", 1e9, 1e12, "cache that one grouped block walks"),
)
REGIMES: Final = ("launch", "memory", "walk")


def sizes(query: DecodeAttention, machine: Machine) -> dict[str, float]:
    """The sizes of one kernel."""
    unit = machine.unit(query.dtype)
    return {
        "batch": query.batch,
        "context": query.context,
        "seen": min(query.context, query.window) if query.window else query.context,
        "heads": query.heads,
        "kv_heads": query.kv_heads,
        "head_dim": query.head_dim,
        "bytes": DTYPE_BYTES[query.dtype],
        "kv_bytes": DTYPE_BYTES[query.kv_dtype],
        "units": unit.count,
    }


def times(rows: Columns, machine: Machine, constants: Values) -> Times:
    """Seconds of attention in decoding."""
    grouped, wide = is_grouped(rows), rows["head_dim"] >= WIDE_HEAD
    walk = np.where(grouped, _grouped_walk(rows, constants), _plain_walk(rows, constants))
    is_8bit = rows["kv_bytes"] < 2
    walk = walk + np.where(grouped & (wide | ~is_8bit), 0.0, constants["plain_seconds"])
    moved = (
        2.0
        * rows["batch"]
        * rows["head_dim"]
        * (rows["seen"] * rows["kv_heads"] * rows["kv_bytes"] + rows["heads"] * rows["bytes"])
    )
    memory = moved / (constants["memory_share"] * machine.bytes_per_s)
    p = constants["overlap"]
    launch = np.full_like(walk, constants["launches"] * machine.launch_seconds)
    body = (walk**p + memory**p) ** (1.0 / p)
    regime = np.where(body < launch, 0, np.where(memory > walk, 1, 2))
    return Times(launch + body, {"launch": launch, "memory": memory, "compute": walk}, regime)


def is_grouped(rows: Columns) -> NDArray[np.bool_]:
    """Which kernels compute the heads of a group together, `bool[rows]`."""
    group = rows["heads"] / rows["kv_heads"]
    parts = rows["batch"] * rows["kv_heads"] * np.maximum(1.0, rows["context"] // PART)
    fills = (parts * FILL >= rows["units"]) | (rows["kv_bytes"] < 2)
    grouped: NDArray[np.bool_] = (group > 1) & (group <= LARGEST_GROUP) & fills
    return grouped


def _grouped_walk(rows: Columns, constants: Values) -> Array:
    """Seconds of blocks that hold a group each, `float64[rows]`."""
    is_8bit = rows["kv_bytes"] < 2
    blocks, units = rows["batch"] * rows["kv_heads"], rows["units"]
    # With an 8-bit cache, positions before the window are skipped; with a 16-bit one, blocks are
    # laid out over the whole context, and those before the window find nothing to do.
    span = np.where(is_8bit, rows["seen"], rows["context"])
    splits = np.minimum(np.maximum(1.0, span // PART), np.ceil(np.sqrt(MOST_WAVES * units)))
    splits = np.clip(np.floor(MOST_WAVES * units / blocks), 1.0, splits)
    tile_rows = np.where(is_8bit, 8.0, 16.0)
    row_tiles = np.ceil(rows["heads"] / rows["kv_heads"] / tile_rows)
    padded = 2.0 ** np.ceil(np.log2(rows["head_dim"]))
    block = np.where(is_8bit, constants["block_seconds_8bit"], constants["block_seconds_16bit"])
    block = block + padded * tile_rows * row_tiles / constants["tile_elements_per_s"]
    load = blocks * splits / units
    set_up = np.where(is_8bit, np.maximum(load, 1.0), np.ceil(load)) * block
    part_bytes = np.minimum(span / splits, rows["seen"]) * 2.0 * rows["head_dim"] * rows["kv_bytes"]
    part = part_bytes * row_tiles / constants["grouped_bytes_per_s"]
    adding = np.where(splits > 1, constants["split_seconds"] * splits, 0.0)
    walk: Array = set_up + np.maximum(load / constants["resident"], 1.0) * part + adding
    return walk


def _plain_walk(rows: Columns, constants: Values) -> Array:
    """Seconds of blocks of one query head each, in the best of all splits, `float64[rows]`."""
    blocks = rows["batch"] * rows["heads"]
    load = blocks[:, None] * _PLAIN_SPLITS / rows["units"][:, None]
    elements = (rows["seen"] * 2.0 * rows["head_dim"])[:, None] / _PLAIN_SPLITS
    part = elements / constants["plain_elements_per_s"]
    walk = (
        np.maximum(load, 1.0) * constants["plain_block_seconds"]
        + np.maximum(load / constants["resident"], 1.0) * part
        + np.where(_PLAIN_SPLITS > 1, constants["split_seconds"] * _PLAIN_SPLITS, 0.0)
    )
    best: Array = walk.min(axis=1)
    return best


def _dtype(query: DecodeAttention, machine: Machine) -> str:
    return query.dtype


DECODE_ATTENTION: Final = KernelClass("decode-attention", CONSTANTS, REGIMES, _dtype, sizes, times)
