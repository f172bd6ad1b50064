"""The event loop of the simulator of time, and what streams do in it."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from infc.backends.dataflow.isa import (
    F_FLAGS,
    F_K,
    F_OP,
    F_ORIGIN,
    F_SIGNAL,
    F_X,
    NONE,
    REMOTE,
    SEMAPHORES,
    Op,
    Unit,
)
from infc.backends.dataflow.machine import MESSAGE_BYTES
from infc.backends.dataflow.simulator.compiled import bare_entry, bare_part, digest, inlined_part
from infc.backends.dataflow.simulator.network import CHIP_BITS, on_chip, on_core
from infc.backends.dataflow.simulator.resources import Costs, Rates
from infc.backends.dataflow.simulator.timing_state import (
    BUSY,
    E_ARRIVAL,
    E_CHANNEL,
    E_CHIP,
    E_CORE,
    E_ELIGIBLE,
    E_ENGINE,
    E_POST,
    E_STREAM,
    EVENTS,
    FAULT_STREAM,
    G_COUNT,
    G_HEAD,
    HALTED,
    HEAP,
    KEY_SHIFT,
    M_COUNT,
    M_WAITER,
    NOBODY,
    NOTHING,
    NOW,
    ONE,
    P_AMOUNT,
    P_CAUSE,
    P_CAUSED,
    P_SIGNAL,
    P_WIRE,
    POSTED,
    Q_OP,
    RUNNING,
    S_ENDED,
    S_FREE,
    S_NEEDED,
    S_PHASE,
    S_SINCE,
    STALLED,
    STARTING,
    WAIT_CHANNEL,
    WAIT_LINK,
    WAIT_PORT,
    WAIT_SEMAPHORE,
    WAITING,
    WAY_BITS,
    WORK,
    State,
    crowded,
    drop,
    elapse,
    note,
    push,
    span,
    tally,
    use_port,
    wait,
)
from infc.backends.dataflow.simulator.transfers import (
    FROM_STREAM,
    address,
    find_channel,
    new_packet,
    on_arrival,
    on_channel,
    on_eligible,
    on_engine,
    on_retire,
    request,
    stream_of,
)
from infc.backends.dataflow.simulator.walk import STUCK, UNITS, Streams, advance, operands

DONE, CROWDED, SCALAR, COUNT, TILE, FORMAT, NO_CHANNEL, CHANNELS, DESTINATION, SHARED = range(10)
"""How a run ended: nothing is left to do; a table needs room; or a fault, see `timing.FAULTS`."""
_SOURCES: Final = digest("walk", "resources", "timing_state", "transfers", "network", "timing_run")


@bare_entry
def run(
    streams: Streams,
    costs: Costs,
    args: NDArray[np.int32],
    rates: Rates,
    state: State,
    ahead: bool,
    sources: str = _SOURCES,
) -> int:
    """Simulate until nothing is left to do, or something must be done outside.

    With `ahead`, a stream whose next step is the first of all events takes it at once; without,
    every step is an event of its own. The result is the same.
    """
    clock, heap = state.agenda.clock, state.agenda.heap
    while clock[HEAP] > 0:
        if crowded(state, rates.chips):
            return CROWDED
        now, key, a, b, c = heap[0, 0], heap[0, 1], heap[0, 2], heap[0, 3], heap[0, 4]
        drop(state.agenda)
        clock[NOW] = now
        clock[EVENTS] += 1
        kind, place = key >> KEY_SHIFT, key & ((1 << KEY_SHIFT) - 1)
        if kind == E_STREAM:
            status = _on_stream(streams, costs, args, rates, state, place, now, ahead)
            if status != DONE:
                clock[FAULT_STREAM] = place
                return status
        elif kind == E_POST:
            _on_post(streams, rates, state, place, a, now, b, c)
        elif kind == E_ELIGIBLE:
            on_eligible(state, rates, place, now)
        elif kind == E_CHANNEL:
            on_channel(state, rates, place, now)
        elif kind == E_ARRIVAL:
            on_arrival(state, rates, a, b, now, c)
        elif kind == E_ENGINE:
            on_engine(state, rates, place, now)
        elif kind == E_CORE:
            on_core(state, rates, a, place >> WAY_BITS, place & (1 << WAY_BITS) - 1, now, c)
        elif kind == E_CHIP:
            chip = place >> WAY_BITS & (1 << CHIP_BITS) - 1
            on_chip(state, rates, a, chip, place & (1 << WAY_BITS) - 1, now, c)
        else:
            on_retire(state, rates, place, now)
            _unstall(streams, rates, state, place, now)
    return DONE


@inlined_part
def _on_stream(
    streams: Streams,
    costs: Costs,
    args: NDArray[np.int32],
    rates: Rates,
    state: State,
    s: int,
    now: int,
    ahead: bool,
) -> int:
    """Go on with a stream at `now`, until its next step is later than another event."""
    table, clock, heap = streams.table, state.agenda.clock, state.agenda.heap
    time = now
    while True:
        if state.stream[s, S_PHASE] == STARTING:
            status = _start(streams, costs, rates, state, s, now)
            if status != DONE:
                return int(status)
            state.stream[s, S_PHASE] = RUNNING
        count = advance(streams, s, args)
        if count == STUCK:
            return SCALAR
        at = streams.at[s]
        op = table[at, F_OP]
        time += count * rates.cycle
        if op >= Op.MM_Q:
            time = max(time + rates.issue, state.stream[s, S_FREE])
            state.stream[s, S_PHASE] = STARTING
        elif op in (Op.POST, Op.HALT):
            time = max(time, state.stream[s, S_FREE])
        # Nothing else may happen before this step, wherever.
        if time > now and (
            not ahead
            or crowded(state, rates.chips)
            or (clock[HEAP] > 0 and heap[0, 0] < time)
            or (clock[HEAP] > 0 and heap[0, 0] == time and heap[0, 1] < s)
        ):
            push(state.agenda, time, E_STREAM, s, NOTHING, NOTHING, NOTHING)
            return DONE
        now = time
        clock[NOW] = now
        if op == Op.HALT:
            elapse(state.books, s, table[at, F_ORIGIN], now)
            state.stream[s, S_PHASE], state.stream[s, S_ENDED] = HALTED, now
            return DONE
        if state.stream[s, S_PHASE] == STARTING:
            continue
        status = _synchronise(streams, rates, state, s, now)
        if status != DONE:
            return int(status)
        if state.stream[s, S_PHASE] != RUNNING:
            return DONE
        time = now + (rates.issue if op >= Op.LOAD else rates.cycle)
        elapse(state.books, s, table[at, F_ORIGIN], time)
        streams.at[s] += 1


@inlined_part
def _start(streams: Streams, costs: Costs, rates: Rates, state: State, s: int, now: int) -> int:
    """The matrix or vector unit begins the instruction at which its stream is."""
    at = streams.at[s]
    row, ops = streams.table[at], operands(streams, s)
    if ops.n < 0 or ops.m < 0:
        return COUNT
    if s % UNITS == Unit.MATRIX:
        if ops.m >= rates.matrix.shape[1]:
            return TILE
        ticks = rates.matrix[costs.kind[at], ops.m]
        if ticks < 0:
            return FORMAT
    else:
        elements = costs.elements[at, 0] + costs.elements[at, 1] * ops.n
        steps = (elements + rates.lanes - 1) // rates.lanes
        ticks = rates.vector_startup + steps * rates.vector_step[costs.kind[at]]
    price, origin = costs.bytes[at], row[F_ORIGIN]
    count = int(
        np.ceil(price[0] + price[1] * ops.n + price[2] * ops.m + price[3] * (ops.m * ops.n))
    )
    through = use_port(
        state.port, state.books.tallies, rates.port_per_byte, s // UNITS, origin, now, count
    )
    end = max(now + ticks, through)
    tally(state.books.tallies, origin, BUSY, s, ticks)
    span(state.books, s, now, now + ticks, origin, WORK)
    wait(state.books, s, now + ticks, end, origin, WAIT_PORT)
    elapse(state.books, s, origin, end)
    state.stream[s, S_FREE] = end
    if row[F_SIGNAL] != NONE:
        post = s // UNITS * SEMAPHORES + row[F_SIGNAL]
        push(state.agenda, end, E_POST, post, ONE, s, end)
    streams.at[s] = at + 1
    return DONE


@inlined_part
def _synchronise(streams: Streams, rates: Rates, state: State, s: int, now: int) -> int:
    """A WAIT, POST, LOAD, STORE or SEND; the stream's phase says whether it must wait."""
    row, ops = streams.table[streams.at[s]], operands(streams, s)
    core, op = s // UNITS, row[F_OP]
    if ops.n < 0 or ops.m < 0:
        return COUNT
    if op == Op.WAIT:
        semaphore = core * SEMAPHORES + ops.d
        if state.semaphore[semaphore, M_COUNT] >= ops.n:
            state.semaphore[semaphore, M_COUNT] -= ops.n
            return DONE
        if state.semaphore[semaphore, M_WAITER] >= 0:
            return SHARED
        state.semaphore[semaphore, M_WAITER], state.stream[s, S_NEEDED] = s, ops.n
        state.stream[s, S_PHASE], state.stream[s, S_SINCE] = WAITING, now
        return DONE
    if op == Op.POST:
        if row[F_FLAGS] & REMOTE == 0:
            semaphore = core * SEMAPHORES + ops.d
            push(state.agenda, now + rates.cycle, E_POST, semaphore, ops.n, s, now + rates.cycle)
            return DONE
        if row[F_X] >= rates.chips * rates.chip_cores:
            return DESTINATION
        packet = new_packet(state, rates, POSTED, core, row[F_ORIGIN])
        p = state.packets[packet]
        p[P_WIRE], p[P_SIGNAL], p[P_AMOUNT] = MESSAGE_BYTES, ops.d, ops.n
        p[P_CAUSE], p[P_CAUSED] = s, now + rates.cycle
        address(state, rates, packet, row[F_X])
        place = core << WAY_BITS | (FROM_STREAM + s % UNITS)
        push(state.agenda, now + rates.cycle, E_CORE, place, packet, NOTHING, now + rates.cycle)
        return DONE
    channel = -1
    if op != Op.SEND:
        channel = find_channel(rates, row, core, ops)
        if channel < 0:
            return NO_CHANNEL if channel == -1 else CHANNELS
    elif _outside(rates, row[F_K], row[F_X]):
        return DESTINATION
    engine = core * 2 + (1 if s % UNITS == Unit.SEND else 0)
    if state.engines[engine, G_COUNT] == rates.outstanding:
        state.stream[s, S_PHASE], state.stream[s, S_SINCE] = STALLED, now
    else:
        request(state, rates, engine, row, ops, channel, now + rates.issue)
    return DONE


