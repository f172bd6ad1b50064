"""The search for the best products of one row with a split matrix.

A row of the matrix whose bound is below the worst logit of a full list cannot enter it; only the
others are multiplied exactly, those of floats four at a time (see `bounded_search`). Which those
are depends on the order of the search; the list does not (see docs/exact-head.md). Where most rows
turn out to be needed, the next ones are multiplied at once.
"""

from __future__ import annotations

from infc.backends.cpu.codegen.builder import Builder, Value
from infc.backends.cpu.kernels.best_list import emit_each_lane, emit_insert
from infc.backends.cpu.kernels.bounded_products import BoundedProducts
from infc.backends.cpu.kernels.bounded_search import WORTH_FLOAT_ROWS, emit_sparse_floats
from infc.backends.cpu.kernels.dealing import Team, emit_dealt
from infc.backends.cpu.kernels.head_planes import (
    TILE,
    HeadSpec,
    Planes,
    emit_plain,
    emit_survivors,
    search_types,
)
from infc.backends.cpu.kernels.split_products import SplitProducts
from infc.backends.cpu.kernels.split_row import emit_row_product
from infc.backends.cpu.kernels.stream import PANEL_OUT_BYTES
from infc.ir.mlir import math
from infc.passes.codegen.panels import PANEL_ROWS, panels_of

STRETCH = 32
"""Panels a thread takes at a time. The threads go through the matrix side by side: vocabularies
begin with their frequent tokens, so all of them soon know large logits."""
DENSE_ROWS = 5
"""With more rows than this to multiply, a panel is multiplied whole."""
WORTH_ROWS = 3
"""Where more rows a panel than this are multiplied in a stretch, bounds have cost more than they
have saved: the next stretch is multiplied whole. Each time in a row it is twice as many and one."""
MOST_PLAIN_STRETCHES = 15
"""No more than this."""
_LINE_BYTES = 64


def emit_search(b: Builder, spec: HeadSpec) -> str:
    """Define `@name(x: ptr, thread, threads: i64, deal, matrix, values, ids: ptr, wanted: i64)`.

    The list is empty; the best of the stretches of panels that this thread takes enter it.
    """
    name = f"split_search_{spec.layout.name}_n{spec.n}_k{spec.k}"
    if b.defined(name):
        return name
    prepare, plain = spec.products.emit_prepare(b), emit_plain(b, spec)
    if isinstance(spec.products, BoundedProducts):
        sparse, worth = emit_sparse_floats(b, spec, spec.products), WORTH_FLOAT_ROWS
    else:
        sparse, worth = _emit_sparse(b, spec, spec.products), WORTH_ROWS
    types = [b.ptr, b.i64, b.i64, b.ptr, b.ptr, b.ptr, b.ptr, b.i64]
    with b.function(name, types, inline=False) as arguments:
        x, *shared, matrix, values, ids, wanted = arguments
        prepared = b.stack(spec.products.prepared_bytes, _LINE_BYTES)
        b.call(prepare, [x, prepared])
        listed = [values, ids, wanted]

        def stretch(
            first: Value, stop: Value, least: Value, plains: Value, penalty: Value
        ) -> list[Value]:
            count = b.sub(stop, first)
            operands = [x, prepared, matrix, first, count, *listed, least]

            def multiply() -> list[Value]:
                (after,) = b.call(plain, operands, [b.f32])
                return [after, b.sub(plains, 1), penalty]

            def search() -> list[Value]:
                after, rows = b.call(sparse, operands, [b.f32, b.i64])
                many = b.cmp("sgt", rows, b.mul(count, worth))
                larger = b.min(b.add(b.mul(penalty, 2), 1), MOST_PLAIN_STRETCHES)
                chosen = b.select(many, penalty, b.idx(0))
                return [after, chosen, b.select(many, larger, b.idx(1))]

            return b.when(b.cmp("sgt", plains, 0), multiply, search, [b.f32, b.i64, b.i64])

        begin = [b.const(float("-inf"), b.f32), b.idx(0), b.idx(1)]
        panels, piece = b.idx(panels_of(spec.n)), b.idx(STRETCH)
        emit_dealt(b, Team(*shared), panels, b.idx(0), piece, begin, stretch)
        b.ret()
    return name


