"""What every stream executes, step by step, and whether each step alone is allowed.

Control flow depends on the arguments only, so each program is walked once, however many cores have
it. A *step* is an executed instruction that is not scalar.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from infc.backends.dataflow.image import Image
from infc.backends.dataflow.isa import (
    BLOCK,
    CODES4,
    F_FLAGS,
    F_FMT,
    F_K,
    F_OP,
    F_ORIGIN,
    F_X,
    GROUP16,
    REMOTE,
    Float,
    Op,
    Unit,
)
from infc.backends.dataflow.machine import Format, Machine
from infc.backends.dataflow.simulator.check_accesses import (
    A_ALIGN,
    A_OUTER_STEP,
    A_SPACE,
    A_STEP,
    A_USE,
    FAR0,
    FAR1,
    MOST,
    READ,
    REMOTE_SRAM,
    SRAM,
    M,
    N,
    access_table,
    spans,
)
from infc.backends.dataflow.simulator.compiled import digest, entry
from infc.backends.dataflow.simulator.errors import Fault, SimulationError
from infc.backends.dataflow.simulator.turns import MOST_COUNTED
from infc.backends.dataflow.simulator.walk import (
    STUCK,
    UNITS,
    Ints,
    Streams,
    advance,
    error_at,
    load_streams,
    operands,
    restart,
    scalar_fault,
)

PLACES: Final = {SRAM: "sram", FAR0: "far0", FAR1: "far1", REMOTE_SRAM: "sram of its destinations"}

_Mask: TypeAlias = NDArray[np.bool_]


class Steps(NamedTuple):
    """The steps of all different programs, one program after the other.

    Attributes:
        row: `[steps]`, the instruction, a row of the table of all programs.
        values: `[steps, 6]`, its operands d, a, b, c, n, m.
        starts: `[programs + 1]`, the first step of each program.
        program: `[streams]`, the program of each stream.
        stream: `[programs]`, the first stream that has it.
    """

    row: Ints
    values: Ints
    starts: Ints
    program: Ints
    stream: Ints


@dataclass(frozen=True)
class Walked:
    """An image, decoded and walked with the arguments of one call.

    Attributes:
        image, machine: as given.
        streams: the decoded programs.
        steps: what they execute.
        accesses: `[instructions, MOST, 14]` of `check_accesses`.
    """

    image: Image
    machine: Machine
    streams: Streams
    steps: Steps
    accesses: Ints

    def index(self, stream: int, step: int) -> int:
        """The index in its stream of the instruction of a step (a number among all steps)."""
        return int(self.steps.row[step] - self.streams.first[stream])

    def origin(self, step: int) -> str:
        """Where in the model a step comes from."""
        return self.image.origins[int(self.streams.table[self.steps.row[step], F_ORIGIN])]

    def mnemonic(self, step: int) -> str:
        """The name of a step's operation."""
        return Op(int(self.streams.table[self.steps.row[step], F_OP])).name.lower()

    def place(self, stream: int, step: int) -> str:
        """Core, stream, instruction and origin in words."""
        core, unit = divmod(stream, UNITS)
        return (
            f"core {core}, {Unit(unit).name.lower()} stream, instruction "
            f"{self.index(stream, step)} ({self.mnemonic(step)}), from {self.origin(step)}"
        )

    def error(
        self, stream: int, step: int, fault: Fault, message: str, notes: tuple[str, ...] = ()
    ) -> SimulationError:
        """The error of a stream at a step."""
        core, unit = divmod(stream, UNITS)
        name, index = Unit(unit).name.lower(), self.index(stream, step)
        return SimulationError(fault, self.origin(step), core, name, index, message, notes=notes)


@entry
def _record(
    streams: Streams,
    s: int,
    args: NDArray[np.int32],
    rows: Ints,
    values: Ints,
    sources: str = digest("walk", "check_steps"),
) -> int:
    """Walk stream `s`: its steps into `rows` and `values`, as far as they have room.

    Returns:
        How many steps there are, or `STUCK`.
    """
    count = 0
    while True:
        if advance(streams, s, args) == STUCK:
            return STUCK
        at = streams.at[s]
        if streams.table[at, F_OP] == Op.HALT:
            return count
        if count < rows.size:
            rows[count] = at
            found = operands(streams, s)
            for column, value in enumerate((found.d, found.a, found.b, found.c, found.n, found.m)):
                values[count, column] = value
        count += 1
        streams.at[s] = at + 1