@bare_part
def _outside(rates: Rates, cores: int, chips: int) -> bool:
    """Whether destinations of a SEND are none, or not all in the machine."""
    rows, cols = cores >> 16 & 255, cores >> 24 & 255
    return bool(
        rows == 0
        or cols == 0
        or chips >> 16 == 0
        or (cores & 255) + rows > rates.rows
        or (cores >> 8 & 255) + cols > rates.cols
        or (chips & 0xFFFF) + (chips >> 16) > rates.chips
    )


@inlined_part
def _on_post(
    streams: Streams,
    rates: Rates,
    state: State,
    semaphore: int,
    count: int,
    now: int,
    cause: int,
    cause_time: int,
) -> None:
    """A semaphore is posted by what `cause` began at `cause_time`; who waits for it may go on."""
    state.semaphore[semaphore, M_COUNT] += count
    s = state.semaphore[semaphore, M_WAITER]
    if s < 0 or state.semaphore[semaphore, M_COUNT] < state.stream[s, S_NEEDED]:
        return
    state.semaphore[semaphore, M_COUNT] -= state.stream[s, S_NEEDED]
    state.semaphore[semaphore, M_WAITER] = -1
    origin = streams.table[streams.at[s], F_ORIGIN]
    # While the unit is still at work, its stream does not stand still.
    begin = max(state.stream[s, S_SINCE], state.stream[s, S_FREE])
    if now > begin:
        wait(state.books, s, begin, now, origin, WAIT_SEMAPHORE)
        elapse(state.books, s, origin, now)
        note(state.books, s, now, origin, WORK, cause, cause_time)
    elapse(state.books, s, origin, now + rates.cycle)
    state.stream[s, S_PHASE] = RUNNING
    streams.at[s] += 1
    push(state.agenda, now + rates.cycle, E_STREAM, s, NOTHING, NOTHING, NOTHING)


@bare_part
def _unstall(streams: Streams, rates: Rates, state: State, engine: int, now: int) -> None:
    """An engine has room; its stream may go on."""
    s = stream_of(engine)
    if state.stream[s, S_PHASE] != STALLED:
        return
    # Of the request that has just ended, for which the stream waited.
    slot = (state.engines[engine, G_HEAD] - 1) % rates.outstanding
    sent = state.requests[engine * rates.outstanding + slot, Q_OP] == Op.SEND
    origin = streams.table[streams.at[s], F_ORIGIN]
    cause = WAIT_LINK if sent else WAIT_CHANNEL
    wait(state.books, s, state.stream[s, S_SINCE], now, origin, cause)
    elapse(state.books, s, origin, state.stream[s, S_SINCE])
    note(state.books, s, state.stream[s, S_SINCE], origin, cause, NOBODY, NOTHING)
    elapse(state.books, s, origin, now)
    note(state.books, s, now, origin, WORK, NOBODY, NOTHING)
    state.stream[s, S_PHASE] = RUNNING
    push(state.agenda, now, E_STREAM, s, NOTHING, NOTHING, NOTHING)
