"""Semaphores of all cores, and the streams that can go on, while a program is executed."""

from __future__ import annotations

from typing import Final, NamedTuple, Self

import numpy as np

from infc.backends.dataflow.isa import NONE, SEMAPHORES
from infc.backends.dataflow.simulator.compiled import bare_part
from infc.backends.dataflow.simulator.memory import COUNT, NEGATIVE, OWNER
from infc.backends.dataflow.simulator.walk import UNITS, Ints

MOST_COUNTED: Final = 65_535
"""A semaphore holds 0 to this number."""
_NOBODY: Final = -1


class Semaphores(NamedTuple):
    """Counters, and a queue of streams; a stream that waits is not in it.

    Attributes:
        counters: `[cores * 64]`.
        owner: `[cores * 64]`, the stream that has waited on it, or -1.
        waits_on: `[streams]`, the semaphore a stream waits on now, or -1.
        needs: `[streams]`, the count that it waits for.
        queue: `[streams]`, those that can go on, in turn from `ends[0]` on.
        ends: `[2]`, where the queue begins and how many are in it.
    """

    counters: Ints
    owner: Ints
    waits_on: Ints
    needs: Ints
    queue: Ints
    ends: Ints

    @classmethod
    def of(cls, cores: int) -> Self:
        """All 0; every stream has its turn, by number."""
        streams = cores * UNITS
        return cls(
            np.zeros(cores * SEMAPHORES, np.int64),
            np.full(cores * SEMAPHORES, _NOBODY, np.int64),
            np.full(streams, _NOBODY, np.int64),
            np.zeros(streams, np.int64),
            np.arange(streams, dtype=np.int64),
            np.array([0, streams], np.int64),
        )


@bare_part
def next_stream(semaphores: Semaphores) -> int:
    """The stream whose turn it is, or -1 where none can go on."""
    queue, ends = semaphores.queue, semaphores.ends
    if ends[1] == 0:
        return _NOBODY
    s = queue[ends[0]]
    ends[0] = (ends[0] + 1) % queue.size
    ends[1] -= 1
    return int(s)


@bare_part
def wait(semaphores: Semaphores, s: int, number: int, count: int, problem: Ints) -> int:
    """WAIT of stream `s`: -1 where it has to wait, else the fault or 0."""
    at = s // UNITS * SEMAPHORES + number
    problem[0], problem[1], problem[2] = number, MOST_COUNTED, count
    if count < 0 or count > MOST_COUNTED:
        return NEGATIVE if count < 0 else COUNT
    if semaphores.owner[at] == _NOBODY:
        semaphores.owner[at] = s
    elif semaphores.owner[at] != s:
        problem[1] = semaphores.owner[at] % UNITS
        return OWNER
    if semaphores.counters[at] < count:
        semaphores.waits_on[s], semaphores.needs[s] = at, count
        return _NOBODY
    semaphores.counters[at] -= count
    semaphores.waits_on[s] = _NOBODY
    return 0


@bare_part
def post(semaphores: Semaphores, core: int, number: int, count: int, problem: Ints) -> int:
    """Add to a semaphore, where `number` is one; its stream goes on if that is enough."""
    if number == NONE:
        return 0
    at = core * SEMAPHORES + number
    before = semaphores.counters[at]
    if count < 0 or before + count > MOST_COUNTED:
        problem[0], problem[1], problem[2] = number, MOST_COUNTED, before + count
        if count < 0:
            problem[2] = count
            return NEGATIVE
        return COUNT
    semaphores.counters[at] = before + count
    s = semaphores.owner[at]
    if s >= 0 and semaphores.waits_on[s] == at and before < semaphores.needs[s] <= before + count:
        ends, queue = semaphores.ends, semaphores.queue
        queue[(ends[0] + ends[1]) % queue.size] = s
        ends[1] += 1
    return 0
