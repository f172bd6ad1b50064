"""DMA engines and the channels of far memory: requests, bursts, and the order in which they end.

A core has two engines: 0 serves its LOADs, 1 its STOREs and SENDs. An engine's number is
`core * 2 + which`; a request's is `engine * outstanding + slot`.
"""

from __future__ import annotations

from infc.backends.dataflow.isa import (
    F_FMT,
    F_K,
    F_OP,
    F_ORIGIN,
    F_SIGNAL,
    F_SIGNAL_LOCAL,
    F_STRIDE_A,
    F_STRIDE_D,
    F_X,
    NONE,
    SEMAPHORES,
    Op,
    Unit,
)
from infc.backends.dataflow.machine import LINE_BYTES, MESSAGE_BYTES
from infc.backends.dataflow.simulator.compiled import bare_part, inlined_part, opaque
from infc.backends.dataflow.simulator.resources import Ints, Rates
from infc.backends.dataflow.simulator.timing_state import (
    BUSY,
    C_ACTIVE,
    C_BYTES,
    C_FIRST,
    C_FREE,
    C_LAST,
    C_SERVED,
    CHANNEL,
    E_ARRIVAL,
    E_CHANNEL,
    E_CORE,
    E_ELIGIBLE,
    E_ENGINE,
    E_POST,
    E_RETIRE,
    FREE_AT,
    G_ACTIVE,
    G_COUNT,
    G_FREE,
    G_HEAD,
    G_LAST,
    G_SERVED,
    G_SETTLED,
    NOTHING,
    ONE,
    P_AMOUNT,
    P_BRANCHES,
    P_CAUSE,
    P_CAUSED,
    P_CORES,
    P_DATA,
    P_DOWN,
    P_FIRST,
    P_FREE,
    P_HOME,
    P_KIND,
    P_LAST,
    P_ORIGIN,
    P_OWNER,
    P_SIGNAL,
    P_STOP,
    P_UP,
    P_WIRE,
    PACKETS_FREE,
    Q_CHAIN,
    Q_CHANNEL,
    Q_CHIPS,
    Q_CORES,
    Q_DONE,
    Q_FLYING,
    Q_ISSUED,
    Q_LEFT,
    Q_LOCAL,
    Q_NEXT,
    Q_OP,
    Q_ORIGIN,
    Q_PATH,
    Q_READY,
    Q_SIGNAL,
    Q_TIER,
    READ,
    SENT,
    WAY_BITS,
    WORK,
    State,
    push,
    span,
    tally,
    use_port,
)
from infc.backends.dataflow.simulator.walk import UNITS, Operands

EAST, WEST, SOUTH, NORTH = opaque(range(4))
FRESH, FROM_STREAM, FROM_ENGINE, FROM_CHANNEL = opaque((4, 8, 12, 13))
"""Ways that a packet comes to a core: moving east, ...; + port, from another chip; + unit, from one
of the core's streams; from its sending engine; + tier, from a channel that is at the core."""


@inlined_part
def stream_of(engine: int) -> int:
    """The stream whose requests an engine serves."""
    return (engine >> 1) * UNITS + (Unit.SEND if engine & 1 else Unit.LOAD)


@bare_part
def find_channel(rates: Rates, row: Ints, core: int, ops: Operands) -> int:
    """The global channel of a LOAD or STORE; -1: there is none, -2: it is not in one channel."""
    tier, chip = row[F_FMT], core // rates.chip_cores
    if tier >= rates.channels.size:
        return -1
    line, stride = (ops.a, row[F_STRIDE_A]) if row[F_OP] == Op.LOAD else (ops.d, row[F_STRIDE_D])
    last = line + (max(ops.m, 1) - 1) * stride + max(ops.n - 1, 0) // LINE_BYTES
    channel = line // rates.channel_lines[tier]
    if line < 0 or last // rates.channel_lines[tier] >= rates.channels[tier]:
        return -1
    if last // rates.channel_lines[tier] != channel:
        return -2
    return int(chip * rates.channel_total + rates.channel_first[tier] + channel)


@bare_part
def path_ticks(rates: Rates, core: int, tier: int, channel: int) -> int:
    """Of the way between a core and a channel of its chip: none where it is the core's own."""
    here = core % rates.chip_cores
    inside = channel % rates.channel_total
    if here * rates.channels[tier] // rates.chip_cores == inside - rates.channel_first[tier]:
        return 0
    there = rates.channel_core[inside]
    hops = abs(here // rates.cols - there // rates.cols) + abs(
        here % rates.cols - there % rates.cols
    )
    return int(hops * rates.mesh_hop)


