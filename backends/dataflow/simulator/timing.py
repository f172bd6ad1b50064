"""How long a call takes: every stream of every core, with all that they share; see
`docs/dataflow-timing.md` for the exact rules.

Time needs no contents of memories: control flow depends on the arguments of the call alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from infc.backends.dataflow.isa import F_D, F_N, F_OP, F_RN, SEMAPHORES, Op, Unit
from infc.backends.dataflow.machine import Machine
from infc.backends.dataflow.program import Image
from infc.backends.dataflow.simulator import timing_run as engine
from infc.backends.dataflow.simulator.critical_path import critical_path
from infc.backends.dataflow.simulator.errors import Fault, SimulationError
from infc.backends.dataflow.simulator.resources import TICKS_PER_S, Floats, Ints, Rates, costs_of
from infc.backends.dataflow.simulator.timing_state import (
    BUSY,
    BYTES,
    C_BYTES,
    FAULT_STREAM,
    LOGGED,
    M_COUNT,
    NOW,
    S_ENDED,
    S_PHASE,
    SPANS,
    SPANS_LEFT_OUT,
    WAIT_CHANNEL,
    WAIT_LINK,
    WAIT_PORT,
    WAIT_SEMAPHORE,
    WAITING,
    State,
    grown,
    new_state,
)
from infc.backends.dataflow.simulator.utilisation import OriginTime, Tallies, origin_times
from infc.backends.dataflow.simulator.walk import (
    UNITS,
    Streams,
    error_at,
    load_streams,
    scalar_fault,
)

CAUSES: Final = {
    "semaphore": WAIT_SEMAPHORE,
    "port": WAIT_PORT,
    "channel": WAIT_CHANNEL,
    "link": WAIT_LINK,
}
"""Why a stream stands still."""
FAULTS: Final = {
    engine.COUNT: (Fault.OPERAND, "expected sizes and counts of at least 0, got a negative one"),
    engine.TILE: (Fault.LIMIT, "expected at most the rows of the unit's native tile, got more"),
    engine.FORMAT: (Fault.OPERAND, "expected a format that the matrix unit has"),
    engine.NO_CHANNEL: (Fault.BOUNDS, "expected lines of a far memory, got some outside"),
    engine.CHANNELS: (Fault.BOUNDS, "expected a transfer inside one channel, got one across two"),
    engine.DESTINATION: (Fault.OPERAND, "expected cores of the machine, got others"),
    engine.SHARED: (Fault.LIMIT, "expected one stream to wait for a semaphore, got two"),
}


@dataclass(frozen=True)
class Spans:
    """What the trace is made of; see `trace`.

    Attributes:
        rows: `[spans, 5]`: track, begin and end in ticks, origin, kind.
        left_out: spans that came when there was no more room.
    """

    rows: Ints
    left_out: int


@dataclass(frozen=True)
class Timing:
    """Seconds, and what they were spent on.

    Attributes:
        seconds: of the call, with the host's launch.
        program_seconds: from the first instruction to the end of the last transfer.
        ended_s: `[cores, units]`, when each stream halted.
        busy_s: `[cores, units]`: of matrix and vector units at work; of DMA engines for load and
            send.
        waits_s: by cause, `[cores, units]`, in which streams stood still.
        port_bytes, channel_bytes, link_bytes: moved, `[cores]`, `[chips * channels]`, `[links]`.
        origins: what each place in the model took, in the order of the image's origins.
        spans: for the trace, empty unless asked for.
    """

    seconds: float
    program_seconds: float
    ended_s: Floats
    busy_s: Floats
    waits_s: dict[str, Floats]
    port_bytes: Ints
    channel_bytes: Ints
    link_bytes: Ints
    origins: tuple[OriginTime, ...]
    spans: Spans


def simulate_time(
    image: Image,
    machine: Machine,
    args: NDArray[np.int32],
    *,
    most_spans: int = 0,
    ahead: bool = True,
) -> Timing:
    """Time one call.

    Args:
        image: the program; its grid is the machine's.
        machine: all figures.
        args: int32, the arguments of the call.
        most_spans: how many spans to keep for a trace.
        ahead: whether streams may take steps that nothing can come before without an event; only
            the simulation's own speed depends on it.

    Raises:
        SimulationError: streams wait for what nobody posts, or an instruction asks for what the
            machine does not have.
    """
    rates = Rates.of(machine)
    streams = load_streams(image)
    costs = costs_of(streams.table)
    state = new_state(rates, most_spans)
    while True:
        status = engine.run(streams, costs, args, rates, state, ahead)
        if status != engine.CROWDED:
            break
        state = grown(state, rates.chips)
    if status != engine.DONE:
        raise _fault(image, streams, int(state.clock[FAULT_STREAM]), status, args)
    if (state.stream[:, S_ENDED] < 0).any():
        raise _deadlock(image, streams, state)
    return _timing(image, machine, rates, state)


def _fault(
    image: Image, streams: Streams, s: int, status: int, args: NDArray[np.int32]
) -> SimulationError:
    if status == engine.SCALAR:
        return error_at(image, streams, s, *scalar_fault(streams, s, args))
    return error_at(image, streams, s, *FAULTS[status])


def _deadlock(image: Image, streams: Streams, state: State) -> SimulationError:
    """The error that names all streams that wait, at the place of the first one."""
    notes = []
    stuck = np.flatnonzero(state.stream[:, S_PHASE] == WAITING).tolist()
    for s in stuck:
        row = streams.table[streams.at[s]].tolist()
        needed = int(streams.registers[s, row[F_RN]]) + row[F_N]
        core, unit = divmod(s, UNITS)
        counter = int(state.semaphore[core * SEMAPHORES + row[F_D], M_COUNT])
        where = error_at(image, streams, s, Fault.DEADLOCK, "")
        notes.append(
            f"core {core}, {Unit(unit).name.lower()} stream, instruction {where.instruction} of "
            f"{where.origin}: semaphore {row[F_D]} is {counter}, waits for {needed}"
        )
    assert all(streams.table[streams.at[s], F_OP] == Op.WAIT for s in stuck)
    message = f"{len(stuck)} streams wait for semaphores that nobody will post"
    return error_at(image, streams, stuck[0], Fault.DEADLOCK, message, tuple(notes))


def _timing(image: Image, machine: Machine, rates: Rates, state: State) -> Timing:
    end, grid = int(state.clock[NOW]), (rates.cores, UNITS)
    tallies = Tallies.of(state)
    path = critical_path(state.books.log[: state.clock[LOGGED]], state.stream[:, S_ENDED], end)
    return Timing(
        seconds=end / TICKS_PER_S + machine.launch_s,
        program_seconds=end / TICKS_PER_S,
        ended_s=state.stream[:, S_ENDED].reshape(grid) / TICKS_PER_S,
        busy_s=tallies.total(BUSY).reshape(grid) / TICKS_PER_S,
        waits_s={
            name: tallies.total(cause).reshape(grid) / TICKS_PER_S for name, cause in CAUSES.items()
        },
        port_bytes=state.port[:, BYTES],
        channel_bytes=state.channels[:, C_BYTES],
        link_bytes=state.link[:, BYTES],
        origins=origin_times(image.origins, machine, rates, tallies, path),
        spans=Spans(state.books.spans[: state.clock[SPANS]], int(state.clock[SPANS_LEFT_OUT])),
    )
