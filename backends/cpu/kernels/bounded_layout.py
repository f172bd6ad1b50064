"""A float matrix with bounds behind it, so that a reader may leave most rows where they are.

A bounded matrix [n, k] is
    the weights               packed as `PackedLayout(kind, lines=True)`
    the bounds                at `high_offset`: packed as `PackedLayout("int", 5, 32)`
A code c and its group's scale say where a weight lies: in `multiplier * scale * [c - 16, c - 15]`.
Scales are not negative. Where a multiplier would not be between 2**-40 and 2**40, or a weight is no
number, the multiplier is NaN, and so is every bound.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from infc.backends.cpu.kernels.layouts import HEADER_BYTES, PackedLayout, pack, packed_bytes
from infc.diagnostics import InternalError
from infc.ir.storage import STORAGE_TYPES, Codes
from infc.passes.codegen.panels import multiplier_of

BOUND_BITS = 5
BOUND_GROUP = 32
LARGEST_EXPONENT = 40
"""Of the multiplier, and of its inverse."""
_STEPS = 1 << (BOUND_BITS - 1)
_SCALE_EXPONENT = 15
"""Scales are at most 2**15, as `layouts.pack` makes them."""
_ALIGN = 64
_FLOATS = ("f32", "f16", "bf16")

Chunks = Callable[[], Iterable[Codes | NDArray[np.float32]]]
"""The rows of a matrix in order, from the first one on at each call."""


@dataclass(frozen=True)
class BoundedLayout:
    """One way of packing.

    Attributes:
        kind: of the floats.
    """

    kind: str

    @property
    def name(self) -> str:
        """`n16.bf16.lines.bounds`: what dumps show."""
        return f"{self.whole.name}.bounds"

    @property
    def whole(self) -> PackedLayout:
        """Of the weights: what the kernels of other products read."""
        return PackedLayout(self.kind, STORAGE_TYPES[self.kind].bits, lines=True)

    @property
    def high(self) -> PackedLayout:
        """Of the bounds."""
        return PackedLayout("int", BOUND_BITS, BOUND_GROUP)

    def fits(self, k: int) -> bool:
        """Whether rows of `k` numbers are whole groups (and then whole lines)."""
        return k % BOUND_GROUP == 0

    def low_offset(self, _n: int, _k: int) -> int:
        """Bytes from the start of the matrix [n, k] to its first weight."""
        return HEADER_BYTES

    def high_offset(self, n: int, k: int) -> int:
        """Bytes from the start of the matrix [n, k] to its bounds."""
        return -(-packed_bytes(self.whole, n, k) // _ALIGN) * _ALIGN

    def size_bytes(self, n: int, k: int) -> int:
        """Bytes of a matrix [n, k]."""
        return self.high_offset(n, k) + packed_bytes(self.high, n, k)


def bounded_layout_for(storage: str, k: int) -> BoundedLayout | None:
    """The layout for weights of a storage type in rows of `k`; None where there is none."""
    if storage not in _FLOATS:
        return None
    layout = BoundedLayout(storage)
    return layout if layout.fits(k) else None


def bounded_layout_named(name: str) -> BoundedLayout | None:
    """The layout with this `name`; None where it names another kind of layout."""
    match = re.fullmatch(r"n16\.(bf16|f16|f32)\.lines\.bounds", name)
    return BoundedLayout(match[1]) if match else None


def pack_bounded(
    layout: BoundedLayout, chunks: Chunks, n: int, k: int, out: NDArray[np.uint8]
) -> None:
    """Pack a matrix [n, k].

    Args:
        layout: of `out`.
        chunks: the rows; all of them floats.
        out: `layout.size_bytes(n, k)` bytes, overwritten whole.
    """
    size = layout.size_bytes(n, k)
    if out.size != size:
        raise InternalError(f"packing needs {size} bytes of room, got {out.size}")
    rows_bytes, start = packed_bytes(layout.whole, n, k), layout.high_offset(n, k)
    out[rows_bytes:] = 0
    pack(layout.whole, chunks(), n, k, out[:rows_bytes])
    high = out[start:]
    multiplier = _multiplier(float(np.max([np.abs(part).max() for part in _floats(chunks)])))
    if multiplier is None:
        high[:4] = np.array([np.nan], "<f4").view(np.uint8)
        return
    pack(layout.high, _codes(chunks, multiplier), n, k, high)
    if multiplier_of(high) != multiplier:
        raise InternalError("the scales of bounds were rounded")


def _floats(chunks: Chunks) -> Iterator[NDArray[np.float32]]:
    for chunk in chunks():
        if isinstance(chunk, Codes):
            raise InternalError("bounds are of floats, got codes")
        yield chunk


def _multiplier(largest: float) -> np.float32 | None:
    """The power of two that `layouts.pack` will choose, for the largest magnitude of a weight."""
    if not np.isfinite(largest):
        return None
    exponent = int(np.frexp(largest / _STEPS)[1]) - _SCALE_EXPONENT if largest else 0
    if abs(exponent) > LARGEST_EXPONENT:
        return None
    multiplier = np.float32(2.0**exponent)
    scale = _rounded_up(np.array([largest / _STEPS], np.float32), multiplier)[0]
    return multiplier * np.float32(2.0 if scale == multiplier * 2.0**_SCALE_EXPONENT else 1.0)


def _codes(chunks: Chunks, multiplier: np.float32) -> Iterator[Codes]:
    """Codes and scales of all chunks."""
    for chunk in _floats(chunks):
        count, k = chunk.shape
        groups = chunk.reshape(count, k // BOUND_GROUP, BOUND_GROUP)
        scales = _rounded_up(np.abs(groups).max(axis=2) / np.float32(_STEPS), multiplier)
        wide = scales[:, :, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            steps = np.where(wide > 0, np.floor(groups / wide), np.float32(0))
        # A quotient just below a whole number may have been rounded to it. These products are
        # exact: 5 bits by 11.
        steps = np.clip(steps - (steps * wide > groups), -_STEPS, _STEPS - 1)
        if (steps * wide > groups).any() or ((steps + 1) * wide < groups).any():
            raise InternalError("a weight is outside its bounds")
        codes = (steps + np.float32(_STEPS)).astype(np.uint8).reshape(count, k)
        yield Codes(codes, _STEPS, scales, None, BOUND_GROUP)


def _rounded_up(values: NDArray[np.float32], multiplier: np.float32) -> NDArray[np.float32]:
    """Multiples of `multiplier` that an f16 holds, none below its value."""
    wanted = values / multiplier
    halves = wanted.astype(np.float16)
    too_small = halves.astype(np.float32) < wanted
    halves = np.where(too_small, np.nextafter(halves, np.float16(np.inf)), halves)
    return halves.astype(np.float32) * multiplier
