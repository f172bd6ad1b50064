"""One depth-first visit of the search tree, compiled to machine code when it is first needed.

`search` says what the tree is. Here, besides, each floor knows its *reason*: the set of placed
buffers but for which it might be lower. When a branch fails, the reasons of the floors that made it
fail say which placements are to blame; all others are taken back without trying to pass their
buffers, as that would fail in the same way. What is passed has for its reason what was blamed. A
visit that takes everything back so has shown that there is no placement.

Sets of buffers are rows of 64-bit words. Nothing recurses: functions that call themselves crash
when numba loads them from its cache. Indices are unsigned where they are read from arrays, which
spares numba's test for negative ones.
"""

from __future__ import annotations

from typing import Any, Final, TypeVar, cast

import numba
import numpy as np

from infc.memory.columns import Ints
from infc.memory.tree_state import NEVER, Instance, Sets, State, Trail

_Function = TypeVar("_Function")

STOPPED: Final = 0
"""A visit ended at its node limit."""
FOUND: Final = 1
"""A visit ended with a placement."""
EXHAUSTED: Final = 2
"""A visit has shown that there is no placement."""

_SLID = -2
"""Instead of a buffer: one that was passed might as well have stayed where it was."""


def _part(function: _Function) -> _Function:
    """Compile as a part of `visit`, which alone is called from Python and kept in the cache."""
    # Without wrappers for Python, which take long to compile; numba's types do not know of them.
    njit: Any = numba.njit
    options = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    return cast(_Function, njit(nogil=True, error_model="numpy", **options)(function))


def _entry(function: _Function) -> _Function:
    """Compile when first called, and keep the result beside this file; other threads may run."""
    njit: Any = numba.njit
    try:
        return cast(_Function, njit(nogil=True, error_model="numpy", cache=True)(function))
    except RuntimeError:
        # Neither this folder nor one of the user's can be written: compiled in each process.
        return cast(_Function, njit(nogil=True, error_model="numpy")(function))


@_entry
def visit(
    instance: Instance, state: State, trail: Trail, choices: Ints, parts: Ints, node_limit: int
) -> tuple[int, int]:
    """Visit at most `node_limit` nodes of a fresh state; how it ended, and the nodes visited.

    Args:
        instance: what is to be placed.
        state: as it is before anything is placed; its floors are the offsets where one was found.
        trail: scratch, with room for all of `near`, all buffers, and two changes a node.
        choices: scratch, `[n + 1, 6]`: open placements, each the trail's length, the buffer, and
            the part it lies in: begin, end, next part, number of parts.
        parts: scratch, `[n, 4]`: begin, end, next part, open placements when it came into being.
        node_limit: nodes to visit.
    """
    size, first, stop, placed = instance.size, instance.first, instance.stop, state.placed
    begin, end, following, part_count = 0, size.size, -1, 0
    changes = choice_count = nodes = 0
    while nodes < node_limit:
        nodes += 1
        k = _choose(instance, state, begin, end)
        split = False
        if k < 0:
            alive = False
        elif not state.supported[k]:
            _blame_surroundings(instance, state, k, True)
            changes, alive = _lift(instance, state, trail, changes, k)
        else:
            choice = choices[choice_count]
            choice[0], choice[1], choice[2] = changes, k, begin
            choice[3], choice[4], choice[5] = end, following, part_count
            choice_count += 1
            changes, alive, split = _place(instance, state, trail, changes, k)

        while not alive:
            # Back to the last placement that is to blame: its buffer is passed instead.
            while choice_count > 0 and not _holds(state.blamed, choices[choice_count - 1, 1]):
                choice_count -= 1
            if choice_count == 0:
                return EXHAUSTED, nodes
            choice_count -= 1
            choice = choices[choice_count]
            _take_back(instance, state, trail, changes, choice[0])
            changes, k, begin = choice[0], choice[1], choice[2]
            end, following, part_count = choice[3], choice[4], choice[5]
            state.blamed[k >> 6] &= ~(np.uint64(1) << np.uint64(k & 63))
            _blame_surroundings(instance, state, k, False)
            changes, alive = _lift(instance, state, trail, changes, k)
            split = False

        if split:
            # Unplaced buffers in [begin, end) that share no column are parts: the last goes first.
            low, last, reach, found = -1, -1, -1, 0
            for i in range(begin, end):
                if placed[i]:
                    continue
                if low >= 0 and first[i] >= reach:
                    part = parts[part_count]
                    part[0], part[1], part[2], part[3] = low, last + 1, following, choice_count
                    following = part_count
                    part_count += 1
                    low = -1
                if low < 0:
                    low = i
                    found += 1
                reach = max(reach, stop[i])
                last = i
            if found == 0:
                if following < 0:
                    return FOUND, nodes
                # The next part does not care how this one was placed: that stays.
                part = parts[following]
                begin, end, following, choice_count = part[0], part[1], part[2], part[3]
            else:
                begin, end = low, last + 1
    return STOPPED, nodes


