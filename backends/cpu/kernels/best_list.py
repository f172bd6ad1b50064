"""Lists of the best logits: sorted, the largest first and the lowest index first among equals.

A list is f32 values and i32 indices of `count` entries, of which the first `wanted` are kept; the
others, and those not found yet, are minus infinity at index 0. NaN never enters.
"""

from __future__ import annotations

from collections.abc import Callable

from infc.backends.cpu.codegen.builder import LANES, Builder, Value
from infc.ir.mlir import math

ENTRY_BYTES = 4
_INSERT, _TAKE = "best_insert", "best_take"


def emit_clear(b: Builder, values: Value, ids: Value, count: int) -> None:
    """Make a list empty."""

    def entry(index: Value) -> None:
        at = b.mul(index, ENTRY_BYTES)
        b.store(b.const(float("-inf"), b.f32), b.at(values, at), ENTRY_BYTES)
        b.store(b.const(0, b.i32), b.at(ids, at), ENTRY_BYTES)

    b.loop(0, count, body=entry)


def emit_insert(b: Builder) -> str:
    """Define `@name(values, ids: ptr, wanted: i64, value: f32, id: i32) -> f32`.

    The new entry must be better than the last one wanted, which it pushes out. Returns the value
    of the last one wanted now.
    """
    if b.defined(_INSERT):
        return _INSERT
    types = [b.ptr, b.ptr, b.i64, b.f32, b.i32]
    with b.function(_INSERT, types, [b.f32], inline=False) as (values, ids, wanted, value, index):
        last = b.sub(wanted, 1)

        def goes_before(place: Value) -> Value:
            at = b.mul(b.max(b.sub(place, 1), 0), ENTRY_BYTES)
            before = b.load(b.at(values, at), b.f32, ENTRY_BYTES)
            at_before = b.load(b.at(ids, at), b.i32, ENTRY_BYTES)
            better = is_better(b, value, index, before, at_before)
            return b.bit_and(b.cmp("sgt", place, 0), better)

        def move(place: Value) -> list[Value]:
            target = b.mul(place, ENTRY_BYTES)
            source = b.sub(target, ENTRY_BYTES)
            for part, kind in ((values, b.f32), (ids, b.i32)):
                moved = b.load(b.at(part, source), kind, ENTRY_BYTES)
                b.store(moved, b.at(part, target), ENTRY_BYTES)
            return [b.sub(place, 1)]

        (place,) = b.loop_while([last], goes_before, move)
        at = b.mul(place, ENTRY_BYTES)
        b.store(value, b.at(values, at), ENTRY_BYTES)
        b.store(index, b.at(ids, at), ENTRY_BYTES)
        b.ret(b.load(b.at(values, b.mul(last, ENTRY_BYTES)), b.f32, ENTRY_BYTES))
    return _INSERT


def is_better(b: Builder, value: Value, index: Value, other: Value, at_other: Value) -> Value:
    """Whether one entry comes before another."""
    tie = b.bit_and(b.fcmp("oeq", value, other), b.cmp("slt", index, at_other))
    return b.bit_or(b.fcmp("ogt", value, other), tie)


def lanes_set(b: Builder, mask: Value) -> Value:
    """A `vector<16xi1>` as the low bits of an `i64`."""
    bits = b.extract(b.bitcast(mask, b.vec(1, b.i16)), 0)
    return b.ext_u(bits, b.i64)


def emit_each_lane(
    b: Builder, bits: Value, carried: list[Value], body: Callable[..., list[Value]]
) -> list[Value]:
    """`carried = body(lane, *carried)` for each bit that is set, lowest first."""

    def step(left: Value, *values: Value) -> list[Value]:
        lane = math.CountTrailingZerosOp(left).result
        return [b.bit_and(left, b.sub(left, 1)), *body(lane, *values)]

    return b.loop_while([bits, *carried], lambda left, *_: b.cmp("ne", left, 0), step)[1:]


def lanes_inside(b: Builder, columns: Value) -> Value:
    """The bits of the first `columns` of 16 lanes, all of them where there are more."""
    within = b.max(b.min(columns, LANES), 0)
    return b.sub(b.shl(b.idx(1), within), 1)


def emit_take(b: Builder) -> str:
    """Define `@name(logits: ptr, count, first: i64, values, ids: ptr, wanted: i64, least: f32)
    -> f32`: put the better ones of consecutive logits into a list.

    `logits` is f32 [count], readable up to a multiple of 16; `first` is the index of its first and
    larger than any index in the list; `least` is the value of the last entry wanted, and so is the
    result.
    """
    if b.defined(_TAKE):
        return _TAKE
    insert = emit_insert(b)
    types = [b.ptr, b.i64, b.i64, b.ptr, b.ptr, b.i64, b.f32]
    with b.function(_TAKE, types, [b.f32], inline=False) as arguments:
        logits, count, first, values, ids, wanted, least = arguments

        def vector(start: Value, least: Value) -> list[Value]:
            at = b.at(logits, b.mul(start, ENTRY_BYTES))
            larger = b.fcmp("ogt", b.load(at, b.vec(LANES, b.f32), 4), b.splat(least))
            bits = b.bit_and(lanes_set(b, larger), lanes_inside(b, b.sub(count, start)))

            def lane(number: Value, least: Value) -> list[Value]:
                value = b.load(b.at(at, b.mul(number, ENTRY_BYTES)), b.f32, ENTRY_BYTES)
                index = b.trunc_i(b.add(b.add(first, start), number), b.i32)

                def insert_it() -> list[Value]:
                    return b.call(insert, [values, ids, wanted, value, index], [b.f32])

                return b.when(b.fcmp("ogt", value, least), insert_it, lambda: [least], [b.f32])

            return emit_each_lane(b, bits, [least], lane)

        (least,) = b.loop(0, count, LANES, [least], body=vector)
        b.ret(least)
    return _TAKE