def walk_image(image: Image, machine: Machine, args: NDArray[np.int32]) -> Walked:
    """Decode an image and walk its programs.

    Raises:
        SimulationError: a scalar instruction has no meaning.
        InternalError: a program is no stream.
    """
    streams = load_streams(image)
    _, first_streams, program = np.unique(streams.first, return_index=True, return_inverse=True)
    rows, values, starts = [], [], [0]
    nothing = np.empty(0, np.int64), np.empty((0, 6), np.int64)
    for s in first_streams.tolist():
        count = _record(streams, s, args, *nothing)
        if count == STUCK:
            fault, message = scalar_fault(streams, s, args)
            raise error_at(image, streams, s, fault, message)
        restart(streams)
        rows.append(np.empty(count, np.int64))
        values.append(np.empty((count, 6), np.int64))
        _record(streams, s, args, rows[-1], values[-1])
        starts.append(starts[-1] + count)
    steps = Steps(
        np.concatenate(rows),
        np.concatenate(values),
        np.array(starts, np.int64),
        program.astype(np.int64).ravel(),
        first_streams.astype(np.int64),
    )
    return Walked(image, machine, streams, steps, access_table(streams.table))


class _FirstFault:
    """The earliest step with a fault, by program in the order of the first streams."""

    def __init__(self, walked: Walked) -> None:
        self.walked = walked
        order = np.argsort(walked.steps.stream, kind="stable")
        ranks = np.empty(len(order), np.int64)
        ranks[order] = np.arange(len(order))
        program = np.repeat(np.arange(len(order)), np.diff(walked.steps.starts))
        self.key = ranks[program] * (len(program) + 1) + np.arange(len(program))
        self.program = program
        self.best: tuple[int, int, Fault, str] | None = None

    def add(self, wrong: _Mask, fault: Fault, expected: str, got: Ints) -> None:
        """Steps that are wrong, and the number that each has instead of what is expected."""
        at = np.flatnonzero(wrong)
        if not len(at):
            return
        step = int(at[np.argmin(self.key[at])])
        key = int(self.key[step])
        if self.best is None or key < self.best[0]:
            self.best = key, step, fault, f"expected {expected}, got {int(got[step])}"

    def add_message(self, step: int, fault: Fault, message: str) -> None:
        """One step that is wrong."""
        key = int(self.key[step])
        if self.best is None or key < self.best[0]:
            self.best = key, step, fault, message

    def check(self) -> None:
        """Raise what was found."""
        if self.best is not None:
            _, step, fault, message = self.best
            stream = int(self.walked.steps.stream[self.program[step]])
            raise self.walked.error(stream, step, fault, message)


def check_steps(walked: Walked) -> None:
    """Raise SimulationError for the first step that breaks a limit or leaves a memory."""
    first = _FirstFault(walked)
    _check_counts(walked, first)
    _check_formats(walked, first)
    _check_targets(walked, first)
    _check_memory(walked, first)
    first.check()


