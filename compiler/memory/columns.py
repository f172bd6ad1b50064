"""Time reduced to what can conflict: columns, independent components, and the bound they give.

Two buffers conflict exactly where some step sees both. Steps at which the set of live buffers is
contained in that of another step say nothing new, so only the maximal sets are kept: the *columns*.
Buffers are intervals, so each spans consecutive columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import gcd

import numpy as np
from numpy.typing import NDArray

from infc.memory.buffer import Buffer

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Problem:
    """Buffers that must be planned together, in units of the common alignment.

    Attributes:
        members: indices into the planner's list of buffers, `[n]`.
        unit_bytes: the greatest common divisor of all alignments; every offset is a multiple.
        size: units each buffer takes, rounded up, `[n]`.
        slack: bytes lost by that rounding, `[n]`, less than `unit_bytes`.
        align: alignment in units, `[n]`.
        first: the first column of each buffer, `[n]`.
        stop: one past its last column, `[n]`.
        columns: how many columns there are.
    """

    members: Ints
    unit_bytes: int
    size: Ints
    slack: Ints
    align: Ints
    first: Ints
    stop: Ints
    columns: int

    def height_bytes(self, offsets: Ints) -> int:
        """Bytes up to the end of the highest buffer; the slack of the topmost one is not used."""
        return int(((offsets + self.size) * self.unit_bytes - self.slack).max())

    def live_units(self) -> Ints:
        """Units live in each column, `[columns]`."""
        change = np.zeros(self.columns + 1, np.int64)
        np.add.at(change, self.first, self.size)
        np.add.at(change, self.stop, -self.size)
        return np.cumsum(change[:-1])

    def lower_bound_bytes(self) -> int:
        """The most bytes live at once: all but the topmost buffer of a column are rounded up.

        Which buffer is topmost is not known, so the one that loses most by rounding is assumed.
        """
        slack = np.zeros(self.columns, np.int64)
        for i in np.flatnonzero(self.slack):
            span = slice(self.first[i], self.stop[i])
            slack[span] = np.maximum(slack[span], self.slack[i])
        return int((self.live_units() * self.unit_bytes - slack).max())


def split_into_problems(buffers: Sequence[Buffer]) -> list[Problem]:
    """The independent problems of a list of buffers; those of size zero are left out."""
    members = np.array([i for i, b in enumerate(buffers) if b.size_bytes > 0], np.int64)
    if members.size == 0:
        return []
    sizes = np.array([buffers[i].size_bytes for i in members], np.int64)
    aligns = np.array([buffers[i].align for i in members], np.int64)
    first, stop, count = _columns(
        np.array([buffers[i].first for i in members], np.int64),
        np.array([buffers[i].last for i in members], np.int64),
    )
    unit = gcd(*(int(a) for a in aligns))
    units = -(-sizes // unit)

    crossing = np.zeros(count + 1, np.int64)  # buffers live both in column c - 1 and in column c
    np.add.at(crossing, first + 1, 1)
    np.add.at(crossing, stop, -1)
    cuts = [0, *(int(c) for c in np.flatnonzero(np.cumsum(crossing)[1:count] == 0) + 1), count]
    problems = []
    for low, high in pairwise(cuts):
        inside = np.flatnonzero((first >= low) & (stop <= high))
        problems.append(
            Problem(
                members=members[inside],
                unit_bytes=unit,
                size=units[inside],
                slack=units[inside] * unit - sizes[inside],
                align=aligns[inside] // unit,
                first=first[inside] - low,
                stop=stop[inside] - low,
                columns=high - low,
            )
        )
    return problems


def _columns(first: Ints, last: Ints) -> tuple[Ints, Ints, int]:
    """Map steps `[first, last]` to columns `[first, stop)`.

    The live set grows at starts and shrinks at ends, so it is maximal exactly at a start after
    which some buffer ends before the next start.
    """
    starts = np.unique(first)
    ends = np.unique(last)
    # Interval k of starts is [starts[k], starts[k + 1]): does any buffer end in it?
    interval_of_end = np.unique(np.searchsorted(starts, ends, side="right") - 1)
    kept = starts[interval_of_end]
    column_first = np.searchsorted(kept, first, side="left").astype(np.int64)
    column_stop = np.searchsorted(kept, last, side="right").astype(np.int64)
    return column_first, column_stop, int(kept.size)
