"""LOAD, STORE and SEND: bytes from place to place, row by row, and who is told of it."""

from __future__ import annotations

from typing import NamedTuple

from infc.backends.dataflow.isa import (
    F_FMT,
    F_K,
    F_SIGNAL,
    F_SIGNAL_LOCAL,
    F_STRIDE_A,
    F_STRIDE_D,
    F_X,
    Tier,
)
from infc.backends.dataflow.simulator.compiled import bare_part
from infc.backends.dataflow.simulator.memory import (
    GRID,
    LINE_BYTES,
    NEGATIVE,
    A,
    D,
    M,
    N,
    Places,
    refused,
)
from infc.backends.dataflow.simulator.raw import copy_bytes
from infc.backends.dataflow.simulator.semaphores import Semaphores, post
from infc.backends.dataflow.simulator.walk import Ints, Operands

_BYTE = 255


class Grid(NamedTuple):
    """Chips, and the cores of each."""

    chips: int
    rows: int
    cols: int


@bare_part
def _negative(o: Operands, problem: Ints) -> int:
    problem[0], problem[2] = (N, o.n) if o.n < 0 else (M, o.m)
    return NEGATIVE if o.n < 0 or o.m < 0 else 0


@bare_part
def _copy_rows(d: int, step_d: int, a: int, step_a: int, rows: int, row_bytes: int) -> None:
    for i in range(rows):
        copy_bytes(d + i * step_d, a + i * step_a, row_bytes)


@bare_part
def far_move(
    table: Ints,
    at: int,
    o: Operands,
    grid: Grid,
    core: int,
    places: Places,
    semaphores: Semaphores,
    problem: Ints,
    is_load: bool,
) -> int:
    """LOAD or STORE, row `at` of the table, of a core; the fault, or 0."""
    fault = _negative(o, problem)
    if fault:
        return fault
    chip = core // (grid.rows * grid.cols)
    fast = table[at, F_FMT] == Tier.FAR0
    far_bytes = places.far0_bytes if fast else places.far1_bytes
    far = (places.far0 if fast else places.far1) + chip * far_bytes
    sram = places.sram + core * places.sram_bytes
    step_d, step_a = table[at, F_STRIDE_D], table[at, F_STRIDE_A]
    if o.n and o.m:
        if is_load:
            begin, step = o.a * LINE_BYTES, step_a * LINE_BYTES
            fault = refused(problem, D, o.d, o.m, o.n, step_d, 1, places.sram_bytes)
            fault = fault or refused(problem, A, begin, o.m, o.n, step, 1, far_bytes)
            if not fault:
                _copy_rows(sram + o.d, step_d, far + begin, step, o.m, o.n)
        else:
            begin, step = o.d * LINE_BYTES, step_d * LINE_BYTES
            fault = refused(problem, D, begin, o.m, o.n, step, 1, far_bytes)
            fault = fault or refused(problem, A, o.a, o.m, o.n, step_a, 1, places.sram_bytes)
            if not fault:
                _copy_rows(far + begin, step, sram + o.a, step_a, o.m, o.n)
    fault = fault or post(semaphores, core, table[at, F_SIGNAL], 1, problem)
    return fault or post(semaphores, core, table[at, F_SIGNAL_LOCAL], 1, problem)


@bare_part
def send(
    table: Ints,
    at: int,
    o: Operands,
    grid: Grid,
    core: int,
    places: Places,
    semaphores: Semaphores,
    problem: Ints,
) -> int:
    """SEND, row `at` of the table, of a core; the fault, or 0."""
    size, step_d, step_a = places.sram_bytes, table[at, F_STRIDE_D], table[at, F_STRIDE_A]
    fault = _negative(o, problem)
    if o.n and o.m and not fault:
        fault = refused(problem, D, o.d, o.m, o.n, step_d, 1, size)
        fault = fault or refused(problem, A, o.a, o.m, o.n, step_a, 1, size)
    if fault:
        return fault
    x, k = table[at, F_X], table[at, F_K]
    chip, chips = x & 0xFFFF, x >> 16
    row, col, rows, cols = k & _BYTE, k >> 8 & _BYTE, k >> 16 & _BYTE, k >> 24
    if chip + chips > grid.chips or row + rows > grid.rows or col + cols > grid.cols:
        return GRID
    source = places.sram + core * size + o.a
    for c in range(chip, chip + chips):
        for r in range(row, row + rows):
            first = (c * grid.rows + r) * grid.cols + col
            for to in range(first, first + cols):
                if o.n:
                    _copy_rows(places.sram + to * size + o.d, step_d, source, step_a, o.m, o.n)
                fault = fault or post(semaphores, to, table[at, F_SIGNAL], 1, problem)
    return fault or post(semaphores, core, table[at, F_SIGNAL_LOCAL], 1, problem)