def emit_top_k(b: Builder, name: str, n: int, count: int) -> None:
    """Define `@name(logits, values, ids: ptr, rows, thread, threads, wanted: i64)`.

    `logits` is f32 [rows, n], `values` and `ids` are lists [rows, count]. Rows are split over the
    threads.
    """
    take = emit_take(b)
    whole = n // LANES * LANES
    with b.function(name, [b.ptr] * 3 + [b.i64] * 4, inline=False) as arguments:
        logits, values, ids, rows, thread, threads, wanted = arguments
        room = b.stack(ENTRY_BYTES * LANES, ENTRY_BYTES * LANES)

        def row(r: Value) -> None:
            source = b.at(logits, b.mul(r, n * ENTRY_BYTES))
            at = b.mul(r, count * ENTRY_BYTES)
            best = [b.at(values, at), b.at(ids, at)]
            emit_clear(b, best[0], best[1], count)
            least: Value = b.const(float("-inf"), b.f32)
            if whole:
                operands = [source, b.idx(whole), b.idx(0), *best, wanted, least]
                (least,) = b.call(take, operands, [b.f32])
            if n % LANES:
                kind, rest = b.vec(LANES, b.f32), b.at(source, whole * ENTRY_BYTES)
                b.store(b.load_first(rest, kind, n % LANES, 4), room, 4)
                operands = [room, b.idx(n % LANES), b.idx(whole), *best, wanted, least]
                b.call(take, operands, [b.f32])

        b.loop(thread, rows, threads, body=row)
        b.ret()


def emit_merge(b: Builder, name: str, parts: int, count: int) -> None:
    """Define `@name(part_values, part_ids, values, ids: ptr, rows, thread, threads, wanted: i64)`.

    Each row has `parts` lists of `count`, of which those of the first `threads` are filled; their
    best become one list of `count`. Rows are split over the threads.
    """
    insert = emit_insert(b)
    with b.function(name, [b.ptr] * 4 + [b.i64] * 4, inline=False) as arguments:
        part_values, part_ids, values, ids, rows, thread, threads, wanted = arguments

        def row(r: Value) -> None:
            start = b.mul(r, parts * count * ENTRY_BYTES)
            sources = [b.at(part_values, start), b.at(part_ids, start)]
            at = b.mul(r, count * ENTRY_BYTES)
            best = [b.at(values, at), b.at(ids, at)]
            emit_clear(b, best[0], best[1], count)
            last = b.mul(b.sub(wanted, 1), ENTRY_BYTES)

            def entry(index: Value) -> None:
                offset = b.mul(index, ENTRY_BYTES)
                value = b.load(b.at(sources[0], offset), b.f32, ENTRY_BYTES)
                number = b.load(b.at(sources[1], offset), b.i32, ENTRY_BYTES)
                worst = b.load(b.at(best[0], last), b.f32, ENTRY_BYTES)
                at_worst = b.load(b.at(best[1], last), b.i32, ENTRY_BYTES)

                def insert_it() -> None:
                    b.call(insert, [*best, wanted, value, number], [b.f32])

                b.when(is_better(b, value, number, worst, at_worst), insert_it)

            b.loop(0, b.mul(threads, count), body=entry)

        b.loop(thread, rows, threads, body=row)
        b.ret()


def emit_argmax_of_parts(b: Builder, name: str, parts: int) -> None:
    """Define `@name(part_values, part_ids, out: ptr, rows, thread, threads: i64)`.

    Each row has `parts` entries, of which the first `threads` are filled; `out` is i32 [rows], the
    index of the best one. Rows are split over the threads.
    """
    with b.function(name, [b.ptr] * 3 + [b.i64] * 3, inline=False) as arguments:
        values, ids, out, rows, thread, threads = arguments

        def row(r: Value) -> None:
            start = b.mul(r, parts)

            def entry(part: Value, best: Value, at_best: Value) -> list[Value]:
                offset = b.mul(b.add(start, part), ENTRY_BYTES)
                value = b.load(b.at(values, offset), b.f32, ENTRY_BYTES)
                index = b.load(b.at(ids, offset), b.i32, ENTRY_BYTES)
                better = is_better(b, value, index, best, at_best)
                return [b.select(better, value, best), b.select(better, index, at_best)]

            begin = [b.const(float("-inf"), b.f32), b.const(0, b.i32)]
            index = b.loop(0, threads, 1, begin, body=entry)[1]
            b.store(index, b.at(out, b.mul(r, ENTRY_BYTES)), ENTRY_BYTES)

        b.loop(thread, rows, threads, body=row)
        b.ret()
