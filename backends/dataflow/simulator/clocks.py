"""All streams followed with vector clocks, in an order in which semaphores let them run; compiled.

A post that some wait is certain to follow carries the clock of its stream. What a transfer has done
is known to whoever has waited for its signal, or for that of a later transfer the same way.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from infc.backends.dataflow.isa import F_OP, Op
from infc.backends.dataflow.simulator.check_accesses import READ, M, N
from infc.backends.dataflow.simulator.compiled import borrowing_part, digest, entry, part
from infc.backends.dataflow.simulator.shadow import (
    FINE,
    FIRST_ACCESS,
    L_BEFORE,
    L_LEARNED,
    L_PART,
    L_STEP,
    L_STREAM,
    L_TIME,
    NOBODY,
    NOT_POSTED,
    P_ACCESS,
    P_BEGIN,
    P_END,
    P_KIND,
    P_MEMORY,
    P_OTHER,
    P_OTHER_USE,
    P_STEP,
    P_STREAM,
    PAGE_BYTES,
    PARTS,
    RACE,
    SOURCES,
    Clocks,
    Memories,
    Program,
    Shadow,
    is_over,
    touch_all,
)
from infc.backends.dataflow.simulator.turns import SIGNAL, Order, SyncOps
from infc.backends.dataflow.simulator.walk import UNITS, Ints

_NO_CLOCK = -1


class _State(NamedTuple):
    """What is known of streams and transfers.

    Attributes:
        clocks: `[streams, cores * PARTS]`.
        step, op: `[streams]`, the next ones.
        snapshot: `[ops]`, of a post the line of `snapshots` it carries.
        arrival, source: `[ops]`, of a post by a transfer the accesses that are over, or `NOBODY`.
        loads, stores: `[cores]`, the last access of a core's transfers.
        sends: `[cores, cores]`, the last arrival by sender and destination.
        read_sources: `[cores]`, transfers that read a source.
        accesses: `[1]`, how many there are.
    """

    clocks: Clocks
    step: Ints
    op: Ints
    snapshot: Clocks
    arrival: Clocks
    source: Clocks
    loads: Clocks
    stores: Clocks
    sends: Clocks
    read_sources: Clocks
    accesses: Ints


class _Snapshots(NamedTuple):
    """Clocks that posts carry.

    Attributes:
        clocks: `[most, cores * PARTS]`.
        uses: `[most]`, joins that are still to come.
        free: `[most]`, a stack of lines that are not used.
        frees: `[1]`, the height of the stack.
    """

    clocks: Clocks
    uses: Ints
    free: Ints
    frees: Ints


@borrowing_part
def _copy(to: Clocks, clock: Clocks) -> None:
    """Assignments of whole arrays would take numba many seconds to compile."""
    for i in range(clock.size):
        to[i] = clock[i]


@part
def _new_snapshots(lines: int, size: int) -> _Snapshots:
    return _Snapshots(
        np.zeros((lines, size), np.int32),
        np.zeros(lines, np.int64),
        np.arange(lines),
        np.full(1, lines, np.int64),
    )


@part
def _more_snapshots(old: _Snapshots) -> _Snapshots:
    """Twice the lines, where none is free."""
    lines, size = old.clocks.shape
    new = _new_snapshots(2 * lines, size)
    for line in range(lines):
        _copy(new.clocks[line], old.clocks[line])
        new.uses[line] = old.uses[line]
        new.free[line] = lines + line
    new.frees[0] = lines
    return new


@part
def _more_far_reads(shadow: Shadow, room: int) -> Shadow:
    """Room for so many more reads of far memory."""
    count = shadow.far_count[0]
    reads = np.empty((max(2 * shadow.far_reads.shape[0], count + room), 4), np.int64)
    for line in range(count):
        for column in range(4):
            reads[line, column] = shadow.far_reads[line, column]
    return Shadow(shadow.written, shadow.read, shadow.far_head, reads, shadow.far_count)


@borrowing_part
def _far_pages(program: Program, step: int) -> int:
    """At most so many lines of `far_reads` are needed for a LOAD."""
    values = program.values[step]
    return int(max(values[M], 1) * (max(values[N], 0) // PAGE_BYTES + 2))


@borrowing_part
def _new_access(
    log: Clocks, state: _State, part_: int, time: int, s: int, step: int, before: int
) -> int:
    """Enter an access in the log; its number."""
    number = int(state.accesses[0])
    state.accesses[0] = number + 1
    line = log[number]
    line[L_PART], line[L_TIME], line[L_STREAM], line[L_STEP] = part_, time, s, step
    line[L_BEFORE] = before
    return number


@borrowing_part
def _enter(program: Program, log: Clocks, state: _State, s: int, step: int) -> tuple[int, int]:
    """Enter the accesses of a step: what it reads, and the first of what it writes."""
    row, core, unit = program.row[step], s // UNITS, s % UNITS
    op, own = program.table[row, F_OP], core * PARTS + unit
    if op == Op.LOAD:
        number = _new_access(log, state, -1 - core, 0, s, step, state.loads[core])
        state.loads[core] = number
        return number, number
    if op != Op.STORE and op != Op.SEND:
        number = _new_access(log, state, own, state.clocks[s, own], s, step, NOBODY)
        return number, number
    state.read_sources[core] += 1
    time = state.read_sources[core]
    source = _new_access(log, state, core * PARTS + SOURCES, time, s, step, NOBODY)
    if op == Op.STORE:
        number = _new_access(log, state, -1 - core, 0, s, step, state.stores[core])
        state.stores[core] = number
        return source, number
    for at in range(program.target_starts[row], program.target_starts[row + 1]):
        target = program.targets[at]
        before = state.sends[core, target]
        state.sends[core, target] = _new_access(log, state, -1 - target, 0, s, step, before)
    return source, source + 1


@borrowing_part
def _join(
    log: Clocks, order: Order, state: _State, snapshots: _Snapshots, s: int, wait: int
) -> bool:
    """Learn what all posts carry that a wait is certain to follow; whether all have been."""
    clock, unit = state.clocks[s], s % UNITS
    own = s // UNITS * PARTS + unit
    for at in range(order.join_starts[wait], order.join_starts[wait + 1]):
        post = order.joins[at]
        line = state.snapshot[post]
        if line == _NO_CLOCK:
            return False
        carried = snapshots.clocks[line]
        for i in range(clock.size):
            clock[i] = max(clock[i], carried[i])
        snapshots.uses[line] -= 1
        if snapshots.uses[line] == 0:
            snapshots.free[snapshots.frees[0]] = line
            snapshots.frees[0] += 1
        source = state.source[post]
        if source != NOBODY:
            entry_ = log[source, L_PART]
            clock[entry_] = max(clock[entry_], log[source, L_TIME])
        arrival = state.arrival[post]
        while arrival != NOBODY and log[arrival, L_LEARNED + unit] == 0:
            log[arrival, L_LEARNED + unit] = clock[own]
            arrival = log[arrival, L_BEFORE]
    return True


@borrowing_part
def _post(
    program: Program,
    ops: SyncOps,
    order: Order,
    state: _State,
    snapshots: _Snapshots,
    s: int,
    step: int,
    source: int,
    arrival: int,
) -> None:
    """All posts of a step, with the clock that its stream has when it is issued."""
    row = program.row[step]
    first, uses = state.op[s], 0
    last = first + program.op_counts[row]
    for op in range(first, last):
        uses += order.uses[op]
    state.op[s] = last
    if uses == 0:
        return
    snapshots.frees[0] -= 1
    line = snapshots.free[snapshots.frees[0]]
    _copy(snapshots.clocks[line], state.clocks[s])
    snapshots.uses[line] = uses
    state.clocks[s, s // UNITS * PARTS + s % UNITS] += 1
    target = 0
    for op in range(first, last):
        state.snapshot[op] = line
        if ops.kind[op] == SIGNAL:
            state.arrival[op] = arrival + target
            target += 1
        if ops.kind[op] >= SIGNAL and source != arrival:
            state.source[op] = source


@borrowing_part
def _is_other(log: Clocks, clock: Clocks, race: Ints, unwritten: Ints) -> bool:
    """Whether a race is with this read of what was unwritten, or with one of its unit's since."""
    return (
        race[P_KIND] == RACE
        and race[P_OTHER_USE] == READ
        and race[P_MEMORY] == unwritten[P_MEMORY]
        and race[P_BEGIN] < unwritten[P_END]
        and unwritten[P_BEGIN] < race[P_END]
        and log[race[P_OTHER], L_STREAM] == unwritten[P_STREAM]
        and not is_over(log, unwritten[P_ACCESS], clock)
    )


