"""Matrix products: tiles spread in waves over the compute units, beside the traffic of main memory.

A library picks, among a few tile shapes and ways to split the inner dimension, what is fastest::

    compute = min over tiles, splits of  waves * (steps * step + tile_seconds) + reduction
    steps   = ceil(k / 128 bytes / split)      step = max(arithmetic of one step, feeding it)
    waves   = ceil(tiles of the result * split / units)
    memory  = (activations + weights + result) / (memory_share * bandwidth)
    seconds = launches * launch + (compute^p + memory^p)^(1/p)
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
_OUTPUT_BYTES: Final = 2.0
_PARTIAL_BYTES: Final = 4.0

CONSTANTS: Final = (
    ConstantSpec("launches", "1", 0.5, 10.0, "launches that one call costs, conversion included"),
    ConstantSpec("compute_share", "1", 0.4, 1.0, "share of the peak that a full tile sustains"),
    ConstantSpec("memory_share", "1", 0.5, 1.0, "share of the memory's bandwidth that streams get"),
    ConstantSpec("feed_bytes_per_s", "B/s", 3e10, 5e11, "what a compute unit draws for its tiles"),
    ConstantSpec("tile_seconds", "s", 1e-7, 5e-6, "to fill and drain the pipeline of a tile"),
    ConstantSpec("split_seconds", "s", 5e-7, 1e-5, "to add partial results of a split product"),
    ConstantSpec("split_bytes_per_s", "B/s", 1e12, 2e13, "writing and reading partial results"),
    ConstantSpec("overlap", "1", 1.0, 10.0, "exponent p: 1 in turns, large at the same time"),
)
"""Of products with 16-bit operands."""
CONVERTED: Final = (
    *CONSTANTS,
    ConstantSpec("activation_bytes", "B", 1.0, 10.0, "traffic for each converted activation"),
)
"""Of products whose activations are converted to 8 bits on the way."""
REGIMES: Final = ("launch", "memory", "compute")


def sizes(query: Gemm, machine: Machine) -> dict[str, float]:
    """The sizes of one product."""
    unit = machine.unit(query.dtype)
    return {
        "m": query.m,
        "n": query.n,
        "k": query.k,
        "bytes": DTYPE_BYTES[query.dtype],
        "unit_operations_per_s": unit.operations_per_s / unit.count,
        "units": unit.count,
    }


def times(rows: Columns, machine: Machine, constants: Values) -> Times:
    """Seconds of products."""
    launch = np.full_like(rows["m"], constants["launches"] * machine.launch_seconds)
    compute = _compute_seconds(rows, constants)
    m, n, k, weight_bytes = rows["m"], rows["n"], rows["k"], rows["bytes"]
    activation_bytes = constants.get("activation_bytes", weight_bytes)
    moved = m * k * activation_bytes + n * k * weight_bytes + m * n * _OUTPUT_BYTES
    memory = moved / (constants["memory_share"] * machine.bytes_per_s)
    p = constants["overlap"]
    body = (compute**p + memory**p) ** (1.0 / p)
    regime = np.where(body < launch, 0, np.where(memory > compute, 1, 2))
    return Times(launch + body, {"launch": launch, "memory": memory, "compute": compute}, regime)


def _compute_seconds(rows: Columns, constants: Values) -> Array:
    """The best of all tile shapes and splits, `float64[rows]`."""
    m, n, k, element_bytes, unit_operations_per_s, units = (
        rows[name][:, None, None]
        for name in ("m", "n", "k", "bytes", "unit_operations_per_s", "units")
    )
    depth = STEP_BYTES / element_bytes
    steps = np.ceil(np.ceil(k / depth) / _SPLITS)
    waves = np.ceil(np.ceil(m / _TILE_M) * np.ceil(n / _TILE_N) * _SPLITS / units)
    step = np.maximum(
        2.0 * _TILE_M * _TILE_N * depth / (constants["compute_share"] * unit_operations_per_s),
        (_TILE_M + _TILE_N) * STEP_BYTES / constants["feed_bytes_per_s"],
    )
    partial_bytes = 2.0 * _PARTIAL_BYTES * m * n * _SPLITS
    reduction = np.where(
        _SPLITS > 1,
        constants["split_seconds"] + partial_bytes / constants["split_bytes_per_s"],
        0.0,
    )
    seconds = waves * (steps * step + constants["tile_seconds"]) + reduction
    best: Array = seconds.min(axis=(1, 2))
    return best


def _dtype(query: Gemm, machine: Machine) -> str:
    return query.dtype


GEMM_16: Final = KernelClass("gemm-16bit", CONSTANTS, REGIMES, _dtype, sizes, times)
GEMM_8: Final = KernelClass("gemm-8bit", CONVERTED, REGIMES, _dtype, sizes, times)
