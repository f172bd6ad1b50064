"""Semaphores: who posts and who waits, deadlocks, and which posts a wait is certain to follow.

A *sync op* is a WAIT, or a post by any of the four ways that there are. The sync ops of all streams
lie one stream after the other, in program order. A *sender* of a semaphore is a stream in one of
these ways: its posts come in order. Where a semaphore has one sender, a wait follows exactly the
posts that make up its count. Where it has several, a wait follows those posts of a sender without
which all that the others can have posted by then does not suffice; what they can have posted is
found by holding the waiting stream back and letting all others run as far as they come.
"""

from __future__ import annotations

import numpy as np

from infc.backends.dataflow.isa import (
    F_D,
    F_FLAGS,
    F_K,
    F_OP,
    F_SIGNAL,
    F_SIGNAL_LOCAL,
    F_X,
    NONE,
    REMOTE,
    SEMAPHORES,
    Op,
)
from infc.backends.dataflow.simulator.check_accesses import N
from infc.backends.dataflow.simulator.check_deadlock import deadlock
from infc.backends.dataflow.simulator.check_steps import Walked
from infc.backends.dataflow.simulator.errors import Fault, SimulationError
from infc.backends.dataflow.simulator.turns import (
    MOST_COUNTED,
    POST,
    RELEASE,
    SIGNAL,
    WAIT,
    Order,
    SyncOps,
    follow_all,
    hold_back,
)
from infc.backends.dataflow.simulator.walk import UNITS, Ints


def destinations(walked: Walked, row: int) -> list[int]:
    """The cores of a SEND: chips from the first on, then rows, then columns."""
    image, (x, k) = walked.image, walked.streams.table[row, [F_X, F_K]].tolist()
    return [
        (chip * image.rows + at_row) * image.cols + col
        for chip in range(x & 0xFFFF, (x & 0xFFFF) + (x >> 16))
        for at_row in range(k & 255, (k & 255) + (k >> 16 & 255))
        for col in range(k >> 8 & 255, (k >> 8 & 255) + (k >> 24))
    ]


def _row_ops(walked: Walked, row: int) -> list[tuple[int, int, int, int]]:
    """The sync ops of an instruction: kind, semaphore, whether its core is in it, count.

    A count of -1 is the operand n.
    """
    fields = walked.streams.table[row]
    op, signal, release = (int(fields[f]) for f in (F_OP, F_SIGNAL, F_SIGNAL_LOCAL))
    if op == Op.WAIT:
        return [(WAIT, int(fields[F_D]), 0, -1)]
    if op == Op.POST:
        if fields[F_FLAGS] & REMOTE:
            return [(POST, int(fields[F_X] * SEMAPHORES + fields[F_D]), 1, -1)]
        return [(POST, int(fields[F_D]), 0, -1)]
    ops = [(RELEASE, release, 0, 1)] if release != NONE else []
    if signal == NONE:
        return ops
    if op == Op.SEND:
        cores = destinations(walked, row)
        return ops + [(SIGNAL, core * SEMAPHORES + signal, 1, 1) for core in cores]
    return [*ops, (SIGNAL if op in (Op.LOAD, Op.STORE) else POST, signal, 0, 1)]


def row_op_counts(walked: Walked) -> Ints:
    """[instructions]: the number of sync ops."""
    table = walked.streams.table
    counts = np.zeros(len(table), np.int64)
    for row in np.unique(walked.steps.row).tolist():
        counts[row] = len(_row_ops(walked, row))
    return counts


