"""Memory of the lockstep interpreter: bytes, and for each byte whether it may be read and written.

An access is made by many threads at once: addresses are `[threads]` i64 (or `[1]`, all threads at
one place). Both maps are seen through views of 1, 2, 4, 8 or 16 bytes an element, so that an access
costs one gather however wide it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from infc.backends.cuda.lockstep.races import Races
    from infc.backends.cuda.lockstep.threads import Threads, Where

Array: TypeAlias = np.ndarray[Any, Any]
Fail: TypeAlias = Callable[[int, str], None]
"""Raises the error of an access: the number of the offending address, and what is wrong."""

UNWRITTEN = 1
IN_FLIGHT = 2
"""A copy that nobody waited for writes here."""
BARRIER = 4
OUTSIDE = 8
"""Belongs to no allocation."""
_WHAT = (
    (OUTSIDE, "is outside of every allocation"),
    (BARRIER, "is an mbarrier"),
    (IN_FLIGHT, "is being written by a copy that nobody waited for"),
    (UNWRITTEN, "was never written"),
)
ELEMENTS = {1: "u1", 2: "u2", 4: "u4", 8: "u8", 16: "c16"}
"""Complex numbers stand for any 16 bytes; they are moved, never computed with."""


REPEATED: dict[int, Array] = {
    width: np.repeat(np.arange(256, dtype=np.uint8)[:, None], width, axis=1).view(kind)[:, 0]
    for width, kind in ELEMENTS.items()
}
"""Elements of which every byte is the same, by that byte."""


@cache
def _places(count: int) -> Array:
    return np.arange(count)


class Memory:
    """`size` bytes from the address `base` on.

    Attributes:
        data: the bytes, u8 `[size]`.
        state: what is known of each, a sum of `UNWRITTEN`, ..., u8 `[size]`; 0 may be read.
        races: looks for races, if anybody does.
    """

    def __init__(self, name: str, base: int, size: int, state: int) -> None:
        self.name = name
        self.base = base
        self.races: Races | None = None
        self.data: Array = np.zeros(0, np.uint8)
        self.state: Array = np.zeros(0, np.uint8)
        self._views: dict[int, tuple[Array, Array]] = {}
        self.grow(size, state)

    def grow(self, size: int, state: int) -> None:
        """Make it `size` bytes (rounded up to 16); new bytes have the state `state`."""
        size, old = -(-size // 16) * 16, len(self.data)
        data, marks = np.zeros(size, np.uint8), np.full(size, state, np.uint8)
        data[:old], marks[:old] = self.data, self.state
        self.data, self.state = data, marks
        self._views = {n: (data.view(t), marks.view(t)) for n, t in ELEMENTS.items()}

    def load(
        self,
        address: Array,
        size: int,
        align: int,
        t: Threads,
        where: Where,
        who: Array | None = None,
        *,
        ordered: bool = False,
    ) -> Array:
        """The `size` bytes at each address, u8 `[addresses, size]`, where all may be read.

        `who` says which of the threads `t` asks for each address, if not each for one or all for
        the only one. Nothing races with `ordered` accesses.
        """
        fail = t.failing(where, who)
        index, width = self.locate(address, size, align, fail)
        data, state = self._views[width]
        marks = state.take(index)
        if np.count_nonzero(marks.view(np.uint8) if width < 8 else marks.view(np.uint64)):
            self._refuse(marks, 255, len(address), "reads", fail)
        if self.races is not None and not ordered:
            self.races.read(index, width, t, where, who)
        return data.take(index).reshape(len(address), -1).view(np.uint8)

    def store(
        self,
        address: Array,
        values: Array,
        align: int,
        t: Threads,
        where: Where,
        who: Array | None = None,
        *,
        ordered: bool = False,
    ) -> None:
        """Write `values`, u8 `[addresses or 1, bytes]`, contiguous; two threads that write
        different bytes to one place are refused."""
        fail = t.failing(where, who)
        size = values.shape[1]
        index, width = self.locate(address, size, align, fail)
        self.check_free(index, width, len(address), fail)
        if self.races is not None and not ordered:
            self.races.write(index, width, t, where, who)
        data = self._views[width][0]
        new = values.view(ELEMENTS[width])
        data[index] = new
        if len(address) > 1:
            bits = min(width, 8)
            back = data.take(index).view(f"u{bits}") != new.view(f"u{bits}")
            if np.count_nonzero(back):
                which = int(np.argmax(back.reshape(len(address), -1).any(axis=1)))
                fail(which, f"another thread writes other bytes to {self.at(int(address[which]))}")

    def check_free(
        self, index: Array, width: int, count: int, fail: Fail, allowed: int = 0
    ) -> None:
        """Note that these elements are written now; refuse those that may not be."""
        state = self._views[width][1]
        marks = state.take(index)
        bits = marks.view(np.uint8)
        if np.count_nonzero(bits):
            if (bits & np.uint8(255 - UNWRITTEN - allowed)).any():
                self._refuse(marks, 255 - UNWRITTEN - allowed, count, "writes", fail)
            state[index] = 0

    def locate(self, address: Array, size: int, align: int, fail: Fail) -> tuple[Array, int]:
        """Elements of the views of the accesses, `[addresses, elements]`, and their bytes."""
        width = min(align & -align, size & -size, 16)
        offset = address - self.base
        spread = int(np.bitwise_or.reduce(offset))
        if spread & (align - 1):
            which = int(np.argmax((offset & (align - 1)) != 0))
            fail(which, f"{self.at(int(address[which]))} is not aligned to {align} bytes")
        # All bits together are at least the largest offset.
        if spread < 0 or spread + size > len(self.data) < int(offset.max()) + size:
            bad = (offset < 0) | (offset + size > len(self.data))
            which = int(np.argmax(bad))
            fail(which, f"{self.at(int(address[which]))} is outside of every allocation")
        index = (offset >> (width.bit_length() - 1))[:, None]
        if size > width:
            index = index + _places(size // width)
        return index, width

    def _refuse(self, marks: Array, mask: int, count: int, verb: str, fail: Fail) -> None:
        """Fail with what is wrong with the worst of the marked bytes."""
        rows = np.ascontiguousarray(marks).reshape(count, -1).view(np.uint8) & np.uint8(mask)
        for flag, what in _WHAT:
            bad = rows & flag
            if bad.any():
                which, byte = divmod(int(np.argmax(bad != 0)), rows.shape[1])
                fail(which, f"{verb} {self.name} where byte {byte} of {rows.shape[1]} {what}")

    def at(self, address: int) -> str:
        """An address for a message."""
        return f"{self.name} byte {address - self.base}"

    def mark(self, index: Array, width: int, state: int) -> None:
        """Set what is known of all bytes of these elements."""
        self._views[width][1][index] = REPEATED[width][state]

    def put(self, index: Array, width: int, values: Array) -> None:
        """Write elements that a copy brings; they may be read then."""
        self._views[width][0][index] = values.view(ELEMENTS[width])
        self.mark(index, width, 0)


class Device:
    """Global memory: allocations with gaps between them, each byte unwritten at first."""

    _BASE = 0x7000_0000_0000
    _GAP_BYTES = 256

    def __init__(self) -> None:
        self.memory = Memory("global memory", self._BASE, 1 << 16, OUTSIDE)
        self._end = self._GAP_BYTES

    def allocate(self, size_bytes: int) -> int:
        """The address, a multiple of 256, of new bytes that nobody wrote."""
        start = self._end
        self._end = -(-(start + size_bytes) // 256) * 256 + self._GAP_BYTES
        if self._end > len(self.memory.data):
            self.memory.grow(2 * self._end, OUTSIDE)
        self.memory.state[start : start + size_bytes] = UNWRITTEN
        return self._BASE + start

    def fill(self, address: int, size_bytes: int, value: int) -> None:
        """Set bytes."""
        part = self._part(address, size_bytes)
        self.memory.data[part], self.memory.state[part] = value, 0

    def write(self, address: int, values: Array | Sequence[int] | bytes) -> None:
        """Write an array's bytes."""
        if isinstance(values, bytes):
            values = np.frombuffer(values, np.uint8)
        raw = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        part = self._part(address, len(raw))
        self.memory.data[part], self.memory.state[part] = raw, 0

    def read(self, address: int, dtype: Any, shape: int | Sequence[int]) -> Array:
        """A copy of what lies there; bytes that nobody wrote are refused."""
        wanted: Array = np.empty(shape, dtype)
        part = self._part(address, wanted.nbytes)
        if self.memory.state[part].any():
            offset = int(np.argmax(self.memory.state[part] != 0))
            raise ValueError(f"byte {offset} of {wanted.nbytes} at {address:#x} was never written")
        wanted.reshape(-1).view(np.uint8)[:] = self.memory.data[part]
        return wanted

    def written(self, address: int, size_bytes: int) -> Array:
        """Which bytes were written, bool `[size_bytes]`."""
        return np.asarray(self.memory.state[self._part(address, size_bytes)] == 0)

    def copy(self, target: int, source: int, size_bytes: int) -> None:
        """Copy bytes, written or not."""
        to, of = self._part(target, size_bytes), self._part(source, size_bytes)
        self.memory.data[to] = self.memory.data[of].copy()
        self.memory.state[to] = self.memory.state[of].copy()

    def _part(self, address: int, size_bytes: int) -> slice:
        start = address - self._BASE
        end = start + size_bytes
        if start < 0 or (self.memory.state[start:end] & OUTSIDE).any() or end > self._end:
            raise ValueError(f"{size_bytes} bytes at {address:#x} are not within an allocation")
        return slice(start, end)
