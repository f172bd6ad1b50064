"""Weights as the matrix unit reads them: tiles of codes and scales, or rows of floats.

A tile of `[n, k]` holds codes (int8, or two unsigned 4-bit codes a byte), f16 scales `[n, k/group]`
and, for some storage types, f16 mins; it fills whole lines. Scales beyond what f16 holds well are
divided by a power of two, one for a matrix, by which the product is multiplied again.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from infc.backends.dataflow.isa import CODES4, GROUP16, MINS, Float
from infc.ir.storage import STORAGE_TYPES

U8 = NDArray[np.uint8]

LINE_BYTES = 64
_LARGEST, _SMALLEST = 2.0**15, 2.0**-10
"""The largest scale of a matrix lies between them, or is brought there: scales a thousand times
smaller still have four digits."""
_LARGEST_MULTIPLE = {"q2_k": 15, "q3_k": 32, "q4_k": 63, "q5_k": 63, "q6_k": 128}
"""By which a block multiplies its f16 field to get a scale or a minimum, at most."""


def lines(size_bytes: int) -> int:
    """Bytes up to the end of the last line."""
    return -(-size_bytes // LINE_BYTES) * LINE_BYTES


@dataclass(frozen=True)
class TileFormat:
    """The form of the weights of one storage type.

    Attributes:
        bits: of a code: 4 or 8; of a float: 16.
        group: codes that share a scale; 0 for floats.
        has_min: groups have minima.
        form: the field `fmt` of MM_Q, V_DQ or MM_F.
    """

    bits: int
    group: int
    has_min: bool
    form: int

    @property
    def is_float(self) -> bool:
        """Whether there are no codes."""
        return self.group == 0

    def tile_bytes(self, n: int, k: int) -> int:
        """Bytes of a tile, whole lines."""
        return lines(self.mins_offset(n, k) + (self._fields(n, k) if self.has_min else 0))

    def scales_offset(self, n: int, k: int) -> int:
        """Where the scales of a tile begin."""
        return n * k * self.bits // 8

    def mins_offset(self, n: int, k: int) -> int:
        """Where its mins begin."""
        return self.scales_offset(n, k) + (0 if self.is_float else self._fields(n, k))

    def _fields(self, n: int, k: int) -> int:
        return n * k // self.group * 2


@cache
def tile_format(storage: str) -> TileFormat | None:
    """The form of a storage type; None where the matrix unit has none."""
    if storage in ("bf16", "f16"):
        return TileFormat(16, 0, False, int(Float.BF16 if storage == "bf16" else Float.F16))
    kind = STORAGE_TYPES[storage]
    if kind.is_float or kind.codebook is not None:
        return None
    bits = 4 if kind.bits <= 4 else 8
    form = (
        (CODES4 if bits == 4 else 0)
        | (GROUP16 if kind.group == 16 else 0)
        | (MINS if kind.has_min else 0)
    )
    return TileFormat(bits, kind.group, kind.has_min, form)


class Matrix:
    """A matrix taken apart, ready to be cut into tiles.

    Attributes:
        factor: the power of two that scales were divided by.
    """

    def __init__(self, raw: U8, storage: str, shape: tuple[int, int]) -> None:
        found = tile_format(storage)
        if found is None:
            raise ValueError(storage)
        self.format, self.factor = found, 1.0
        if found.is_float:
            self._floats = raw.view(np.uint16).reshape(shape)
            return
        codes = STORAGE_TYPES[storage].unpack(raw, shape)
        self.factor = scale_factor(raw, storage)
        # The hardware's 4-bit codes mean code - 8 where there are no mins, code where there are.
        zero = 0 if codes.mins is not None or found.bits == 8 else 8
        self._codes = (codes.codes.astype(np.int16) - codes.zero_point + zero).astype(np.int8)
        self._scales = (codes.scales / np.float32(self.factor)).astype(np.float16)
        self._mins = (
            None
            if codes.mins is None
            else (codes.mins / np.float32(self.factor)).astype(np.float16)
        )

    @property
    def kept_bytes(self) -> int:
        """Memory that it takes."""
        if self.format.is_float:
            return self._floats.nbytes
        parts = (self._codes, self._scales, self._mins)
        return sum(part.nbytes for part in parts if part is not None)

    def rows(self, rows: slice) -> U8:
        """Whole rows as tiles of one row, one after the other."""
        if self.format.is_float:
            part = np.ascontiguousarray(self._floats[rows]).view(np.uint8)
            return _side_by_side([part], self.format.tile_bytes(1, self._floats.shape[1]))
        k = self._codes.shape[1]
        parts = [_packed(self._codes[rows], self.format.bits)]
        parts += [
            np.ascontiguousarray(values[rows]).view(np.uint8)
            for values in (self._scales, self._mins)
            if values is not None
        ]
        return _side_by_side(parts, self.format.tile_bytes(1, k))

    def tile(self, rows: slice, columns: slice, n: int) -> U8:
        """A tile of `n` rows; those past the matrix's are zeros."""
        k = columns.stop - columns.start
        out = np.zeros(self.format.tile_bytes(n, k), np.uint8)
        if self.format.is_float:
            floats = np.ascontiguousarray(self._floats[rows, columns])
            out[: floats.nbytes] = floats.view(np.uint8).reshape(-1)
            return out
        codes = _packed(self._codes[rows, columns], self.format.bits)
        out[: codes.size] = codes.reshape(-1)
        group = self.format.group
        fields = slice(columns.start // group, columns.stop // group)
        for at, values in (
            (self.format.scales_offset(n, k), self._scales),
            (self.format.mins_offset(n, k), self._mins),
        ):
            if values is not None:
                part = np.ascontiguousarray(values[rows, fields]).view(np.uint8).reshape(-1)
                out[at : at + part.size] = part
        return out


def _packed(codes: NDArray[np.int8], bits: int) -> U8:
    """Codes as bytes; of 4 bits two a byte, the first one low."""
    whole = codes.view(np.uint8)
    return whole if bits == 8 else whole[:, 0::2] | (whole[:, 1::2] << np.uint8(4))


def _side_by_side(parts: list[U8], row_bytes: int) -> U8:
    """Rows of all parts joined, and filled up."""
    out = np.zeros((len(parts[0]), row_bytes), np.uint8)
    at = 0
    for part in parts:
        out[:, at : at + part.shape[1]] = part
        at += part.shape[1]
    return out.reshape(-1)


def scale_factor(raw: U8, storage: str) -> float:
    """A power of two that brings the scales of a matrix into the range of f16; mostly 1.

    The f16 fields of its blocks say enough: a scale is such a field times a whole number.
    """
    kind = STORAGE_TYPES[storage]
    if kind.is_float:
        return 1.0
    blocks = raw.reshape(-1, kind.block_bytes)
    largest = max(
        float(np.abs(blocks[:, at : at + 2].view(np.float16)).max()) for at in kind.half_offsets
    )
    largest *= _LARGEST_MULTIPLE.get(storage, 1)
    if largest == 0.0 or _SMALLEST <= largest <= _LARGEST:
        return 1.0
    return float(2.0 ** np.floor(np.log2(largest)))
