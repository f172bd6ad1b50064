"""Attention of a prompt: blocks of queries spread over the compute units, after their set-up.

Work is counted in tiles of 128 queries by 64 keys, those that the causal mask or the window leaves
anything of. Products and exponentials take turns, and blocks differ in length, so that the chip
waits for part of the longest one at the end (Graham's bound, doi 10.1137/0117039)::

    block   = block_seconds (+ window_seconds)
              + tiles * (operations / (compute_share * peak) + exponentials / rate)
    compute = mean over units of their blocks + tail * longest block
    memory  = (inputs read, queries written again, results written) / (memory_share * bandwidth)
    seconds = launches * launch + memory + compute

A window masks tiles on both ends of each block, which costs `window_seconds`.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from infc.cost.kernels.classes import Array, Columns, ConstantSpec, KernelClass, Times, Values
from infc.cost.kernels.machine import Machine
from infc.cost.kernels.queries import DTYPE_BYTES, PrefillAttention

QUERY_TILE: Final = 128
KEY_TILE: Final = 64
_INPUT_BYTES: Final = 2.0
_RESULT_BYTES: Final = 2.0

CONSTANTS: Final = (
    ConstantSpec("launches", "1", 1.0, 12.0, "launches that one call costs, preparation included"),
    ConstantSpec("memory_share", "1", 0.3, 1.0, "share of the memory's bandwidth that streams get"),
    ConstantSpec("block_seconds", "s", 5e-7, 1e-5, "to set up and finish one block of queries"),
    ConstantSpec("window_seconds_16bit", "s", 1e-8, 2e-5, "masking a block's tiles, 16-bit keys"),
    ConstantSpec("window_seconds_8bit", "s", 1e-8, 2e-5, "masking a block's tiles, 8-bit keys"),
    ConstantSpec("compute_share_16bit", "1", 0.3, 1.0, "share of the 16-bit peak in products"),
    ConstantSpec("compute_share_8bit", "1", 0.2, 1.0, "share of the 8-bit peak in products"),
    ConstantSpec("exponentials_per_s_16bit", "1/s", 5e9, 2e11, "of one unit, 16-bit keys"),
    ConstantSpec("exponentials_per_s_8bit", "1/s", 5e9, 2e11, "of one unit, 8-bit keys"),
    ConstantSpec("tail", "1", 0.0, 1.0, "share of the longest block that the chip waits for"),
)
REGIMES: Final = ("launch", "memory", "compute")


def sizes(query: PrefillAttention, machine: Machine) -> dict[str, float]:
    """The sizes of one kernel."""
    dtype = arithmetic_dtype(query, machine)
    unit = machine.unit(dtype)
    return {
        "batch": query.batch,
        "length": query.length,
        "heads": query.heads,
        "kv_heads": query.kv_heads,
        "head_dim": query.head_dim,
        "bytes": DTYPE_BYTES[query.dtype],
        "is_8bit": float(DTYPE_BYTES[dtype] < 2),
        "windowed": float(0 < query.window < query.past + query.length),
        "tiles": score_tiles(query),
        "longest_tiles": np.ceil(_most_keys(query) / KEY_TILE),
        "unit_operations_per_s": unit.operations_per_s / unit.count,
        "units": unit.count,
    }


def arithmetic_dtype(query: PrefillAttention, machine: Machine) -> str:
    """The dtype of keys and values where the chip computes in it, else that of the queries."""
    return query.kv_dtype if query.kv_dtype in machine.units else query.dtype


def score_tiles(query: PrefillAttention) -> float:
    """Tiles of scores of one head of one sequence that must be computed."""
    blocks, step = -(-query.length // QUERY_TILE), QUERY_TILE // KEY_TILE
    whole = blocks - 1  # each sees `step` tiles more than the one before
    ends = whole * -(-query.past // KEY_TILE) + step * whole * blocks // 2
    ends += -(-(query.past + query.length) // KEY_TILE)
    if not query.window:
        return float(ends)
    # Blocks before the first one whose window ends.
    hidden = max(0, -(-(query.window - query.past) // QUERY_TILE))
    behind = max(0, blocks - hidden)
    begins = behind * ((query.past - query.window + 1) // KEY_TILE)
    begins += step * (behind * (hidden + blocks - 1) // 2)
    return float(ends - begins)


def _most_keys(query: PrefillAttention) -> int:
    """Keys that the longest block of queries sees."""
    last = query.past + query.length
    return min(last, query.window + QUERY_TILE) if query.window else last


def times(rows: Columns, machine: Machine, constants: Values) -> Times:
    """Seconds of attention over prompts."""
    launch = np.full_like(rows["batch"], constants["launches"] * machine.launch_seconds)
    compute = _compute_seconds(rows, constants)
    # Inputs come 16 bits wide; queries are written back in their dtype's place after rotation.
    elements = (
        rows["heads"] * (2.0 * _INPUT_BYTES + _RESULT_BYTES) + 2.0 * rows["kv_heads"] * _INPUT_BYTES
    )
    moved = rows["batch"] * rows["length"] * rows["head_dim"] * elements
    memory = moved / (constants["memory_share"] * machine.bytes_per_s)
    body = memory + compute
    regime = np.where(body < launch, 0, np.where(memory > compute, 1, 2))
    return Times(launch + body, {"launch": launch, "memory": memory, "compute": compute}, regime)


def _compute_seconds(rows: Columns, constants: Values) -> Array:
    """Seconds until the last block is done, `float64[rows]`."""
    is_8bit, units = rows["is_8bit"] > 0, rows["units"]

    def by_width(name: str) -> Array:
        return np.where(is_8bit, constants[f"{name}_8bit"], constants[f"{name}_16bit"])

    padded = 2.0 ** np.ceil(np.log2(rows["head_dim"]))
    scores = float(QUERY_TILE * KEY_TILE)
    tile = 4.0 * scores * padded / (by_width("compute_share") * rows["unit_operations_per_s"])
    tile = tile + scores / by_width("exponentials_per_s")
    windowed = np.where(rows["windowed"] > 0, by_width("window_seconds"), 0.0)
    set_up = constants["block_seconds"] + windowed
    groups = rows["batch"] * rows["heads"]
    blocks = groups * np.ceil(rows["length"] / QUERY_TILE)
    longest = set_up + rows["longest_tiles"] * tile
    mean = (groups * rows["tiles"] * tile + blocks * set_up) / units
    spread = np.maximum(longest, mean + constants["tail"] * longest)
    seconds: Array = np.where(blocks <= units, longest, spread)
    return seconds


PREFILL_ATTENTION: Final = KernelClass(
    "prefill-attention", CONSTANTS, REGIMES, arithmetic_dtype, sizes, times
)
