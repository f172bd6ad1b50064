"""Several rows of x with a matrix in planes: all their products, a few panels at a time.

A few a8 rows are multiplied with codes that are put together in registers, once for all rows. More
of them, or rows in another form, go through the kernels of other products: panels are put together
on the stack, in the layout those read. Where the second plane is the matrix itself, those read it
where it lies.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from infc.backends.cpu.codegen.builder import Builder, Value
from infc.backends.cpu.codegen.isa import Isa
from infc.backends.cpu.kernels.bounded_products import BoundedProducts
from infc.backends.cpu.kernels.dealing import DEAL_BYTES, Team, emit_dealt
from infc.backends.cpu.kernels.head_planes import HeadSpec, Planes
from infc.backends.cpu.kernels.layouts import HEADER_BYTES
from infc.backends.cpu.kernels.matmul import MatmulMapping, MatmulSpec, Segment, emit_matmul
from infc.backends.cpu.kernels.split_join import emit_join
from infc.backends.cpu.kernels.split_products import SplitProducts
from infc.backends.cpu.kernels.stream import PANEL_OUT_BYTES
from infc.ir.types import storage_bytes
from infc.passes.codegen.panels import PANEL_ROWS, panels_of

_JOINED_ROWS = 64
"""Rows that go through the kernels of other products at a time."""
_LINE_BYTES = 64

UseProducts = Callable[[Value, Value, Value, Value, Value], None]
"""`use(products, row, rows, column, columns)` gets f32 [rows, 16 * joined_panels] of the rows from
`row` on, of which the first `columns` are those of the matrix from `column` on."""
_OfPanels = Callable[[Value, Value], None]
"""Multiplies with the panels from the first number to the one before the second."""


def few_rows(isa: Isa) -> int:
    """How many a8 rows are a few.

    AVX2 is bound by its products whichever way they are made. Steps of a head of 262,144 x 640 in
    8 bits on two cores of Zen 3 took 13.4, 16.6 and 22.7 ms of 2, 4 and 8 rows through other
    kernels, and 8.0, 10.0 and 16.0 ms so; whole steps of 12 to 32 rows were 1.02 to 1.2 times as
    fast. Others have cheaper products, of which larger tiles make more with each load: an
    assumption, not measured.
    """
    return 32 if isa.dot_i8 == "avx2" else 16


@dataclass(frozen=True)
class SeveralRows:
    """How a head multiplies more rows than one, in its own form."""

    spec: HeadSpec
    few: _Few | None
    joined: _Joined | None

    @staticmethod
    def of(b: Builder, name: str, spec: HeadSpec, mapping: MatmulMapping) -> SeveralRows:
        """Define the functions that a head called `name` needs: none, where it has one row."""
        few = joined = None
        if isinstance(spec.products, BoundedProducts):
            own_form, most = "f32", 1
        else:
            own_form, most = "a8", few_rows(b.isa)
            if spec.activation == own_form and spec.max_rows > 1:
                few = _Few.of(b, spec, spec.products, min(spec.max_rows, most))
        if spec.activation != own_form or spec.max_rows > most:
            joined = _Joined.of(b, name, spec, mapping)
        return SeveralRows(spec, few, joined)

    def emit(
        self, b: Builder, team: Team, x: Value, m: Value, planes: Planes, use: UseProducts
    ) -> None:
        """Multiply m rows with all panels."""

        def run(rows: _Few | _Joined) -> None:
            multiply = rows.emit(b, x, m, planes, use)

            def part(start: Value, stop: Value) -> list[Value]:
                multiply(start, stop)
                return []

            panels, piece = b.idx(panels_of(self.spec.n)), b.idx(self.spec.joined_panels)
            emit_dealt(b, team, panels, b.idx(0), piece, [], part)

        if self.few and self.joined:
            is_few = b.cmp("sle", m, self.few.most)
            b.when(is_few, partial(run, self.few), partial(run, self.joined))
        elif rows := self.few or self.joined:
            run(rows)


@dataclass(frozen=True)
class _Few:
    """Up to `most` a8 rows at once, through the function `multiply`."""

    spec: HeadSpec
    products: SplitProducts
    multiply: str
    most: int

    @staticmethod
    def of(b: Builder, spec: HeadSpec, products: SplitProducts, most: int) -> _Few:
        """Define what it needs."""
        multiply = products.emit_exact_rows(b, most, spec.joined_panels * PANEL_OUT_BYTES)
        return _Few(spec, products, multiply, most)

    def emit(self, b: Builder, x: Value, m: Value, planes: Planes, use: UseProducts) -> _OfPanels:
        spec, products, count = self.spec, self.products, self.spec.joined_panels
        prepare, row_bytes = products.emit_prepare(b), storage_bytes("a8", (1, spec.k))
        prepared = b.stack(self.most * products.prepared_bytes, _LINE_BYTES)

        def prepare_row(row: Value) -> None:
            at = b.at(prepared, b.mul(row, products.prepared_bytes))
            b.call(prepare, [b.at(x, b.mul(row, row_bytes)), at])

        b.loop(0, m, body=prepare_row)
        room = b.stack(self.most * count * PANEL_OUT_BYTES, _LINE_BYTES)

        def panels(start: Value, stop: Value) -> None:
            def few(first: Value) -> None:
                here = b.min(b.sub(stop, first), count)
                sources = [planes.high(b, first), planes.low_panel(b, first)]
                operands = [x, prepared, m, *sources, here, planes.multiplier, room]
                b.call(self.multiply, operands)
                use(room, b.idx(0), m, *_columns(b, spec, first, here))

            b.loop(start, stop, count, body=few)

        return panels


@dataclass(frozen=True)
class _Joined:
    """Up to `rows` rows at a time, through the kernel `multiply`.

    `join` puts panels together on the stack for it, where they do not lie as it reads them.
    """

    spec: HeadSpec
    join: str | None
    multiply: str
    rows: int

    @staticmethod
    def of(b: Builder, name: str, spec: HeadSpec, mapping: MatmulMapping) -> _Joined:
        """Define what it needs."""
        rows, products = min(spec.max_rows, _JOINED_ROWS), spec.products
        segment = Segment(spec.joined_panels * PANEL_ROWS, spec.layout.whole)
        product = MatmulSpec(spec.k, (segment,), spec.activation, max_rows=rows)
        fitting = replace(mapping, col_tile=min(mapping.col_tile, spec.joined_panels))
        emit_matmul(b, f"{name}_panels", product, fitting)
        join = None
        if isinstance(products, SplitProducts):
            join = emit_join(b, products.layout, products.k)
        return _Joined(spec, join, f"{name}_panels", rows)

    def emit(self, b: Builder, x: Value, m: Value, planes: Planes, use: UseProducts) -> _OfPanels:
        spec, count, whole = self.spec, self.spec.joined_panels, self.spec.layout.whole
        room_bytes = count * whole.panel_bytes(spec.k) if self.join else 0
        room = b.stack(HEADER_BYTES + room_bytes, _LINE_BYTES)
        products = b.stack(self.rows * count * PANEL_OUT_BYTES, _LINE_BYTES)
        b.store(planes.multiplier, room, 4)
        alone = b.stack(DEAL_BYTES, DEAL_BYTES)
        b.store(b.const(0, b.i32), alone, 4)
        row_bytes = storage_bytes(spec.activation, (1, spec.k))

        def panels(start: Value, stop: Value) -> None:
            def few(first: Value) -> None:
                here = b.min(b.sub(stop, first), count)
                if self.join:
                    sources = [planes.high(b, first), planes.low_panel(b, first)]
                    b.call(self.join, [*sources, here, b.at(room, HEADER_BYTES)])
                    matrix, skipped = room, b.idx(0)
                else:  # the last go with some before them, so that none behind the matrix are read
                    read = b.min(first, panels_of(spec.n) - count)
                    matrix = b.at(planes.low_panel(b, read), -HEADER_BYTES)
                    skipped = b.sub(first, read)
                columns = _columns(b, spec, first, here)

                def rows(row: Value) -> None:
                    part = b.min(b.sub(m, row), self.rows)
                    at = b.at(x, b.mul(row, row_bytes))
                    operands = [at, part, b.idx(0), b.idx(1), alone, matrix, products]
                    b.call(self.multiply, operands)
                    use(b.at(products, b.mul(skipped, PANEL_OUT_BYTES)), row, part, *columns)

                b.loop(0, m, self.rows, body=rows)

            b.loop(start, stop, count, body=few)

        return panels


def _columns(b: Builder, spec: HeadSpec, panel: Value, panels: Value) -> tuple[Value, Value]:
    """The first column of some panels, and how many of them the matrix has."""
    first = b.mul(panel, PANEL_ROWS)
    return first, b.min(b.mul(panels, PANEL_ROWS), b.sub(b.idx(spec.n), first))
