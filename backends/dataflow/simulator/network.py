"""Packets on the links between cores and between chips: routes, multicast trees, contention.

A packet's *head* goes from link to link; its bytes follow. Each link serves packets in the order in
which their heads come. A packet with several destinations is copied where their routes part, so it
crosses each link once.

Links: `core * 4 + way` inside a chip, ways east, west, south, north; behind them `chip * ports +
port` between chips, ports up and down (ring), out and in (switch), or again the four ways (mesh).
"""

from __future__ import annotations

from infc.backends.dataflow.isa import NONE, SEMAPHORES
from infc.backends.dataflow.simulator.compiled import bare_part, opaque
from infc.backends.dataflow.simulator.resources import ONE_CHIP, RING, SWITCH, Rates
from infc.backends.dataflow.simulator.timing_state import (
    BYTES,
    E_CHIP,
    E_CORE,
    E_POST,
    FREE_AT,
    LINK,
    NOTHING,
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
    POSTED,
    READ,
    WAY_BITS,
    State,
    push,
    tally,
    use_port,
)
from infc.backends.dataflow.simulator.transfers import (
    EAST,
    FRESH,
    FROM_ENGINE,
    NORTH,
    SOUTH,
    WEST,
    on_arrival,
    on_left,
)

UP, DOWN = opaque(range(2))
OUT, IN, ENTERED = opaque(range(3))
NEXT, PREVIOUS = opaque((1, -1))
CHIP_BITS = 16
"""Of a chip's number."""


@bare_part
def on_core(
    state: State, rates: Rates, packet: int, core: int, way: int, head: int, tail: int
) -> None:
    """The head of a packet is at a core, where it came moving `way`, or comes from elsewhere."""
    p = state.packets[packet]
    chip, here = core // rates.chip_cores, core % rates.chip_cores
    row, col = here // rates.cols, here % rates.cols
    inside = p[P_FIRST] <= chip < p[P_STOP]
    leaving = chip == p[P_HOME] // rates.chip_cores and (p[P_FIRST] < chip or p[P_STOP] > chip + 1)
    top, left = p[P_CORES] & 255, p[P_CORES] >> 8 & 255
    bottom, right = top + (p[P_CORES] >> 16 & 255) - 1, left + (p[P_CORES] >> 24 & 255) - 1
    # Of the destinations here: the columns that the row must reach, the rows that this column must.
    west, east, north, south = col, col, row, row
    if inside:
        west, east = min(west, left), max(east, right)
        if left <= col <= right:
            north, south = min(north, top), max(south, bottom)
    if leaving:
        gate_row, gate_col = rates.gateway // rates.cols, rates.gateway % rates.cols
        west, east = min(west, gate_col), max(east, gate_col)
        if col == gate_col:
            north, south = min(north, gate_row), max(south, gate_row)
    left_at = tail
    if (way == EAST or way >= FRESH) and east > col:
        left_at = max(left_at, _step(state, rates, packet, core, EAST, NEXT, head, tail))
    if (way == WEST or way >= FRESH) and west < col:
        left_at = max(left_at, _step(state, rates, packet, core, WEST, PREVIOUS, head, tail))
    if way != NORTH and south > row:
        left_at = max(left_at, _step(state, rates, packet, core, SOUTH, rates.cols, head, tail))
    if way != SOUTH and north < row:
        left_at = max(left_at, _step(state, rates, packet, core, NORTH, -rates.cols, head, tail))
    if leaving and here == rates.gateway:
        left_at = max(left_at, _leave(state, rates, packet, chip, head, tail))
    if inside and top <= row <= bottom and left <= col <= right:
        _deliver(state, rates, packet, core, head, tail)
    if way == FROM_ENGINE:
        on_left(state, rates, packet, head, left_at)
    _arrived(state, packet)


@bare_part
def on_chip(
    state: State, rates: Rates, packet: int, chip: int, way: int, head: int, tail: int
) -> None:
    """The head of a packet is at a chip's ports, where it came over the links between chips."""
    p = state.packets[packet]
    if rates.topology == SWITCH and way == IN:
        # The switch holds it until the chip's way in is free.
        link = rates.cores * 4 + chip * rates.chip_ports + IN
        begin, end = _use_link(state, packet, link, rates.chip_per_byte, head)
        push(
            state.agenda, begin, E_CHIP, chip << WAY_BITS | ENTERED, packet, NOTHING, max(tail, end)
        )
        return
    if rates.topology == RING:
        home = p[P_HOME] // rates.chip_cores
        gone = (chip - home if way == UP else home - chip) % rates.chips
        if gone < (p[P_UP] if way == UP else p[P_DOWN]):
            _chip_step(state, rates, packet, chip, way, head, tail)
    elif rates.topology != SWITCH:
        _chip_mesh(state, rates, packet, chip, way, head, tail)
    if p[P_FIRST] <= chip < p[P_STOP]:
        gateway = chip * rates.chip_cores + rates.gateway
        place = gateway << WAY_BITS | (FRESH + way)
        push(state.agenda, head, E_CORE, place, packet, NOTHING, tail)
    else:
        _arrived(state, packet)


