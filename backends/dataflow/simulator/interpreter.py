"""The loop that executes programs, compiled: a stream at a time, until it has to wait."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from infc.backends.dataflow.isa import F_D, F_FLAGS, F_K, F_OP, F_SIGNAL, F_X, REMOTE, Op
from infc.backends.dataflow.simulator.compiled import bare_entry, bare_part, digest
from infc.backends.dataflow.simulator.matrix import Tile, mm_f, mm_q
from infc.backends.dataflow.simulator.memory import GRID, SCALAR, Places
from infc.backends.dataflow.simulator.moves import Grid, far_move, send
from infc.backends.dataflow.simulator.semaphores import Semaphores, next_stream, post, wait
from infc.backends.dataflow.simulator.vector import vector
from infc.backends.dataflow.simulator.walk import (
    STUCK,
    UNITS,
    Ints,
    Operands,
    Streams,
    advance,
    operands,
)

_BLOCKED: Final = -1
_PARTS: Final = (
    "walk", "interpreter", "semaphores", "moves", "memory", "matrix", "vector", "elementwise",
    "elementary", "raw",
)  # fmt: skip


@bare_entry
def run(
    streams_: Any,
    semaphores_: Any,
    places_: Any,
    tile_: Any,
    grid_: Any,
    vector_: Any,
    args: NDArray[np.int32],
    counts: Ints,
    problem: Ints,
    sources: str = digest(*_PARTS),
) -> tuple[int, int]:
    """Execute until all streams have halted or none can go on.

    The first five parameters are plain tuples: numba's cache could not be read any more when a
    class that it knows of has another name in a later version.

    Args:
        streams_, semaphores_, places_, tile_, grid_: `Streams` at their start, and so on.
        vector_: native length of the vector unit; address of 16 float32 of scratch.
        args: of the call.
        counts: [streams, 2], to which executed instructions and multiply-adds are added.
        problem: [4], what a refused instruction expected and got.
        sources: nobody passes it.

    Returns:
        Stream and fault; both 0 where there was none.
    """
    streams, semaphores = Streams(*streams_), Semaphores(*semaphores_)
    places, tile, grid = Places(*places_), Tile(*tile_), Grid(*grid_)
    while True:
        s = next_stream(semaphores)
        if s < 0:
            return 0, 0
        fault = 0
        while fault == 0:
            scalars = advance(streams, s, args)
            if scalars == STUCK:
                return s, SCALAR
            counts[s, 0] += scalars
            at = streams.at[s]
            op = streams.table[at, F_OP]
            if op == Op.HALT:
                break
            o = operands(streams, s)
            if op == Op.WAIT:
                fault = wait(semaphores, s, streams.table[at, F_D], o.n, problem)
            elif op == Op.POST:
                fault = _post(streams.table, at, o, grid, s // UNITS, semaphores, problem)
            elif op < Op.MM_Q:
                core = s // UNITS
                if op == Op.SEND:
                    fault = send(streams.table, at, o, grid, core, places, semaphores, problem)
                else:
                    fault = far_move(
                        streams.table, at, o, grid, core, places, semaphores, problem, op == Op.LOAD
                    )
            else:
                fault = _compute(streams.table, at, o, s, places, tile, vector_, counts, problem)
                number = streams.table[at, F_SIGNAL]
                fault = fault or post(semaphores, s // UNITS, number, 1, problem)
            if fault == 0:
                streams.at[s] = at + 1
                counts[s, 0] += 1
        if fault > 0:
            return s, fault


@bare_part
def _post(
    table: Ints, at: int, o: Operands, grid: Grid, core: int, semaphores: Semaphores, problem: Ints
) -> int:
    to = core
    if table[at, F_FLAGS] & REMOTE:
        to = table[at, F_X]
        if to >= grid.chips * grid.rows * grid.cols:
            return GRID
    return post(semaphores, to, table[at, F_D], o.n, problem)


@bare_part
def _compute(
    table: Ints,
    at: int,
    o: Operands,
    s: int,
    places: Places,
    tile: Tile,
    vector_: tuple[int, int],
    counts: Ints,
    problem: Ints,
) -> int:
    """An instruction of the matrix or the vector unit of the core that stream `s` is of."""
    op, size = table[at, F_OP], places.sram_bytes
    sram = places.sram + s // UNITS * size
    if op >= Op.V_BIN:
        return vector(table, at, o, sram, size, vector_[0], vector_[1], problem)
    counts[s, 1] += o.m * o.n * table[at, F_K]
    if op == Op.MM_Q:
        return mm_q(table, at, o, sram, size, tile, problem)
    return mm_f(table, at, o, sram, size, tile, problem)