def _check_counts(walked: Walked, first: _FirstFault) -> None:
    """Counts, and the native sizes of the units."""
    table, steps, machine = walked.streams.table, walked.steps, walked.machine
    op, fmt, k = (table[steps.row, column] for column in (F_OP, F_FMT, F_K))
    n, m = steps.values[:, N], steps.values[:, M]
    first.add(n < 0, Fault.OPERAND, "n of at least 0", n)
    first.add(m < 0, Fault.OPERAND, "m of at least 0", m)
    counted = (op == Op.WAIT) | (op == Op.POST)
    limit = f"at most {MOST_COUNTED} posts of a semaphore"
    first.add(counted & (n > MOST_COUNTED), Fault.LIMIT, limit, n)
    products = (op == Op.MM_Q) | (op == Op.MM_F)
    for name, value, most in (
        ("rows", m, machine.matrix.m),
        ("columns", n, machine.matrix.n),
        ("of depth", k, machine.matrix.k),
    ):
        limit = f"at most {most} {name} in a matrix instruction"
        first.add(products & (value > most), Fault.LIMIT, limit, value)
    limit = f"at most {machine.vector.native} elements in a vector instruction"
    first.add((op >= Op.V_BIN) & (n > machine.vector.native), Fault.LIMIT, limit, n)
    blocks = (op == Op.V_Q8) & (n % BLOCK != 0)
    first.add(blocks, Fault.OPERAND, f"elements in blocks of {BLOCK}", n)
    group = np.where(fmt & GROUP16, BLOCK // 2, BLOCK)
    first.add((op == Op.V_DQ) & (n % group != 0), Fault.OPERAND, "elements in whole groups", n)


def _check_formats(walked: Walked, first: _FirstFault) -> None:
    """Formats of products and tiers of far memory that the machine has."""
    table, steps, machine = walked.streams.table, walked.steps, walked.machine
    op, fmt = table[steps.row, F_OP], table[steps.row, F_FMT]
    four_bits = fmt & CODES4 > 0
    formats: tuple[tuple[Format, _Mask], ...] = (
        ("int8", (op == Op.MM_Q) & ~four_bits),
        ("int4", (op == Op.MM_Q) & four_bits),
        ("bf16", (op == Op.MM_F) & (fmt == Float.BF16)),
        ("f16", (op == Op.MM_F) & (fmt == Float.F16)),
    )
    for name, used in formats:
        if name not in machine.matrix.tile_cycles and used.any():
            step = int(np.argmin(np.where(used, first.key, np.iinfo(np.int64).max)))
            has = ", ".join(machine.matrix.tile_cycles) or "nothing"
            first.add_message(step, Fault.LIMIT, f"expected a product of {has}, got one of {name}")
    moves = (op == Op.LOAD) | (op == Op.STORE)
    limit = f"one of {len(machine.far)} far memories"
    first.add(moves & (fmt >= len(machine.far)), Fault.LIMIT, limit, fmt)


def _check_targets(walked: Walked, first: _FirstFault) -> None:
    """Cores that are posted or sent to."""
    table, steps, image = walked.streams.table, walked.steps, walked.image
    op, x, k = (table[steps.row, column] for column in (F_OP, F_X, F_K))
    remote = (op == Op.POST) & (table[steps.row, F_FLAGS] & REMOTE > 0)
    limit = f"a core below {image.cores}"
    first.add(remote & (x >= image.cores), Fault.BOUNDS, limit, x)
    sends = op == Op.SEND
    for name, stop, most in (
        ("chips", (x & 0xFFFF) + (x >> 16), image.chips),
        ("rows of cores", (k & 255) + (k >> 16 & 255), image.rows),
        ("columns of cores", (k >> 8 & 255) + (k >> 24), image.cols),
    ):
        limit = f"destinations within {most} {name}"
        first.add(sends & (stop > most), Fault.BOUNDS, limit, stop)


def _check_memory(walked: Walked, first: _FirstFault) -> None:
    """Alignment and bounds of every access."""
    image, machine, steps = walked.image, walked.machine, walked.steps
    sizes = np.zeros(4, np.int64)
    sizes[[SRAM, REMOTE_SRAM]] = image.sram_bytes
    for tier, memory in enumerate(machine.far):
        sizes[FAR0 + tier] = memory.size_bytes
    for slot in range(MOST):
        accesses = walked.accesses[steps.row, slot]
        found = spans(accesses, steps.values)
        touched = found.rows > 0
        step = np.where(found.rows > 1, accesses[:, A_STEP], 0)
        odd = (found.start | step | accesses[:, A_OUTER_STEP]) % accesses[:, A_ALIGN]
        align = accesses[:, A_ALIGN]
        for bytes_ in (2, 4):
            wrong = touched & (odd != 0) & (align == bytes_)
            limit = f"addresses and strides that are multiples of {bytes_}"
            first.add(wrong, Fault.ALIGNMENT, limit, found.start)
        outside = touched & ((found.start < 0) | (found.stop > sizes[accesses[:, A_SPACE]]))
        if outside.any():
            at = int(np.argmin(np.where(outside, first.key, np.iinfo(np.int64).max)))
            access = accesses[at]
            verb = "reads" if access[A_USE] == READ else "writes"
            size = int(sizes[access[A_SPACE]])
            first.add_message(
                at,
                Fault.BOUNDS,
                f"{walked.mnemonic(at)} {verb} bytes {found.start[at]} to {found.stop[at]} "
                f"of the {PLACES[int(access[A_SPACE])]}, which has {size}",
            )
