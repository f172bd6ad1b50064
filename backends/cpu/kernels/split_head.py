"""The vocabulary head in two planes: all its logits, or candidates for the best of them.

The best of one row are found without reading all low parts (`split_search`). Several rows of x, or
rows in another form than a8, go through the kernels of other products: panels are put together on
the stack, in the layout those read, a few at a time. Where the second plane is the matrix itself,
those read it where it lies.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from infc.backends.cpu.codegen.builder import LANES, Builder, Value
from infc.backends.cpu.kernels.best_list import ENTRY_BYTES, emit_clear, emit_take
from infc.backends.cpu.kernels.bounded_products import BoundedProducts
from infc.backends.cpu.kernels.dealing import DEAL_BYTES, Team, emit_dealt, emit_mostly_even
from infc.backends.cpu.kernels.head_planes import HeadSpec, Planes
from infc.backends.cpu.kernels.layouts import HEADER_BYTES
from infc.backends.cpu.kernels.matmul import (
    STREAM_PIECE_BYTES,
    MatmulMapping,
    MatmulSpec,
    Segment,
    emit_matmul,
)
from infc.backends.cpu.kernels.split_join import emit_join
from infc.backends.cpu.kernels.split_search import emit_search
from infc.backends.cpu.kernels.stream import PANEL_OUT_BYTES
from infc.diagnostics import InternalError
from infc.ir.types import storage_bytes
from infc.passes.codegen.panels import PANEL_ROWS, panels_of

_JOINED_ROWS = 64
"""Rows that go through those at a time."""
_LINE_BYTES = 64


def emit_head_logits(b: Builder, name: str, spec: HeadSpec, mapping: MatmulMapping) -> None:
    """Define `@name(x: ptr, m, thread, threads: i64, deal, matrix, out: ptr)`.

    All logits, f32 [m, n].
    """
    if isinstance(spec.products, BoundedProducts):
        raise InternalError("all products with a bounded matrix are those of a matrix in one plane")
    exact = spec.products.emit_exact(b) if spec.activation == "a8" else None
    joined = _emit_joined(b, name, spec, mapping)
    types = [b.ptr, b.i64, b.i64, b.i64, b.ptr, b.ptr, b.ptr]
    with b.function(name, types, inline=False) as arguments:
        x, m, *shared, matrix, out = arguments
        planes = Planes.of(b, spec, matrix)
        team, panels = Team(*shared), panels_of(spec.n)

        def several() -> None:
            def store(products: Value, *places: Value) -> None:
                row, rows, column, columns = places
                at = b.add(b.mul(row, spec.n), column)
                target = b.at(out, b.mul(at, ENTRY_BYTES))
                _store_rows(b, spec, products, rows, columns, target)

            def part(start: Value, stop: Value) -> list[Value]:
                _emit_joined_panels(b, spec, joined, x, m, planes, start, stop, store)
                return []

            piece = b.idx(spec.joined_panels)
            emit_dealt(b, team, b.idx(panels), b.idx(0), piece, [], part)

        if exact is None:
            several()
            b.ret()
            return
        prepared = b.stack(spec.products.prepared_bytes, _LINE_BYTES)
        room = b.stack(PANEL_OUT_BYTES, _LINE_BYTES)

        def multiply(first: Value, count: Value, target: Value) -> None:
            sources = [planes.high(b, first), planes.low_panel(b, first)]
            b.call(exact, [x, prepared, *sources, count, planes.multiplier, target])

        def single_part(start: Value, stop: Value) -> list[Value]:
            whole = b.min(stop, spec.n // PANEL_ROWS)
            multiply(start, b.max(b.sub(whole, start), 0), b.at(out, b.mul(start, PANEL_OUT_BYTES)))
            if spec.n % PANEL_ROWS:

                def last() -> None:
                    multiply(whole, b.idx(1), room)
                    kind, target = b.vec(LANES, b.f32), b.at(out, b.mul(whole, PANEL_OUT_BYTES))
                    b.store_first(b.load(room, kind, 4), target, spec.n % PANEL_ROWS, 4)

                ends = b.cmp("sgt", stop, spec.n // PANEL_ROWS)
                b.when(b.bit_and(ends, b.cmp("slt", start, stop)), last)
            return []

        def single() -> None:
            b.call(spec.products.emit_prepare(b), [x, prepared])
            piece = max(1, STREAM_PIECE_BYTES // spec.products.high_panel_bytes)
            even = emit_mostly_even(b, team, panels)
            emit_dealt(b, team, b.idx(panels), even, b.idx(piece), [], single_part)

        if spec.max_rows == 1:
            single()
        else:
            b.when(b.cmp("eq", m, 1), single, several)
        b.ret()


def emit_head_candidates(
    b: Builder, name: str, spec: HeadSpec, mapping: MatmulMapping, parts: int, count: int
) -> None:
    """Define

        @name(x: ptr, m, thread, threads: i64, deal, matrix, values, ids: ptr, wanted: i64)

    `values` and `ids` have `parts` lists of `count` for each of the m rows (see `best_list`); each
    thread fills its own one with the best of its part of the matrix. The best `wanted` entries of
    the filled lists are the best of all.
    """
    search = emit_search(b, spec)
    joined = _emit_joined(b, name, spec, mapping)
    take = emit_take(b)
    types = [b.ptr, b.i64, b.i64, b.i64, b.ptr, b.ptr, b.ptr, b.ptr, b.i64]
    with b.function(name, types, inline=False) as arguments:
        x, m, *shared, matrix, values, ids, wanted = arguments
        team = Team(*shared)
        planes = Planes.of(b, spec, matrix)

        def of_row(row: Value) -> list[Value]:
            at = b.mul(b.add(b.mul(row, parts), team.thread), count * ENTRY_BYTES)
            return [b.at(values, at), b.at(ids, at)]

        def clear(row: Value) -> None:
            values_of_row, ids_of_row = of_row(row)
            emit_clear(b, values_of_row, ids_of_row, count)

        b.loop(0, m, body=clear)

        def single() -> None:
            b.call(search, [x, *shared, matrix, *of_row(b.idx(0)), wanted])

        def several() -> None:
            def take_rows(products: Value, *places: Value) -> None:
                row, rows, column, columns = places

                def one(r: Value) -> None:
                    at = b.at(products, b.mul(r, spec.joined_panels * PANEL_OUT_BYTES))
                    best = of_row(b.add(row, r))
                    last = b.mul(b.sub(wanted, 1), ENTRY_BYTES)
                    least = b.load(b.at(best[0], last), b.f32, ENTRY_BYTES)
                    b.call(take, [at, columns, column, *best, wanted, least], [b.f32])

                b.loop(0, rows, body=one)

            def part(start: Value, stop: Value) -> list[Value]:
                _emit_joined_panels(b, spec, joined, x, m, planes, start, stop, take_rows)
                return []

            piece = b.idx(spec.joined_panels)
            emit_dealt(b, team, b.idx(panels_of(spec.n)), b.idx(0), piece, [], part)

        if spec.max_rows == 1:
            single()
        else:
            b.when(b.cmp("eq", m, 1), single, several)
        b.ret()


# ---- rows through other kernels ------------------------------------------------------------------


@dataclass(frozen=True)
class _Joined:
    """The functions that multiply a few panels, put together on the stack by `join` if there is."""

    join: str | None
    multiply: str
    rows: int


def _emit_joined(b: Builder, name: str, spec: HeadSpec, mapping: MatmulMapping) -> _Joined | None:
    """Define what several rows need; None where there is one at most."""
    products = spec.products
    floats = isinstance(products, BoundedProducts)
    if spec.max_rows == 1 and spec.activation == ("f32" if floats else "a8"):
        return None
    rows = min(spec.max_rows, _JOINED_ROWS)
    segment = Segment(spec.joined_panels * PANEL_ROWS, spec.layout.whole)
    product = MatmulSpec(spec.k, (segment,), spec.activation, max_rows=rows)
    fitting = replace(mapping, col_tile=min(mapping.col_tile, spec.joined_panels))
    emit_matmul(b, f"{name}_panels", product, fitting)
    join = (
        None if isinstance(products, BoundedProducts) else emit_join(b, products.layout, products.k)
    )
    return _Joined(join, f"{name}_panels", rows)


def _emit_joined_panels(
    b: Builder,
    spec: HeadSpec,
    joined: _Joined | None,
    x: Value,
    m: Value,
    planes: Planes,
    start: Value,
    stop: Value,
    use: Callable[[Value, Value, Value, Value, Value], None],
) -> None:
    """Multiply m rows with the panels [start, stop), a few at a time.

    `use(products, row, rows, column, columns)` gets f32 [rows, 16 * joined_panels] of the rows from
    `row` on, of which the first `columns` are those of the matrix from `column` on.
    """
    if joined is None:
        raise InternalError("nothing was emitted for several rows")
    count, whole = spec.joined_panels, spec.layout.whole
    room_bytes = count * whole.panel_bytes(spec.k) if joined.join else 0
    room = b.stack(HEADER_BYTES + room_bytes, _LINE_BYTES)
    products = b.stack(joined.rows * count * PANEL_OUT_BYTES, _LINE_BYTES)
    b.store(planes.multiplier, room, 4)
    alone = b.stack(DEAL_BYTES, DEAL_BYTES)
    b.store(b.const(0, b.i32), alone, 4)
    row_bytes = storage_bytes(spec.activation, (1, spec.k))

    def panels(first: Value) -> None:
        here = b.min(b.sub(stop, first), count)
        if joined.join:
            sources = [planes.high(b, first), planes.low_panel(b, first)]
            b.call(joined.join, [*sources, here, b.at(room, HEADER_BYTES)])
            matrix, skipped = room, b.idx(0)
        else:  # the last panels go with some before them, so that none behind the matrix are read
            start = b.min(first, panels_of(spec.n) - count)
            matrix, skipped = b.at(planes.low_panel(b, start), -HEADER_BYTES), b.sub(first, start)
        column = b.mul(first, PANEL_ROWS)
        columns = b.min(b.mul(here, PANEL_ROWS), b.sub(b.idx(spec.n), column))

        def rows(row: Value) -> None:
            part = b.min(b.sub(m, row), joined.rows)
            at = b.at(x, b.mul(row, row_bytes))
            operands = [at, part, b.idx(0), b.idx(1), alone, matrix, products]
            b.call(joined.multiply, operands)
            use(b.at(products, b.mul(skipped, PANEL_OUT_BYTES)), row, part, column, columns)

        b.loop(0, m, joined.rows, body=rows)

    b.loop(start, stop, count, body=panels)


def _store_rows(
    b: Builder,
    spec: HeadSpec,
    products: Value,
    rows: Value,
    columns: Value,
    out: Value,
) -> None:
    """Copy the first columns of some products to their places in f32 [m, n]."""
    kind = b.vec(LANES, b.f32)
    lanes = b.lanes(range(LANES), b.i32)

    def row(r: Value) -> None:
        source = b.at(products, b.mul(r, spec.joined_panels * PANEL_OUT_BYTES))
        target = b.at(out, b.mul(r, spec.n * ENTRY_BYTES))

        def vector(start: Value) -> None:
            left = b.trunc_i(b.sub(columns, start), b.i32)
            mask = b.cmp("slt", lanes, b.splat(left))
            offset = b.mul(start, ENTRY_BYTES)
            b.store_where(mask, b.load(b.at(source, offset), kind, 4), b.at(target, offset), 4)

        b.loop(0, columns, LANES, body=vector)

    b.loop(0, rows, body=row)
