"""The search for the best products of one row with a split matrix.

A row of the matrix whose bound is below the worst logit of a full list cannot enter it; only the
others are multiplied exactly. Which those are depends on the order of the search; the list does not
(see docs/exact-head.md). Where most rows turn out to be needed, the next ones are multiplied at
once.
"""

from __future__ import annotations

from dataclasses import dataclass

from infc.backends.cpu.codegen.builder import LANES, Builder, Value
from infc.backends.cpu.kernels.best_list import (
    emit_each_lane,
    emit_insert,
    emit_take,
    lanes_inside,
    lanes_set,
)
from infc.backends.cpu.kernels.dealing import Team, emit_dealt
from infc.backends.cpu.kernels.layouts import HEADER_BYTES, PANEL_ROWS, panels_of
from infc.backends.cpu.kernels.split_layout import SplitLayout
from infc.backends.cpu.kernels.split_products import PANEL_OUT_BYTES, SplitProducts
from infc.ir.mlir import ir, math

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
class Planes:
    """A matrix [n, k] in memory, and a row of x with what was prepared of it."""

    spec: HeadSpec
    matrix: Value
    multiplier: Value

    @staticmethod
    def of(b: Builder, spec: HeadSpec, matrix: Value) -> Planes:
        """With the multiplier of its header."""
        return Planes(spec, matrix, b.load(matrix, b.f32, 4))

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


def emit_search(b: Builder, spec: HeadSpec) -> str:
    """Define `@name(x: ptr, thread, threads: i64, deal, matrix, values, ids: ptr, wanted: i64)`.

    The list is empty; the best of the stretches of panels that this thread takes enter it.
    """
    name = f"split_search_{spec.layout.name}_n{spec.n}_k{spec.k}"
    if b.defined(name):
        return name
    functions = [spec.products.emit_prepare(b), _emit_sparse(b, spec), _emit_plain(b, spec)]
    prepare, sparse, plain = functions
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
                many = b.cmp("sgt", rows, b.mul(count, WORTH_ROWS))
                larger = b.min(b.add(b.mul(penalty, 2), 1), MOST_PLAIN_STRETCHES)
                chosen = b.select(many, penalty, b.idx(0))
                return [after, chosen, b.select(many, larger, b.idx(1))]

            return b.when(b.cmp("sgt", plains, 0), multiply, search, [b.f32, b.i64, b.i64])

        begin = [b.const(float("-inf"), b.f32), b.idx(0), b.idx(1)]
        panels, piece = b.idx(panels_of(spec.n)), b.idx(STRETCH)
        emit_dealt(b, Team(*shared), panels, b.idx(0), piece, begin, stretch)
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
        planes = Planes.of(b, spec, matrix)
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
        planes = Planes.of(b, spec, matrix)
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


def _prefetch_rows(b: Builder, planes: Planes, panel: Value, bits: Value) -> None:
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
