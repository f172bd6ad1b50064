"""Matrix products: tiles spread over the compute units, beside the traffic of main memory.

A library picks, among a few tile shapes and ways to split the inner dimension, what is fastest::

    compute = min over tiles, splits of
              load * (steps * step + tile_seconds + tile bytes / tile_bytes_per_s) + adding parts
    load    = max(1, tiles of the result * splits / units)
    steps   = ceil(k / 128 bytes / splits)      step = max(arithmetic of one step, feeding it)
    memory  = (activations + weights + result) / (memory_share * bandwidth)
    seconds = launches * launch + conversion + (compute^p + memory^p)^(1/p)

Activations that fit half of the cache cost less than others: what computed them left them there.
(Half, as the cache of a large chip has two parts that each hold a copy of what both read.)
Products in 8 bits first convert them, in a pass of its own.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from infc.cost.kernels.classes import Array, Columns, ConstantSpec, KernelClass, Times, Values
from infc.cost.kernels.machine import Machine
from infc.cost.kernels.queries import DTYPE_BYTES, Gemm

STEP_BYTES: Final = 128
"""Depth of one step of the inner loop, in bytes of an operand: one line of shared memory."""
_TILES: Final = (
    *((16, 64), (32, 64), (64, 16), (64, 32), (16, 128), (32, 128), (128, 32)),
    *((64, 64), (64, 128), (128, 64), (128, 128), (64, 256), (256, 64), (128, 256), (256, 128)),
)
_TILE_M: Final = np.array([m for m, _ in _TILES], np.float64)[:, None]
_TILE_N: Final = np.array([n for _, n in _TILES], np.float64)[:, None]
_SPLITS: Final = np.array([1.0, 2.0, 4.0, 8.0, 16.0])
_ACTIVATION_BYTES: Final = 2.0
_OUTPUT_BYTES: Final = 2.0
_PART_BYTES: Final = 4.0

_SHARED: Final = (
    ConstantSpec("launches", "1", 0.5, 10.0, "launches that one call costs, conversion included"),
    ConstantSpec("compute_share", "1", 0.4, 1.0, "share of the peak that a full tile sustains"),
    ConstantSpec("memory_share", "1", 0.5, 1.0, "share of the memory's bandwidth that streams get"),
    ConstantSpec("feed_bytes_per_s", "B/s", 3e10, 5e11, "what a compute unit draws for its tiles"),
    ConstantSpec("tile_seconds", "s", 1e-8, 5e-6, "to fill and drain the pipeline of a tile"),
    ConstantSpec("tile_bytes_per_s", "B/s", 1e10, 5e11, "a compute unit writing a finished tile"),
    ConstantSpec("split_seconds", "s", 5e-7, 1e-5, "to add the parts of a split product"),
    ConstantSpec("split_bytes_per_s", "B/s", 1e12, 2e13, "writing and reading such parts"),
    ConstantSpec("overlap", "1", 1.0, 10.0, "exponent p: 1 in turns, large at the same time"),
)
CONSTANTS_16BIT: Final = (
    *_SHARED,
    ConstantSpec("cached_bytes", "B", 0.1, 2.0, "traffic for an activation that the cache holds"),
)
CONSTANTS_8BIT: Final = (
    *_SHARED,
    ConstantSpec("conversion_bytes", "B", 3.0, 12.0, "traffic to convert an activation"),
    ConstantSpec("cached_conversion_bytes", "B", 0.5, 12.0, "the same where the cache holds it"),
)
REGIMES: Final = ("launch", "memory", "compute")


def sizes(query: Gemm, machine: Machine) -> dict[str, float]:
    """The sizes of one product."""
    unit = machine.unit(query.dtype)
    held = query.m * query.k * _ACTIVATION_BYTES <= machine.cache_bytes / 2
    return {
        "m": query.m,
        "n": query.n,
        "k": query.k,
        "bytes": DTYPE_BYTES[query.dtype],
        "weight_bytes": query.read_bytes,
        "unit_operations_per_s": unit.operations_per_s / unit.count,
        "units": unit.count,
        "cached": float(held),
    }


def times_16bit(rows: Columns, machine: Machine, constants: Values) -> Times:
    """Seconds of products of 16-bit operands."""
    cached = rows["cached"] > 0
    element_bytes = np.where(cached, constants["cached_bytes"], rows["bytes"])
    return _times(rows, machine, constants, element_bytes, np.zeros_like(element_bytes))


def times_8bit(rows: Columns, machine: Machine, constants: Values) -> Times:
    """Seconds of products whose activations are converted to 8 bits (or fewer) first."""
    cached = rows["cached"] > 0
    each = np.where(cached, constants["cached_conversion_bytes"], constants["conversion_bytes"])
    return _times(rows, machine, constants, rows["bytes"], rows["m"] * rows["k"] * each)


def _times(
    rows: Columns, machine: Machine, constants: Values, activation_bytes: Array, converted: Array
) -> Times:
    """Seconds, given the traffic of an activation and of their conversion, `float64[rows]`."""
    launch = np.full_like(rows["m"], constants["launches"] * machine.launch_seconds)
    compute = _compute_seconds(rows, constants)
    m, n, k = rows["m"], rows["n"], rows["k"]
    moved = m * k * activation_bytes + rows["weight_bytes"] + m * n * _OUTPUT_BYTES
    bandwidth = constants["memory_share"] * machine.bytes_per_s
    memory, conversion = moved / bandwidth, converted / bandwidth
    p = constants["overlap"]
    body = conversion + (compute**p + memory**p) ** (1.0 / p)
    regime = np.where(body < launch, 0, np.where(memory + conversion > compute, 1, 2))
    busy = {"launch": launch, "memory": memory + conversion, "compute": compute}
    return Times(launch + body, busy, regime)


def _compute_seconds(rows: Columns, constants: Values) -> Array:
    """The best of all tile shapes and splits, `float64[rows]`."""
    m, n, k, element_bytes, unit_operations_per_s, units = (
        rows[name][:, None, None]
        for name in ("m", "n", "k", "bytes", "unit_operations_per_s", "units")
    )
    depth = STEP_BYTES / element_bytes
    steps = np.ceil(np.ceil(k / depth) / _SPLITS)
    tiles = np.ceil(m / _TILE_M) * np.ceil(n / _TILE_N) * _SPLITS
    load = np.maximum(tiles / units, 1.0)
    step = np.maximum(
        2.0 * _TILE_M * _TILE_N * depth / (constants["compute_share"] * unit_operations_per_s),
        (_TILE_M + _TILE_N) * STEP_BYTES / constants["feed_bytes_per_s"],
    )
    parts_bytes = 2.0 * _PART_BYTES * m * n * _SPLITS
    adding = np.where(
        _SPLITS > 1,
        constants["split_seconds"] + parts_bytes / constants["split_bytes_per_s"],
        0.0,
    )
    writing = _TILE_M * _TILE_N * _OUTPUT_BYTES / constants["tile_bytes_per_s"]
    seconds = load * (steps * step + constants["tile_seconds"] + writing) + adding
    best: Array = seconds.min(axis=(1, 2))
    return best


def _dtype(query: Gemm, machine: Machine) -> str:
    return query.dtype


GEMM_16: Final = KernelClass("gemm-16bit", CONSTANTS_16BIT, REGIMES, _dtype, sizes, times_16bit)
GEMM_8: Final = KernelClass("gemm-8bit", CONSTANTS_8BIT, REGIMES, _dtype, sizes, times_8bit)
