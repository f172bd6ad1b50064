"""The abf16 form of activations in NumPy: rows of bf16, zeros up to a multiple of 32 numbers.

A row of k numbers is `bf16 x[k]`, zeros up to the next multiple of 32 numbers, and room up to an
odd number of 64-byte lines: the rows of a block then lie in different sets of a cache. Numbers are
rounded to the nearest, ties to even. Code on a device makes the same numbers from the same input.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ABF16_STEP = 32
"""Rows are padded with zeros to a multiple of so many numbers."""
_LINE_BYTES = 64


def abf16_padded(k: int) -> int:
    """Numbers of a row with its zeros."""
    return -(-k // ABF16_STEP) * ABF16_STEP


def abf16_row_bytes(k: int) -> int:
    """Bytes of a row of `k` numbers; rows are consecutive."""
    lines = 2 * abf16_padded(k) // _LINE_BYTES
    return (lines | 1) * _LINE_BYTES


def round_bf16(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Finite numbers rounded to the nearest bf16, ties to even; still float32."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))
    return (rounded & np.uint32(0xFFFF0000)).view(np.float32)


def to_abf16(x: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Rows [m, k], finite -> [m, abf16_row_bytes(k)]."""
    m, k = x.shape
    rows = np.zeros((m, abf16_row_bytes(k)), np.uint8)
    halves = (round_bf16(x).view(np.uint32) >> np.uint32(16)).astype("<u2")
    rows[:, : 2 * k] = halves.view(np.uint8).reshape(m, 2 * k)
    return rows


def from_abf16(rows: NDArray[np.uint8], k: int) -> NDArray[np.float32]:
    """The numbers of rows: [m, row_bytes] -> float32 [m, k]."""
    halves = np.ascontiguousarray(rows[:, : 2 * k]).view("<u2").astype(np.uint32)
    return (halves << np.uint32(16)).view(np.float32)
