"""Products: every core multiplies all rows with some columns, over the whole depth.

    acc[rows][columns of the core] = x[rows][k] * w[columns][k], strip by strip of tile n columns,
    for each piece of weights: rows in tiles of m, the depth in tiles of k

Sums run over k in order, whatever the number of cores. A gate and its product are read strip by
strip in turns; the activation, biases and soft caps follow on the vector unit, on columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from infc.backends.dataflow.codegen.builder import CoreProgram
from infc.backends.dataflow.codegen.columns import (
    add_bias,
    apply_each,
    multiply_each,
    quantize_columns,
    scale_columns,
    softcap_columns,
)
from infc.backends.dataflow.codegen.memory import Address, Buffer
from infc.backends.dataflow.codegen.rows import quantize_rows
from infc.backends.dataflow.codegen.scope import Kernel, Scope
from infc.backends.dataflow.codegen.stream import Count, Register
from infc.backends.dataflow.codegen.values import (
    Codes,
    Columns,
    Halves,
    Rows,
    RowSpace,
    Value,
    Weight,
    deal,
)
from infc.backends.dataflow.codegen.weights import Cut
from infc.backends.dataflow.isa import BLOCK, Unary
from infc.backends.dataflow.tiles import tile_format
from infc.diagnostics import InternalError
from infc.ir.attributes import get
from infc.ir.types import TensorType
from infc.passes.walk import body

_FINE_COLUMNS = 4
"""Columns that are dealt to cores together, where nothing is quantised behind the product."""


def emit_product(kernel: Kernel, scope: Scope) -> list[Value]:
    """A `matmul` kernel: products of one input, and what follows each element."""
    block = kernel.function.regions[0].blocks[0]
    values: dict[object, Value] = dict(zip(block.arguments, kernel.operands, strict=True))
    operations = body(kernel.function)
    products = [op for op in operations if op.operation.name == "infc.linear"]
    gate = any(op.operation.name == "infc.mul" for op in operations)
    source = as_operand(scope, values[products[0].operation.operands[0]])
    weights = [values[op.operation.operands[1]] for op in products]
    for op, columns in zip(products, multiply(scope, source, weights, gate=gate), strict=True):
        values[op.operation.results[0]] = columns
        scale_columns(scope, columns, values[op.operation.operands[1]])
        if len(op.operation.operands) == 3:
            add_bias(scope, columns, values[op.operation.operands[2]])
    for op in operations:
        name, operands = (
            op.operation.name,
            [values[v] for v in op.operation.operands if v in values],
        )
        if name == "infc.activation":
            kind = Unary.SILU if get(op, "kind") == "silu" else Unary.GELU_TANH
            values[op.operation.results[0]] = apply_each(scope, operands[0], kind)
        elif name == "infc.softcap":
            values[op.operation.results[0]] = softcap_columns(scope, operands[0], get(op, "cap"))
        elif name == "infc.mul":
            values[op.operation.results[0]] = multiply_each(scope, *operands)
        elif name == "infc.quantize":
            values[op.operation.results[0]] = quantize_columns(
                scope, operands[0], TensorType.of(op.operation.results[0].type).element
            )
        elif name == "func.return":
            return operands
    raise InternalError("a kernel has no return")


@dataclass(frozen=True)
class Operand:
    """The x of a product as the matrix unit reads it: a8 codes and scales, or halves."""

    space: RowSpace
    values: Buffer
    scales: Buffer | None
    k: int

    @property
    def element_bytes(self) -> int:
        """Of a code or a half."""
        return 1 if self.scales is not None else 2

    @property
    def row_bytes(self) -> int:
        """From one row to the next."""
        return self.k * self.element_bytes


def as_operand(scope: Scope, value: Value) -> Operand:
    """What a product reads; float32 numbers are rounded to f16."""
    if isinstance(value, Columns):
        value = quantize_columns(scope, value, "f16")
    elif isinstance(value, Rows):
        value = quantize_rows(scope, value, "f16", "x")
    if isinstance(value, Codes):
        return Operand(value.space, value.codes, value.scales, value.k)
    if isinstance(value, Halves):
        return Operand(value.space, value.buffer, None, value.k)
    raise InternalError(f"a product reads {type(value).__name__}")


def multiply(
    scope: Scope, x: Operand, weights: Sequence[Value], *, gate: bool, unit: int | None = None
) -> list[Columns]:
    """The products of one input with some matrices.

    Args:
        gate: two matrices of one shape whose products are multiplied, and may be quantised.
        unit: columns dealt to cores together.
    """
    cores, machine = len(scope.cores), scope.machine
    found: list[Columns] = []
    cuts: list[list[Cut]] = [[] for _ in scope.cores]
    for number, weight in enumerate(weights):
        if not isinstance(weight, Weight):
            raise InternalError("a product reads a matrix that is no weight")
        n = int(weight.type.shape[0])
        slices = deal(n, unit or (BLOCK if gate else _FINE_COLUMNS), cores)
        row_bytes = 4 * max(stop - first for first, stop in slices)
        buffer = scope.buffer(f"product{number}", x.space.most * row_bytes)
        found.append(Columns(x.space, buffer, n, slices, row_bytes))
        form = tile_format(weight.type.element)
        if form is None:
            raise InternalError(f"the matrix unit has no {weight.type.element} weights")
        for own, (first, stop) in zip(cuts, slices, strict=True):
            own.append(Cut(weight, first, stop, machine.matrix.n, machine.matrix.k, form))
    for core in scope.cores:
        core.hand(core.vector, core.matrix)
        emitter = _Products(scope, core, x)
        if gate:
            emitter.strips(cuts[core.index], found)
        else:
            for cut, columns in zip(cuts[core.index], found, strict=True):
                emitter.strips([cut], [columns])
        core.hand(core.matrix, core.vector)
    return found


class _Products:
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
