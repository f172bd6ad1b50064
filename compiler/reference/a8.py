"""The a8 form of activations in NumPy: rows of int8 with a scale for every 32.

A row of k numbers is `int8 q[k]`, `float32 scale[k / 32]`, `int32 sum[k / 16]`, then zeros up to a
multiple of 64 bytes. For each 32 numbers `scale = max|x| / 127` and
`q = round_to_even(x * (1 / scale))`; `sum` holds the sums of 16 consecutive q, which a product with
weights that have a zero point or a minimum needs. Code on a device makes the same bytes from the
same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from infc.diagnostics import InternalError

A8_BLOCK = 32
"""Numbers that share a scale; k is a multiple of it."""
A8_SUM = 16
"""Numbers of which there is a sum."""
A8_SMALLEST = 2.0**-100
"""A block whose largest magnitude is below this is stored as zeros: 1 / scale would overflow."""

_ROW_ALIGN = 64


@dataclass(frozen=True)
class A8Offsets:
    """Where the parts of a row lie, in bytes from its start."""

    scales: int
    sums: int
    row_bytes: int


def a8_offsets(k: int) -> A8Offsets:
    """The offsets in a row of `k` numbers."""
    if k <= 0 or k % A8_BLOCK:
        raise InternalError(f"a8 rows hold a multiple of {A8_BLOCK} numbers, got {k}")
    scales = k
    sums = scales + 4 * (k // A8_BLOCK)
    end = sums + 4 * (k // A8_SUM)
    return A8Offsets(scales, sums, -(-end // _ROW_ALIGN) * _ROW_ALIGN)


def a8_row_bytes(k: int) -> int:
    """Bytes of a row of `k` numbers; rows are consecutive."""
    return a8_offsets(k).row_bytes


def quantize_a8(x: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Quantise rows.

    Args:
        x: [m, k], k a multiple of 32, finite.

    Returns:
        [m, a8_row_bytes(k)].
    """
    m, k = x.shape
    offsets = a8_offsets(k)
    blocks = x.astype(np.float32, copy=False).reshape(m, k // A8_BLOCK, A8_BLOCK)
    largest = np.abs(blocks).max(axis=2)
    scales = np.where(largest >= A8_SMALLEST, largest / np.float32(127), np.float32(0))
    inverses = np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=scales > 0)
    codes = np.rint(blocks * inverses[:, :, None]).astype(np.int8).reshape(m, k)
    sums = codes.reshape(m, k // A8_SUM, A8_SUM).sum(axis=2, dtype=np.int32)

    rows = np.zeros((m, offsets.row_bytes), np.uint8)
    rows[:, :k] = codes.view(np.uint8)
    rows[:, offsets.scales : offsets.sums] = scales.astype(np.float32).view(np.uint8)
    rows[:, offsets.sums : offsets.sums + 4 * (k // A8_SUM)] = sums.view(np.uint8)
    return rows


def dequantize_a8(rows: NDArray[np.uint8], k: int) -> NDArray[np.float32]:
    """The numbers that rows in the a8 form stand for: [m, row_bytes] -> [m, k]."""
    offsets = a8_offsets(k)
    scales = np.ascontiguousarray(rows[:, offsets.scales : offsets.sums]).view(np.float32)
    codes = np.ascontiguousarray(rows[:, :k]).view(np.int8).astype(np.float32)
    grouped = codes.reshape(len(rows), k // A8_BLOCK, A8_BLOCK) * scales[:, :, None]
    return grouped.reshape(len(rows), k)
