"""The control flow of streams: registers, loops and scalar instructions, for all simulators.

A *stream* is what one unit of one core executes; its number is `core * 4 + unit`. Scalar
instructions depend on nothing but the stream's own registers and the arguments of the call, so each
simulator runs them with `advance` and acts itself on the instructions between them.
"""

from __future__ import annotations

from typing import Final, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from infc.backends.dataflow.isa import (
    F_A,
    F_B,
    F_C,
    F_D,
    F_M,
    F_N,
    F_OP,
    F_ORIGIN,
    F_RA,
    F_RB,
    F_RC,
    F_RD,
    F_RM,
    F_RN,
    FIELDS,
    MAX_LOOPS,
    REGISTERS,
    Op,
    Table,
    Unit,
    decode_tables,
)
from infc.backends.dataflow.program import Image
from infc.backends.dataflow.simulator.compiled import bare_part
from infc.backends.dataflow.simulator.errors import Fault, SimulationError
from infc.backends.dataflow.validity import find_stream_problem
from infc.diagnostics import InternalError

Ints: TypeAlias = NDArray[np.int64]

UNITS: Final = len(Unit)
STUCK: Final = -1
"""What `advance` returns where the scalar instruction has no meaning; see `scalar_fault`."""


class Streams(NamedTuple):
    """All streams of an image and how far each is. Indices of instructions are rows of `table`.

    Attributes:
        table: `[instructions, fields]`, every program once, then a HALT.
        ends: `[instructions]`, of a LOOP the row of its ENDLOOP.
        first: `[streams]`, the first instruction.
        at: `[streams]`, the next instruction.
        registers: `[streams, 32]`.
        depth: `[streams]`, loops that are open.
        loop_at: `[streams, 8]`, of each open loop the first instruction of its body.
        loop_left: `[streams, 8]`, how often each open loop's body is still to end.
    """

    table: Ints
    ends: Ints
    first: Ints
    at: Ints
    registers: Ints
    depth: Ints
    loop_at: Ints
    loop_left: Ints


class Operands(NamedTuple):
    """The operands of an instruction, registers and immediates added."""

    d: int
    a: int
    b: int
    c: int
    n: int
    m: int


def load_streams(image: Image) -> Streams:
    """The streams of an image, ready to run; raises InternalError where one is no stream."""
    tables = decode_tables(image.programs)
    halt = np.zeros((1, len(FIELDS)), np.int64)
    halt[0, F_OP] = Op.HALT
    starts = np.cumsum([0, *(len(table) for table in tables)])
    count = image.cores * UNITS
    # A stream that the image does not have is at the halt behind all programs.
    first = np.full(count, starts[-1], np.int64)
    for (core, unit), program in image.streams.items():
        first[core * UNITS + unit] = starts[program]
    for program, unit in sorted({(program, unit) for (_, unit), program in image.streams.items()}):
        problem = find_stream_problem(tables[program], unit)
        if problem is not None:
            raise InternalError(f"program {program}, instruction {problem[0]}: {problem[1]}")
    table = np.concatenate([*tables, halt])
    return Streams(
        table,
        _loop_ends(table),
        first,
        first.copy(),
        np.zeros((count, REGISTERS), np.int64),
        np.zeros(count, np.int64),
        np.zeros((count, MAX_LOOPS), np.int64),
        np.zeros((count, MAX_LOOPS), np.int64),
    )


def _loop_ends(table: Table) -> Ints:
    """[instructions]: of each LOOP the row of its ENDLOOP; 0 of others."""
    ends = np.zeros(len(table), np.int64)
    open_loops: list[int] = []
    for at in np.flatnonzero(np.isin(table[:, F_OP], (Op.LOOP, Op.ENDLOOP))).tolist():
        if table[at, F_OP] == Op.LOOP:
            open_loops.append(at)
        else:
            ends[open_loops.pop()] = at
    return ends


def restart(streams: Streams) -> None:
    """Every stream back at its first instruction, with registers of 0."""
    streams.at[:] = streams.first
    streams.registers[:] = 0
    streams.depth[:] = 0


