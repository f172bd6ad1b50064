"""The best of many entries, sorted, found by a block in shared memory.

Of the best entry of each thread the one at rank `wanted` is a bound: as many threads have something
as good, so what is worse is not among the best. Few entries reach it; each of those counts how many
of them are better, which is its place in the list.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

from infc.backends.cuda.codegen.builder import GpuBuilder, Value
from infc.backends.cuda.kernels.entries import ENTRY_BYTES, NOTHING, better_of, slot
from infc.backends.cuda.kernels.frame import THREADS, WORK_OFFSET, WORKER_BARRIER

MOST_WANTED = 64
"""Entries of a list."""
AT_ONCE = 16
"""Entries that a thread compares at once."""
_INDEX_BYTES = 4

LIST_OFFSET = WORK_OFFSET + 128
"""Where in shared memory it works."""
# The list, the best of each thread, what reaches the bound, the bound, how many reach it.
_LIST = LIST_OFFSET
_THREAD_BEST = _LIST + MOST_WANTED * ENTRY_BYTES
_FOUND = _THREAD_BEST + THREADS * ENTRY_BYTES
# Each of `MOST_WANTED` threads has its entries and one of the list so far.
_BOUND = _FOUND + MOST_WANTED * (AT_ONCE + 1) * ENTRY_BYTES
_COUNT = _BOUND + ENTRY_BYTES
LIST_BYTES = _COUNT + ENTRY_BYTES - LIST_OFFSET
"""Shared memory that it takes from there on."""

Entries: TypeAlias = Callable[[Value], list[Value]]
"""Gives `AT_ONCE` entries of a thread in a round; all entries differ but for `NOTHING`."""


def emit_select(b: GpuBuilder, wanted: Value, rounds: Value, load: Entries) -> None:
    """Put the best `wanted` (1 .. `MOST_WANTED`, i32) entries of `rounds` rounds into the list, the
    best first, `NOTHING` behind them. All workers of the block run it and meet at its end."""
    thread = b.thread()
    nothing = b.const(NOTHING, b.i64)
    listed, bests, found = (b.shared_memory(at) for at in (_LIST, _THREAD_BEST, _FOUND))
    bound_at, count_at = b.shared_memory(_BOUND), b.shared_memory(_COUNT)
    in_list = b.cmp("slt", thread, MOST_WANTED)
    place = slot(b, listed, thread)

    def clear() -> None:
        b.when(in_list, lambda: b.store(nothing, place, ENTRY_BYTES))

    def begin() -> None:
        b.store(nothing, bound_at, ENTRY_BYTES)
        b.store(b.idx(0), count_at, _INDEX_BYTES)

    def one_round(number: Value) -> None:
        entries = load(number)
        b.sync(THREADS, WORKER_BARRIER)
        # The best so far take part again.
        entries += b.when(
            in_list, lambda: [b.load(place, b.i64, ENTRY_BYTES)], lambda: [nothing], [b.i64]
        )
        own = entries[0]
        for entry in entries[1:]:
            own = better_of(b, own, entry)
        b.store(own, slot(b, bests, thread), ENTRY_BYTES)
        b.when(b.cmp("eq", thread, 0), begin)
        b.sync(THREADS, WORKER_BARRIER)
        # As many threads as wanted have something as good as this bound: what is worse is out.
        clear()
        rank = _rank_of_thread(b, own, bests)
        is_bound = b.bit_and(b.cmp("eq", rank, b.sub(wanted, 1)), b.cmp("sgt", own, nothing))
        b.when(is_bound, lambda: b.store(own, bound_at, ENTRY_BYTES))
        b.sync(THREADS, WORKER_BARRIER)
        bound = b.load(bound_at, b.i64, ENTRY_BYTES)

        def keep(entry: Value) -> None:
            at = b.add_and_fetch_old(count_at, 1)
            b.store(entry, slot(b, found, at), ENTRY_BYTES)

        def keep_some() -> None:
            for entry in entries:
                b.when(_counts(b, entry, bound), partial(keep, entry))

        b.when(_counts(b, own, bound), keep_some)
        b.sync(THREADS, WORKER_BARRIER)
        count = b.load(count_at, b.i32, _INDEX_BYTES)

        def rank_one(index: Value) -> None:
            entry = b.load(slot(b, found, index), b.i64, ENTRY_BYTES)
            at = _rank(b, entry, found, count)
            target = slot(b, listed, at)
            b.when(b.cmp("slt", at, wanted), lambda: b.store(entry, target, ENTRY_BYTES))

        b.loop(thread, count, THREADS, body=rank_one)

    clear()
    b.loop(0, rounds, body=one_round)
    b.sync(THREADS, WORKER_BARRIER)


def _counts(b: GpuBuilder, entry: Value, bound: Value) -> Value:
    """Whether an entry is something and not worse than a bound."""
    return b.bit_and(b.cmp("sge", entry, bound), b.cmp("sgt", entry, b.const(NOTHING, b.i64)))


def _rank(b: GpuBuilder, entry: Value, entries: Value, count: Value) -> Value:
    """How many of a list in shared memory are better, i32."""

    def step(index: Value, rank: Value) -> Value:
        other = b.load(slot(b, entries, index), b.i64, ENTRY_BYTES)
        return b.add(rank, b.ext_u(b.cmp("sgt", other, entry), b.i32))

    return b.loop(0, count, 1, [b.idx(0)], body=step)[0]


def _rank_of_thread(b: GpuBuilder, own: Value, bests: Value) -> Value:
    """How many threads have something better, i32; two of their entries a load, four a step."""

    def step(index: Value, rank: Value) -> Value:
        for i in range(0, 4, 2):
            at = slot(b, bests, b.add(index, i))
            pair = b.load(at, b.vec(2, b.i64), 2 * ENTRY_BYTES)
            for lane in range(2):
                is_better = b.cmp("sgt", b.extract(pair, lane), own)
                rank = b.add(rank, b.ext_u(is_better, b.i32))
        return rank

    return b.loop(0, THREADS, 4, [b.idx(0)], body=step)[0]


def emit_each_listed(b: GpuBuilder, count: Value, put: Callable[[Value, Value], None]) -> None:
    """`put(i, entry)` for the first `count` (i32) entries of the list, each in a thread of its
    own."""
    thread = b.thread()

    def one() -> None:
        entry = b.load(slot(b, b.shared_memory(_LIST), thread), b.i64, ENTRY_BYTES)
        put(thread, entry)

    b.when(b.cmp("slt", thread, count), one)
