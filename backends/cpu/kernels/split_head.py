"""The vocabulary head in two planes: its best logits from few of its bytes, or all its logits.

The best `wanted` logits of one row are found without reading all low parts: a row of the matrix
whose bound is below the worst logit in a full list cannot enter it, and only the others are
multiplied exactly. Which rows those are depends on the order of the search; the list does not (see
docs/exact-head.md). Where most panels turn out to be needed whole, the next ones are multiplied
at once.

Several rows of x, or rows in another form than a8, go through the kernels of other products: panels
are put together on the stack, in the layout those read, a few at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from infc.backends.cpu.codegen.builder import LANES, Builder, Value
from infc.backends.cpu.kernels.best_list import (
    ENTRY_BYTES,
    emit_clear,
    emit_each_lane,
    emit_insert,
    emit_take,
    lanes_inside,
    lanes_set,
)
from infc.backends.cpu.kernels.layouts import HEADER_BYTES, PANEL_ROWS, panels_of
from infc.backends.cpu.kernels.matmul import MatmulMapping, MatmulSpec, Segment, emit_matmul
from infc.backends.cpu.kernels.split_layout import SplitLayout
from infc.backends.cpu.kernels.split_products import PANEL_OUT_BYTES, SplitProducts
from infc.diagnostics import InternalError
from infc.ir.mlir import ir, math
from infc.ir.types import storage_bytes

TILE = 8
"""Panels whose bounds are computed before any of their rows is multiplied: their low parts, that
may be far away, arrive meanwhile."""
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
_JOINED_BYTES = 1 << 17
"""Panels put together on the stack take no more than this, or are one."""
_JOINED_ROWS = 64
"""Rows that go through those at a time."""
_LINE_BYTES = 64


@dataclass(frozen=True)
class HeadSpec:
    """What a kernel computes.

    Attributes:
        n, k: of the matrix.
        layout: of the matrix.
        activation: the form of x, as in `MatmulSpec`.
        max_rows: the kernel is called with 1 .. max_rows rows.
    """

    n: int
    k: int
    layout: SplitLayout
    activation: str
    max_rows: int

    @property
    def products(self) -> SplitProducts:
        """Products of one a8 row."""
        return SplitProducts(self.layout, self.k)

    @property
    def joined_panels(self) -> int:
        """Panels put together at a time."""
        fitting = _JOINED_BYTES // self.layout.whole.panel_bytes(self.k)
        return max(1, min(fitting, panels_of(self.n), TILE))


@dataclass(frozen=True)
class _Planes:
    """A matrix [n, k] in memory, and a row of x with what was prepared of it."""

    spec: HeadSpec
    matrix: Value
    multiplier: Value

    @staticmethod
    def of(b: Builder, spec: HeadSpec, matrix: Value) -> _Planes:
        """With the multiplier of its header."""
        return _Planes(spec, matrix, b.load(matrix, b.f32, 4))

    def high(self, b: Builder, panel: Value) -> Value:
        """The high parts of a panel."""
        bytes_ = self.spec.products.high_panel_bytes
        return b.at(self.matrix, b.add(b.mul(panel, bytes_), HEADER_BYTES))

    def low(self, b: Builder, row: Value) -> Value:
        """The low parts of a row of the matrix."""
        offset = self.spec.layout.low_offset(self.spec.n, self.spec.k)
        bytes_ = self.spec.products.low_row_bytes
        return b.at(self.matrix, b.add(b.mul(row, bytes_), offset))

    def low_panel(self, b: Builder, panel: Value) -> Value:
        """The low parts of a panel."""
        return self.low(b, b.mul(panel, PANEL_ROWS))


def emit_head_logits(b: Builder, name: str, spec: HeadSpec, mapping: MatmulMapping) -> None:
    """Define `@name(x: ptr, m, thread, threads: i64, matrix, out: ptr)`: all logits, f32 [m, n]."""
    exact = spec.products.emit_exact(b) if spec.activation == "a8" else None
    joined = _emit_joined(b, name, spec, mapping)
    types = [b.ptr, b.i64, b.i64, b.i64, b.ptr, b.ptr]
    with b.function(name, types, inline=False) as arguments:
        x, m, thread, threads, matrix, out = arguments
        planes = _Planes.of(b, spec, matrix)
        panels = panels_of(spec.n)
        start, stop = (b.div(b.mul(t, panels), threads) for t in (thread, b.add(thread, 1)))

        def several() -> None:
            def store(products: Value, *places: Value) -> None:
                row, rows, column, columns = places
                at = b.add(b.mul(row, spec.n), column)
                target = b.at(out, b.mul(at, ENTRY_BYTES))
                _store_rows(b, spec, products, rows, columns, target)

            _emit_joined_panels(b, spec, joined, x, m, planes, start, stop, store)

        if exact is None:
            several()
            b.ret()
            return
        prepared = b.stack(spec.products.prepared_bytes, _LINE_BYTES)
        room = b.stack(PANEL_OUT_BYTES, _LINE_BYTES)

        def single() -> None:
            b.call(spec.products.emit_prepare(b), [x, prepared])
            whole = b.min(stop, spec.n // PANEL_ROWS)

            def multiply(first: Value, count: Value, target: Value) -> None:
                sources = [planes.high(b, first), planes.low_panel(b, first)]
                b.call(exact, [x, prepared, *sources, count, planes.multiplier, target])

            multiply(start, b.max(b.sub(whole, start), 0), b.at(out, b.mul(start, PANEL_OUT_BYTES)))
            if spec.n % PANEL_ROWS:

                def last() -> None:
                    multiply(whole, b.idx(1), room)
                    kind, target = b.vec(LANES, b.f32), b.at(out, b.mul(whole, PANEL_OUT_BYTES))
                    b.store_first(b.load(room, kind, 4), target, spec.n % PANEL_ROWS, 4)

                b.when(b.cmp("sgt", stop, spec.n // PANEL_ROWS), last)

        if spec.max_rows == 1:
            single()
        else:
            b.when(b.cmp("eq", m, 1), single, several)
        b.ret()


def emit_head_candidates(
    b: Builder, name: str, spec: HeadSpec, mapping: MatmulMapping, parts: int, count: int
) -> None:
    """Define

        @name(x: ptr, m, thread, threads: i64, matrix, values, ids: ptr, wanted: i64)

    `values` and `ids` have `parts` lists of `count` for each of the m rows (see `best_list`); each
    thread fills its own one with the best of its part of the matrix. The best `wanted` entries of
    the filled lists are the best of all.
    """
    search = _emit_search(b, spec)
    joined = _emit_joined(b, name, spec, mapping)
    take = emit_take(b)
    types = [b.ptr, b.i64, b.i64, b.i64, b.ptr, b.ptr, b.ptr, b.i64]
    with b.function(name, types, inline=False) as arguments:
        x, m, thread, threads, matrix, values, ids, wanted = arguments
        planes = _Planes.of(b, spec, matrix)

        def of_row(row: Value) -> list[Value]:
            at = b.mul(b.add(b.mul(row, parts), thread), count * ENTRY_BYTES)
            return [b.at(values, at), b.at(ids, at)]

        def clear(row: Value) -> None:
            values_of_row, ids_of_row = of_row(row)
            emit_clear(b, values_of_row, ids_of_row, count)

        b.loop(0, m, body=clear)

        def single() -> None:
            b.call(search, [x, thread, threads, matrix, *of_row(b.idx(0)), wanted])

        def several() -> None:
            panels = panels_of(spec.n)
            start, stop = (b.div(b.mul(t, panels), threads) for t in (thread, b.add(thread, 1)))

            def take_rows(products: Value, *places: Value) -> None:
                row, rows, column, columns = places

                def one(r: Value) -> None:
                    at = b.at(products, b.mul(r, spec.joined_panels * PANEL_OUT_BYTES))
                    best = of_row(b.add(row, r))
                    last = b.mul(b.sub(wanted, 1), ENTRY_BYTES)
                    least = b.load(b.at(best[0], last), b.f32, ENTRY_BYTES)
                    b.call(take, [at, columns, column, *best, wanted, least], [b.f32])

                b.loop(0, rows, body=one)

            _emit_joined_panels(b, spec, joined, x, m, planes, start, stop, take_rows)

        if spec.max_rows == 1:
            single()
        else:
            b.when(b.cmp("eq", m, 1), single, several)
        b.ret()


# ---- rows through other kernels ------------------------------------------------------------------


@dataclass(frozen=True)
class _Joined:
    """The functions that multiply panels put together on the stack."""

    join: str
    multiply: str
    rows: int


def _emit_joined(b: Builder, name: str, spec: HeadSpec, mapping: MatmulMapping) -> _Joined | None:
    """Define what several rows need; None where there is one at most."""
    if spec.max_rows == 1 and spec.activation == "a8":
        return None
    rows = min(spec.max_rows, _JOINED_ROWS)
    segment = Segment(spec.joined_panels * PANEL_ROWS, spec.layout.whole)
    product = MatmulSpec(spec.k, (segment,), spec.activation, max_rows=rows)
    fitting = replace(mapping, col_tile=min(mapping.col_tile, spec.joined_panels))
    emit_matmul(b, f"{name}_panels", product, fitting)
    return _Joined(spec.products.emit_join(b), f"{name}_panels", rows)


def _emit_joined_panels(
    b: Builder,
    spec: HeadSpec,
    joined: _Joined | None,
    x: Value,
    m: Value,
    planes: _Planes,
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
    # Behind the last panel: a stream is prefetched.
    matrix = b.stack(HEADER_BYTES + count * whole.panel_bytes(spec.k), _LINE_BYTES)
    products = b.stack(joined.rows * count * PANEL_OUT_BYTES, _LINE_BYTES)
    b.store(planes.multiplier, matrix, 4)
    row_bytes = storage_bytes(spec.activation, (1, spec.k))

    def panels(first: Value) -> None:
        here = b.min(b.sub(stop, first), count)
        sources = [planes.high(b, first), planes.low_panel(b, first)]
        b.call(joined.join, [*sources, here, b.at(matrix, HEADER_BYTES)])
        column = b.mul(first, PANEL_ROWS)
        columns = b.min(b.mul(here, PANEL_ROWS), b.sub(b.idx(spec.n), column))

        def rows(row: Value) -> None:
            part = b.min(b.sub(m, row), joined.rows)
            at = b.at(x, b.mul(row, row_bytes))
            operands = [at, part, b.idx(0), b.idx(1), matrix, products]
            b.call(joined.multiply, operands)
            use(products, row, part, column, columns)

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


# ---- the search ----------------------------------------------------------------------------------


def _emit_search(b: Builder, spec: HeadSpec) -> str:
    """Define `@name(x: ptr, thread, threads: i64, matrix, values, ids: ptr, wanted: i64)`.

    The list is empty; the best of this thread's stretches of panels enter it.
    """
    name = f"split_search_{spec.layout.name}_n{spec.n}_k{spec.k}"
    if b.defined(name):
        return name
    functions = [spec.products.emit_prepare(b), _emit_sparse(b, spec), _emit_plain(b, spec)]
    prepare, sparse, plain = functions
    types = [b.ptr, b.i64, b.i64, b.ptr, b.ptr, b.ptr, b.i64]
    panels = panels_of(spec.n)
    with b.function(name, types, inline=False) as arguments:
        x, thread, threads, matrix, values, ids, wanted = arguments
        prepared = b.stack(spec.products.prepared_bytes, _LINE_BYTES)
        b.call(prepare, [x, prepared])
        listed = [values, ids, wanted]

        def stretch(first: Value, least: Value, plains: Value, penalty: Value) -> list[Value]:
            count = b.min(b.sub(b.idx(panels), first), STRETCH)
            operands = [x, prepared, matrix, first, count, *listed, least]

            def multiply() -> list[Value]:
                (after,) = b.call(plain, operands, [b.f32])
                return [after, b.sub(plains, 1), penalty]

            def search() -> list[Value]:
                after, rows = b.call(sparse, operands, [b.f32, b.i64])
                many = b.cmp("sgt", rows, b.mul(count, WORTH_ROWS))
                larger = b.min(b.add(b.mul(penalty, 2), 1), MOST_PLAIN_STRETCHES)
                chosen = b.select(many, penalty, b.idx(0))
                return [after, chosen, b.select(many, larger, b.idx(1))]

            return b.when(b.cmp("sgt", plains, 0), multiply, search, [b.f32, b.i64, b.i64])

        begin = [b.const(float("-inf"), b.f32), b.idx(0), b.idx(1)]
        b.loop(b.mul(thread, STRETCH), panels, b.mul(threads, STRETCH), begin, body=stretch)
        b.ret()
    return name


def _search_types(b: Builder) -> list[ir.Type]:
    """x, prepared, matrix; first panel, panels; values, ids, wanted, least."""
    return [b.ptr, b.ptr, b.ptr, b.i64, b.i64, b.ptr, b.ptr, b.i64, b.f32]


def _emit_plain(b: Builder, spec: HeadSpec) -> str:
    """Define `@name(...) -> f32`: all products of some panels, the better ones into the list."""
    name = f"split_plain_{spec.layout.name}_n{spec.n}_k{spec.k}"
    if b.defined(name):
        return name
    exact, take = spec.products.emit_exact(b), emit_take(b)
    with b.function(name, _search_types(b), [b.f32], inline=False) as arguments:
        x, prepared, matrix, first, count, values, ids, wanted, least = arguments
        planes = _Planes.of(b, spec, matrix)
        room = b.stack(TILE * PANEL_OUT_BYTES, _LINE_BYTES)

        def tile(start: Value, least: Value) -> list[Value]:
            panel = b.add(first, start)
            here = b.min(b.sub(count, start), TILE)
            sources = [planes.high(b, panel), planes.low_panel(b, panel)]
            b.call(exact, [x, prepared, *sources, here, planes.multiplier, room])
            column = b.mul(panel, PANEL_ROWS)
            columns = b.min(b.mul(here, PANEL_ROWS), b.sub(b.idx(spec.n), column))
            return b.call(take, [room, columns, column, values, ids, wanted, least], [b.f32])

        (least,) = b.loop(0, count, TILE, [least], body=tile)
        b.ret(least)
    return name


def _emit_sparse(b: Builder, spec: HeadSpec) -> str:
    """Define `@name(...) -> (f32, i64)`: multiply rows of some panels that can enter the list;
    the second result is how many they were."""
    name = f"split_sparse_{spec.layout.name}_n{spec.n}_k{spec.k}"
    bounds = spec.products.emit_bounds(b)
    panel_function = _emit_panel(b, spec)
    with b.function(name, _search_types(b), [b.f32, b.i64], inline=False) as arguments:
        x, prepared, matrix, first, count, values, ids, wanted, least = arguments
        planes = _Planes.of(b, spec, matrix)
        room = b.stack(TILE * PANEL_OUT_BYTES, _LINE_BYTES)

        def tile(start: Value, least: Value, rows: Value) -> list[Value]:
            panel = b.add(first, start)
            here = b.min(b.sub(count, start), TILE)
            b.call(bounds, [x, prepared, planes.high(b, panel), here, planes.multiplier, room])

            def survivors(index: Value, least: Value) -> tuple[Value, Value]:
                number = b.add(panel, index)
                at = b.at(room, b.mul(index, PANEL_OUT_BYTES))
                return number, _survivors(b, spec, at, number, least)

            def fetch(index: Value) -> None:
                _prefetch_rows(b, planes, *survivors(index, least))

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


def _survivors(b: Builder, spec: HeadSpec, bounds: Value, panel: Value, least: Value) -> Value:
    """The rows of a panel whose bound is not below `least`, as bits; a bound that is no number
    is not below anything."""
    below = b.fcmp("olt", b.load(bounds, b.vec(LANES, b.f32), 4), b.splat(least))
    left = b.bit_xor(lanes_set(b, below), b.idx((1 << LANES) - 1))
    columns = b.sub(b.idx(spec.n), b.mul(panel, PANEL_ROWS))
    return b.bit_and(left, lanes_inside(b, columns))


def _prefetch_rows(b: Builder, planes: _Planes, panel: Value, bits: Value) -> None:
    """Have the low parts of some rows of a panel on their way, unless they are many."""

    def row(lane: Value) -> list[Value]:
        source = planes.low(b, b.add(b.mul(panel, PANEL_ROWS), lane))
        for line in range(0, planes.spec.products.low_row_bytes + _LINE_BYTES - 1, _LINE_BYTES):
            b.prefetch(b.at(source, line))
        return []

    def fetch() -> None:
        emit_each_lane(b, bits, [], row)

    b.when(b.cmp("sle", math.CtPopOp(bits).result, DENSE_ROWS), fetch)


def _emit_panel(b: Builder, spec: HeadSpec) -> str:
    """Define `@name(x, prepared, matrix: ptr, panel, bits: i64, values, ids: ptr, wanted: i64,
    least: f32) -> (f32, i64)`: multiply the rows of a panel that `bits` has, or all where they are
    many, and put the better ones into the list. The second result is how many were multiplied."""
    name = f"split_panel_{spec.layout.name}_n{spec.n}_k{spec.k}"
    row_function, plain = spec.products.emit_row(b), _emit_plain(b, spec)
    insert = emit_insert(b)
    types = [b.ptr, b.ptr, b.ptr, b.i64, b.i64, b.ptr, b.ptr, b.i64, b.f32]
    with b.function(name, types, [b.f32, b.i64], inline=False) as arguments:
        x, prepared, matrix, panel, bits, values, ids, wanted, least = arguments
        planes = _Planes.of(b, spec, matrix)
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
