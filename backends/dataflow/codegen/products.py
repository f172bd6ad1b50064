"""The matrix stream of a product: strips of columns, pieces of weights, tiles.

    acc[rows][columns] = x[rows][k] * w[columns][k], strip by strip of tile n columns,
    for each piece of weights: rows in tiles of m, the depth in tiles of k

Sums run over k in order, whatever the number of cores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from infc.backends.dataflow.codegen.builder import CoreProgram
from infc.backends.dataflow.codegen.memory import Address
from infc.backends.dataflow.codegen.scope import Scope
from infc.backends.dataflow.codegen.stream import Count, Register
from infc.backends.dataflow.codegen.values import Columns, Operand, Weight
from infc.backends.dataflow.codegen.weights import Cut
from infc.backends.dataflow.tiles import tile_format
from infc.diagnostics import InternalError


def cuts_of(scope: Scope, weight: Weight, slices: Sequence[tuple[int, int]]) -> list[Cut]:
    """The columns of each core, in tiles of the matrix unit."""
    form, unit = tile_format(weight.type.element), scope.machine.matrix
    if form is None:
        raise InternalError(f"the matrix unit has no {weight.type.element} weights")
    return [Cut(weight, first, stop, unit.n, unit.k, form) for first, stop in slices]


class Products:
    """The matrix stream of one core for products of one input."""

    def __init__(self, scope: Scope, core: CoreProgram, x: Operand) -> None:
        self.scope, self.core, self.x = scope, core, x
        self.weights, self.stream = scope.weights, core.matrix

    def strips(self, cuts: Sequence[Cut], outs: Sequence[Columns]) -> None:
        """All strips of one matrix, or of two in turns."""
        self.weights.note(self.core, *cuts)
        whole, rest = divmod(cuts[0].stop - cuts[0].first, cuts[0].tile_n)
        with self.stream.registers(1) as (column,):
            self.stream.mov(column, 0)
            if whole:
                with self.weights.loop(self.core, whole):
                    for cut, out in zip(cuts, outs, strict=True):
                        self.strip(cut, out, column, cut.tile_n)
                    self.stream.add(column, column, imm=4 * cuts[0].tile_n)
            if rest:
                for cut, out in zip(cuts, outs, strict=True):
                    self.strip(cut, out, column, rest)

    def strip(self, cut: Cut, out: Columns, column: Register, n: int) -> None:
        """`n` columns over the whole depth, in pieces of so many tiles as a slot holds."""
        tile_bytes = cut.form.tile_bytes(n, cut.tile_k)
        tiles, last = divmod(cut.k, cut.tile_k)
        at_once = self.weights.tiles_at_once(tile_bytes) or tiles + 1
        with self.stream.registers(2) as (depth, scales):
            self.stream.mov(depth, 0)
            self.stream.mov(scales, 0)
            at = (column, depth, scales)
            first = min(at_once, tiles)
            tail = last if tiles < at_once else 0
            self.piece(cut, out, at, n, first, tail, start=True)
            middle, left = divmod(tiles - first, at_once)
            if middle:
                with self.weights.loop(self.core, middle):
                    self.piece(cut, out, at, n, at_once, 0, start=False)
            if left or (last and not tail):
                self.piece(cut, out, at, n, left, last, start=False)

    def piece(
        self,
        cut: Cut,
        out: Columns,
        at: tuple[Register, Register, Register],
        n: int,
        tiles: int,
        tail: int,
        *,
        start: bool,
    ) -> None:
        """Some tiles of the depth, and a last one of `tail` columns, for all rows."""
        stream, x = self.stream, self.x
        column, depth, scales = at
        moved = tiles * cut.tile_k + tail
        size = tiles * cut.form.tile_bytes(n, cut.tile_k)
        size += cut.form.tile_bytes(n, tail) if tail else 0
        m, total = self.scope.machine.matrix.m, self.scope.total(stream, x.space)
        with self.weights.piece(self.core, size) as source, stream.registers(4) as at_once:
            d, a, b, c = at_once
            places = _Places(out.buffer.at(0, d), a, b, Address(0, c, source.buffer))
            stream.mov(d, 0, column)
            stream.mov(a, 0, depth)
            stream.mov(b, 0, scales)
            stream.mov(c, source.offset, source.register)
            if x.space.most <= m:
                self.tiles(cut, out, places, n, tiles, tail, total, start=start)
            else:
                with stream.registers(2) as (rows, left):
                    stream.mov(left, 0, total)
                    stream.mov(rows, m - 1, total)
                    stream.div(rows, rows, m)
                    with stream.loop(rows):
                        stream.least(rows, left, 0, 0, m)
                        self.tiles(cut, out, places, n, tiles, tail, rows, start=start)
                        stream.add(left, left, imm=-m)
                        stream.add(d, d, imm=m * out.row_bytes)
                        stream.add(a, a, imm=m * x.row_bytes - moved * x.element_bytes)
                        stream.add(b, b, imm=(m * x.k - moved) // 8)
                        stream.mov(c, source.offset, source.register)
        stream.add(depth, depth, imm=moved * x.element_bytes)
        stream.add(scales, scales, imm=moved // 8)

    def tiles(
        self,
        cut: Cut,
        out: Columns,
        at: _Places,
        n: int,
        tiles: int,
        tail: int,
        rows: Count,
        *,
        start: bool,
    ) -> None:
        """One tile of rows against the tiles of a piece."""
        if start and tiles:
            self.product(cut, out, at, n, cut.tile_k, rows, acc=False)
            tiles -= 1
            start = False
        if tiles == 1:
            self.product(cut, out, at, n, cut.tile_k, rows, acc=True)
        elif tiles:
            with self.stream.loop(tiles):
                self.product(cut, out, at, n, cut.tile_k, rows, acc=True)
        if tail:
            self.product(cut, out, at, n, tail, rows, acc=not start)

    def product(
        self, cut: Cut, out: Columns, at: _Places, n: int, k: int, rows: Count, *, acc: bool
    ) -> None:
        """One tile, and on to the next one."""
        stream, x = self.stream, self.x
        if x.scales is not None:
            stream.mm_q(
                at.d, x.values.at(0, at.a), x.scales.at(0, at.b), at.c,
                m=rows, n=n, k=k, form=cut.form.form, acc=acc,
                stride_d=out.row_bytes, stride_a=x.row_bytes, stride_b=x.k // 8,
            )  # fmt: skip
        else:
            stream.mm_f(
                at.d, x.values.at(0, at.a), at.c,
                m=rows, n=n, k=k, form=cut.form.form, acc=acc,
                stride_d=out.row_bytes, stride_a=x.row_bytes, stride_b=2, stride_c=2 * k,
            )  # fmt: skip
        stream.add(at.a, at.a, imm=k * x.element_bytes)
        stream.add(at.b, at.b, imm=k // 8)
        stream.add(Register(at.c.register), at.c.register, imm=cut.form.tile_bytes(n, k))


@dataclass(frozen=True)
class _Places:
    """Where a tile's operands are: registers that go on with the tiles."""

    d: Address
    a: Register
    b: Register
    c: Address