def _emit_sparse(b: Builder, spec: HeadSpec, products: SplitProducts) -> str:
    """Define `@name(...) -> (f32, i64)`: multiply rows of some panels that can enter the list;
    the second result is how many they were."""
    name = f"split_sparse_{spec.layout.name}_n{spec.n}_k{spec.k}"
    bounds = products.emit_bounds(b)
    panel_function = _emit_panel(b, spec, products)
    with b.function(name, search_types(b), [b.f32, b.i64], inline=False) as arguments:
        x, prepared, matrix, first, count, values, ids, wanted, least = arguments
        planes = Planes.of(b, spec, matrix)
        room = b.stack(TILE * PANEL_OUT_BYTES, _LINE_BYTES)

        def tile(start: Value, least: Value, rows: Value) -> list[Value]:
            panel = b.add(first, start)
            here = b.min(b.sub(count, start), TILE)
            b.call(bounds, [x, prepared, planes.high(b, panel), here, planes.multiplier, room])

            def survivors(index: Value, least: Value) -> tuple[Value, Value]:
                number = b.add(panel, index)
                at = b.at(room, b.mul(index, PANEL_OUT_BYTES))
                return number, emit_survivors(b, spec, at, number, least)

            def fetch(index: Value) -> None:
                _prefetch_rows(b, planes, products, *survivors(index, least))

            def multiply(index: Value, least: Value, rows: Value) -> list[Value]:
                number, bits = survivors(index, least)

                def some() -> list[Value]:
                    operands = [x, prepared, matrix, number, bits, values, ids, wanted, least]
                    after, multiplied = b.call(panel_function, operands, [b.f32, b.i64])
                    return [after, b.add(rows, multiplied)]

                none = b.cmp("eq", bits, 0)
                return b.when(none, lambda: [least, rows], some, [b.f32, b.i64])

            b.loop(0, here, body=fetch)
            return b.loop(0, here, 1, [least, rows], body=multiply)

        b.ret(*b.loop(0, count, TILE, [least, b.idx(0)], body=tile))
    return name


def _prefetch_rows(
    b: Builder, planes: Planes, products: SplitProducts, panel: Value, bits: Value
) -> None:
    """Have the low parts of some rows of a panel on their way, unless they are many."""

    def row(lane: Value) -> list[Value]:
        source = planes.low(b, b.add(b.mul(panel, PANEL_ROWS), lane))
        for line in range(0, products.low_row_bytes + _LINE_BYTES - 1, _LINE_BYTES):
            b.prefetch(b.at(source, line))
        return []

    def fetch() -> None:
        emit_each_lane(b, bits, [], row)

    b.when(b.cmp("sle", math.CtPopOp(bits).result, DENSE_ROWS), fetch)


def _emit_panel(b: Builder, spec: HeadSpec, products: SplitProducts) -> str:
    """Define `@name(x, prepared, matrix: ptr, panel, bits: i64, values, ids: ptr, wanted: i64,
    least: f32) -> (f32, i64)`: multiply the rows of a panel that `bits` has, or all where they are
    many, and put the better ones into the list. The second result is how many were multiplied."""
    name = f"split_panel_{spec.layout.name}_n{spec.n}_k{spec.k}"
    row_function = emit_row_product(b, products.layout, products.k)
    plain = emit_plain(b, spec)
    insert = emit_insert(b)
    types = [b.ptr, b.ptr, b.ptr, b.i64, b.i64, b.ptr, b.ptr, b.i64, b.f32]
    with b.function(name, types, [b.f32, b.i64], inline=False) as arguments:
        x, prepared, matrix, panel, bits, values, ids, wanted, least = arguments
        planes = Planes.of(b, spec, matrix)
        rows = math.CtPopOp(bits).result

        def all_rows() -> list[Value]:
            operands = [x, prepared, matrix, panel, b.idx(1), values, ids, wanted, least]
            return [*b.call(plain, operands, [b.f32]), b.idx(PANEL_ROWS)]

        def some_rows() -> list[Value]:
            def one(lane: Value, least: Value) -> list[Value]:
                row = b.add(b.mul(panel, PANEL_ROWS), lane)
                sources = [planes.high(b, panel), planes.low(b, row)]
                operands = [x, prepared, *sources, lane, planes.multiplier]
                (value,) = b.call(row_function, operands, [b.f32])

                def enter() -> list[Value]:
                    entry = [values, ids, wanted, value, b.trunc_i(row, b.i32)]
                    return b.call(insert, entry, [b.f32])

                return b.when(b.fcmp("ogt", value, least), enter, lambda: [least], [b.f32])

            return [*emit_each_lane(b, bits, [least], one), rows]

        many = b.cmp("sgt", rows, DENSE_ROWS)
        b.ret(*b.when(many, all_rows, some_rows, [b.f32, b.i64]))
    return name
