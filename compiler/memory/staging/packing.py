"""Offsets for the stays of a schedule, fast: hundreds of tries are packed and one is kept.

Large stays come first, the largest lowest. All others are placed around them in the order in which
they begin: what is streamed into the lowest hole, beside a neighbour that leaves at about the same
time, or round and round as in a ring; what stays long at the top, where it does not cut the room of
the stream to pieces.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from infc.memory.buffer import Buffer
from infc.memory.planner import plan_arena
from infc.memory.staging.pieces import Pieces
from infc.memory.staging.plan import Residence

_LONG = (0.1, 2.0)
"""Shares of the program from which on a stay is long; none is that of twice its length."""
_LARGE = (16, 4)
"""Parts of the scratchpad: a stay that takes more than one of them is large."""
_SEARCHED = 400
"""Stays up to which the arena planner is asked where the fast ways fail."""
_SEARCH_NODES = 2000


def pack(
    pieces: Pieces, residences: Sequence[Residence], *, thorough: bool = False
) -> list[int] | None:
    """An offset for each stay, or None where no way that is tried fits the scratchpad.

    Behind the fast ways stands the arena planner's search, for few stays and where `thorough`.
    """
    machine = pieces.machine
    sizes = [machine.rounded(pieces.pieces[r.piece].size_bytes) for r in residences]
    capacity = machine.capacity_bytes // machine.align_bytes * machine.align_bytes
    placed = _fast(residences, sizes, capacity, len(pieces.parts))
    if placed is not None:
        return placed
    if len(residences) > _SEARCHED and not thorough:
        return None
    buffers = [
        Buffer(str(number), sizes[number], machine.align_bytes, residence.first, residence.last)
        for number, residence in enumerate(residences)
    ]
    plan = plan_arena(buffers, node_limit=_SEARCH_NODES, capacity_bytes=capacity)
    if plan.height_bytes > capacity:
        return None
    return [plan.offsets[buffer.name] for buffer in buffers]


def _fast(
    residences: Sequence[Residence], sizes: Sequence[int], capacity: int, parts: int
) -> list[int] | None:
    """The first way to place all stays in their order that fits."""
    whole = capacity
    always = {number: 0 for number, residence in enumerate(residences) if residence.resident}
    for number in always:
        capacity -= sizes[number]
        always[number] = capacity
    for part in _LARGE:
        fixed = _place_large(residences, sizes, capacity, whole // part, always)
        if fixed is None:
            continue
        for choose in (_lowest, _beside_alike, _behind_last):
            for share in _LONG:
                placed = _place_rest(residences, sizes, capacity, fixed, share * parts, choose)
                if placed is not None:
                    placed |= always
                    return [placed[number] for number in range(len(residences))]
    return None


@dataclass
class _Shelf:
    """What is placed: stays that live, by offset, and the end of the one that came last."""

    live: list[tuple[int, int, int]]
    last_end: int


@dataclass(frozen=True)
class _Hole:
    """Room between two stays; the one below is there up to the part `below_last`."""

    start: int
    end: int
    below_last: int


_Choice = Callable[[_Shelf, Sequence[_Hole], int, int], int]
"""An offset in one of some holes, each large enough, for a stay of some bytes up to some part."""


def _lowest(shelf: _Shelf, holes: Sequence[_Hole], size: int, last: int) -> int:
    return holes[0].start


def _beside_alike(shelf: _Shelf, holes: Sequence[_Hole], size: int, last: int) -> int:
    return min(holes, key=lambda hole: (abs(hole.below_last - last), hole.start)).start


def _behind_last(shelf: _Shelf, holes: Sequence[_Hole], size: int, last: int) -> int:
    starts = [
        max(hole.start, shelf.last_end) for hole in holes if hole.end >= shelf.last_end + size
    ]
    return starts[0] if starts else holes[0].start


def _place_large(
    residences: Sequence[Residence],
    sizes: Sequence[int],
    capacity: int,
    threshold: int,
    always: dict[int, int],
) -> dict[int, int] | None:
    """Offsets of large stays, the first of which are as low as they can be."""
    fixed: dict[int, int] = {}
    large = [n for n in range(len(sizes)) if sizes[n] > threshold and n not in always]
    for number in sorted(large, key=lambda n: (-sizes[n], n)):
        this = residences[number]
        around = sorted(
            (offset, offset + sizes[n], residences[n].last)
            for n, offset in fixed.items()
            if residences[n].first <= this.last and this.first <= residences[n].last
        )
        holes = _holes(around, capacity, sizes[number])
        if not holes:
            return None
        fixed[number] = holes[0].start
    return fixed


def _place_rest(
    residences: Sequence[Residence],
    sizes: Sequence[int],
    capacity: int,
    fixed: dict[int, int],
    long: float,
    choose: _Choice,
) -> dict[int, int] | None:
    """Offsets of all stays but those that are always there."""
    offsets = dict(fixed)
    # A stay must keep clear of large ones that begin while it is there.
    coming = sorted(
        (residences[n].first, residences[n].last, at, at + sizes[n]) for n, at in fixed.items()
    )
    shelf = _Shelf([], 0)
    order = sorted(range(len(residences)), key=lambda n: (residences[n].first, -sizes[n], n))
    for number in order:
        this, size = residences[number], sizes[number]
        if number in fixed or this.resident:
            continue
        if not size:
            offsets[number] = 0
            continue
        shelf.live = [entry for entry in shelf.live if entry[2] >= this.first]
        around = shelf.live
        if coming:
            coming = [entry for entry in coming if entry[1] >= this.first]
            near = [(low, high, last) for at, last, low, high in coming if at <= this.last]
            around = sorted([*around, *near])
        holes = _holes(around, capacity, size)
        if not holes:
            return None
        if this.last - this.first >= long:
            offset = holes[-1].end - size
        else:
            offset = choose(shelf, holes, size, this.last)
            shelf.last_end = offset + size
        offsets[number] = offset
        insort(shelf.live, (offset, offset + size, this.last))
    return offsets


def _holes(live: Sequence[tuple[int, int, int]], capacity: int, size: int) -> list[_Hole]:
    """Stretches of at least `size` bytes that no live stay takes, upwards."""
    holes, end, last = [], 0, -1
    for start, stop, until in live:
        if start - end >= size:
            holes.append(_Hole(end, start, last))
        # Large stays of different times may overlap each other.
        if stop > end:
            end, last = stop, until
    if capacity - end >= size:
        holes.append(_Hole(end, capacity, last))
    return holes
