"""A quantised matrix in two planes, so that a reader may leave the second one where it is.

A code of 8 or 6 bits is `code = high * 2**low_bits + low`, high 4 bits wide, low 4 or 2. A split
matrix [n, k] is
    the plane of high parts    packed as `PackedLayout("int", 4, group)`: header, scales, nibbles
    the plane of low parts     at `low_offset`: one row after the other, `k * low_bits / 8` bytes
    `TAIL_BYTES` of zeros      a vector may reach past the last row
The planes together are as many bytes as the codes. The high plane is one sequential stream; the low
parts of one row lie together, so that a single row can be fetched.

The low parts of 32 (4 bits) or 64 (2 bits) numbers of a row are a *unit* of 16 bytes, four words of
32 bits. Byte i of word j holds the low parts of number `step * 4 + i` for `per_word` steps, from
step `j * per_word` on, the first of them lowest.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from infc.backends.cpu.kernels.layouts import HEADER_BYTES, PackedLayout, pack, packed_bytes
from infc.diagnostics import InternalError
from infc.ir.storage import STORAGE_TYPES, Codes
from infc.passes.codegen.panels import PANEL_ROWS, multiplier_of, panels_of

STEP = 4
"""Numbers of a row that lie together in the high plane."""
UNIT_BYTES = 16
TAIL_BYTES = 1024
_HIGH_ZERO_POINT = 8
_ALIGN = 64
_BITS = {"q8_0": 8, "q6_k": 6}


@dataclass(frozen=True)
class SplitLayout:
    """One way of packing in two planes.

    Attributes:
        bits: of a code, 8 or 6; it means zero at `2 ** (bits - 1)`.
        group: codes that share a scale, along k: 32 or 16.
    """

    bits: int
    group: int

    @property
    def name(self) -> str:
        """`n16.u8.g32.split`: what dumps show."""
        return f"n{PANEL_ROWS}.u{self.bits}.g{self.group}.split"

    @property
    def high(self) -> PackedLayout:
        """Of the plane of high parts."""
        return PackedLayout("int", 4, self.group)

    @property
    def whole(self) -> PackedLayout:
        """In which the same matrix is one plane: what the kernels of other products read."""
        return PackedLayout("int", 8, self.group)

    @property
    def low_bits(self) -> int:
        """Of the low part of a code."""
        return self.bits - 4

    @property
    def zero_point(self) -> int:
        """The code that means zero."""
        return 1 << (self.bits - 1)

    @property
    def signed_zero_point(self) -> int:
        """The same as an i8."""
        return self.zero_point - 256 if self.zero_point > 127 else self.zero_point

    @property
    def per_word(self) -> int:
        """Steps of 4 numbers of which a word holds the low parts."""
        return 8 // self.low_bits

    @property
    def unit(self) -> int:
        """Numbers of a row whose low parts are one unit."""
        return UNIT_BYTES * 8 // self.low_bits

    def fits(self, k: int) -> bool:
        """Whether rows of `k` numbers are whole units."""
        return k % self.unit == 0

    def low_row_bytes(self, k: int) -> int:
        """Bytes of the low parts of one row."""
        return k * self.low_bits // 8

    def high_offset(self, _n: int, _k: int) -> int:
        """Bytes from the start of the matrix [n, k] to its high plane."""
        return 0

    def low_offset(self, n: int, k: int) -> int:
        """Bytes from the start of the matrix [n, k] to its low plane."""
        return -(-packed_bytes(self.high, n, k) // _ALIGN) * _ALIGN

    def size_bytes(self, n: int, k: int) -> int:
        """Bytes of a matrix [n, k]."""
        rows = panels_of(n) * PANEL_ROWS
        return self.low_offset(n, k) + rows * self.low_row_bytes(k) + TAIL_BYTES


def split_layout_for(storage: str, k: int) -> SplitLayout | None:
    """The split layout for weights of a storage type in rows of `k`; None where there is none."""
    if storage not in _BITS:
        return None
    layout = SplitLayout(_BITS[storage], STORAGE_TYPES[storage].group)
    return layout if layout.fits(k) else None


def split_layout_named(name: str) -> SplitLayout | None:
    """The split layout with this `name`; None where it names another kind of layout."""
    match = re.fullmatch(r"n16\.u(8|6)\.g(16|32)\.split", name)
    return SplitLayout(int(match[1]), int(match[2])) if match else None


def pack_split(
    layout: SplitLayout,
    chunks: Iterable[Codes | NDArray[np.float32]],
    n: int,
    k: int,
    out: NDArray[np.uint8],
) -> None:
    """Pack a matrix [n, k].

    Args:
        layout: of `out`.
        chunks: the rows in order, as `layouts.pack` takes them; all of them codes.
        out: `layout.size_bytes(n, k)` bytes, overwritten whole.
    """
    size = layout.size_bytes(n, k)
    if out.size != size:
        raise InternalError(f"packing needs {size} bytes of room, got {out.size}")
    high_bytes, start = packed_bytes(layout.high, n, k), layout.low_offset(n, k)
    out[high_bytes:] = 0
    low = out[start : start + n * layout.low_row_bytes(k)].reshape(n, -1)
    pack(layout.high, _high_parts(layout, chunks, low), n, k, out[:high_bytes])


def _high_parts(
    layout: SplitLayout, chunks: Iterable[Codes | NDArray[np.float32]], low: NDArray[np.uint8]
) -> Iterator[Codes]:
    """The high parts of all chunks; on the way the low parts are written to `low`."""
    row = 0
    for chunk in chunks:
        if not isinstance(chunk, Codes):
            raise InternalError(f"layout {layout.name} takes codes, got floats")
        codes = chunk.codes + np.uint8(layout.zero_point - chunk.zero_point)
        if layout.bits < 8 and codes.size and int(codes.max()) >> layout.bits:
            raise InternalError(f"a code does not fit {layout.bits} bits")
        count, k = codes.shape
        words = np.ascontiguousarray(codes & np.uint8((1 << layout.low_bits) - 1)).view("<u4")
        packed = np.zeros((count, k // 4 // layout.per_word), np.uint32)
        for step in range(layout.per_word):
            packed |= words[:, step :: layout.per_word] << np.uint32(step * layout.low_bits)
        low[row : row + count] = packed.view(np.uint8)
        row += count
        yield replace(chunk, codes=codes >> np.uint8(layout.low_bits), zero_point=_HIGH_ZERO_POINT)


def unpack_split(
    layout: SplitLayout, packed: NDArray[np.uint8], n: int, k: int
) -> NDArray[np.float32]:
    """The numbers of a packed matrix, float32 [n, k]: what the kernels compute with."""
    count, chunk_bytes = panels_of(n), layout.high.chunk_bytes
    high = packed[HEADER_BYTES : packed_bytes(layout.high, n, k)]
    chunks = high.reshape(count, k // layout.group, chunk_bytes)
    scales_bytes = layout.high.codes_offset
    # [panel, chunk, row] -> [row, chunk]
    scales = np.ascontiguousarray(chunks[..., :scales_bytes]).view("<f2").astype(np.float32)
    scales = scales.transpose(0, 2, 1).reshape(count * PANEL_ROWS, -1)[:n]
    nibbles = chunks[..., scales_bytes:].reshape(count, -1, PANEL_ROWS, STEP)
    both = np.stack([nibbles & np.uint8(15), nibbles >> np.uint8(4)], axis=2)
    # [panel, pair, half, row, number] -> [row, number]
    codes = both.transpose(0, 3, 1, 2, 4).reshape(count * PANEL_ROWS, k)[:n]
    start = layout.low_offset(n, k)
    words = packed[start : start + n * layout.low_row_bytes(k)].view("<u4").reshape(n, -1)
    mask = np.uint32(0x01010101 * ((1 << layout.low_bits) - 1))
    shifts = np.arange(layout.per_word, dtype=np.uint32) * np.uint32(layout.low_bits)
    low = np.ascontiguousarray((words[:, :, None] >> shifts) & mask).view(np.uint8).reshape(n, k)
    values = (codes << np.uint8(layout.low_bits) | low).astype(np.float32)
    values = (values - np.float32(layout.zero_point)).reshape(n, -1, layout.group)
    return (values * scales[:, :, None] * multiplier_of(packed)).reshape(n, k)
