"""Races in shared memory: two warps touch a byte, one of them writes, and nothing orders them.

Every release (an arrival at a barrier) ends an *age*. A byte remembers in which age each warp last
read it and who last wrote it when; a warp knows of each other warp up to which age its accesses lie
before its own (vector clocks). Barriers hand that knowledge on. What lies many ages back is
forgotten, so that an age fits a byte: a race may be missed, but none is made up. Threads of one
warp count as ordered.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np

from infc.backends.cuda.lockstep.memory import ELEMENTS, REPEATED, Array

if TYPE_CHECKING:
    from infc.backends.cuda.lockstep.threads import Threads, Where

_OWN = 1 << 14
"""More than any age: a warp's own accesses are ordered."""
_LAST_AGE = 250
_FORGET = 125
_REMEMBERED = 2000
"""Accesses that are kept to name the other party of a race."""
Clock = Array
"""For each warp (and last the copy engine) the age up to which its accesses are known, i16."""


class Races:
    """Of one block's shared memory.

    Attributes:
        warps: of the block; the copy engine counts as one more.
        age: the present one.
        known: `[warps + 1, warps + 1]`: row: what that warp knows.
    """

    def __init__(self, warps: int, size_bytes: int) -> None:
        self.warps = warps
        self.age = 1
        self.known: Array = np.zeros((warps + 1, warps + 1), np.int16)
        np.fill_diagonal(self.known, _OWN)
        self.fenced: Array = np.zeros(warps + 1, np.int16)
        self._written = np.zeros(size_bytes, np.uint8)
        self._writer = np.zeros(size_bytes, np.uint8)
        self._read = np.zeros((warps, size_bytes), np.uint8)
        self._views = {
            width: (
                self._written.view(kind),
                self._writer.view(kind),
                self._read.reshape(-1).view(kind),
            )
            for width, kind in ELEMENTS.items()
        }
        self._size = size_bytes
        self._log: deque[tuple[bool, Threads, Any, Where, Array, int]] = deque(maxlen=_REMEMBERED)
        self._clocks: list[Clock] = []
        self._engine_wrote = False
        self._least: dict[Threads, tuple[Array, int]] = {}

    # ---- what is known -----------------------------------------------------------------------

    def release(self, t: Threads) -> Clock:
        """What whoever synchronises with these threads gets to know."""
        self._grow_older()
        rows = self.known[t.warps]
        rows[np.arange(len(t.warps)), t.warps] = self.age - 1
        clock: Clock = rows.max(axis=0)
        return clock

    def acquire(self, t: Threads, clock: Clock) -> None:
        """The warps of these threads get to know this."""
        self.known[t.warps] = np.maximum(self.known[t.warps], clock)
        self._least.clear()

    def release_engine(self, clock: Clock) -> None:
        """A bulk copy has landed: add that to a clock."""
        self._grow_older()
        clock[self.warps] = self.age - 1

    def new_clock(self) -> Clock:
        """One that knows nothing yet, for a barrier to keep."""
        clock: Clock = np.zeros(self.warps + 1, np.int16)
        self._clocks.append(clock)
        return clock

    def _grow_older(self) -> None:
        self.age += 1
        if self.age > _LAST_AGE:
            self.age -= _FORGET
            for ages in (self._written, self._read):
                np.subtract(np.maximum(ages, _FORGET), _FORGET, out=ages)
            own = self.known == _OWN
            self.known = np.maximum(self.known - _FORGET, 0)
            self.known[own] = _OWN
            self.fenced = np.maximum(self.fenced - _FORGET, 0)
            for clock in self._clocks:
                np.maximum(clock - _FORGET, 0, out=clock)
            self._least.clear()

    def _known_to_all(self, t: Threads) -> tuple[Array, int]:
        """Of each warp, the age up to which all warps of `t` know it, and the least of these."""
        found = self._least.get(t)
        if found is None:
            ages = self.known[t.warps].min(axis=0)
            found = self._least[t] = ages, int(ages[: self.warps + self._engine_wrote].min())
        return found

    # ---- accesses ----------------------------------------------------------------------------

    def read(self, index: Array, width: int, t: Threads, where: Where, who: Array | None) -> None:
        """Threads read elements of shared memory."""
        read = self._views[width][2]
        self._check_writes(index, width, t, where, who, "reads")
        warps = self._warps_of(len(index), t, who)
        row = REPEATED[width][self.age]
        if len(index) == 1 and who is None and t.count > 1:
            for warp in t.warps:
                read[index + int(warp) * (self._size // width)] = row
        else:
            read[index + (warps * (self._size // width))[:, None]] = row
        self._log.append((False, t, who, where, index, width))

    def write(
        self,
        index: Array,
        width: int,
        t: Threads,
        where: Where,
        who: Array | None,
        verb: str = "writes",
    ) -> None:
        """Threads write elements of shared memory."""
        self._check_writes(index, width, t, where, who, verb)
        known, least = self._known_to_all(t)
        at = index + (np.arange(self.warps) * (self._size // width))[:, None, None]
        ages = self._views[width][2].take(at).view(np.uint8).reshape(self.warps, -1)
        if int(ages.max()) > least:
            others = np.flatnonzero(ages.max(axis=1) > known[:-1])
            if _in_warps(index, t, who):
                bytes_ = ages.shape[1] // len(t.warps)
                latest = ages.reshape(self.warps, -1, bytes_)[others].max(axis=2)
                others = others[(latest > self.known[t.warps][:, others].T).any(axis=1)]
            for warp in others:
                by = np.full(ages.shape[1], warp, np.uint8)
                self._check(ages[warp], by, index, width, t, where, who, verb, False)
        self.note(index, width, self._warps_of(len(index), t, who))
        self._log.append((True, t, who, where, index, width))

    def _check_writes(
        self, index: Array, width: int, t: Threads, where: Where, who: Array | None, verb: str
    ) -> None:
        """Fail where somebody else's write is not known to lie before."""
        written, writer, _ = self._views[width]
        ages = written.take(index).view(np.uint8)
        known, least = self._known_to_all(t)
        latest = int(ages.max())
        if latest > least:
            parties = writer.take(index).view(np.uint8)
            first = int(parties.max())
            if latest <= known[first] and int(parties.min()) == first:
                return
            if _in_warps(index, t, who):
                last = ages.reshape(len(t.warps), -1).max(axis=1)
                rows = parties.reshape(len(t.warps), -1)
                party = rows.max(axis=1)
                if (rows.min(axis=1) == party).all() and (last <= self.known[t.warps, party]).all():
                    return
            self._check(ages, parties, index, width, t, where, who, verb, True)

    def note(self, index: Array, width: int, warps: Array) -> None:
        """Elements were written now, by these warps (`[accesses]`)."""
        written, writer, _ = self._views[width]
        written[index] = REPEATED[width][self.age]
        writer[index] = REPEATED[width].take(warps)[:, None]

    def engine_wrote(self, start: int, end: int) -> None:
        """A bulk copy has landed."""
        self._engine_wrote = True
        self._least.clear()
        self._written[start:end] = self.age
        self._writer[start:end] = self.warps

    def need_fence(
        self, index: Array, width: int, t: Threads, where: Where, who: Array | None
    ) -> None:
        """Fail where a thread wrote without `fence.proxy.async` after it what a matrix unit reads
        through a descriptor."""
        written, writer, _ = self._views[width]
        ages, parties = (marks.take(index).view(np.uint8) for marks in (written, writer))
        bad = ((ages > self.fenced[parties]) & (parties < self.warps)).reshape(len(index), -1)
        if bad.any():
            access, byte = divmod(int(np.argmax(bad)), bad.shape[1])
            place = int(index[access, byte // width]) * width + byte % width
            warp = int(parties.reshape(len(index), -1)[access, byte])
            t.failing(where, who)(
                access,
                f"shared memory byte {place}, which warp {warp} wrote"
                f"{self._find(True, warp, place)}, has no fence.proxy.async behind that",
            )

    def fence(self, t: Threads) -> None:
        """These threads' writes until now are seen by copies and matrix units."""
        self._grow_older()
        self.fenced[t.warps] = self.age - 1

    def _warps_of(self, count: int, t: Threads, who: Array | None) -> Array:
        """The warp that makes each access."""
        if who is not None:
            chosen: Array = t.warp_of[who]
            return chosen
        return t.warp_of if count == t.count else t.warp_of[:1]

    def _check(
        self,
        ages: Array,
        parties: Array,
        index: Array,
        width: int,
        t: Threads,
        where: Where,
        who: Array | None,
        verb: str,
        wrote: bool,
    ) -> None:
        """Fail where a warp does not know that the other party's access lies before its own."""
        shape = (len(index), -1)
        ages, parties = ages.reshape(shape), parties.reshape(shape)
        warps = t.warps if len(index) == 1 and who is None else None
        own = self._warps_of(len(index), t, who)
        if warps is not None:
            ages, parties = (np.repeat(x, len(warps), axis=0) for x in (ages, parties))
            own = warps
        first = parties[:, 0]
        if (parties == first[:, None]).all() and (ages.max(axis=1) <= self.known[own, first]).all():
            return
        bad = ages > self.known[own[:, None], parties]
        if not bad.any():
            return
        access, byte = divmod(int(np.argmax(bad)), ages.shape[1])
        other = int(parties[access, byte])
        row = index[min(access, len(index) - 1)]
        place = int(row[byte // width]) * width + byte % width
        party = "a bulk copy" if other == self.warps else f"warp {other}"
        did = "wrote" if wrote else "read"
        source = self._find(wrote, other, place)
        t.failing(where, who)(
            access if warps is None else int(np.argmax(t.warp_of == own[access])),
            f"race: {verb} shared memory byte {place}, which {party} {did}{source}, "
            "with no barrier in between",
        )

    def _find(self, wrote: bool, warp: int, place: int) -> str:
        """Who made the access that a race is with."""
        for write, t, who, where, index, width in reversed(self._log):
            if write == wrote and warp in t.warps:
                hit = (index == place // width).any(axis=1)
                if (hit & (self._warps_of(len(index), t, who) == warp)).any():
                    return f" ({where})"
        return ""


def _in_warps(index: Array, t: Threads, who: Array | None) -> bool:
    """Whether each thread of whole warps makes one of the accesses, in the order of the threads."""
    return who is None and t.whole and len(index) == t.count