@bare_part
def request(
    state: State, rates: Rates, engine: int, row: Ints, ops: Operands, channel: int, now: int
) -> None:
    """Give an engine that has room a LOAD, STORE or SEND, issued at `now`."""
    g = state.engines[engine]
    slot = (g[G_HEAD] + g[G_COUNT]) % rates.outstanding
    g[G_COUNT] += 1
    number = engine * rates.outstanding + slot
    q = state.requests[number]
    moved = ops.n if row[F_OP] == Op.SEND else (ops.n + LINE_BYTES - 1) // LINE_BYTES * LINE_BYTES
    q[Q_OP], q[Q_LEFT], q[Q_FLYING] = row[F_OP], ops.m * moved, ops.m * moved
    q[Q_CHANNEL], q[Q_TIER], q[Q_CHAIN], q[Q_NEXT] = channel, row[F_FMT], -1, -1
    q[Q_DONE], q[Q_SIGNAL], q[Q_LOCAL] = -1, row[F_SIGNAL], row[F_SIGNAL_LOCAL]
    q[Q_ORIGIN], q[Q_CHIPS], q[Q_CORES] = row[F_ORIGIN], row[F_X], row[F_K]
    q[Q_PATH] = 0 if channel < 0 else path_ticks(rates, engine >> 1, row[F_FMT], channel)
    q[Q_ISSUED], q[Q_READY] = now, now + rates.dma_startup + q[Q_PATH]
    if engine & 1 == 0:
        push(state.agenda, q[Q_READY], E_ELIGIBLE, number, NOTHING, NOTHING, NOTHING)
    elif g[G_ACTIVE] == 0:
        g[G_ACTIVE] = 1
        push(state.agenda, max(q[Q_READY], g[G_FREE]), E_ENGINE, engine, NOTHING, NOTHING, NOTHING)


@bare_part
def on_eligible(state: State, rates: Rates, number: int, now: int) -> None:
    """A LOAD may be served: behind the older ones of its engine at the same channel."""
    engine, slot = number // rates.outstanding, number % rates.outstanding
    g, q = state.engines[engine], state.requests[number]
    if q[Q_LEFT] == 0:
        settle(state, rates, number, now)
        return
    age = (slot - g[G_HEAD]) % rates.outstanding
    for back in range(1, age + 1):
        other = engine * rates.outstanding + (slot - back) % rates.outstanding
        o = state.requests[other]
        if o[Q_LEFT] > 0 and o[Q_CHANNEL] == q[Q_CHANNEL]:
            o[Q_CHAIN] = number
            return
    queue(state, number, now)


@bare_part
def queue(state: State, number: int, now: int) -> None:
    """Put a request at the end of its channel's queue."""
    channel = state.requests[number, Q_CHANNEL]
    c = state.channels[channel]
    state.requests[number, Q_NEXT] = -1
    if c[C_FIRST] < 0:
        c[C_FIRST] = number
    else:
        state.requests[c[C_LAST], Q_NEXT] = number
    c[C_LAST] = number
    if c[C_ACTIVE] == 0:
        c[C_ACTIVE] = 1
        push(state.agenda, now, E_CHANNEL, channel, NOTHING, NOTHING, NOTHING)


@bare_part
def on_channel(state: State, rates: Rates, channel: int, now: int) -> None:
    """A channel has served a burst, and serves one of the first request in its queue."""
    c = state.channels[channel]
    if c[C_SERVED] >= 0:
        # Who came during the burst is before the rest of its request.
        before = state.requests[c[C_SERVED]]
        if before[Q_LEFT] > 0:
            queue(state, c[C_SERVED], now)
        elif before[Q_CHAIN] >= 0:
            queue(state, before[Q_CHAIN], now)
    number = c[C_FIRST]
    c[C_SERVED] = number
    if number < 0:
        c[C_ACTIVE] = 0
        return
    q = state.requests[number]
    tier, core = q[Q_TIER], number // rates.outstanding >> 1
    count = min(q[Q_LEFT], rates.burst_bytes)
    ticks = int(count * rates.far_per_byte[tier] + 0.5)
    c[C_FREE] = now + ticks
    c[C_BYTES] += count
    tally(state.books.tallies, q[Q_ORIGIN], CHANNEL, channel, ticks)
    q[Q_LEFT] -= count
    c[C_FIRST] = q[Q_NEXT]
    push(state.agenda, c[C_FREE], E_CHANNEL, channel, NOTHING, NOTHING, NOTHING)
    if q[Q_OP] == Op.STORE:
        _store(state, rates, number, count, now)
        return
    head = now + rates.far_latency[tier]
    if q[Q_PATH] == 0:
        push(state.agenda, head, E_ARRIVAL, channel, number, count, head + ticks)
        return
    inside = channel % rates.channel_total
    source = core // rates.chip_cores * rates.chip_cores + rates.channel_core[inside]
    packet = new_packet(state, rates, READ, source, q[Q_ORIGIN])
    p = state.packets[packet]
    p[P_WIRE], p[P_OWNER] = count, number
    address(state, rates, packet, core)
    push(
        state.agenda,
        head,
        E_CORE,
        source << WAY_BITS | (FROM_CHANNEL + tier),
        packet,
        NOTHING,
        head + ticks,
    )


