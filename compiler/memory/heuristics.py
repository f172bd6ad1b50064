"""Fast placements: first fit in several orders, and the skyline dive.

First fit by size is the usual greedy of tensor arenas (Pisarchyk and Lee, arXiv 2001.03288). The
dive places, again and again, the buffer that can lie lowest, like a game of falling blocks; ties go
to the given order.
"""

from __future__ import annotations

import numpy as np

from infc.memory.columns import Ints, Problem

_PLACED = np.iinfo(np.int64).max


def orders(problem: Problem) -> list[Ints]:
    """Orders worth trying, each a permutation of `range(n)`; ties keep the input's order.

    Large ones first in several meanings of large, and sweeps from the first or the last column.
    """
    span = problem.stop - problem.first
    keys = [
        (-problem.size,),
        (-problem.size * span,),
        (-span, -problem.size),
        (problem.first, -problem.size),
        (problem.first, -span),
        (-problem.stop, -problem.size),
        (-problem.stop, -span),
    ]
    return [np.lexsort(tuple(reversed(key))).astype(np.int64) for key in keys]


def first_fit(problem: Problem, order: Ints) -> Ints:
    """Each buffer in turn at the lowest offset free of those before it, `[n]` units."""
    offsets = np.zeros(problem.size.size, np.int64)
    placed = np.zeros(problem.size.size, bool)
    for i in order:
        conflicts = np.flatnonzero(
            placed & (problem.first < problem.stop[i]) & (problem.stop > problem.first[i])
        )
        lows = offsets[conflicts]
        by_offset = np.argsort(lows, kind="stable")
        lows = lows[by_offset]
        tops = np.maximum.accumulate(lows + problem.size[conflicts[by_offset]])
        starts = align_up(np.concatenate(([0], tops)), problem.align[i])
        gaps = np.append(lows, _PLACED) - starts
        offsets[i] = starts[int(np.argmax(gaps >= problem.size[i]))]
        placed[i] = True
    return offsets


def dive(problem: Problem, order: Ints) -> Ints:
    """The skyline dive, `[n]` units: offsets never decrease in the order of placement."""
    n = order.size
    rank = np.empty(n, np.int64)
    rank[order] = np.arange(n)
    # Sorted by first column, so that what may conflict with a buffer is a slice.
    by_first = np.argsort(problem.first, kind="stable")
    size, align = problem.size[by_first], problem.align[by_first]
    first, stop, rank = problem.first[by_first], problem.stop[by_first], rank[by_first]
    begin = np.searchsorted(np.maximum.accumulate(stop), first, side="right")
    end = np.searchsorted(first, stop, side="left")
    aligned = bool((align != 1).any())
    floor = np.zeros(n, np.int64)
    offsets = np.empty(n, np.int64)
    for _ in range(n):
        i = int(np.argmin(floor))
        offset = floor[i]
        tied = i + np.flatnonzero(floor[i:] == offset)
        if tied.size > 1:
            i = int(tied[np.argmin(rank[tied])])
        offsets[i] = offset
        near = slice(begin[i], end[i])
        top = align_up(offset + size[i], align[near]) if aligned else offset + size[i]
        # What is placed has the highest floor of all and keeps it.
        raised = np.maximum(floor[near], top)
        np.copyto(floor[near], raised, where=stop[near] > first[i])
        floor[i] = _PLACED
    placed = np.empty(n, np.int64)
    placed[by_first] = offsets
    return placed


def align_up(value: Ints | np.int64, align: Ints | np.int64) -> Ints:
    """The least multiples of `align` at or above `value`."""
    return np.asarray(-(-value // align) * align, np.int64)
