"""The largest logits of each row, over all blocks: of equals the lowest index comes first.

The columns of a row are dealt to *parts*, one a block, and there are as many as the blocks give.
A part leaves its best in `scratch`; the last part to arrive merges them. The best of all numbers is
the same however they are dealt, so the result does not depend on the number of blocks.

See `infc.backends.cuda.kernels.entries` for what is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from infc.backends.cuda.codegen.builder import WARP, GpuBuilder, Value
from infc.backends.cuda.kernels.best_list import (
    AT_ONCE,
    LIST_BYTES,
    LIST_OFFSET,
    MOST_WANTED,
    Entries,
    emit_each_listed,
    emit_select,
)
from infc.backends.cuda.kernels.entries import (
    ENTRY_BYTES,
    NOTHING,
    better_of,
    entry_of,
    high_of,
    index_of,
    parts_of,
    slot,
)
from infc.backends.cuda.kernels.frame import (
    THREADS,
    WARPS,
    WORK_OFFSET,
    WORKER_BARRIER,
    Emitted,
)
from infc.backends.cuda.kernels.spread import F32_BYTES, chunk_width

_INDEX_BYTES = 4
_ARGMAX_PARTS, _TOP_PARTS = 256, 64
"""The most parts of a row."""
_LOADS = 4
"""Loads of a thread that are under way at once in `argmax`."""

# Shared memory in front of a list of the best: whether this part is the last; the warps' bests.
_LAST = WORK_OFFSET
_WARP_BEST = WORK_OFFSET + 16
_END = _WARP_BEST + WARPS * ENTRY_BYTES


def argmax_scratch_bytes(rows: int) -> int:
    """Bytes of `scratch` of `emit_argmax` for that many rows."""
    return rows * _ARGMAX_PARTS * ENTRY_BYTES


def top_k_scratch_bytes(rows: int) -> int:
    """Bytes of `scratch` of `emit_top_k` for that many rows."""
    return rows * _TOP_PARTS * MOST_WANTED * ENTRY_BYTES


def emit_argmax(b: GpuBuilder, name: str, n: int) -> Emitted:
    """Define `@name(logits, best, scratch, arrivals, rows, cta, ctas)`: four pointers, three i32.

    `logits` is f32 [rows, n], `best` i32 [rows]: the index of the largest, 0 where all are minus
    infinity or no numbers. `arrivals` is i32 [rows], zero before and after.
    """
    with b.function(name, [b.ptr] * 4 + [b.i32] * 3) as arguments:
        logits, best, scratch, arrivals, *numbers = arguments

        def part_of_row(row: Value, part: Value, parts: Value) -> None:
            source = _row(b, logits, row, n * F32_BYTES)
            entry = _best_of_block(b, _best_of_thread(b, source, n, part, parts))
            slots = _row(b, scratch, row, _ARGMAX_PARTS * ENTRY_BYTES)
            own = slot(b, slots, part)
            b.when(b.cmp("eq", b.thread(), 0), lambda: b.store(entry, own, ENTRY_BYTES))

            def merge() -> None:
                merged = _best_of_warp(b, _best_of_slots(b, slots, parts))
                index = index_of(b, merged)
                target = _row(b, best, row, _INDEX_BYTES)
                b.when(b.cmp("eq", b.lane(), 0), lambda: b.store(index, target, _INDEX_BYTES))

            in_one_warp = b.cmp("slt", b.thread(), WARP)
            arrived = _row(b, arrivals, row, _INDEX_BYTES)
            _when_last(b, arrived, parts, lambda: b.when(in_one_warp, lambda: merge()))

        _deal_parts(b, min(_ARGMAX_PARTS, _units(n)), numbers, part_of_row)
        b.ret()
    return Emitted(name, work_bytes=_END - WORK_OFFSET)


def emit_top_k(b: GpuBuilder, name: str, n: int, count: int) -> Emitted:
    """Define `@name(logits, top_logits, top_ids, scratch, arrivals, wanted, rows, cta, ctas)`: five
    pointers, four i32.

    `logits` is f32 [rows, n], `top_logits` f32 and `top_ids` i32 [rows, wanted]: the largest of
    each row, the best first; minus infinity at index 0 where a row has no more. `wanted` is
    1 .. count, `count` at most `MOST_WANTED`. `arrivals` is i32 [rows], zero before and after.
    """
    if count > MOST_WANTED:
        raise ValueError(f"expected at most {MOST_WANTED} top logits, got {count}")
    with b.function(name, [b.ptr] * 5 + [b.i32] * 4) as arguments:
        logits, top_logits, top_ids, scratch, arrivals, wanted, *numbers = arguments

        def part_of_row(row: Value, part: Value, parts: Value) -> None:
            slots = _row(b, scratch, row, _TOP_PARTS * MOST_WANTED * ENTRY_BYTES)
            source = _row(b, logits, row, n * F32_BYTES)
            emit_select(b, wanted, *_logit_entries(b, source, n, part, parts))
            own = slot(b, slots, b.mul(part, MOST_WANTED))
            emit_each_listed(b, wanted, lambda i, e: b.store(e, slot(b, own, i), ENTRY_BYTES))
            _sync(b)

            def merge() -> None:
                emit_select(b, wanted, *_slot_entries(b, slots, parts, wanted))

                def put(index: Value, entry: Value) -> None:
                    offset = b.mul(b.add(b.mul(row, wanted), index), F32_BYTES)
                    for value, target in zip(
                        parts_of(b, entry), (top_logits, top_ids), strict=True
                    ):
                        b.store(value, b.at(target, offset), F32_BYTES)

                emit_each_listed(b, wanted, put)

            _when_last(b, _row(b, arrivals, row, _INDEX_BYTES), parts, merge)

        _deal_parts(b, min(_TOP_PARTS, _units(n)), numbers, part_of_row)
        b.ret()
    return Emitted(name, work_bytes=LIST_OFFSET + LIST_BYTES - WORK_OFFSET)


# ---- parts -------------------------------------------------------------------------------------


def _units(n: int) -> int:
    """Columns are dealt by units: a chunk of each thread of a block."""
    return -(-n // (THREADS * chunk_width(n)))


def _deal_parts(
    b: GpuBuilder,
    most: int,
    numbers: Sequence[Value],
    body: Callable[[Value, Value, Value], None],
) -> None:
    """`body(row, part, parts)` for the parts of all rows; `numbers` are rows, cta, ctas."""
    rows, cta, ctas = numbers
    parts = b.max(b.min(b.div(ctas, b.max(rows, 1)), most), 1)

    def item(number: Value) -> None:
        body(b.div(number, parts), b.rem(number, parts), parts)
        _sync(b)

    b.loop(cta, b.mul(rows, parts), ctas, body=item)


def _when_last(b: GpuBuilder, arrivals: Value, parts: Value, body: Callable[[], object]) -> None:
    """Run `body` in the block whose first thread arrives last: it sees what the blocks' first
    threads, and others before they met them, have stored."""
    flag = b.shared_memory(_LAST)

    def arrive() -> None:
        b.fence_device()
        before = b.add_and_fetch_old(arrivals, 1)
        b.fence_device()
        last = b.cmp("eq", before, b.sub(parts, 1))
        b.when(last, lambda: b.store(b.idx(0), arrivals, _INDEX_BYTES))
        b.store(b.ext_u(last, b.i32), flag, _INDEX_BYTES)

    def run() -> None:
        body()

    b.when(b.cmp("eq", b.thread(), 0), arrive)
    _sync(b)
    b.when(b.cmp("ne", b.load(flag, b.i32, _INDEX_BYTES), 0), run)


def _sync(b: GpuBuilder) -> None:
    b.sync(THREADS, WORKER_BARRIER)


def _row(b: GpuBuilder, pointer: Value, row: Value, row_bytes: int) -> Value:
    return b.at(pointer, b.mul(b.wide(row), row_bytes))


# ---- argmax ------------------------------------------------------------------------------------


def _best_of_thread(b: GpuBuilder, source: Value, n: int, part: Value, parts: Value) -> Value:
    """The best entry of what a thread reads of its part."""
    width, thread = chunk_width(n), b.thread()

    def step(unit: Value, best: Value, at_best: Value) -> list[Value]:
        chunks = []
        for i in range(_LOADS):
            index = b.add(b.mul(b.add(unit, b.mul(parts, i)), THREADS), thread)
            # Beyond the row its end is read once more, which changes nothing.
            column = b.min(b.mul(index, width), n - width)
            chunks.append((column, _load_chunk(b, source, column, width)))
        for column, logits in chunks:
            for i, logit in enumerate(logits):
                larger = b.fcmp("ogt", logit, best)
                best = b.select(larger, logit, best)
                at_best = b.select(larger, b.add(column, i), at_best)
        return [best, at_best]

    start = [b.const(float("-inf"), b.f32), b.idx(0)]
    found = b.loop(part, _units(n), b.mul(parts, _LOADS), start, body=step)
    return entry_of(b, *found)


def _load_chunk(b: GpuBuilder, source: Value, column: Value, width: int) -> list[Value]:
    pointer = b.at(source, b.wide(b.mul(column, F32_BYTES)))
    if width == 1:
        return [b.load(pointer, b.f32, F32_BYTES)]
    vector = b.load(pointer, b.vec(width, b.f32), F32_BYTES * width)
    return [b.extract(vector, i) for i in range(width)]


def _best_of_warp(b: GpuBuilder, entry: Value) -> Value:
    def combine(a: Value, mask: int) -> Value:
        low = b.shuffle_xor(b.trunc_i(a, b.i32), mask)
        high = b.shuffle_xor(high_of(b, a), mask)
        other = b.bit_or(b.shl(b.ext_u(high, b.i64), 32), b.ext_u(low, b.i64))
        return better_of(b, a, other)

    for mask in (16, 8, 4, 2, 1):
        entry = combine(entry, mask)
    return entry


def _best_of_block(b: GpuBuilder, entry: Value) -> Value:
    """The best entry of all threads."""
    entry = _best_of_warp(b, entry)
    room = b.shared_memory(_WARP_BEST)
    own = slot(b, room, b.shr(b.thread(), 5))
    b.when(b.cmp("eq", b.lane(), 0), lambda: b.store(entry, own, ENTRY_BYTES))
    _sync(b)
    best = b.load(room, b.i64, ENTRY_BYTES)
    for warp in range(1, WARPS):
        best = better_of(b, best, b.load(b.at(room, warp * ENTRY_BYTES), b.i64, ENTRY_BYTES))
    return best


def _best_of_slots(b: GpuBuilder, slots: Value, parts: Value) -> Value:
    """The best entry of what a lane reads of the parts' results."""
    best = None
    for i in range(_ARGMAX_PARTS // WARP):
        index = b.min(b.add(b.lane(), i * WARP), b.sub(parts, 1))
        entry = b.load(slot(b, slots, index), b.i64, ENTRY_BYTES)
        best = entry if best is None else better_of(b, best, entry)
    return best


# ---- top k -------------------------------------------------------------------------------------


def _logit_entries(
    b: GpuBuilder, source: Value, n: int, part: Value, parts: Value
) -> tuple[Value, Entries]:
    """Rounds, and what a thread reads in each, of a part of a row."""
    width = chunk_width(n)
    chunks = AT_ONCE // width
    units = b.add(b.div(b.sub(_units(n) - 1, part), parts), 1)

    def load(number: Value) -> list[Value]:
        entries = []
        for i in range(chunks):
            unit = b.add(part, b.mul(b.add(b.mul(number, chunks), i), parts))
            column = b.mul(b.add(b.mul(unit, THREADS), b.thread()), width)
            inside = b.cmp("slt", column, n)
            column = b.select(inside, column, b.idx(0))
            for j, logit in enumerate(_load_chunk(b, source, column, width)):
                entry = entry_of(b, logit, b.add(column, j))
                entries.append(b.select(inside, entry, b.const(NOTHING, b.i64)))
        return entries

    return b.ceil_div(units, chunks), load


def _slot_entries(
    b: GpuBuilder, slots: Value, parts: Value, wanted: Value
) -> tuple[Value, Entries]:
    """The same of what all parts have left: `wanted` of `MOST_WANTED` slots each."""
    slots_of_all = b.mul(parts, MOST_WANTED)

    def load(number: Value) -> list[Value]:
        entries = []
        for i in range(AT_ONCE):
            first = b.mul(b.add(b.mul(number, AT_ONCE), i), THREADS)
            index = b.add(first, b.thread())
            used = b.cmp("slt", b.bit_and(index, MOST_WANTED - 1), wanted)
            used = b.bit_and(used, b.cmp("slt", index, slots_of_all))
            entry = b.load(slot(b, slots, b.select(used, index, b.idx(0))), b.i64, ENTRY_BYTES)
            entries.append(b.select(used, entry, b.const(NOTHING, b.i64)))
        return entries

    return b.ceil_div(slots_of_all, AT_ONCE * THREADS), load