@_part
def _choose(instance: Instance, state: State, begin: int, end: int) -> int:
    """The unplaced buffer with the lowest floor; `_SLID`, and who is to blame."""
    rank, floor, placed, hole = instance.rank, state.floor, state.placed, state.hole
    chosen, lowest, lowest_rank = -1, NEVER, NEVER
    slid, end_of_hole = -1, NEVER
    for i in range(begin, end):
        if not placed[i]:
            if floor[i] < lowest or (floor[i] == lowest and rank[i] < lowest_rank):
                chosen, lowest, lowest_rank = i, floor[i], rank[i]
            if hole[i] < end_of_hole:
                slid, end_of_hole = i, hole[i]
    if end_of_hole > lowest:
        return chosen
    # Nothing will come to lie in the hole any more.
    _blame_surroundings(instance, state, slid, True)
    return _SLID


@_part
def _place(
    instance: Instance, state: State, trail: Trail, changes: int, k: int
) -> tuple[int, bool, bool]:
    """Place buffer `k` at its floor; the trail's length, whether all may still fit, whether
    what is unplaced may have fallen apart."""
    size, first, stop, near = instance.size, instance.first, instance.stop, instance.near
    aligns, ceiling, room = instance.align, instance.ceiling, instance.room[0]
    floor, supported, hole, level = state.floor, state.supported, state.hole, state.level
    placed, reason, live, crossing = state.placed, state.reason, state.live, state.crossing
    t_buffer, t_floor, t_supported = trail.buffer, trail.floor, trail.supported
    t_hole, t_reason = trail.hole, trail.reason
    offset, words = floor[k], reason.shape[1]
    top = offset + size[k]
    placed[k] = True
    level[k] = -1
    t_buffer[changes], t_floor[changes] = k, -1
    changes += 1
    low, high, raised, highest = first[k], stop[k], top, -1
    for e in range(instance.near_start[k], instance.near_start[k + 1]):
        j = near[e]
        if placed[j]:
            continue
        rest = top if aligns[j] == 1 else -(-top // aligns[j]) * aligns[j]
        filled = offset < hole[j] and hole[j] < NEVER
        if rest < floor[j] and not filled:
            continue
        t_buffer[changes], t_floor[changes] = j, floor[j]
        t_supported[changes], t_hole[changes] = supported[j], hole[j]
        for w in range(words):
            t_reason[changes, w] = reason[j, w]
        changes += 1
        if filled:
            hole[j] = NEVER
        if rest < floor[j]:
            continue
        supported[j] = True
        if rest > floor[j]:
            # A buffer that cannot lie below `offset` anyway needs no reason to lie above.
            fits_below = size[j] <= offset
            for w in range(words):
                reason[j, w] = reason[k, w] | (reason[j, w] if fits_below else np.uint64(0))
            reason[j, k >> 6] |= np.uint64(1) << np.uint64(k & 63)
            floor[j] = rest
            level[j] = rest
            raised = max(raised, rest)
            low, high = min(low, first[j]), max(high, stop[j])
            if rest > ceiling[j]:
                state.late[j] += 1
                highest = int(j)

    full = -1
    split = False
    for c in range(first[k], stop[k]):
        live[c] -= size[k]
        if live[c] == 0:
            split = True
        elif top + live[c] > room:
            state.crowded[c] += 1
            full = c
    for c in range(first[k] + 1, stop[k]):
        crossing[c] -= 1
        split = split or crossing[c] == 0

    if highest >= 0:
        for w in range(words):
            state.blamed[w] = reason[highest, w]
        return changes, False, split
    if full < 0:
        # In the columns of `k` all floors are at `raised` or above, unless alignments differ.
        if low == first[k] and high == stop[k] and raised == top:
            return changes, True, split
        full = _full_column(instance, state, low, high, offset)
    if full >= 0:
        _blame_column(instance, state, full)
    return changes, full < 0, split


@_part
def _lift(instance: Instance, state: State, trail: Trail, changes: int, k: int) -> tuple[int, bool]:
    """Raise buffer `k` to the lowest place where it could rest on an unplaced one, blaming what is
    blamed; the trail's length, and whether all may still fit."""
    size, near, floor, placed = instance.size, instance.near, state.floor, state.placed
    old = floor[k]
    top = old + size[k]
    rest, filled = NEVER, False
    for e in range(instance.near_start[k], instance.near_start[k + 1]):
        j = near[e]
        if not placed[j]:
            rest = min(rest, floor[j] + size[j])
            filled = filled or floor[j] < top
    rest = -(-rest // instance.align[k]) * instance.align[k]
    if rest > instance.ceiling[k]:
        if not state.supported[k]:
            state.late[k] += 1
        return changes, False
    if state.supported[k] and not filled:
        return changes, False  # nothing can come to lie where it was
    trail.buffer[changes], trail.floor[changes] = k, old
    trail.supported[changes], trail.hole[changes] = state.supported[k], state.hole[k]
    for w in range(state.blamed.size):
        trail.reason[changes, w] = state.reason[k, w]
    if state.supported[k] and state.hole[k] == NEVER:
        state.hole[k] = top
    state.supported[k] = False
    floor[k] = rest
    state.level[k] = rest
    for w in range(state.blamed.size):
        state.reason[k, w] = state.blamed[w]
    full = _full_column(instance, state, instance.first[k], instance.stop[k], old)
    if full >= 0:
        _blame_column(instance, state, full)
    return changes + 1, full < 0


@_part
def _take_back(instance: Instance, state: State, trail: Trail, changes: int, length: int) -> None:
    """Take changes back until the trail is of a given length."""
    size, first, stop = instance.size, instance.first, instance.stop
    floor, supported, hole, level = state.floor, state.supported, state.hole, state.level
    placed, reason, live, crossing = state.placed, state.reason, state.live, state.crossing
    t_buffer, t_floor, t_supported = trail.buffer, trail.floor, trail.supported
    t_hole, t_reason = trail.hole, trail.reason
    while changes > length:
        changes -= 1
        j = t_buffer[changes]
        if t_floor[changes] < 0:
            placed[j] = False
            for c in range(first[j], stop[j]):
                live[c] += size[j]
            for c in range(first[j] + 1, stop[j]):
                crossing[c] += 1
        else:
            floor[j], supported[j] = t_floor[changes], t_supported[changes]
            hole[j] = t_hole[changes]
            for w in range(reason.shape[1]):
                reason[j, w] = t_reason[changes, w]
        level[j] = floor[j]


@_part
def _full_column(instance: Instance, state: State, low: int, high: int, below: int) -> int:
    """A column in [low, high) whose unplaced buffers do not fit above their floors, or -1.

    Of those with floors of at least f the lowest begins at f or above, so f and their sizes must
    fit, for each f. Floors up to `below` were looked at before.
    """
    _sort_by_level(state)
    order, level = state.by_level, state.level
    size, first, stop = instance.size, instance.first, instance.stop
    stacked, room = state.stacked, instance.room[0]
    for c in range(low, high):
        stacked[c] = 0
    for x in range(order.size):
        j = order[x]
        if level[j] <= below:
            break
        a, b = max(first[j], low), min(stop[j], high)
        # A slice and no exit from the loop: that becomes vector code.
        span, piece, allowed, full = stacked[a:b], size[j], room - level[j], False
        for c in range(span.size):
            span[c] += piece
            full |= span[c] > allowed
        if full:
            found = -1
            for c in range(a, b):
                if stacked[c] > allowed:
                    state.crowded[c] += 1
                    found = c
            return found
    return -1


@_part
def _sort_by_level(state: State) -> None:
    """Bring `by_level` up to date: sort the few that have moved, and merge them with the others."""
    order, level, known = state.by_level, state.level, state.sorted_level
    stayed, moved = state.stayed, state.moved
    stays = moves = 0
    for x in range(order.size):
        j = order[x]
        if level[j] == known[j]:
            stayed[stays] = j
            stays += 1
            continue
        known[j] = level[j]
        y = moves
        while y > 0 and level[moved[y - 1]] < level[j]:
            moved[y] = moved[y - 1]
            y -= 1
        moved[y] = j
        moves += 1
    a = b = 0
    while b < moves:
        if a < stays and level[stayed[a]] >= level[moved[b]]:
            order[a + b] = stayed[a]
            a += 1
        else:
            order[a + b] = moved[b]
            b += 1
    while a < stays:
        order[a + b] = stayed[a]
        a += 1


@_part
def _blame_column(instance: Instance, state: State, column: int) -> None:
    """Blame the reasons of the highest floors that are too high for a column together."""
    _sort_by_level(state)
    size, first, stop, room = instance.size, instance.first, instance.stop, instance.room[0]
    order, level, reason, blamed = state.by_level, state.level, state.reason, state.blamed
    for w in range(blamed.size):
        blamed[w] = 0
    stacked = 0
    for x in range(order.size):
        j = order[x]
        if first[j] <= column and column < stop[j]:
            stacked += size[j]
            for w in range(blamed.size):
                blamed[w] |= reason[j, w]
            if level[j] + stacked > room:
                return


@_part
def _blame_surroundings(instance: Instance, state: State, k: int, alone: bool) -> None:
    """Blame what holds buffer `k` and those it conflicts with where they are; besides what is
    blamed already unless it is `alone`."""
    blamed, reason, near, placed = state.blamed, state.reason, instance.near, state.placed
    for w in range(blamed.size):
        blamed[w] = reason[k, w] | (np.uint64(0) if alone else blamed[w])
    for e in range(instance.near_start[k], instance.near_start[k + 1]):
        j = near[e]
        for w in range(blamed.size):
            blamed[w] |= reason[j, w]
        if placed[j]:
            blamed[j >> 6] |= np.uint64(1) << np.uint64(j & 63)


@_part
def _holds(members: Sets, k: int) -> bool:
    """Whether a set holds buffer `k`."""
    return bool(members[k >> 6] & (np.uint64(1) << np.uint64(k & 63)))