@bare_part
def _leave(state: State, rates: Rates, packet: int, chip: int, head: int, tail: int) -> int:
    """Send a packet from its own chip towards all others; when its last byte has left."""
    p = state.packets[packet]
    left_at = tail
    if rates.topology == ONE_CHIP:
        return left_at
    if rates.topology == SWITCH:
        link = rates.cores * 4 + chip * rates.chip_ports + OUT
        begin, end = _use_link(state, packet, link, rates.chip_per_byte, head)
        for other in range(p[P_FIRST], p[P_STOP]):
            if other != chip:
                p[P_BRANCHES] += 1
                # Packets of several chips may come to one at the same time.
                place = chip << CHIP_BITS + WAY_BITS | other << WAY_BITS | IN
                late = max(tail, end) + rates.chip_hop
                push(state.agenda, begin + rates.chip_hop, E_CHIP, place, packet, NOTHING, late)
        return max(left_at, end)
    if rates.topology == RING:
        up, down = 0, 0
        for other in range(p[P_FIRST], p[P_STOP]):
            distance = (other - chip) % rates.chips
            if 2 * distance <= rates.chips:
                up = max(up, distance)
            else:
                down = max(down, rates.chips - distance)
        p[P_UP], p[P_DOWN] = up, down
        if up > 0:
            left_at = max(left_at, _chip_step(state, rates, packet, chip, UP, head, tail))
        if down > 0:
            left_at = max(left_at, _chip_step(state, rates, packet, chip, DOWN, head, tail))
        return left_at
    return int(_chip_mesh(state, rates, packet, chip, FRESH, head, tail))


@bare_part
def _chip_mesh(
    state: State, rates: Rates, packet: int, chip: int, way: int, head: int, tail: int
) -> int:
    """Pass a packet on in a mesh of chips: along the row, then the columns."""
    p = state.packets[packet]
    cols = rates.chip_cols
    row, col = chip // cols, chip % cols
    first, last = p[P_FIRST], p[P_STOP] - 1
    left_at = tail
    if way in (EAST, WEST, FRESH):
        # Consecutive chips are of all columns, unless they are of one row or of the end of one
        # and the beginning of the next.
        west, east = col, col
        for other in range(first, min(last + 1, first + cols)):
            west, east = min(west, other % cols), max(east, other % cols)
        if way != WEST and east > col:
            left_at = max(left_at, _chip_step(state, rates, packet, chip, EAST, head, tail))
        if way != EAST and west < col:
            left_at = max(left_at, _chip_step(state, rates, packet, chip, WEST, head, tail))
    north = first // cols + (1 if col < first % cols else 0)
    south = last // cols - (1 if col > last % cols else 0)
    if north <= south:
        if way != NORTH and south > row:
            left_at = max(left_at, _chip_step(state, rates, packet, chip, SOUTH, head, tail))
        if way != SOUTH and north < row:
            left_at = max(left_at, _chip_step(state, rates, packet, chip, NORTH, head, tail))
    return left_at


@bare_part
def _chip_step(
    state: State, rates: Rates, packet: int, chip: int, port: int, head: int, tail: int
) -> int:
    """Put a packet on a link to a neighbouring chip; when its last byte is on it."""
    if rates.topology == RING:
        other = (chip + (1 if port == UP else -1)) % rates.chips
    elif port in (EAST, WEST):
        other = chip + (1 if port == EAST else -1)
    else:
        other = chip + (rates.chip_cols if port == SOUTH else -rates.chip_cols)
    link = rates.cores * 4 + chip * rates.chip_ports + port
    begin, end = _use_link(state, packet, link, rates.chip_per_byte, head)
    state.packets[packet, P_BRANCHES] += 1
    late = max(tail, end)
    push(
        state.agenda,
        begin + rates.chip_hop,
        E_CHIP,
        other << WAY_BITS | port,
        packet,
        0,
        late + rates.chip_hop,
    )
    return int(late)


@bare_part
def _step(
    state: State, rates: Rates, packet: int, core: int, way: int, step: int, head: int, tail: int
) -> int:
    """Put a packet on a link to a neighbouring core; when its last byte is on it."""
    begin, end = _use_link(state, packet, core * 4 + way, rates.mesh_per_byte, head)
    state.packets[packet, P_BRANCHES] += 1
    late = max(tail, end)
    place = (core + step) << WAY_BITS | way
    hop = rates.mesh_hop
    push(state.agenda, begin + hop, E_CORE, place, packet, NOTHING, late + hop)
    return int(late)


@bare_part
def _use_link(state: State, packet: int, link: int, per_byte: float, head: int) -> tuple[int, int]:
    """Take a link for all bytes of a packet; when it gets it and when its bytes are on it."""
    p = state.packets[packet]
    ticks = int(p[P_WIRE] * per_byte + 0.5)
    begin = max(head, state.link[link, FREE_AT])
    state.link[link, FREE_AT] = begin + ticks
    state.link[link, BYTES] += p[P_WIRE]
    tally(state.books.tallies, p[P_ORIGIN], LINK, link, ticks)
    return begin, begin + ticks


@bare_part
def _deliver(state: State, rates: Rates, packet: int, core: int, head: int, tail: int) -> None:
    """A packet is at a destination: what it brings is written or posted there."""
    p = state.packets[packet]
    if p[P_KIND] == READ:
        on_arrival(state, rates, p[P_OWNER], p[P_WIRE], head, tail)
        return
    if p[P_DATA] > 0:
        tail = max(
            tail,
            use_port(
                state.port,
                state.books.tallies,
                rates.port_per_byte,
                core,
                p[P_ORIGIN],
                head,
                p[P_DATA],
            ),
        )
    if p[P_SIGNAL] != NONE and (p[P_KIND] == POSTED or p[P_LAST] == 1):
        post = core * SEMAPHORES + p[P_SIGNAL]
        push(state.agenda, tail, E_POST, post, p[P_AMOUNT], p[P_CAUSE], p[P_CAUSED])


@bare_part
def _arrived(state: State, packet: int) -> None:
    """One of the places of a packet needs it no more."""
    p = state.packets[packet]
    p[P_BRANCHES] -= 1
    if p[P_BRANCHES] == 0:
        p[P_FREE] = state.agenda.clock[PACKETS_FREE]
        state.agenda.clock[PACKETS_FREE] = packet