@entry
def follow_clocks(
    program: Program,
    memories: Memories,
    ops: SyncOps,
    order: Order,
    shadow: Shadow,
    log: Clocks,
    problem: Ints,
    sources: str = digest("clocks", "shadow", "turns", "walk"),
) -> None:
    """Follow all streams; `problem` has the first access that must not be, or `FINE`.

    Args:
        program, ops, order: what is followed.
        memories: what of each memory is written, and initial.
        shadow: as at the start of a call.
        log: `[accesses, LOG_COLUMNS]`, zeros, with `INITIAL` over from the start.
        problem: filled. A read of memory that nobody has written is only reported after all
            streams have been followed: where an access that is not in order with it writes there,
            that is what is wrong.
    """
    streams = program.program.size
    cores = streams // UNITS
    clocks = np.zeros((streams, cores * PARTS), np.int32)
    for s in range(streams):
        clocks[s, s // UNITS * PARTS + s % UNITS] = 1
    state = _State(
        clocks,
        program.starts[program.program],
        ops.starts[:streams].copy(),
        np.full(ops.kind.size, _NO_CLOCK, np.int32),
        np.zeros(ops.kind.size, np.int32),
        np.zeros(ops.kind.size, np.int32),
        np.zeros(cores, np.int32),
        np.zeros(cores, np.int32),
        np.zeros((cores, cores), np.int32),
        np.zeros(cores, np.int32),
        np.full(1, FIRST_ACCESS, np.int64),
    )
    snapshots = _new_snapshots(64, cores * PARTS)
    unwritten = problem.copy()
    for turn in range(order.segments.shape[0]):
        s, stop = order.segments[turn, 0], order.segments[turn, 1]
        step, end = state.step[s], program.starts[program.program[s] + 1]
        while step < end:
            row = program.row[step]
            op = program.table[row, F_OP]
            if op == Op.WAIT:
                if state.op[s] == stop:
                    break
                if not _join(log, order, state, snapshots, s, state.op[s]):
                    problem[P_KIND] = NOT_POSTED
                    problem[P_STREAM], problem[P_STEP] = s, step
                    return
                state.op[s] += 1
                step += 1
                continue
            source = arrival = NOBODY
            if op != Op.POST:
                source, arrival = _enter(program, log, state, s, step)
                if op == Op.LOAD:
                    room = _far_pages(program, step)
                    if shadow.far_count[0] + room > shadow.far_reads.shape[0]:
                        shadow = _more_far_reads(shadow, room)
                touch_all(
                    program, memories, shadow, log, clocks[s], s, step, source, arrival, problem
                )
                if problem[P_KIND] != FINE:
                    problem[P_STREAM], problem[P_STEP], problem[P_ACCESS] = s, step, source
                    if unwritten[P_KIND] == FINE:
                        if problem[P_KIND] == RACE:
                            return
                        unwritten = problem.copy()
                    elif _is_other(log, clocks[s], problem, unwritten):
                        problem[P_OTHER] = unwritten[P_ACCESS]
                        return
                    problem[P_KIND] = FINE
            if snapshots.frees[0] == 0:
                snapshots = _more_snapshots(snapshots)
            _post(program, ops, order, state, snapshots, s, step, source, arrival)
            step += 1
        state.step[s] = step
    for column in range(problem.size):
        problem[column] = unwritten[column]