def error_at(
    image: Image, streams: Streams, s: int, fault: Fault, message: str, notes: tuple[str, ...] = ()
) -> SimulationError:
    """The error of stream `s` at its next instruction."""
    at, first = int(streams.at[s]), int(streams.first[s])
    core, unit = divmod(s, UNITS)
    origin = image.origins[int(streams.table[at, F_ORIGIN])]
    return SimulationError(
        fault, origin, core, Unit(unit).name.lower(), at - first, message, notes=notes
    )


def scalar_fault(streams: Streams, s: int, args: NDArray[np.int32]) -> tuple[Fault, str]:
    """What is wrong with the scalar instruction at which stream `s` is `STUCK`."""
    row = streams.table[streams.at[s]].tolist()
    registers = streams.registers[s].tolist()
    if row[F_OP] == Op.ARG:
        index = registers[row[F_RA]] + row[F_A]
        return Fault.BOUNDS, f"expected the index of one of {len(args)} arguments, got {index}"
    return Fault.OPERAND, f"expected a count of at least 0, got {registers[row[F_RN]] + row[F_N]}"


@bare_part
def advance(streams: Streams, s: int, args: NDArray[np.int32]) -> int:
    """Execute scalar instructions of stream `s` until the next one is of another kind.

    Returns:
        How many there were, or `STUCK`; `streams.at[s]` is the instruction to go on with.
    """
    table, registers = streams.table, streams.registers
    at, count = streams.at[s], 0
    while True:
        op = table[at, F_OP]
        if op == Op.ENDLOOP:
            top = streams.depth[s] - 1
            left = streams.loop_left[s, top] - 1
            streams.loop_left[s, top] = left
            if left > 0:
                at = streams.loop_at[s, top]
            else:
                streams.depth[s] = top
                at += 1
            count += 1
            continue
        if op < Op.LOOP or op > Op.ARG:
            break
        a = registers[s, table[at, F_RA]] + table[at, F_A]
        value = a
        if op == Op.LOOP:
            times = registers[s, table[at, F_RN]] + table[at, F_N]
            if times < 0:
                streams.at[s] = at
                return STUCK
            if times == 0:
                at = streams.ends[at]
            else:
                top = streams.depth[s]
                streams.loop_at[s, top] = at + 1
                streams.loop_left[s, top] = times
                streams.depth[s] = top + 1
        elif op == Op.ADD:
            value = a + registers[s, table[at, F_RB]]
        elif op == Op.MUL:
            value = registers[s, table[at, F_RA]] * table[at, F_A]
        elif op == Op.DIV:
            value = registers[s, table[at, F_RA]] // table[at, F_A]
        elif op == Op.MOD:
            value = registers[s, table[at, F_RA]] % table[at, F_A]
        elif op == Op.MIN:
            value = min(a, registers[s, table[at, F_RB]] + table[at, F_B])
        elif op == Op.MAX:
            value = max(a, registers[s, table[at, F_RB]] + table[at, F_B])
        elif op == Op.WRAP:
            value = registers[s, table[at, F_RD]]
            if value >= table[at, F_A]:
                value -= table[at, F_B]
        elif op == Op.ARG:
            if a < 0 or a >= args.size:
                streams.at[s] = at
                return STUCK
            value = np.int64(args[a])
        if op != Op.LOOP:
            registers[s, table[at, F_RD]] = value
        at += 1
        count += 1
    streams.at[s] = at
    return count


@bare_part
def operands(streams: Streams, s: int) -> Operands:
    """The operands of the instruction at which stream `s` is."""
    table, registers, at = streams.table, streams.registers, streams.at[s]
    return Operands(
        registers[s, table[at, F_RD]] + table[at, F_D],
        registers[s, table[at, F_RA]] + table[at, F_A],
        registers[s, table[at, F_RB]] + table[at, F_B],
        registers[s, table[at, F_RC]] + table[at, F_C],
        registers[s, table[at, F_RN]] + table[at, F_N],
        registers[s, table[at, F_RM]] + table[at, F_M],
    )
