"""Streams that wait for ever: who waits for what, and who should have posted it."""

from __future__ import annotations

import numpy as np

from infc.backends.dataflow.isa import SEMAPHORES
from infc.backends.dataflow.simulator.check_steps import Walked
from infc.backends.dataflow.simulator.errors import Fault, SimulationError
from infc.backends.dataflow.simulator.turns import WAIT, SyncOps
from infc.backends.dataflow.simulator.walk import Ints
from infc.diagnostics import count


def deadlock(walked: Walked, ops: SyncOps, at: Ints, counters: Ints) -> SimulationError:
    """The error of streams that have stopped at `at` with these counts left.

    It is told from the first such stream of a cycle, or else from one that waits for a post that no
    stream has.
    """
    chain = [int(np.argmax(at < ops.starts[1:]))]
    while True:
        poster = _poster(ops, at, chain[-1])
        if poster is None:
            # Whoever waits for this one waits for what this one misses.
            chain = chain[-1:]
            break
        if poster in chain:
            chain = chain[chain.index(poster) :]
            chain = _from_smallest(chain)
            break
        chain.append(poster)
    notes = tuple(_link(walked, ops, at, stream) for stream in chain[1:])
    stream = chain[0]
    op = int(at[stream])
    message = _wanted(ops, op, counters)
    if poster is None:
        message += _missing(ops, stream, op)
    elif len(chain) == 1:
        message += ": the stream itself would post it later"
    else:
        message += ": the streams wait for one another"
    return walked.error(stream, int(ops.step[op]), Fault.DEADLOCK, message, notes)


def _missing(ops: SyncOps, stream: int, op: int) -> str:
    """Posts that there are, and that waits take."""
    here = ops.semaphore == ops.semaphore[op]
    posts = int(ops.amount[here & (ops.kind != WAIT)].sum())
    waits = np.flatnonzero(here & (ops.kind == WAIT))
    taken = int(ops.amount[waits[(waits >= ops.starts[stream]) & (waits <= op)]].sum())
    return (
        f": the program has {count(posts, 'post')} of it, and this and earlier waits take {taken}"
    )


def _from_smallest(chain: list[int]) -> list[int]:
    start = chain.index(min(chain))
    return chain[start:] + chain[:start]


def _poster(ops: SyncOps, at: Ints, stream: int) -> int | None:
    """The first stream that has not yet come to a post that this one waits for."""
    semaphore = ops.semaphore[at[stream]]
    later = np.flatnonzero((ops.semaphore == semaphore) & (ops.kind != WAIT) & (ops.amount > 0))
    streams = np.searchsorted(ops.starts, later, side="right") - 1
    left = streams[later >= at[streams]]
    return int(left[0]) if len(left) else None


def _wanted(ops: SyncOps, op: int, counters: Ints) -> str:
    core, number = divmod(int(ops.semaphore[op]), SEMAPHORES)
    has = int(counters[ops.semaphore[op]])
    return (
        f"deadlock: expected {count(int(ops.amount[op]), 'post')} of semaphore {number} "
        f"of core {core}, got {has}"
    )


def _link(walked: Walked, ops: SyncOps, at: Ints, stream: int) -> str:
    op = int(at[stream])
    core, number = divmod(int(ops.semaphore[op]), SEMAPHORES)
    place = walked.place(stream, int(ops.step[op]))
    return f"it could be posted by {place}, which waits for semaphore {number} of core {core}"
