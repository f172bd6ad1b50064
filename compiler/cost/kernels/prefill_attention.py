"""Attention of a prompt: tiles of scores spread over the compute units, after their set-up.

Work is counted in tiles of 128 queries by 64 keys, those that the causal mask or the window leaves
anything of. Products and exponentials take turns::

    seconds = launches * launch + (queries, keys, values, results) / (memory_share * bandwidth)
              + waves * block_seconds
              + (operations / (compute_share * peak) + exponentials / rate) * idle
"""

from __future__ import annotations

from typing import Final

import numpy as np

from infc.cost.kernels.classes import Array, Columns, ConstantSpec, KernelClass, Times, Values
from infc.cost.kernels.machine import Machine
from infc.cost.kernels.queries import DTYPE_BYTES, PrefillAttention

QUERY_TILE: Final = 128
KEY_TILE: Final = 64

CONSTANTS: Final = (
    ConstantSpec("launches", "1", 1.0, 12.0, "launches that one call costs, preparation included"),
    ConstantSpec("memory_share", "1", 0.3, 1.0, "share of the memory's bandwidth that streams get"),
    ConstantSpec("block_seconds", "s", 5e-7, 1e-5, "to set up and finish one block of queries"),
    ConstantSpec("compute_share_16bit", "1", 0.3, 1.0, "share of the 16-bit peak in products"),
    ConstantSpec("compute_share_8bit", "1", 0.2, 1.0, "share of the 8-bit peak in products"),
    ConstantSpec("exponentials_per_s", "1/s", 5e9, 2e11, "exponentials of one compute unit"),
    ConstantSpec("tail", "1", 0.0, 1.0, "share of the last wave's idle units that is not hidden"),
)
REGIMES: Final = ("launch", "memory", "compute")


def sizes(query: PrefillAttention, machine: Machine) -> dict[str, float]:
    """The sizes of one kernel."""
    unit = machine.unit(arithmetic_dtype(query, machine))
    return {
        "batch": query.batch,
        "length": query.length,
        "past": query.past,
        "heads": query.heads,
        "kv_heads": query.kv_heads,
        "head_dim": query.head_dim,
        "window": query.window,
        "bytes": DTYPE_BYTES[query.dtype],
        "kv_bytes": DTYPE_BYTES[query.kv_dtype],
        "operations_per_s": unit.operations_per_s,
        "units": unit.count,
        "is_8bit": float(DTYPE_BYTES[arithmetic_dtype(query, machine)] < 2),
    }


def arithmetic_dtype(query: PrefillAttention, machine: Machine) -> str:
    """The dtype of keys and values where the chip computes in it, else that of the queries."""
    return query.kv_dtype if query.kv_dtype in machine.units else query.dtype


def score_tiles(rows: Columns) -> Array:
    """Tiles of scores of one head of one sequence that must be computed, `float64[rows]`.

    A block of queries ends at position `last` and sees from `first` on; the sum over blocks is
    taken in closed form, with the ramp of the first blocks and the constant width of the window.
    """
    length, past, window = rows["length"], rows["past"], rows["window"]
    blocks = np.ceil(length / QUERY_TILE)
    ratio = QUERY_TILE / KEY_TILE
    whole = np.ceil(past / KEY_TILE) * blocks + ratio * blocks * (blocks + 1) / 2.0
    # The last block may be ragged: keys behind the last position are never loaded.
    ragged = ratio * blocks - np.ceil(length / KEY_TILE)
    whole = whole - np.maximum(ragged, 0.0)
    width = np.ceil((window + QUERY_TILE) / KEY_TILE) + 1.0
    tiles: Array = np.where(window > 0, np.minimum(whole, blocks * width), whole)
    return tiles


def times(rows: Columns, machine: Machine, constants: Values) -> Times:
    """Seconds of attention over prompts."""
    launch = np.full_like(rows["batch"], constants["launches"] * machine.launch_seconds)
    groups = rows["batch"] * rows["heads"]
    blocks = groups * np.ceil(rows["length"] / QUERY_TILE)
    waves = np.ceil(blocks / rows["units"])
    scores = groups * score_tiles(rows) * QUERY_TILE * KEY_TILE
    share = np.where(
        rows["is_8bit"] > 0, constants["compute_share_8bit"], constants["compute_share_16bit"]
    )
    arithmetic = 4.0 * scores * rows["head_dim"] / (share * rows["operations_per_s"])
    exponentials = scores / (constants["exponentials_per_s"] * rows["units"])
    idle = 1.0 + constants["tail"] * (waves * rows["units"] / blocks - 1.0)
    compute = (arithmetic + exponentials) * idle + waves * constants["block_seconds"]
    tokens = rows["batch"] * rows["length"]
    moved = tokens * 2.0 * rows["heads"] * rows["head_dim"] * rows["bytes"] + tokens * 2.0 * rows[
        "kv_heads"
    ] * rows["head_dim"] * (rows["bytes"] + rows["kv_bytes"])
    memory = moved / (constants["memory_share"] * machine.bytes_per_s)
    body = memory + compute
    regime = np.where(body < launch, 0, np.where(memory > compute, 1, 2))
    return Times(launch + body, {"launch": launch, "memory": memory, "compute": compute}, regime)


PREFILL_ATTENTION: Final = KernelClass(
    "prefill-attention", CONSTANTS, REGIMES, arithmetic_dtype, sizes, times
)