@bare_part
def _store(state: State, rates: Rates, number: int, count: int, now: int) -> None:
    """Read a burst of a STORE from its core's SRAM while the channel takes it."""
    q, engine = state.requests[number], number // rates.outstanding
    streamed = int(count * rates.dma_per_byte + 0.5)
    read = use_port(
        state.port, state.books.tallies, rates.port_per_byte, engine >> 1, q[Q_ORIGIN], now, count
    )
    tally(state.books.tallies, q[Q_ORIGIN], BUSY, stream_of(engine), streamed)
    end = max(state.channels[q[Q_CHANNEL], C_FREE], read, now + streamed)
    span(state.books, state.stream.shape[0] + engine, now, end, q[Q_ORIGIN], WORK)
    q[Q_READY] = max(q[Q_READY], end)
    if q[Q_LEFT] == 0:
        end = q[Q_READY]
        served(state, rates, engine, end, end + rates.far_latency[q[Q_TIER]] + q[Q_PATH])


@bare_part
def on_arrival(state: State, rates: Rates, number: int, count: int, head: int, tail: int) -> None:
    """A burst of a LOAD reaches its core: through the engine and the SRAM port."""
    engine = number // rates.outstanding
    q, g = state.requests[number], state.engines[engine]
    streamed = int(count * rates.dma_per_byte + 0.5)
    g[G_FREE] = max(head, g[G_FREE]) + streamed
    tally(state.books.tallies, q[Q_ORIGIN], BUSY, stream_of(engine), streamed)
    written = use_port(
        state.port, state.books.tallies, rates.port_per_byte, engine >> 1, q[Q_ORIGIN], head, count
    )
    q[Q_FLYING] -= count
    end = max(tail, g[G_FREE], written)
    q[Q_READY] = max(q[Q_READY], end)
    span(state.books, state.stream.shape[0] + engine, head, end, q[Q_ORIGIN], WORK)
    if q[Q_FLYING] == 0:
        settle(state, rates, number, q[Q_READY])


@bare_part
def settle(state: State, rates: Rates, number: int, end: int) -> None:
    """A request would end at `end`; requests of an engine end in order."""
    engine = number // rates.outstanding
    g = state.engines[engine]
    state.requests[number, Q_DONE] = end
    while g[G_SETTLED] < g[G_COUNT]:
        slot = (g[G_HEAD] + g[G_SETTLED]) % rates.outstanding
        done = state.requests[engine * rates.outstanding + slot, Q_DONE]
        if done < 0:
            break
        g[G_LAST] = max(g[G_LAST], done)
        g[G_SETTLED] += 1
        push(state.agenda, g[G_LAST], E_RETIRE, engine, NOTHING, NOTHING, NOTHING)


@bare_part
def on_retire(state: State, rates: Rates, engine: int, now: int) -> None:
    """The oldest request of an engine ends."""
    g = state.engines[engine]
    q = state.requests[engine * rates.outstanding + g[G_HEAD]]
    g[G_HEAD] = (g[G_HEAD] + 1) % rates.outstanding
    g[G_COUNT] -= 1
    g[G_SETTLED] -= 1
    if engine & 1 == 1:
        g[G_SERVED] -= 1
    if q[Q_SIGNAL] != NONE and q[Q_OP] != Op.SEND:
        post = (engine >> 1) * SEMAPHORES + q[Q_SIGNAL]
        push(state.agenda, now, E_POST, post, ONE, stream_of(engine), q[Q_ISSUED])


