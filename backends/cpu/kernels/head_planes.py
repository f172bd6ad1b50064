"""A matrix in planes, and what both kinds of search in it have in common."""

from __future__ import annotations

from dataclasses import dataclass

from infc.backends.cpu.codegen.builder import LANES, Builder, Value
from infc.backends.cpu.kernels.best_list import emit_take, lanes_inside, lanes_set
from infc.backends.cpu.kernels.bounded_layout import BoundedLayout
from infc.backends.cpu.kernels.bounded_products import BoundedProducts
from infc.backends.cpu.kernels.layouts import HEADER_BYTES
from infc.backends.cpu.kernels.split_layout import SplitLayout
from infc.backends.cpu.kernels.split_products import SplitProducts
from infc.backends.cpu.kernels.stream import PANEL_OUT_BYTES
from infc.ir.mlir import ir
from infc.passes.codegen.panels import PANEL_ROWS, panels_of

TILE = 8
"""Panels whose bounds are computed before any of their rows is multiplied: their low parts, that
may be far away, arrive meanwhile."""
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
    layout: SplitLayout | BoundedLayout
    activation: str
    max_rows: int

    @property
    def products(self) -> SplitProducts | BoundedProducts:
        """Products of one row."""
        if isinstance(self.layout, BoundedLayout):
            return BoundedProducts(self.layout, self.k)
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
        """With the multiplier of the header of the first plane."""
        header = b.at(matrix, spec.layout.high_offset(spec.n, spec.k))
        return Planes(spec, matrix, b.load(header, b.f32, 4))

    def high(self, b: Builder, panel: Value) -> Value:
        """What bounds a panel: its high parts."""
        offset = self.spec.layout.high_offset(self.spec.n, self.spec.k) + HEADER_BYTES
        return b.at(self.matrix, b.add(b.mul(panel, self.spec.products.high_panel_bytes), offset))

    def low(self, b: Builder, row: Value) -> Value:
        """The low parts of a row of the matrix, or the first line of its weights."""
        offset = self.spec.layout.low_offset(self.spec.n, self.spec.k)
        return b.at(self.matrix, b.add(self.spec.products.emit_row_offset(b, row), offset))

    def low_panel(self, b: Builder, panel: Value) -> Value:
        """The low parts, or the weights, of a panel."""
        return self.low(b, b.mul(panel, PANEL_ROWS))


def search_types(b: Builder) -> list[ir.Type]:
    """x, prepared, matrix; first panel, panels; values, ids, wanted, least."""
    return [b.ptr, b.ptr, b.ptr, b.i64, b.i64, b.ptr, b.ptr, b.i64, b.f32]


def emit_plain(b: Builder, spec: HeadSpec) -> str:
    """Define `@name(...) -> f32`: all products of some panels, the better ones into the list."""
    name = f"split_plain_{spec.layout.name}_n{spec.n}_k{spec.k}"
    if b.defined(name):
        return name
    exact, take = spec.products.emit_exact(b), emit_take(b)
    with b.function(name, search_types(b), [b.f32], inline=False) as arguments:
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


def emit_survivors(b: Builder, spec: HeadSpec, bounds: Value, panel: Value, least: Value) -> Value:
    """The rows of a panel whose bound is not below `least`, as bits; a bound that is no number
    is not below anything."""
    below = b.fcmp("olt", b.load(bounds, b.vec(LANES, b.f32), 4), b.splat(least))
    left = b.bit_xor(lanes_set(b, below), b.idx((1 << LANES) - 1))
    columns = b.sub(b.idx(spec.n), b.mul(panel, PANEL_ROWS))
    return b.bit_and(left, lanes_inside(b, columns))
