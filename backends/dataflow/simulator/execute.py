"""What a program computes: all streams of all cores run, one at a time, until each has halted.

A stream goes on until it waits for a semaphore that nobody has posted often enough; then the next
one that can go on has its turn. Moves happen at once. A program that orders its accesses, which
`check` finds out, has the same results in any other order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from infc.backends.dataflow.isa import F_OP, F_ORIGIN, SEMAPHORES, Op, Unit
from infc.backends.dataflow.machine import Machine
from infc.backends.dataflow.operations import FORMS
from infc.backends.dataflow.program import Image
from infc.backends.dataflow.simulator.errors import Fault, SimulationError
from infc.backends.dataflow.simulator.interpreter import run
from infc.backends.dataflow.simulator.matrix import Tile
from infc.backends.dataflow.simulator.memory import OPERANDS, OWNER, REFUSALS, SCALAR, Memory
from infc.backends.dataflow.simulator.moves import Grid
from infc.backends.dataflow.simulator.semaphores import Semaphores
from infc.backends.dataflow.simulator.walk import (
    UNITS,
    Streams,
    error_at,
    load_streams,
    restart,
    scalar_fault,
)
from infc.diagnostics import InternalError, count

_LANES: Final = 16
_SHOWN: Final = 8
"""Streams that the report of a deadlock lists."""


@dataclass(frozen=True)
class ExecutionReport:
    """What was executed.

    Attributes:
        instructions: int64 [cores, 4 units].
        multiply_adds: of all products.
    """

    instructions: NDArray[np.int64]
    multiply_adds: int


class Executor:
    """An image, decoded, with the memory that its calls work on."""

    def __init__(self, image: Image, machine: Machine, memory: Memory) -> None:
        grid = (image.chips, image.rows, image.cols)
        if grid != (machine.chips, machine.rows, machine.cols):
            raise InternalError(
                f"expected an image for {machine.chips} chips of {machine.rows} x {machine.cols} "
                f"cores, got one for {grid[0]} of {grid[1]} x {grid[2]}"
            )
        unit = machine.matrix
        self._image, self._memory, self._streams = image, memory, load_streams(image)
        self._tile, self._room = Tile.of(unit.m, unit.n, unit.k)
        self._lanes = np.zeros(_LANES, np.float32)
        self._vector = machine.vector.native, self._lanes.ctypes.data

    def run(self, args: NDArray[np.int32]) -> ExecutionReport:
        """One call; raises SimulationError where the program does what the machine forbids."""
        args = np.ascontiguousarray(args, np.int32)
        image, streams = self._image, self._streams
        restart(streams)
        semaphores = Semaphores.of(image.cores)
        counts, problem = np.zeros((len(streams.at), 2), np.int64), np.zeros(4, np.int64)
        grid = Grid(image.chips, image.rows, image.cols)
        places = self._memory.places()
        s, fault = run(
            tuple(streams),
            tuple(semaphores),
            tuple(places),
            tuple(self._tile),
            tuple(grid),
            self._vector,
            args,
            counts,
            problem,
        )
        if fault:
            scalar = scalar_fault(streams, s, args) if fault == SCALAR else None
            kind, text = scalar or _reason(streams, s, fault, problem)
            name = FORMS[Op(streams.table[streams.at[s], F_OP])].mnemonic
            raise error_at(image, streams, s, kind, f"{name}: {text}")
        if (streams.table[streams.at, F_OP] != Op.HALT).any():
            raise _deadlock(image, streams, semaphores)
        return ExecutionReport(
            counts[:, 0].reshape(image.cores, UNITS).copy(), int(counts[:, 1].sum())
        )


def execute(
    image: Image, machine: Machine, memory: Memory, args: NDArray[np.int32]
) -> ExecutionReport:
    """One call of a program; where there are many, an `Executor` decodes it once."""
    return Executor(image, machine, memory).run(args)


def _reason(streams: Streams, s: int, fault: int, problem: NDArray[np.int64]) -> tuple[Fault, str]:
    """What was wrong with the instruction at which stream `s` was stopped."""
    op = Op(streams.table[streams.at[s], F_OP])
    operand, expected, got, end = problem.tolist()
    if fault == OWNER:
        unit = Unit(expected).name.lower()
        kind, text = Fault.OPERAND, f"semaphore {operand} is waited for by the {unit} stream too"
    else:
        kind, text = REFUSALS[fault]
        name = "the count" if op in (Op.WAIT, Op.POST) else OPERANDS[min(operand, 6)]
        text = text.format(operand=name, expected=expected, got=got, end=end)
    return kind, text


def _deadlock(image: Image, streams: Streams, semaphores: Semaphores) -> SimulationError:
    """Nobody can go on: who waits for what."""
    waiting = np.flatnonzero(semaphores.waits_on >= 0).tolist()
    notes = []
    for s in waiting[:_SHOWN]:
        core, unit = divmod(s, UNITS)
        at, semaphore = int(streams.at[s]), int(semaphores.waits_on[s])
        origin = image.origins[int(streams.table[at, F_ORIGIN])]
        notes.append(
            f"core {core}, {Unit(unit).name.lower()} stream, instruction "
            f"{at - int(streams.first[s])} ({origin}) waits for {semaphores.needs[s]} in semaphore "
            f"{semaphore % SEMAPHORES}, which has {semaphores.counters[semaphore]}"
        )
    if len(waiting) > _SHOWN:
        notes.append(f"and {len(waiting) - _SHOWN} more")
    message = f"{count(len(waiting), 'stream')} cannot go on, and nobody else can"
    return error_at(image, streams, waiting[0], Fault.DEADLOCK, message, tuple(notes))
