"""Whether a program does only what the machine defines, for one set of arguments.

It needs no contents of memory, as control flow depends on the arguments only. In order: every step
alone (`check_steps`: limits, alignment, bounds), semaphores (`check_order`: two waiters, deadlocks,
counts), then every access against all before it (`clocks`, `shadow`: races, reads of what nobody
wrote). `docs/dataflow-checks.md` says what is found and what is not.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from infc.backends.dataflow.image import Image
from infc.backends.dataflow.isa import F_OP, SEMAPHORES, Op
from infc.backends.dataflow.machine import Machine
from infc.backends.dataflow.simulator.check_accesses import READ
from infc.backends.dataflow.simulator.check_memory import (
    find_memories,
    memory_name,
    new_shadow,
)
from infc.backends.dataflow.simulator.check_order import (
    destinations,
    find_order,
    row_op_counts,
    sync_ops,
)
from infc.backends.dataflow.simulator.check_steps import Walked, check_steps, walk_image
from infc.backends.dataflow.simulator.clocks import follow_clocks
from infc.backends.dataflow.simulator.errors import Fault, SimulationError
from infc.backends.dataflow.simulator.shadow import (
    FINE,
    FIRST_ACCESS,
    L_STEP,
    L_STREAM,
    LOG_COLUMNS,
    NOT_POSTED,
    P_BEGIN,
    P_END,
    P_KIND,
    P_MEMORY,
    P_OTHER,
    P_OTHER_USE,
    P_STEP,
    P_STREAM,
    P_USE,
    UNWRITTEN,
    Clocks,
    Program,
)
from infc.backends.dataflow.simulator.turns import WAIT, SyncOps
from infc.backends.dataflow.simulator.walk import Ints
from infc.diagnostics import InternalError


def check(image: Image, machine: Machine, args: NDArray[np.int32]) -> None:
    """Follow a call of a program and refuse what the machine does not define.

    Raises:
        SimulationError: the first problem; the same image and arguments give the same one.
        InternalError: the image is for another machine, or a program of it is no stream.
    """
    grid = machine.chips, machine.rows, machine.cols
    if (image.chips, image.rows, image.cols) != grid:
        raise InternalError(
            f"expected an image for {' x '.join(map(str, grid))} cores, "
            f"got {image.chips} x {image.rows} x {image.cols}"
        )
    walked = walk_image(image, machine, args)
    check_steps(walked)
    ops = sync_ops(walked)
    order = find_order(walked, ops)
    program = _program(walked)
    memories = find_memories(walked)
    log = np.zeros((_accesses(walked, program), LOG_COLUMNS), np.int32)
    problem = np.zeros(10, np.int64)
    follow_clocks(program, memories, ops, order, new_shadow(memories), log, problem)
    if problem[P_KIND] != FINE:
        raise _error(walked, ops, log, problem)


def _program(walked: Walked) -> Program:
    table, steps = walked.streams.table, walked.steps
    targets = [
        destinations(walked, row) if op == Op.SEND else []
        for row, op in enumerate(table[:, F_OP].tolist())
    ]
    return Program(
        table,
        walked.accesses,
        steps.row,
        steps.values,
        steps.starts,
        steps.program,
        row_op_counts(walked),
        np.concatenate([[0], np.cumsum([len(t) for t in targets])]).astype(np.int64),
        np.array([core for t in targets for core in t], np.int64),
        walked.image.rows * walked.image.cols,
    )


def _accesses(walked: Walked, program: Program) -> int:
    """Lines of the log: accesses of all streams."""
    op = program.table[:, F_OP]
    by_row = np.where(op >= Op.LOAD, 1, 0) + (op == Op.STORE) + np.diff(program.target_starts)
    upto = np.concatenate([[0], np.cumsum(by_row[program.row])])
    by_program = upto[program.starts[1:]] - upto[program.starts[:-1]]
    return FIRST_ACCESS + int(by_program[program.program].sum())


def _error(walked: Walked, ops: SyncOps, log: Clocks, problem: Ints) -> SimulationError:
    """The error of a problem that `follow_clocks` has found."""
    stream, step, other = (int(problem[column]) for column in (P_STREAM, P_STEP, P_OTHER))
    if problem[P_KIND] == NOT_POSTED:
        raise InternalError(f"a wait joins a post that comes later: {walked.place(stream, step)}")
    verb = "reads" if problem[P_USE] == READ else "writes"
    what = (
        f"{walked.mnemonic(step)} {verb} bytes {problem[P_BEGIN]} to {problem[P_END]} of "
        f"{memory_name(walked, int(problem[P_MEMORY]))}"
    )
    if problem[P_KIND] == UNWRITTEN:
        return walked.error(stream, step, Fault.UNINITIALISED, f"{what}, which nobody has written")
    other_stream, other_step = int(log[other, L_STREAM]), int(log[other, L_STEP])
    other_verb = "reads" if problem[P_OTHER_USE] == READ else "writes"
    message = f"race: {what}, and another instruction {other_verb} them in no certain order"
    notes = [f"the other: {walked.place(other_stream, other_step)}"]
    notes += _uncertain(walked, ops, stream, other_stream, other_step)
    return walked.error(stream, step, Fault.RACE, message, tuple(notes))


def _uncertain(
    walked: Walked, ops: SyncOps, stream: int, other_stream: int, other_step: int
) -> list[str]:
    """Semaphores that the other instruction posts and this stream waits on, of several senders."""
    begin, end = ops.starts[other_stream : other_stream + 2].tolist()
    posts = np.flatnonzero((ops.step[begin:end] == other_step) & (ops.kind[begin:end] != WAIT))
    notes = []
    for semaphore in np.unique(ops.semaphore[begin:end][posts]).tolist():
        senders = int(np.diff(ops.slot_starts[semaphore : semaphore + 2])[0])
        if senders > 1 and ops.waiter[semaphore] == stream:
            core, number = divmod(semaphore, SEMAPHORES)
            notes.append(
                f"semaphore {number} of core {core} has {senders} senders: a wait does not say "
                "whose posts it took, unless it needs all that can have been posted"
            )
    return notes
