"""Barriers in shared memory (mbarriers): phases of arrivals, and of bytes that copies bring."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from infc.backends.cuda.lockstep.memory import BARRIER, Array
from infc.backends.cuda.lockstep.races import Clock
from infc.backends.cuda.lockstep.reading import FunctionReader, Step, Waits
from infc.backends.cuda.lockstep.threads import Registers, Running, Threads, Where, everybody

_SIZE_BYTES = 8


@dataclass
class Phases:
    """One mbarrier.

    Attributes:
        expected: arrivals of a phase.
        pending: arrivals that the present phase still waits for.
        bytes: that it still waits for; below 0 where copies land before they are announced.
        phase: how many phases have ended.
        clock: what those that arrived know.
        ended: what they knew when the last phase ended.
    """

    expected: int
    pending: int
    clock: Clock
    ended: Clock
    bytes: int = 0
    phase: int = 0

    def arrive(self, count: int) -> bool:
        """`count` arrivals; whether the barrier had room for them."""
        while count:
            part = min(count, self.pending)
            if part == 0:
                return False
            self.pending -= part
            count -= part
            self.settle()
        return True

    def settle(self) -> None:
        """End the phase if nothing is missing."""
        if self.pending == 0 and self.bytes == 0:
            self.phase += 1
            self.pending = self.expected
            self.ended[:] = self.clock

    def is_over(self, parity: int) -> bool:
        """Whether the phase of this parity has ended."""
        return (self.phase & 1) != parity

    def __str__(self) -> str:
        left = f"{self.expected - self.pending} of {self.expected} arrivals"
        return left + (f", {self.bytes} bytes missing" if self.bytes else "")


def barrier_at(address: int, t: Threads, where: Where) -> Phases:
    """The barrier that lies at an address."""
    found: Phases | None = t.block.barriers.get(("mbarrier", address))
    if found is None:
        t.fail(where, 0, f"no mbarrier was initialised at shared memory byte {address}")
    return found


def each(addresses: Array, t: Threads) -> list[tuple[int, int]]:
    """Addresses, and how many of the threads give each."""
    if len(addresses) == 1:
        return [(int(addresses[0]), t.count)]
    places, counts = np.unique(addresses, return_counts=True)
    return [(int(p), int(c)) for p, c in zip(places, counts, strict=True)]


def arrive_at(addresses: Array, t: Threads, where: Where) -> None:
    """Each thread arrives once, after what it did before."""
    clock = t.block.races.release(t)
    for address, count in each(addresses, t):
        barrier = barrier_at(address, t, where)
        np.maximum(barrier.clock, clock, out=barrier.clock)
        if not barrier.arrive(count):
            t.fail(
                where,
                0,
                f"the mbarrier at byte {address} expects {barrier.expected} arrivals a phase, and "
                f"more come while {barrier.bytes} bytes are missing",
            )
    t.machine.progress += 1


def _init(fn: FunctionReader, op: Any, where: Where) -> Step:
    a, n = fn.operands(op)[:2]

    def step(r: Registers, t: Threads) -> None:
        block, counts = t.block, r[n]
        addresses = r[a]
        fail = t.failing(where)
        index, width = block.shared.locate(addresses, _SIZE_BYTES, _SIZE_BYTES, fail)
        block.shared.check_free(index, width, len(addresses), fail, BARRIER)
        block.shared.mark(index, width, BARRIER)
        for i, address in enumerate(addresses):
            count = int(counts[min(i, len(counts) - 1)])
            if count < 1:
                t.fail(where, i, f"expected at least one arrival a phase, got {count}")
            clocks = block.races.new_clock(), block.races.new_clock()
            block.barriers["mbarrier", int(address)] = Phases(count, count, *clocks)
        t.machine.progress += 1

    return step


def _arrive(fn: FunctionReader, op: Any, where: Where) -> Step:
    a = fn.operands(op)[0]
    slots = fn.results(op)

    def step(r: Registers, t: Threads) -> None:
        arrive_at(r[a], t, where)
        for slot in slots:
            r[slot] = np.zeros(1, np.int64)

    return step


def _expect(fn: FunctionReader, op: Any, where: Where) -> Step:
    a, n = fn.operands(op)[:2]
    slots = fn.results(op)

    def step(r: Registers, t: Threads) -> None:
        for address, size in zip(everybody(r[a], t), everybody(r[n], t), strict=True):
            barrier_at(int(address), t, where).bytes += int(size)
        arrive_at(r[a], t, where)
        for slot in slots:
            r[slot] = np.zeros(1, np.int64)

    return step


def _wait(fn: FunctionReader, op: Any, where: Where) -> Waits:
    a, p, *_ = fn.operands(op)

    def go(r: Registers, t: Threads) -> Running:
        pairs = np.unique(np.stack(np.broadcast_arrays(r[a], r[p].astype(np.int64))), axis=1).T
        waits = [(barrier_at(int(at), t, where), int(parity) & 1) for at, parity in pairs]

        def what() -> str:
            return ", ".join(
                f"the mbarrier at byte {at} is in phase {barrier.phase} with {barrier}"
                for (at, _), (barrier, parity) in zip(pairs, waits, strict=True)
                if not barrier.is_over(parity)
            )

        yield from t.wait(where, lambda: all(b.is_over(parity) for b, parity in waits), what)
        for barrier, _ in waits:
            t.block.races.acquire(t, barrier.ended)

    return Waits(go)


def test_wait(fn: FunctionReader, op: Any, where: Where) -> Step:
    """Look whether a phase has ended, 1 or 0, without waiting."""
    a, p = fn.operands(op)
    (to,) = fn.results(op)

    def step(r: Registers, t: Threads) -> None:
        addresses, parities = np.broadcast_arrays(r[a], r[p])
        out = np.zeros(len(addresses), np.int32)
        for address, parity in {*zip(addresses.tolist(), parities.tolist(), strict=True)}:
            barrier = barrier_at(address, t, where)
            if barrier.is_over(parity & 1):
                out[(addresses == address) & (parities == parity)] = 1
                t.block.races.acquire(t, barrier.ended)
        r[to] = out

    return step


READERS: dict[str, Callable[[FunctionReader, Any, Where], Step | Waits | None]] = {
    "nvvm.mbarrier.init": _init,
    "nvvm.mbarrier.arrive": _arrive,
    "nvvm.mbarrier.arrive.expect_tx": _expect,
    "nvvm.mbarrier.try_wait.parity": _wait,
}
