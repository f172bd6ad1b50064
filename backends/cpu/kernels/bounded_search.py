"""The part of the search that fetches single rows, for float weights.

The rows of a tile whose bounds are large enough are listed first, so that four can be multiplied at
a time: a row alone would wait for each of its additions.
"""

from __future__ import annotations

from infc.backends.cpu.codegen.builder import Builder, Value
from infc.backends.cpu.kernels.best_list import ENTRY_BYTES, emit_each_lane, emit_insert
from infc.backends.cpu.kernels.bounded_products import BoundedProducts
from infc.backends.cpu.kernels.head_planes import (
    TILE,
    HeadSpec,
    Planes,
    emit_plain,
    emit_survivors,
    search_types,
)
from infc.backends.cpu.kernels.line_sums import CHUNK_BYTES, ROWS
from infc.backends.cpu.kernels.stream import PANEL_OUT_BYTES
from infc.passes.codegen.panels import PANEL_ROWS

WORTH_FLOAT_ROWS = 4
"""As `split_search.WORTH_ROWS`: bounds are a third of the bytes of bf16, and rows fetched singly
take about twice the time of those in a stream."""
_DENSE_ROWS = 5 * TILE
"""With more rows than this to multiply, a tile is multiplied whole."""
_INDEX_BYTES = 8
_LINE_BYTES = 64


def emit_sparse_floats(b: Builder, spec: HeadSpec, products: BoundedProducts) -> str:
    """Define `@name(...) -> (f32, i64)`: multiply rows of some panels that can enter the list;
    the second result is how many they were."""
    name = f"bounded_sparse_{spec.layout.name}_n{spec.n}_k{spec.k}"
    bounds, plain = products.emit_bounds(b), emit_plain(b, spec)
    some = _emit_some_rows(b, spec, products)
    with b.function(name, search_types(b), [b.f32, b.i64], inline=False) as arguments:
        x, prepared, matrix, first, count, values, ids, wanted, least = arguments
        planes = Planes.of(b, spec, matrix)
        room = b.stack(TILE * PANEL_OUT_BYTES, _LINE_BYTES)
        listed = b.stack((TILE * PANEL_ROWS + ROWS) * _INDEX_BYTES, _LINE_BYTES)

        def tile(start: Value, least: Value, rows: Value) -> list[Value]:
            panel = b.add(first, start)
            here = b.min(b.sub(count, start), TILE)
            b.call(bounds, [x, prepared, planes.high(b, panel), here, planes.multiplier, room])
            found = _list_rows(b, planes, products, room, panel, here, least, listed)

            def all_rows() -> list[Value]:
                operands = [x, prepared, matrix, panel, here, values, ids, wanted, least]
                return [*b.call(plain, operands, [b.f32]), b.mul(here, PANEL_ROWS)]

            def some_rows() -> list[Value]:
                weights = planes.low(b, b.idx(0))
                operands = [x, weights, listed, found, values, ids, wanted, least]
                return [*b.call(some, operands, [b.f32]), found]

            many = b.cmp("sgt", found, _DENSE_ROWS)
            after, multiplied = b.when(many, all_rows, some_rows, [b.f32, b.i64])
            return [after, b.add(rows, multiplied)]

        b.ret(*b.loop(0, count, TILE, [least, b.idx(0)], body=tile))
    return name


def _list_rows(
    b: Builder,
    planes: Planes,
    products: BoundedProducts,
    bounds: Value,
    panel: Value,
    panels: Value,
    least: Value,
    listed: Value,
) -> Value:
    """List the rows of some panels whose bound is not below `least` and have them on their way;
    returns how many there are."""

    def of_panel(index: Value, count: Value) -> list[Value]:
        number = b.add(panel, index)
        at = b.at(bounds, b.mul(index, PANEL_OUT_BYTES))

        def row(lane: Value, count: Value) -> list[Value]:
            row = b.add(b.mul(number, PANEL_ROWS), lane)
            b.store(row, b.at(listed, b.mul(count, _INDEX_BYTES)), _INDEX_BYTES)
            weights = planes.low(b, row)
            for start in range(0, products.row_panel_bytes, CHUNK_BYTES):
                b.prefetch(b.at(weights, start))
            return [b.add(count, 1)]

        bits = emit_survivors(b, planes.spec, at, number, least)
        return emit_each_lane(b, bits, [count], row)

    return b.loop(0, panels, 1, [b.idx(0)], body=of_panel)[0]


def _emit_some_rows(b: Builder, spec: HeadSpec, products: BoundedProducts) -> str:
    """Define `@name(x, weights, rows: ptr, count: i64, values, ids: ptr, wanted: i64, least: f32)
    -> f32`: multiply listed rows and put the better ones into the best list. Behind the last one
    there is room for three numbers."""
    name = f"bounded_some_{spec.layout.name}_n{spec.n}_k{spec.k}"
    multiply, insert = products.emit_rows(b), emit_insert(b)
    types = [b.ptr, b.ptr, b.ptr, b.i64, b.ptr, b.ptr, b.i64, b.f32]
    with b.function(name, types, [b.f32], inline=False) as arguments:
        x, weights, rows, count, values, ids, wanted, least = arguments
        room = b.stack(ROWS * ENTRY_BYTES, _LINE_BYTES)

        def number(index: Value) -> Value:
            return b.load(b.at(rows, b.mul(index, _INDEX_BYTES)), b.i64, _INDEX_BYTES)

        def fill() -> None:
            last = number(b.sub(count, 1))
            for behind in range(ROWS - 1):
                b.store(last, b.at(rows, b.mul(b.add(count, behind), _INDEX_BYTES)), _INDEX_BYTES)

        b.when(b.cmp("sgt", count, 0), fill)

        def four(start: Value, least: Value) -> list[Value]:
            b.call(multiply, [x, weights, b.at(rows, b.mul(start, _INDEX_BYTES)), room])

            def one(index: Value, least: Value) -> list[Value]:
                value = b.load(b.at(room, b.mul(index, ENTRY_BYTES)), b.f32, ENTRY_BYTES)

                def enter() -> list[Value]:
                    row = b.trunc_i(number(b.add(start, index)), b.i32)
                    return b.call(insert, [values, ids, wanted, value, row], [b.f32])

                return b.when(b.fcmp("ogt", value, least), enter, lambda: [least], [b.f32])

            here = b.min(b.sub(count, start), ROWS)
            return b.loop(0, here, 1, [least], body=one)

        b.ret(*b.loop(0, count, ROWS, [least], body=four))
    return name
