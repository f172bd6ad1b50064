"""Copies from global to shared memory that go on by themselves: `cp.async` and `cp.async.bulk`.

What a copy brings is there when somebody waited for it, not before: until then its bytes are *in
flight*, and whoever reads or writes them is refused. The source is read when the copy begins.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from infc.backends.cuda.lockstep.mbarriers import arrive_at, barrier_at
from infc.backends.cuda.lockstep.memory import IN_FLIGHT, Array
from infc.backends.cuda.lockstep.reading import FunctionReader, Step, Waits
from infc.backends.cuda.lockstep.threads import WARP, Block, Registers, Threads, Where, everybody
from infc.ir.mlir import ir


@dataclass
class Copy:
    """`cp.async` of some threads.

    Attributes:
        number: of the copy in its block, from 1 on.
        index: where the bytes go: elements of `width` bytes of shared memory, `[n, 1]`.
        data: `[n, width]`.
        group: how many groups each thread had committed before, `[n]`.
        chosen: the numbers of the threads in the block, `[n]`.
    """

    number: int
    index: Array
    width: int
    data: Array
    group: Array
    chosen: Array

    def split(self, mask: Array) -> tuple[Copy, Copy]:
        """What these threads copy, and the others."""
        first, second = (
            replace(
                self,
                index=self.index[part],
                data=self.data[part],
                group=self.group[part],
                chosen=self.chosen[part],
            )
            for part in (mask, ~mask)
        )
        return first, second


def _land(block: Block, t: Threads, limit: Array, before: int) -> None:
    """Land the copies before a number that threads `t` began in groups before the `limit` of
    each."""
    limits = np.full(block.threads, -1)
    limits[t.ids] = limit
    left: list[Copy] = []
    there: dict[int, list[Copy]] = {}
    for copy in block.copies:
        mask = copy.group < limits[copy.chosen]
        done = np.count_nonzero(mask) if copy.number < before else 0
        if done == 0:
            left.append(copy)
            continue
        if done < len(mask):
            copy, rest = copy.split(mask)
            left.append(rest)
        there.setdefault(copy.width, []).append(copy)
    block.copies = left
    for width, copies in there.items():
        index = np.concatenate([copy.index for copy in copies])
        data = np.concatenate([copy.data for copy in copies])
        warps = np.concatenate([copy.chosen for copy in copies]) // WARP
        block.shared.put(index, width, data)
        block.races.note(index, width, warps)


def _copy(fn: FunctionReader, op: Any, where: Where) -> Step:
    to, of, *counts = fn.operands(op)
    size = int(ir.IntegerAttr(op.attributes["size"]).value)

    def step(r: Registers, t: Threads) -> None:
        block, shared = t.block, t.block.shared
        target, source = (everybody(r[slot], t) for slot in (to, of))
        data = np.zeros((t.count, size), np.uint8)
        who = None
        if counts:
            wanted = everybody(r[counts[0]], t)
            if ((wanted != 0) & (wanted != size)).any():
                t.fail(where, 0, f"expected to copy 0 or {size} bytes, got {wanted.max()}")
            who = np.flatnonzero(wanted)
            source = source[who]
        if len(source):
            memory = t.machine.device.memory
            data[slice(None) if who is None else who] = memory.load(
                source, size, size, t, where, who
            )
        fail = t.failing(where)
        index, width = shared.locate(target, size, size, fail)
        shared.check_free(index, width, t.count, fail)
        block.races.write(index, width, t, where, None, "copies to")
        shared.mark(index, width, IN_FLIGHT)
        block.begun += 1
        number = block.begun
        block.copies.append(Copy(number, index, width, data, block.committed[t.ids], t.ids))

    return step


def _commit(fn: FunctionReader, op: Any, where: Where) -> Step:
    def step(r: Registers, t: Threads) -> None:
        t.block.committed[t.ids] += 1

    return step


def _wait(fn: FunctionReader, op: Any, where: Where) -> Step:
    groups = int(ir.IntegerAttr(op.attributes["n"]).value)

    def step(r: Registers, t: Threads) -> None:
        block = t.block
        if block.copies:
            _land(block, t, block.committed[t.ids] - groups, block.begun + 1)

    return step


def _arrive(fn: FunctionReader, op: Any, where: Where) -> Step:
    """Once all copies that these threads began are there."""
    (a,) = fn.operands(op)

    def step(r: Registers, t: Threads) -> None:
        block, before, addresses = t.block, t.block.begun + 1, r[a]

        def later() -> None:
            _land(block, t, np.full(t.count, np.iinfo(np.int64).max), before)
            arrive_at(addresses, t, where)

        block.later.append(later)

    return step


def _bulk(fn: FunctionReader, op: Any, where: Where) -> Step:
    to, of, barrier, size = fn.operands(op)[:4]

    def step(r: Registers, t: Threads) -> None:
        values = [everybody(r[slot], t) for slot in (to, of, barrier, size)]
        for i, (target, source, at, count) in enumerate(
            zip(*(value.tolist() for value in values), strict=True)
        ):
            _bulk_copy(t, where, i, target, source, at, count)

    return step


def _bulk_copy(
    t: Threads, where: Where, which: int, target: int, source: int, at: int, size: int
) -> None:
    """One thread begins a copy; the bytes come later and count at the barrier."""
    block, shared, who = t.block, t.block.shared, np.array([which])
    if size % 16 or size <= 0:
        t.fail(where, which, f"expected a multiple of 16 bytes, got {size}")
    chunks = np.arange(0, size, 16)
    per_chunk = np.repeat(who, len(chunks))
    data = t.machine.device.memory.load(source + chunks, 16, 16, t, where, per_chunk)
    index, width = shared.locate(target + chunks, 16, 16, t.failing(where, per_chunk))
    shared.check_free(index, width, len(chunks), t.failing(where, per_chunk))
    block.races.write(index, width, t, where, per_chunk, "copies to")
    shared.mark(index, width, IN_FLIGHT)
    phases = barrier_at(at, t, where)

    def later() -> None:
        shared.put(index, width, data)
        block.races.engine_wrote(target, target + size)
        block.races.release_engine(phases.clock)
        phases.bytes -= size
        phases.settle()

    block.later.append(later)


READERS: dict[str, Callable[[FunctionReader, Any, Where], Step | Waits | None]] = {
    "nvvm.cp.async.shared.global": _copy,
    "nvvm.cp.async.commit.group": _commit,
    "nvvm.cp.async.wait.group": _wait,
    "nvvm.cp.async.mbarrier.arrive": _arrive,
    "nvvm.cp.async.bulk.shared.cluster.global": _bulk,
}
