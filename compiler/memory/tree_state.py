"""What a visit of the search tree works on: arrays, so that it can be machine code."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from infc.memory.columns import Ints

Indices = NDArray[np.uint32]
Flags = NDArray[np.bool_]
Sets = NDArray[np.uint64]

NEVER: Final = 1 << 62
"""Above any floor."""


class Instance(NamedTuple):
    """What is to be placed, sorted by first column; sizes and offsets are units.

    Attributes:
        size, align: of each buffer, `[n]`.
        first, stop: the columns it spans, `[n]`.
        near_start: where the conflicts of each buffer begin in `near`, `[n + 1]`.
        near: the buffers that each conflicts with.
        ceiling: the highest offset each may have, `[n]`.
        rank: which goes first where floors are equal, `[n]`.
        room: `[1]`, the units that a column may take.
    """

    size: Ints
    align: Ints
    first: Ints
    stop: Ints
    near_start: Ints
    near: Indices
    ceiling: Ints
    rank: Ints
    room: Ints


class State(NamedTuple):
    """Where a visit is.

    Attributes:
        floor: the lowest offset of an unplaced buffer, the offset of a placed one, `[n]`.
        supported: whether it would rest on something there, `[n]`.
        hole: the end of the place that a passed buffer left, until something comes to lie in it;
            else `NEVER`, `[n]`.
        placed: `[n]`.
        reason: the placements but for which the floor might be lower, `[n, words]`.
        live: unplaced units of each column, `[columns]`.
        crossing: unplaced buffers that live both in column c - 1 and in column c, `[columns]`.
        level: the floor of an unplaced buffer, -1 for a placed one, `[n]`.
        by_level: the buffers, highest level first when last sorted, `[n]`.
        sorted_level: the levels then, `[n]`.
        stayed, moved: scratch of the sorting, `[n]`.
        stacked: units found so far in a check of columns, `[columns]`.
        blamed: the placements to blame for the last failure, `[words]`.
        crowded: how often each column was too full, `[columns]`.
        late: how often the floor of each buffer was too high, `[n]`.
    """

    floor: Ints
    supported: Flags
    hole: Ints
    placed: Flags
    reason: Sets
    live: Ints
    crossing: Ints
    level: Ints
    by_level: Indices
    sorted_level: Ints
    stayed: Indices
    moved: Indices
    stacked: Ints
    blamed: Sets
    crowded: Ints
    late: Ints


class Trail(NamedTuple):
    """What buffers were before each change, so that it can be taken back; `floor` -1: unplaced."""

    buffer: Indices
    floor: Ints
    supported: Flags
    hole: Ints
    reason: Sets


def new_state(live: Ints, crossing: Ints, buffers: int) -> State:
    """Nothing is placed yet."""
    words = -(-buffers // 64)
    return State(
        floor=np.zeros(buffers, np.int64),
        supported=np.ones(buffers, np.bool_),
        hole=np.full(buffers, NEVER, np.int64),
        placed=np.zeros(buffers, np.bool_),
        reason=np.zeros((buffers, words), np.uint64),
        live=live.copy(),
        crossing=crossing.copy(),
        level=np.zeros(buffers, np.int64),
        by_level=np.arange(buffers, dtype=np.uint32),
        sorted_level=np.zeros(buffers, np.int64),
        stayed=np.empty(buffers, np.uint32),
        moved=np.empty(buffers, np.uint32),
        stacked=np.empty(live.size, np.int64),
        blamed=np.zeros(words, np.uint64),
        crowded=np.zeros(live.size, np.int64),
        late=np.zeros(buffers, np.int64),
    )


def new_trail(length: int, words: int) -> Trail:
    """Memory for a trail."""
    return Trail(
        np.empty(length, np.uint32),
        np.empty(length, np.int64),
        np.empty(length, np.bool_),
        np.empty(length, np.int64),
        np.empty((length, words), np.uint64),
    )
