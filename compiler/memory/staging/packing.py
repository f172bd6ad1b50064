"""Offsets for the stays of a schedule, fast: hundreds of tries are packed and one is kept.

Stays are placed in the order in which they begin, so only what lives at that moment is in the way.
What is streamed goes round like in a ring, or beside a neighbour that leaves at about the same
time; what stays long goes to the top, where it does not cut the room of the stream to pieces.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from infc.memory.buffer import Buffer
from infc.memory.planner import plan_arena
from infc.memory.staging.pieces import Pieces
from infc.memory.staging.plan import Residence

_LONG = (0.1, 0.5)
"""Shares of the program from which on a stay is long."""
_SEARCH_NODES = 2000


def pack(pieces: Pieces, residences: Sequence[Residence]) -> list[int] | None:
    """An offset for each stay, or None where no way that is tried fits the scratchpad."""
    machine = pieces.machine
    sizes = [machine.rounded(pieces.pieces[r.piece].size_bytes) for r in residences]
    capacity = machine.capacity_bytes // machine.align_bytes * machine.align_bytes
    for choose in (_lowest, _beside_alike, _behind_last):
        for share in _LONG:
            long = share * len(pieces.parts)
            offsets = _in_order(residences, sizes, capacity, long, choose)
            if offsets is not None:
                return offsets
    return None


def pack_tightly(pieces: Pieces, residences: Sequence[Residence]) -> list[int] | None:
    """As `pack`, with the arena planner's search behind it: for the last try."""
    machine = pieces.machine
    buffers = [
        Buffer(
            str(number),
            pieces.pieces[residence.piece].size_bytes,
            machine.align_bytes,
            residence.first,
            residence.last,
        )
        for number, residence in enumerate(residences)
    ]
    plan = plan_arena(buffers, node_limit=_SEARCH_NODES)
    if plan.height_bytes > machine.capacity_bytes:
        return None
    return [plan.offsets[buffer.name] for buffer in buffers]


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


def _in_order(
    residences: Sequence[Residence],
    sizes: Sequence[int],
    capacity: int,
    long: float,
    choose: _Choice,
) -> list[int] | None:
    offsets = [0] * len(residences)
    shelf = _Shelf([], 0)
    order = sorted(range(len(residences)), key=lambda n: (residences[n].first, -sizes[n], n))
    for number in order:
        residence, size = residences[number], sizes[number]
        if not size:
            continue
        shelf.live = [entry for entry in shelf.live if entry[2] >= residence.first]
        holes = [hole for hole in _holes(shelf.live, capacity) if hole.end - hole.start >= size]
        if not holes:
            return None
        if residence.last - residence.first >= long:
            offset = holes[-1].end - size
        else:
            offset = choose(shelf, holes, size, residence.last)
            shelf.last_end = offset + size
        offsets[number] = offset
        insort(shelf.live, (offset, offset + size, residence.last))
    return offsets


def _holes(live: Sequence[tuple[int, int, int]], capacity: int) -> Iterator[_Hole]:
    """Stretches that no live stay takes, upwards."""
    edges = [(0, 0, -1), *live, (capacity, capacity, -1)]
    return (_Hole(below[1], above[0], below[2]) for below, above in pairwise(edges))