@bare_part
def served(state: State, rates: Rates, engine: int, read: int, end: int) -> None:
    """The sending engine has read its request's source at `read`, and goes on with the next."""
    g = state.engines[engine]
    number = engine * rates.outstanding + (g[G_HEAD] + g[G_SERVED]) % rates.outstanding
    q = state.requests[number]
    g[G_SERVED] += 1
    g[G_FREE] = read
    if q[Q_LOCAL] != NONE:
        post = (engine >> 1) * SEMAPHORES + q[Q_LOCAL]
        push(state.agenda, read, E_POST, post, ONE, stream_of(engine), q[Q_ISSUED])
    push(state.agenda, read, E_ENGINE, engine, NOTHING, NOTHING, NOTHING)
    settle(state, rates, number, end)


@bare_part
def on_engine(state: State, rates: Rates, engine: int, now: int) -> None:
    """The sending engine begins a request, or sends the next packet of it."""
    g = state.engines[engine]
    if g[G_SERVED] == g[G_COUNT]:
        g[G_ACTIVE] = 0
        return
    number = engine * rates.outstanding + (g[G_HEAD] + g[G_SERVED]) % rates.outstanding
    q, core = state.requests[number], engine >> 1
    if q[Q_READY] > now:
        push(state.agenda, q[Q_READY], E_ENGINE, engine, NOTHING, NOTHING, NOTHING)
        return
    if q[Q_OP] == Op.STORE:
        if q[Q_LEFT] == 0:
            served(state, rates, engine, now, now)
        else:
            queue(state, number, now)
        return
    count = min(q[Q_LEFT], rates.burst_bytes)
    q[Q_LEFT] -= count
    packet = new_packet(state, rates, SENT, core, q[Q_ORIGIN])
    p = state.packets[packet]
    p[P_WIRE], p[P_DATA] = count if count > 0 else MESSAGE_BYTES, count
    p[P_CORES], p[P_FIRST] = q[Q_CORES], q[Q_CHIPS] & 0xFFFF
    p[P_STOP] = p[P_FIRST] + (q[Q_CHIPS] >> 16)
    p[P_LAST], p[P_OWNER] = 1 if q[Q_LEFT] == 0 else 0, engine
    p[P_SIGNAL], p[P_AMOUNT] = q[Q_SIGNAL], 1
    p[P_CAUSE], p[P_CAUSED] = stream_of(engine), q[Q_ISSUED]
    streamed = int(count * rates.dma_per_byte + 0.5)
    tally(state.books.tallies, q[Q_ORIGIN], BUSY, stream_of(engine), streamed)
    begin = max(now, state.port[core, FREE_AT])
    read = use_port(
        state.port, state.books.tallies, rates.port_per_byte, core, q[Q_ORIGIN], now, count
    )
    tail = max(read, begin + streamed)
    push(state.agenda, begin, E_CORE, core << WAY_BITS | FROM_ENGINE, packet, NOTHING, tail)


@bare_part
def on_left(state: State, rates: Rates, packet: int, now: int, time: int) -> None:
    """A packet of a SEND has left its core at `time`; `now` is when its head did."""
    p = state.packets[packet]
    span(state.books, state.stream.shape[0] + p[P_OWNER], now, time, p[P_ORIGIN], WORK)
    if p[P_LAST]:
        served(state, rates, p[P_OWNER], time, time)
    else:
        push(state.agenda, time, E_ENGINE, p[P_OWNER], NOTHING, NOTHING, NOTHING)


@bare_part
def new_packet(state: State, rates: Rates, kind: int, core: int, origin: int) -> int:
    """A packet that is at its source and has neither contents nor destinations yet."""
    packet = state.agenda.clock[PACKETS_FREE]
    p = state.packets[packet]
    state.agenda.clock[PACKETS_FREE] = p[P_FREE]
    p[:] = 0
    p[P_KIND], p[P_BRANCHES], p[P_HOME], p[P_ORIGIN], p[P_SIGNAL] = kind, 1, core, origin, NONE
    p[P_UP], p[P_DOWN] = -1, -1
    return int(packet)


@bare_part
def address(state: State, rates: Rates, packet: int, core: int) -> None:
    """Make a core the only destination of a packet."""
    here, p = core % rates.chip_cores, state.packets[packet]
    p[P_CORES] = here // rates.cols | here % rates.cols << 8 | 1 << 16 | 1 << 24
    p[P_FIRST] = core // rates.chip_cores
    p[P_STOP] = p[P_FIRST] + 1
