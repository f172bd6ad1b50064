"""How long pieces stay in the scratchpad between uses, before transfers are given any time.

A piece is there while a part uses it. Between two uses it either stays (a *kept gap*) or its room
is free, which costs a load, and a store where nobody else has what was written. Short gaps are kept
first: they take the least room for what they save.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from infc.memory.staging.pieces import Pieces


class Keep(StrEnum):
    """Which gaps of pieces that far memory has a copy of are kept."""

    NONE = "none"
    SHORTEST = "shortest"
    LEAST_RECENT = "least-recent"
    """A cache's rule, which knows no future: what was used longest ago goes first."""


@dataclass(frozen=True)
class Span:
    """A stay: `[first, last]` are the parts of its first and last use.

    Attributes:
        load: it must be brought in before `first`.
        store: it must be brought back after `last`.
    """

    piece: int
    first: int
    last: int
    load: bool
    store: bool


@dataclass(frozen=True)
class Occupancy:
    """Bytes of the scratchpad that are taken at each part, `[parts]`."""

    bytes: NDArray[np.int64]
    limit: int

    def fits(self, first: int, stop: int, size: int) -> bool:
        """Whether there is room at all parts from `first` to `stop`, that one excluded."""
        return first >= stop or int(self.bytes[first:stop].max()) + size <= self.limit

    def take(self, first: int, stop: int, size: int) -> None:
        """Take room at those parts; a negative size gives it back."""
        self.bytes[first:stop] += size


@dataclass(frozen=True)
class _Uses:
    """Of one piece: the parts, and at which of them it is read and written."""

    parts: list[int]
    read: set[int]
    written: set[int]


@dataclass(frozen=True)
class Stays:
    """The stays of all pieces but the resident ones.

    Attributes:
        room: what they take, the resident ones too.
        direct: `(part, piece)` of what is read in far memory because the part's pieces do not fit.
    """

    spans: list[Span]
    room: Occupancy
    direct: set[tuple[int, int]]


def plan_spans(pieces: Pieces, resident: Collection[int], keep: Keep, limit: int) -> Stays | None:
    """The stays against `limit` bytes; None where some part's pieces do not fit."""
    uses = _uses(pieces, resident)
    size = [pieces.machine.rounded(piece.size_bytes) for piece in pieces.pieces]
    room = Occupancy(np.zeros(len(pieces.parts), np.int64), limit)
    room.bytes[:] = sum(size[piece] for piece in resident)
    for piece, use in uses.items():
        for part in use.parts:
            room.take(part, part + 1, size[piece])
    direct = _spill_to_direct(pieces, uses, size, room)
    if not room.fits(0, len(pieces.parts), 0):
        return None
    kept = _keep_written(uses, size, room)
    if keep is Keep.SHORTEST:
        kept |= _keep_shortest(uses, size, room)
    elif keep is Keep.LEAST_RECENT:
        kept |= _keep_recent(pieces, uses, size, room)
    spans = [span for piece in uses for span in _spans(pieces, piece, uses[piece], kept)]
    return Stays(spans, room, direct)


def _spill_to_direct(
    pieces: Pieces, uses: dict[int, _Uses], size: list[int], room: Occupancy
) -> set[tuple[int, int]]:
    """Have the largest pieces read directly, where the machine can, by parts that need too much."""
    direct: set[tuple[int, int]] = set()
    for number in np.flatnonzero(room.bytes > room.limit):
        part = int(number)
        able = [
            piece
            for piece in dict.fromkeys(pieces.parts[part].reads)
            if piece in uses and pieces.pieces[piece].may_be_direct
        ]
        for piece in sorted(able, key=lambda piece: (-size[piece], piece)):
            if room.fits(part, part + 1, 0):
                break
            uses[piece].parts.remove(part)
            if not uses[piece].parts:
                del uses[piece]
            room.take(part, part + 1, -size[piece])
            direct.add((part, piece))
    return direct


def _uses(pieces: Pieces, resident: Collection[int]) -> dict[int, _Uses]:
    """Of each piece that takes room and is not resident, in the order of first use."""
    found: dict[int, _Uses] = {}
    for number, part in enumerate(pieces.parts):
        for piece in part.uses:
            if piece in resident or not pieces.pieces[piece].size_bytes:
                continue
            use = found.setdefault(piece, _Uses([], set(), set()))
            use.parts.append(number)
        for piece in part.reads:
            if piece in found:
                found[piece].read.add(number)
        for piece in part.writes:
            if piece in found:
                found[piece].written.add(number)
    return found


Gap = tuple[int, int, int]
"""A piece and two of its uses, one after the other."""


def _gaps(piece: int, use: _Uses) -> list[Gap]:
    """Gaps over which the content matters: what is written whole next need not stay."""
    return [(piece, a, b) for a, b in pairwise(use.parts) if b in use.read]


def _keep_written(uses: dict[int, _Uses], size: list[int], room: Occupancy) -> set[Gap]:
    """Gaps of what is made on chip: losing it costs a transfer each way."""
    gaps = [gap for piece, use in uses.items() if use.written for gap in _gaps(piece, use)]
    return _keep(gaps, size, room)


def _keep_shortest(uses: dict[int, _Uses], size: list[int], room: Occupancy) -> set[Gap]:
    gaps = [gap for piece, use in uses.items() if not use.written for gap in _gaps(piece, use)]
    return _keep(gaps, size, room)


def _keep(gaps: list[Gap], size: list[int], room: Occupancy) -> set[Gap]:
    kept = set()
    for gap in sorted(gaps, key=lambda gap: (gap[2] - gap[1], gap[1], gap[0])):
        piece, before, after = gap
        if room.fits(before + 1, after, size[piece]):
            room.take(before + 1, after, size[piece])
            kept.add(gap)
    return kept


def _keep_recent(
    pieces: Pieces, uses: dict[int, _Uses], size: list[int], room: Occupancy
) -> set[Gap]:
    """What a cache with the rule of least recent use would find in it."""
    cached: OrderedDict[int, int] = OrderedDict()  # piece: the part that used it last
    taken, kept = 0, set()
    for number, part in enumerate(pieces.parts):
        clean = [piece for piece in part.uses if piece in uses and not uses[piece].written]
        for piece in clean:
            if piece in cached:
                kept.add((piece, cached.pop(piece), number))
                taken -= size[piece]
        while cached and int(room.bytes[number]) + taken > room.limit:
            piece, _ = cached.popitem(last=False)
            taken -= size[piece]
        for piece in clean:
            cached[piece] = number
            taken += size[piece]
    for piece, before, after in kept:
        room.take(before + 1, after, size[piece])
    return kept


def _spans(pieces: Pieces, piece: int, use: _Uses, kept: set[Gap]) -> list[Span]:
    """The stays of one piece, in order."""
    runs: list[list[int]] = [[use.parts[0]]]
    for before, after in pairwise(use.parts):
        together = after in use.read and (after == before + 1 or (piece, before, after) in kept)
        if together:
            runs[-1].append(after)
        else:
            runs.append([after])
    loads = [
        run[0] in use.read and (number > 0 or pieces.pieces[piece].starts_far)
        for number, run in enumerate(runs)
    ]
    spans = []
    for number, run in enumerate(runs):
        dirty = any(part in use.written for part in run)
        last = number == len(runs) - 1
        wanted = pieces.pieces[piece].ends_far if last else loads[number + 1]
        spans.append(Span(piece, run[0], run[-1], loads[number], dirty and wanted))
    return spans