def sync_ops(walked: Walked) -> SyncOps:
    """The sync ops of an image. Raises SimulationError where two streams wait on a semaphore."""
    steps, streams = walked.steps, len(walked.steps.program)
    lists = {row: _row_ops(walked, row) for row in np.unique(steps.row).tolist()}
    lengths = np.zeros(len(walked.streams.table) + 1, np.int64)
    for row, found in lists.items():
        lengths[row + 1] = len(found)
    starts = np.cumsum(lengths)
    rows = np.array([op for row in sorted(lists) for op in lists[row]], np.int64).reshape(-1, 4)
    programs = []
    for first, stop in zip(steps.starts[:-1], steps.starts[1:], strict=True):
        number = lengths[steps.row[first:stop] + 1]
        step = np.repeat(np.arange(first, stop), number)
        within = np.arange(len(step)) - np.repeat(np.cumsum(number) - number, number)
        ops = rows[starts[steps.row[step]] + within]
        count = np.where(ops[:, 3] < 0, steps.values[step, N], ops[:, 3])
        programs.append((ops[:, 0], ops[:, 1], ops[:, 2], count, step))
    each = [programs[program] for program in steps.program.tolist()]
    own = (np.arange(streams) // UNITS) * SEMAPHORES
    kind, number, remote, count, step = (np.concatenate([e[i] for e in each]) for i in range(5))
    sizes = np.array([len(e[0]) for e in each])
    stream = np.repeat(np.arange(streams), sizes)
    semaphore = np.where(remote > 0, number, number + own[stream])
    semaphores = streams // UNITS * SEMAPHORES
    waiter = _waiters(walked, kind, semaphore, stream, step, semaphores)
    posts = np.flatnonzero(kind != WAIT)
    keys = (semaphore[posts] * streams + stream[posts]) * 4 + kind[posts]
    senders, which = np.unique(keys, return_inverse=True)
    slot = np.full(len(kind), -1, np.int64)
    slot[posts] = which
    slot_starts = np.searchsorted(senders // (4 * streams), np.arange(semaphores + 1))
    op_starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    return SyncOps(op_starts, semaphore, count, kind, step, slot, slot_starts, waiter)


def _waiters(
    walked: Walked, kind: Ints, semaphore: Ints, stream: Ints, step: Ints, semaphores: int
) -> Ints:
    """[semaphores]: the stream that waits on it, or -1."""
    waits = np.flatnonzero(kind == WAIT)
    waiter = np.full(semaphores, -1, np.int64)
    # The first wait of each semaphore is written last.
    waiter[semaphore[waits[::-1]]] = stream[waits[::-1]]
    wrong = waits[waiter[semaphore[waits]] != stream[waits]]
    if len(wrong):
        op = wrong[0]
        first = waits[semaphore[waits] == semaphore[op]][0]
        core, number = divmod(int(semaphore[op]), SEMAPHORES)
        raise walked.error(
            int(stream[op]),
            int(step[op]),
            Fault.OPERAND,
            f"expected one stream that waits on semaphore {number} of core {core}, got two",
            (f"the other: {walked.place(int(stream[first]), int(step[first]))}",),
        )
    return waiter


def find_order(walked: Walked, ops: SyncOps) -> Order:
    """Follow all streams to their ends; what their waits join.

    Raises:
        SimulationError: streams wait for what nobody posts; a semaphore counts too far.
    """
    segments, at, counters = follow_all(ops)
    if (at < ops.starts[1:]).any():
        raise deadlock(walked, ops, at, counters)
    wait, slot, least = _required(walked, ops)
    posts = np.flatnonzero(ops.slot >= 0)
    posts = posts[np.argsort(ops.slot[posts], kind="stable")]
    total = np.cumsum(ops.amount[posts])
    first = np.searchsorted(ops.slot[posts], np.arange(int(ops.slot_starts[-1])))
    before = np.concatenate([[0], total])[first]
    # Slots follow one another, and so do the sums over all of them.
    joined = posts[np.searchsorted(total, before[slot] + least)]
    by_wait = np.argsort(wait, kind="stable")
    join_starts = np.searchsorted(wait[by_wait], np.arange(len(ops.kind) + 1))
    joins = joined[by_wait].astype(np.int64)
    uses = np.bincount(joins, minlength=len(ops.kind)).astype(np.int64)
    return Order(segments, join_starts.astype(np.int64), joins, uses)


def _required(walked: Walked, ops: SyncOps) -> tuple[Ints, Ints, Ints]:
    """Waits, slots, and how many of the slot's posts the wait is certain to follow."""
    senders = np.diff(ops.slot_starts)
    total = np.zeros(len(ops.waiter), np.int64)
    np.add.at(total, ops.semaphore, np.where(ops.kind == WAIT, 0, ops.amount))
    high = total > MOST_COUNTED
    watched = (senders > 1) | high
    waits = np.flatnonzero((ops.kind == WAIT) & (ops.amount > 0) & ~watched[ops.semaphore])
    waits = waits[np.argsort(ops.semaphore[waits], kind="stable")]
    number = ops.semaphore[waits]
    consumed = np.cumsum(ops.amount[waits])
    first = np.searchsorted(number, number)
    least = consumed - np.concatenate([[0], consumed])[first]
    found = [np.stack([waits, ops.slot_starts[number], least], axis=1)]
    waiting = (ops.kind == WAIT) & watched[ops.semaphore]
    for held in np.unique(ops.waiter[watched & (ops.waiter >= 0)]).tolist():
        begin, end = ops.starts[held : held + 2].tolist()
        most = int(senders[ops.semaphore[begin:end][waiting[begin:end]]].sum())
        rows = np.empty((most, 3), np.int64)
        count, beyond = hold_back(ops, held, watched, rows)
        if beyond >= 0:
            raise _counts_too_far(walked, ops, beyond)
        found.append(rows[:count])
    left = total - np.bincount(
        ops.semaphore, np.where(ops.kind == WAIT, ops.amount, 0), len(ops.waiter)
    )
    if (left > MOST_COUNTED).any():
        semaphore = int(np.argmax(left > MOST_COUNTED))
        op = int(np.flatnonzero((ops.kind != WAIT) & (ops.semaphore == semaphore))[-1])
        raise _counts_too_far(walked, ops, op)
    wait, slot, certain = np.concatenate(found).T
    return wait, slot, certain


def stream_of(ops: SyncOps, op: int) -> int:
    """The stream of a sync op."""
    return int(np.searchsorted(ops.starts, op, side="right")) - 1


def _counts_too_far(walked: Walked, ops: SyncOps, op: int) -> SimulationError:
    core, number = divmod(int(ops.semaphore[op]), SEMAPHORES)
    return walked.error(
        stream_of(ops, op),
        int(ops.step[op]),
        Fault.LIMIT,
        f"semaphore {number} of core {core} can count beyond {MOST_COUNTED}",
    )
