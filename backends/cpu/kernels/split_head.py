"""The vocabulary head in two planes: all its logits, or candidates for the best of them.

The best of one row are found without reading all low parts (`split_search`). Several rows of x are
multiplied with all panels (`head_rows`).
"""

from __future__ import annotations

from infc.backends.cpu.codegen.builder import LANES, Builder, Value
from infc.backends.cpu.kernels.best_list import ENTRY_BYTES, emit_clear, emit_take
from infc.backends.cpu.kernels.bounded_products import BoundedProducts
from infc.backends.cpu.kernels.dealing import Team, emit_dealt, emit_mostly_even
from infc.backends.cpu.kernels.head_planes import HeadSpec, Planes
from infc.backends.cpu.kernels.head_rows import SeveralRows
from infc.backends.cpu.kernels.matmul import STREAM_PIECE_BYTES, MatmulMapping
from infc.backends.cpu.kernels.split_search import emit_search
from infc.backends.cpu.kernels.stream import PANEL_OUT_BYTES
from infc.diagnostics import InternalError
from infc.passes.codegen.panels import PANEL_ROWS, panels_of

_LINE_BYTES = 64


def emit_head_logits(b: Builder, name: str, spec: HeadSpec, mapping: MatmulMapping) -> None:
    """Define `@name(x: ptr, m, thread, threads: i64, deal, matrix, out: ptr)`.

    All logits, f32 [m, n].
    """
    if isinstance(spec.products, BoundedProducts):
        raise InternalError("all products with a bounded matrix are those of a matrix in one plane")
    exact = spec.products.emit_exact(b) if spec.activation == "a8" else None
    rows_of = SeveralRows.of(b, name, spec, mapping)
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

            rows_of.emit(b, team, x, m, planes, store)

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
    rows_of = SeveralRows.of(b, name, spec, mapping)
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

            rows_of.emit(b, team, x, m, planes, take_rows)

        if spec.max_rows == 1:
            single()
        else:
            b.when(b.cmp("eq", m, 1), single, several)
        b.ret()


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
