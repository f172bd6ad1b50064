"""Streams run through their sync ops, compiled: all of them, or all others while one is held back.

With one waiter a semaphore, which ops have been executed when nothing can go on does not depend on
the order in which streams had their turns.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from infc.backends.dataflow.isa import SEMAPHORES
from infc.backends.dataflow.simulator.compiled import borrowing_part, digest, entry, part
from infc.backends.dataflow.simulator.walk import UNITS, Ints

WAIT: Final = 0
"""The kinds of sync ops. This one is no post."""
POST: Final = 1
"""By a stream: after its synchronous instructions so far."""
SIGNAL: Final = 2
"""By a transfer that has arrived (at the core of the semaphore, where there are several)."""
RELEASE: Final = 3
"""By a transfer whose source has been read."""
MOST_COUNTED: Final = 65_535
"""A semaphore holds 0 to this number."""


class SyncOps(NamedTuple):
    """All sync ops, one stream after the other.

    Attributes:
        starts: `[streams + 1]`, the first op of each stream.
        semaphore: `[ops]`, core * 64 + number.
        amount: `[ops]`, waited for or posted.
        kind: `[ops]`, `WAIT` or how it is posted.
        step: `[ops]`, among all steps.
        slot: `[ops]`, of a post the number of its semaphore and sender; -1 of a wait.
        slot_starts: `[semaphores + 1]`, the first slot of each semaphore.
        waiter: `[semaphores]`, the stream that waits on it, or -1.
    """

    starts: Ints
    semaphore: Ints
    amount: Ints
    kind: Ints
    step: Ints
    slot: Ints
    slot_starts: Ints
    waiter: Ints


class Order(NamedTuple):
    """In which order to follow the streams, and what each wait joins.

    Attributes:
        segments: `[segments, 2]`: a stream, and the op in front of which it stops; each post comes
            before the waits that join it.
        join_starts: `[ops + 1]`, the first join of each op.
        joins: posts by op.
        uses: `[ops]`, how often a post is joined.
    """

    segments: Ints
    join_starts: Ints
    joins: Ints
    uses: Ints


class _Run(NamedTuple):
    """Where a run is.

    Attributes:
        at: `[streams]`, the next op.
        counters: `[semaphores]`.
        ready: `[streams]`, a stack of streams that can go on.
        busy: `[streams]`, those on the stack, the one that has its turn, and one that is held back.
        posted: posts so far by slot, from `first_slot` on.
        first_slot: `[1]`.
    """

    at: Ints
    counters: Ints
    ready: Ints
    busy: NDArray[np.bool_]
    posted: Ints
    first_slot: Ints


@part
def _new_run(ops: SyncOps, first_slot: int, slots: int) -> _Run:
    """A run at its start, in which all streams are ready, the first one on top."""
    streams = ops.starts.size - 1
    return _Run(
        ops.starts[:streams].copy(),
        np.zeros(ops.waiter.size, np.int64),
        np.arange(streams - 1, -1, -1),
        np.ones(streams, np.bool_),
        np.zeros(slots, np.int64),
        np.full(1, first_slot, np.int64),
    )


@borrowing_part
def _post(ops: SyncOps, run: _Run, op: int, top: int) -> int:
    """Execute a post; the height of the stack of ready streams."""
    semaphore = ops.semaphore[op]
    run.counters[semaphore] += ops.amount[op]
    slot = ops.slot[op] - run.first_slot[0]
    if 0 <= slot < run.posted.size:
        run.posted[slot] += ops.amount[op]
    w = ops.waiter[semaphore]
    if w < 0 or run.busy[w]:
        return top
    waiting = run.at[w]
    if waiting == ops.starts[w + 1] or ops.semaphore[waiting] != semaphore:
        return top
    if run.counters[semaphore] >= ops.amount[waiting]:
        run.ready[top] = w
        run.busy[w] = True
        top += 1
    return top


@borrowing_part
def _take_turn(ops: SyncOps, run: _Run, top: int) -> int:
    """Let the stream on top of the stack go on until it waits or ends; the height of the stack."""
    top -= 1
    s = run.ready[top]
    at, end = run.at[s], ops.starts[s + 1]
    while at < end:
        if ops.kind[at] == WAIT:
            semaphore, count = ops.semaphore[at], ops.amount[at]
            if run.counters[semaphore] < count:
                break
            run.counters[semaphore] -= count
        else:
            top = _post(ops, run, at, top)
        at += 1
    run.at[s] = at
    run.busy[s] = False
    return top


@entry
def follow_all(ops: SyncOps, sources: str = digest("turns", "walk")) -> tuple[Ints, Ints, Ints]:
    """Run all streams as far as they come.

    Returns:
        `[turns, 2]`, the stream and the op it stopped in front of at each turn; the next op of each
        stream; what is left in each semaphore.
    """
    run = _new_run(ops, 0, 0)
    streams = run.at.size
    waits = 0
    for op in range(ops.kind.size):
        if ops.kind[op] == WAIT:
            waits += 1
    segments = np.empty((waits + streams, 2), np.int64)
    turns, top = 0, streams
    while top > 0:
        s = run.ready[top - 1]
        top = _take_turn(ops, run, top)
        segments[turns, 0] = s
        segments[turns, 1] = run.at[s]
        turns += 1
    return segments[:turns], run.at, run.counters


@entry
def hold_back(
    ops: SyncOps,
    held: int,
    watched: NDArray[np.bool_],
    found: Ints,
    sources: str = digest("turns", "walk"),
) -> tuple[int, int]:
    """Run all other streams as far as they come before each wait of `held` on a watched semaphore.

    Args:
        ops: sync ops that all streams can execute to their ends.
        held: the stream that waits for its turn until nobody else can go on.
        watched: `[semaphores]`.
        found: `[most, 3]`, filled with a wait, a slot, and the least sum of the slot's posts
            without which the wait cannot be satisfied. What an earlier wait says is left out.

    Returns:
        The rows of `found`; the first watched wait whose semaphore can count beyond
        `MOST_COUNTED`, or -1.
    """
    first_semaphore = held // UNITS * SEMAPHORES
    first_slot = ops.slot_starts[first_semaphore]
    slots = ops.slot_starts[first_semaphore + SEMAPHORES] - first_slot
    run = _new_run(ops, first_slot, slots)
    top = run.at.size - 1
    # It stays busy without being on the stack.
    for i in range(top - held, top):
        run.ready[i] = run.ready[i + 1]
    known, consumed = np.zeros(slots, np.int64), np.zeros(SEMAPHORES, np.int64)
    rows, beyond = 0, -1
    for at in range(ops.starts[held], ops.starts[held + 1]):
        if ops.kind[at] != WAIT:
            top = _post(ops, run, at, top)
            continue
        semaphore, count = ops.semaphore[at], ops.amount[at]
        if watched[semaphore] or run.counters[semaphore] < count:
            while top > 0:
                top = _take_turn(ops, run, top)
        number = semaphore - first_semaphore
        consumed[number] += count
        if watched[semaphore]:
            if beyond < 0 and run.counters[semaphore] > MOST_COUNTED:
                beyond = at
            begin = ops.slot_starts[semaphore] - first_slot
            end = ops.slot_starts[semaphore + 1] - first_slot
            spare = run.posted[begin:end].sum() - consumed[number]
            for slot in range(begin, end):
                least = run.posted[slot] - spare
                if least > known[slot]:
                    known[slot] = least
                    found[rows, 0], found[rows, 1], found[rows, 2] = at, slot + first_slot, least
                    rows += 1
        run.counters[semaphore] -= count
    return rows, beyond
