"""Named barriers of a block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from infc.backends.cuda.codegen.builder import SYNC
from infc.backends.cuda.lockstep.races import Clock
from infc.backends.cuda.lockstep.reading import FunctionReader, Step, Waits
from infc.backends.cuda.lockstep.threads import Registers, Running, Threads, Where


@dataclass
class Meeting:
    """A named barrier.

    Attributes:
        expected: threads that it waits for; 0 while nobody arrived.
        arrived: threads that are there.
        round: how often it was complete.
        clock: what those that arrived know.
        waiting: those that will get to know it.
    """

    clock: Clock
    expected: int = 0
    arrived: int = 0
    round: int = 0
    waiting: list[Threads] = field(default_factory=list)

    def arrive(
        self, expected: int, t: Threads, where: Where, number: int, *, waits: bool = False
    ) -> None:
        """`t` comes, and `waits` for the others; the last ones begin a new round."""
        if not t.whole:
            t.need_whole_warps(where)
        if self.arrived and self.expected != expected:
            t.fail(
                where,
                0,
                f"barrier {number} was entered for {self.expected} threads, and now for {expected}",
            )
        if self.arrived + t.count > expected:
            t.fail(
                where,
                0,
                f"barrier {number} is for {expected} threads, "
                f"but {self.arrived + t.count} are there",
            )
        self.expected = expected
        self.arrived += t.count
        t.machine.progress += 1
        races = t.block.races
        np.maximum(self.clock, races.release(t), out=self.clock)
        if waits:
            self.waiting.append(t)
        if self.arrived == expected:
            self.arrived, self.expected, self.round = 0, 0, self.round + 1
            for other in self.waiting:
                races.acquire(other, self.clock)
            self.waiting.clear()


def _meeting(t: Threads, number: int) -> Meeting:
    barriers = t.block.barriers
    if number not in barriers:
        barriers[number] = Meeting(t.block.races.new_clock())
    found: Meeting = barriers[number]
    return found


def _one(value: Any, t: Threads, where: Where) -> int:
    if len(value) > 1 and (value != value[0]).any():
        t.fail(where, int((value != value[0]).argmax()), "barrier differs between threads")
    return int(value[0])


def read_sync(fn: FunctionReader, op: Any, where: Where) -> Waits:
    """`bar.sync` of a barrier and a number of threads."""
    slots = fn.operands(op)

    def go(r: Registers, t: Threads) -> Running:
        number, expected = (_one(r[slot], t, where) for slot in slots)
        meeting = _meeting(t, number)
        round_ = meeting.round
        meeting.arrive(expected, t, where, number, waits=True)
        yield from t.wait(
            where,
            lambda: meeting.round > round_,
            lambda: f"{meeting.arrived} of {expected} threads are at barrier {number}",
        )

    return Waits(go)


def _arrive(fn: FunctionReader, op: Any, where: Where) -> Step:
    barrier, threads = fn.operands(op)

    def step(r: Registers, t: Threads) -> None:
        number = _one(r[barrier], t, where)
        _meeting(t, number).arrive(_one(r[threads], t, where), t, where, number)

    return step


INTRINSICS = {SYNC: read_sync}
READERS: dict[str, Callable[[FunctionReader, Any, Where], Step | Waits | None]] = {
    "nvvm.barrier.arrive": _arrive,
}
