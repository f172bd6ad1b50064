"""Panels of 8-bit floats with scales: how they are packed, and how a kernel reads them.

A panel is 16 rows of the weight matrix: for each 128 numbers along k, and for what is left of them,

    f32 scale[16]       of each row, times 256
    u8 codes[numbers][16]

A code moved by 7 bits, its sign by 8, is a float16 of a 256th of its value, subnormals included. So
three instructions on 16 bits and the processor's own conversion make float32; the factor is in the
scale, where it is exact.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from infc.backends.cpu.codegen.builder import LANES, Builder, Value
from infc.ir.storage import Codes
from infc.passes.codegen.panels import PANEL_ROWS

GROUP = 128
"""Numbers of a row that share a scale."""
SCALES_BYTES = 4 * PANEL_ROWS
_FACTOR = np.float32(256)
_SHIFT = 7
_WITHOUT_SIGN_TWICE = 0xBFFF - (1 << 16)
"""As i16: all bits but the one where the sign lies a second time."""


def scaled_panel_bytes(k: int) -> int:
    """Bytes of a panel of rows of `k` numbers."""
    return PANEL_ROWS * k + -(-k // GROUP) * SCALES_BYTES


def chunks_of(k: int) -> Iterator[tuple[int, int, int]]:
    """Of each chunk of a panel its first number, its numbers, and the byte it starts at."""
    for first in range(0, k, GROUP):
        yield first, min(GROUP, k - first), scaled_panel_bytes(first)


def pack_scaled(source: Codes, panels: NDArray[np.uint8]) -> None:
    """Write rows [n, k] to panels [ceil(n / 16), bytes]; missing rows become zeros."""
    n, k = source.codes.shape
    padding = ((0, len(panels) * PANEL_ROWS - n), (0, 0))
    codes = np.pad(source.codes, padding).reshape(len(panels), PANEL_ROWS, k)
    scales = np.pad(source.scales, padding).reshape(len(panels), PANEL_ROWS, -1) * _FACTOR
    for index, (first, count, start) in enumerate(chunks_of(k)):
        numbers = start + SCALES_BYTES
        of_rows = np.ascontiguousarray(scales[:, :, index], "<f4")
        panels[:, start:numbers] = of_rows.view(np.uint8)
        of_codes = codes[:, :, first : first + count].transpose(0, 2, 1)
        panels[:, numbers : numbers + PANEL_ROWS * count] = of_codes.reshape(len(panels), -1)


def unpack_scaled(
    panels: NDArray[np.uint8], k: int, codebook: NDArray[np.float32]
) -> NDArray[np.float32]:
    """The numbers of panels, float32 [rows, k]: what the kernels compute with."""
    values = np.empty((len(panels), PANEL_ROWS, k), np.float32)
    for first, count, start in chunks_of(k):
        numbers = start + SCALES_BYTES
        scales = np.ascontiguousarray(panels[:, start:numbers]).view("<f4") / _FACTOR
        codes = panels[:, numbers : numbers + PANEL_ROWS * count].reshape(-1, count, PANEL_ROWS)
        of_rows = codebook[codes.transpose(0, 2, 1)]
        values[:, :, first : first + count] = of_rows * scales[:, :, None]
    return values.reshape(-1, k)


def emit_eight_bit_floats(b: Builder, pointer: Value) -> Value:
    """Sixteen codes as `vector<16xf32>` of a 256th of what they stand for; exact."""
    codes = b.ext_s(b.load(pointer, b.vec(LANES, b.i8), LANES), b.vec(LANES, b.i16))
    halves = b.bit_and(b.shl(codes, _SHIFT), _WITHOUT_SIGN_TWICE)
    return b.ext_f(b.bitcast(halves, b.vec(LANES, b.f16)), b.vec(LANES, b.f32))
