"""What the simulator of time knows while it runs: arrays, so that it can be machine code.

Events are kept in a binary heap ordered by time and then by a key of what they happen to; as no two
events of a time have one key, their order does not depend on the order in which they were made.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from infc.backends.dataflow.isa import SEMAPHORES
from infc.backends.dataflow.simulator.compiled import bare_part, inlined_part, opaque
from infc.backends.dataflow.simulator.resources import Ints, Rates
from infc.backends.dataflow.simulator.walk import UNITS

E_STREAM, E_POST, E_ELIGIBLE, E_CHANNEL, E_ARRIVAL = opaque(range(5))
E_ENGINE, E_CORE, E_CHIP, E_RETIRE = opaque(range(5, 9))
"""Kinds of events, which are the high bits of a key."""
KEY_SHIFT: Final = 48
WAY_BITS: Final = 5
"""Of a key of `E_CORE` and `E_CHIP`: how the packet came; see `network`."""
NOBODY, NOTHING, ONE = opaque((-1, 0, 1))

RUNNING, STARTING, WAITING, STALLED, HALTED = range(5)
"""Phases of a stream: its sequencer goes on; its unit begins an instruction; it waits for a
semaphore; it waits for a DMA engine to take a request; its end."""

ELAPSED, BUSY, WAIT_SEMAPHORE, WAIT_PORT, WAIT_CHANNEL, WAIT_LINK = opaque(range(6))
PORT, CHANNEL, LINK = opaque(range(6, 9))
"""What ticks are tallied for: the first six of streams, the others of cores, channels and links."""

NOW, HEAP, PACKETS_FREE, TALLIED, LOGGED, SPANS, SPANS_LEFT_OUT, FAULT_STREAM, EVENTS = range(9)
"""Entries of `Agenda.clock`."""

S_PHASE, S_SINCE, S_FREE, S_MARKED, S_ENDED, S_NEEDED, S_LOGGED = range(7)
"""Of a stream: its phase; since when it waits; when its unit is free; up to when its time is
tallied; when it ended, or -1; the count it waits for; the origin of its last entry in the log, or
-1."""

M_COUNT, M_WAITER = 0, 1
FREE_AT, BYTES = 0, 1

G_HEAD, G_COUNT, G_SETTLED, G_SERVED, G_LAST, G_FREE, G_ACTIVE = range(7)
"""Of a DMA engine: slot of its oldest request; requests; how many of them, from the oldest, have a
known end; how many have been served (sending); the end of the last one; when it is free; whether an
event will look at the next request (sending)."""

(
    Q_OP, Q_LEFT, Q_FLYING, Q_CHANNEL, Q_TIER, Q_CHAIN, Q_NEXT, Q_DONE, Q_SIGNAL, Q_LOCAL, Q_ORIGIN,
    Q_READY, Q_PATH, Q_CHIPS, Q_CORES, Q_ISSUED,
) = range(16)  # fmt: skip
"""Of a request: opcode; bytes not yet served, and not yet arrived; global channel and tier; the
request of its engine that follows at the channel; the next one in the channel's queue; its end or
-1; semaphores; origin; when it may be served; ticks between core and channel; as in SEND;
when it was issued."""

(
    P_KIND, P_WIRE, P_DATA, P_BRANCHES, P_CORES, P_FIRST, P_STOP, P_HOME, P_SIGNAL, P_AMOUNT,
    P_ORIGIN, P_OWNER, P_LAST, P_UP, P_DOWN, P_FREE, P_CAUSE, P_CAUSED,
) = range(18)  # fmt: skip
"""Of a packet: kind; bytes on links, and at SRAM ports; places where it still is; destinations
(rectangle, chips from `first` to `stop`); the core it comes from; semaphore posted by its last
packet, and by how much; origin; its engine or request; whether it is the last; on a ring, how many
chips it goes up and down; the next one that is free;
the stream that sent it, and when."""
SENT, POSTED, READ = opaque(range(3))
"""Kinds of packets: of a SEND, of a POST, of a LOAD from a channel that is at another core."""

C_FREE, C_FIRST, C_LAST, C_ACTIVE, C_BYTES, C_SERVED = range(6)
"""Of a channel: when it is free; ends of its queue of requests, or -1; whether an event will look
at it; bytes; the request whose burst was served last, or -1."""

(WORK,) = opaque((0,))
"""Kind of a span in which a stream gets on; the others are `WAIT_SEMAPHORE` .. `WAIT_LINK`."""
_ROOM: Final = 64


class Agenda(NamedTuple):
    """Events to come.

    Attributes:
        clock: see `NOW` and its neighbours.
        heap: `[capacity, 5]`: time, key, and three numbers that depend on the kind.
    """

    clock: Ints
    heap: Ints


class TallyTable(NamedTuple):
    """Ticks by origin and resource.

    Attributes:
        clock: as in `Agenda`.
        first: `[10]`, where each kind of tally begins in the numbers of one origin.
        table: `[2 ** n, 2]`, a hash table of keys (or -1) and ticks; key = origin * `first[9]` +
            number.
    """

    clock: Ints
    first: Ints
    table: Ints


class Books(NamedTuple):
    """What is written down for the results.

    Attributes:
        tallies: what time was spent on.
        stream: as in `State`.
        log: `[capacity, 6]`: a stream, and from when on it is at an origin, in what way (`WORK` or
            a `WAIT_...`), and the stream and the time that let it go on, where it had waited (or
            -1). The entries of a stream are in order of time.
        spans: `[capacity, 5]`: track, begin, end, origin, kind; tracks are the streams, and behind
            them the engines.
        track: `[tracks, 2]`, the span that may be continued, or -1; the last end.
    """

    tallies: TallyTable
    stream: Ints
    log: Ints
    spans: Ints
    track: Ints


class State(NamedTuple):
    """Where a simulation is; times in ticks.

    Attributes:
        agenda, books: see there.
        stream: `[streams, 7]`, see `S_PHASE` and its neighbours.
        semaphore: `[cores * 64, 2]`, its count, and the stream that waits for it or -1.
        port: `[cores, 2]`, when it is free, and bytes.
        engines: `[cores * 2, 7]`, loading and sending.
        requests: `[cores * 2 * outstanding, 16]`.
        channels: `[chips * channel_total, 6]`.
        link: `[links, 2]`, when it is free, and bytes.
        packets: `[capacity, 18]`.
    """

    agenda: Agenda
    books: Books
    stream: Ints
    semaphore: Ints
    port: Ints
    engines: Ints
    requests: Ints
    channels: Ints
    link: Ints
    packets: Ints

    @property
    def clock(self) -> Ints:
        """See `NOW` and its neighbours."""
        return self.agenda.clock


def new_state(rates: Rates, most_spans: int) -> State:
    """Nothing has happened: an event for each stream at time 0."""
    cores, streams = rates.cores, rates.cores * UNITS
    channels, tracks = rates.chips * rates.channel_total, streams + 2 * cores
    clock, stream = np.zeros(9, np.int64), np.zeros((streams, 7), np.int64)
    clock[PACKETS_FREE], clock[HEAP] = -1, streams
    stream[:, (S_ENDED, S_LOGGED)] = -1
    heap = np.zeros((streams + 4 * cores + rates.chips + 1024, 5), np.int64)
    # All times are equal, so keys in ascending order are a heap.
    heap[:streams, 1] = np.arange(streams)
    first = np.cumsum([0, *[streams] * 6, cores, channels, rates.links]).astype(np.int64)
    books = Books(
        TallyTable(clock, first, np.full((0, 2), -1, np.int64)),
        stream,
        log=np.zeros((0, 6), np.int64),
        spans=np.zeros((most_spans, 5), np.int64),
        track=np.full((tracks, 2), (-1, 0), np.int64),
    )
    state = State(
        Agenda(clock, heap),
        books,
        stream,
        semaphore=np.full((cores * SEMAPHORES, 2), (0, -1), np.int64),
        port=np.zeros((cores, 2), np.int64),
        engines=np.zeros((cores * 2, 7), np.int64),
        requests=np.zeros((cores * 2 * rates.outstanding, 16), np.int64),
        channels=np.full((channels, 6), (0, -1, -1, 0, 0, -1), np.int64),
        link=np.zeros((rates.links, 2), np.int64),
        packets=np.zeros((0, 18), np.int64),
    )
    return grown(state, 0)


def grown(state: State, burst_of_events: int) -> State:
    """The same with room for more, in each table that is nearly full."""
    agenda, books, packets, clock = state.agenda, state.books, state.packets, state.clock
    if len(agenda.heap) - clock[HEAP] < _ROOM + burst_of_events:
        agenda = Agenda(clock, _longer(agenda.heap, 2 * len(agenda.heap) + burst_of_events))
    if clock[PACKETS_FREE] < 0:
        old = len(packets)
        packets = _longer(packets, max(1024, 2 * old))
        packets[old:, P_FREE] = np.arange(old + 1, len(packets) + 1)
        packets[-1, P_FREE] = -1
        clock[PACKETS_FREE] = old
    if len(books.log) - clock[LOGGED] < _ROOM:
        books = books._replace(log=_longer(books.log, 2 * len(books.log) + 4096))
    table = books.tallies.table
    if 2 * (clock[TALLIED] + _ROOM) > len(table):
        larger = np.full((max(1 << 14, 4 * len(table)), 2), (-1, 0), np.int64)
        used = table[table[:, 0] >= 0]
        larger[_places(used[:, 0], len(larger))] = used
        books = books._replace(tallies=books.tallies._replace(table=larger))
    return state._replace(agenda=agenda, books=books, packets=packets)


def _longer(table: Ints, rows: int) -> Ints:
    longer = np.zeros((rows, table.shape[1]), np.int64)
    longer[: len(table)] = table
    return longer


def _places(keys: Ints, size: int) -> Ints:
    """Places of distinct keys in an empty hash table, where `tally` finds them."""
    wanted = (keys * _HASH >> 20) & (size - 1)
    order = np.argsort(wanted, kind="stable")
    places = np.empty(len(keys), np.int64)
    # Of those in order of their wanted place, each takes it or the one behind its predecessor.
    steps = np.arange(len(keys))
    sorted_places = np.maximum.accumulate(wanted[order] - steps) + steps
    wrapped = sorted_places >= size
    if wrapped.any():
        taken = np.zeros(size, np.bool_)
        taken[sorted_places[~wrapped]] = True
        sorted_places[wrapped] = np.flatnonzero(~taken)[: wrapped.sum()]
    places[order] = sorted_places
    return places


_HASH: Final = -7046029254386353131
"""An odd number with its bits well mixed: 2 ** 64 divided by the golden ratio."""


@inlined_part
def crowded(state: State, burst_of_events: int) -> bool:
    """Whether a table may not have room for what one event can add."""
    clock = state.agenda.clock
    return bool(
        state.agenda.heap.shape[0] - clock[HEAP] < _ROOM + burst_of_events
        or clock[PACKETS_FREE] < 0
        or state.books.log.shape[0] - clock[LOGGED] < _ROOM
        or 2 * (clock[TALLIED] + _ROOM) > state.books.tallies.table.shape[0]
    )


@bare_part
def push(agenda: Agenda, time: int, kind: int, place: int, a: int, b: int, c: int) -> None:
    """Add an event."""
    clock, heap, key = agenda.clock, agenda.heap, (kind << KEY_SHIFT) | place
    at = clock[HEAP]
    clock[HEAP] = at + 1
    while at > 0:
        above = (at - 1) >> 1
        if heap[above, 0] < time or (heap[above, 0] == time and heap[above, 1] <= key):
            break
        heap[at, 0], heap[at, 1] = heap[above, 0], heap[above, 1]
        heap[at, 2], heap[at, 3], heap[at, 4] = heap[above, 2], heap[above, 3], heap[above, 4]
        at = above
    heap[at, 0], heap[at, 1], heap[at, 2], heap[at, 3], heap[at, 4] = time, key, a, b, c


@bare_part
def drop(agenda: Agenda) -> None:
    """Remove the first event."""
    clock, heap = agenda.clock, agenda.heap
    size = clock[HEAP] - 1
    clock[HEAP] = size
    time, key = heap[size, 0], heap[size, 1]
    at = 0
    while True:
        below = 2 * at + 1
        if below >= size:
            break
        other = below + 1
        if other < size and (
            heap[other, 0] < heap[below, 0]
            or (heap[other, 0] == heap[below, 0] and heap[other, 1] < heap[below, 1])
        ):
            below = other
        if time < heap[below, 0] or (time == heap[below, 0] and key <= heap[below, 1]):
            break
        heap[at, 0], heap[at, 1] = heap[below, 0], heap[below, 1]
        heap[at, 2], heap[at, 3], heap[at, 4] = heap[below, 2], heap[below, 3], heap[below, 4]
        at = below
    heap[at, 0], heap[at, 1] = time, key
    heap[at, 2], heap[at, 3], heap[at, 4] = heap[size, 2], heap[size, 3], heap[size, 4]


@bare_part
def tally(tallies: TallyTable, origin: int, what: int, index: int, ticks: int) -> None:
    """Add ticks to what an origin has of a resource."""
    key = origin * tallies.first[9] + tallies.first[what] + index
    table = tallies.table
    mask = table.shape[0] - 1
    at = (key * _HASH >> 20) & mask
    while table[at, 0] != key:
        if table[at, 0] < 0:
            table[at, 0] = key
            tallies.clock[TALLIED] += 1
            break
        at = (at + 1) & mask
    table[at, 1] += ticks


@bare_part
def elapse(books: Books, s: int, origin: int, until: int) -> None:
    """Tally the time of a stream up to `until`."""
    row = books.stream[s]
    if until > row[S_MARKED]:
        if row[S_LOGGED] != origin:
            note(books, s, row[S_MARKED], origin, WORK, NOBODY, NOTHING)
        tally(books.tallies, origin, ELAPSED, s, until - row[S_MARKED])
        row[S_MARKED] = until


@bare_part
def note(
    books: Books, s: int, time: int, origin: int, kind: int, cause: int, cause_time: int
) -> None:
    """Log what a stream is at from `time` on; see `Books.log`."""
    clock = books.tallies.clock
    row = books.log[clock[LOGGED]]
    row[0], row[1], row[2], row[3], row[4], row[5] = s, time, origin, kind, cause, cause_time
    clock[LOGGED] += 1
    books.stream[s, S_LOGGED] = origin


@bare_part
def span(books: Books, track: int, begin: int, end: int, origin: int, kind: int) -> None:
    """Note for the trace what a track does; work on one origin without waits is one span."""
    if books.spans.shape[0] == 0:
        return
    clock, last = books.tallies.clock, books.track[track]
    begin = max(begin, last[1])
    if end <= begin:
        return
    last[1] = end
    if kind == WORK and last[0] >= 0 and books.spans[last[0], 3] == origin:
        books.spans[last[0], 2] = end
        return
    at = clock[SPANS]
    if at == books.spans.shape[0]:
        clock[SPANS_LEFT_OUT] += 1
        last[0] = -1
        return
    clock[SPANS] = at + 1
    row = books.spans[at]
    row[0], row[1], row[2], row[3], row[4] = track, begin, end, origin, kind
    last[0] = at if kind == WORK else -1


@bare_part
def wait(books: Books, s: int, begin: int, end: int, origin: int, cause: int) -> None:
    """Tally that a stream stood still for a cause."""
    if end > begin:
        tally(books.tallies, origin, cause, s, end - begin)
        span(books, s, begin, end, origin, cause)


@bare_part
def use_port(
    port: Ints, tallies: TallyTable, per_byte: float, core: int, origin: int, time: int, count: int
) -> int:
    """Take the SRAM port for `count` bytes; when they are through."""
    ticks = int(count * per_byte + 0.5)
    begin = max(time, port[core, FREE_AT])
    port[core, FREE_AT] = begin + ticks
    port[core, BYTES] += count
    tally(tallies, origin, PORT, core, ticks)
    return int(begin + ticks)
