"""Named barriers of a block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from infc.backends.cuda.lockstep.reading import FunctionReader, Step, Waits
from infc.backends.cuda.lockstep.threads import Registers, Running, Threads, Where


@dataclass
class Meeting:
    """A named barrier.

    Attributes:
        expected: threads that it waits for; 0 while nobody arrived.
        arrived: threads that are there.
        round: how often it was complete.
    """

    expected: int = 0
    arrived: int = 0
    round: int = 0

    def arrive(self, expected: int, t: Threads, where: Where, number: int) -> None:
        """`t` comes; the last ones begin a new round."""
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
        if self.arrived == expected:
            self.arrived, self.expected, self.round = 0, 0, self.round + 1


def _meeting(t: Threads, number: int) -> Meeting:
    found: Meeting = t.block.barriers.setdefault(number, Meeting())
    return found


def _one(value: Any, t: Threads, where: Where) -> int:
    if (value != value[0]).any():
        t.fail(where, int((value != value[0]).argmax()), "barrier differs between threads")
    return int(value[0])


def read_sync(fn: FunctionReader, op: Any, where: Where) -> Waits:
    """`bar.sync` of a barrier and a number of threads."""
    slots = fn.operands(op)

    def go(r: Registers, t: Threads) -> Running:
        number, expected = (_one(r[slot], t, where) for slot in slots)
        meeting = _meeting(t, number)
        round_ = meeting.round
        meeting.arrive(expected, t, where, number)
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


READERS: dict[str, Callable[[FunctionReader, Any, Where], Step | Waits | None]] = {
    "nvvm.barrier.arrive": _arrive,
}
