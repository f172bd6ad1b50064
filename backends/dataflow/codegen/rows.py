"""Kernels on rows: norms, residuals, elementwise functions, quantising, the rows whose logits are
wanted.

Each core works on the rows it owns, row by row; where all cores own all rows each does the same for
itself. What products read next goes to all cores.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from infc.backends.dataflow.codegen.builder import CoreProgram
from infc.backends.dataflow.codegen.exchange import as_rows, exchange, rows_to_all
from infc.backends.dataflow.codegen.memory import Address, Buffer
from infc.backends.dataflow.codegen.scope import ARG_FIRST_TOKEN, Kernel, Scope
from infc.backends.dataflow.codegen.stream import Count, Register, Stream
from infc.backends.dataflow.codegen.tables import emit_embed
from infc.backends.dataflow.codegen.values import Codes, Halves, Rows, RowSpace, Value, Weight
from infc.backends.dataflow.isa import BLOCK, Binary, Conversion, Reduction, Unary
from infc.diagnostics import InternalError
from infc.ir.attributes import get
from infc.ir.mlir import ir
from infc.ir.types import A8, TensorType
from infc.passes.walk import body

_F32, _BF16 = 4, 2


def emit_rows(kernel: Kernel, scope: Scope) -> list[Value]:
    """A `rows` kernel."""
    arguments = kernel.function.regions[0].blocks[0].arguments
    values: dict[Any, Value] = dict(zip(arguments, kernel.operands, strict=True))
    for number, op in enumerate(body(kernel.function)):
        operands = [values[value] for value in op.operation.operands]
        name = op.operation.name.removeprefix("infc.")
        if name == "func.return":
            return operands
        values[op.operation.results[0]] = _EMITTERS[name](
            _Step(scope, op, f"{name}{number}"), *operands
        )
    raise InternalError("a kernel has no return")


class _Step:
    """One operation of a kernel.

    Attributes:
        name: unique in the kernel.
    """

    def __init__(self, scope: Scope, op: ir.OpView, name: str) -> None:
        self.scope, self.op, self.name = scope, op, name

    def rows(self, value: Value) -> Rows:
        """An operand by rows."""
        return as_rows(self.scope, value)

    def target(self, space: RowSpace, width: int) -> Rows:
        """A place for the result."""
        buffer = self.scope.buffer(self.name, _F32 * space.owned * width)
        return Rows(space, buffer, width)

    def each(self, target: Rows, emit: Callable[[Stream, Register, int, int], None]) -> None:
        """For each own row of each core, piece by piece: the vector stream, the register with the
        row's offset in f32 rows, the first element of the piece and its elements."""
        for core in self.scope.cores:
            v = core.vector
            with v.stepping(self.scope.own(v, target.space), target.row_bytes) as (row,):
                for at, count in self.scope.group.pieces(target.width):
                    emit(v, row, _F32 * at, count)


def _embed(step: _Step, _: Value, table: Value) -> Value:
    if not isinstance(table, Weight):
        raise InternalError("a table of embeddings is no weight")
    return emit_embed(step.scope, table, get(step.op, "scale"))


def _rms_norm(step: _Step, value: Value, weight: Value) -> Value:
    source = step.rows(value)
    target = step.target(source.space, source.width)
    if not isinstance(weight, Weight):
        raise InternalError("a gain is no weight")
    for core in step.scope.cores:
        rows = step.scope.own(core.vector, source.space)
        gain = emit_gain(step.scope, core, weight, get(step.op, "offset"), f"{step.name}.gain")
        emit_norm(
            step.scope, core, rows, source.space.owned, source.buffer, target.buffer,
            width=source.width, gain=gain, eps=get(step.op, "eps"), name=step.name,
        )  # fmt: skip
    return target


def emit_gain(scope: Scope, core: CoreProgram, weight: Weight, offset: float, name: str) -> Address:
    """Where the gains of a norm lie, its offset added."""
    gain = scope.vector(core, weight)
    if not offset:
        return gain
    width = int(weight.type.shape[0])
    shifted = scope.buffer(name, _F32 * width)
    for at, count in scope.group.pieces(width):
        place = shifted.at(_F32 * at)
        core.vector.v_imm(Binary.ADD, place, gain + _F32 * at, offset, count)
    return shifted.at()


def emit_norm(
    scope: Scope,
    core: CoreProgram,
    rows: Count,
    most: int,
    source: Buffer,
    target: Buffer,
    *,
    width: int,
    gain: Address,
    eps: float,
    name: str,
) -> None:
    """target = source / sqrt(mean(source^2) + eps) * gain, f32 rows one behind the other.

    Args:
        rows: how many there are; `most` at most.
        target: may be the source.
    """
    v, pieces = core.vector, scope.group.pieces(width)
    factors = scope.buffer(f"{name}.factors", _F32 * most)
    with v.stepping(rows, _F32 * width, _F32) as (row, factor):
        for at, count in pieces:
            place = source.at(_F32 * at, row)
            v.v_red(Reduction.SUMSQ, factors.at(0, factor), place, count, acc=at > 0)
    if most > scope.group.native:
        raise InternalError(f"a norm of {most} rows, vectors of {scope.group.native} elements")
    v.v_imm(Binary.MUL, factors, factors, 1 / width, rows)
    v.v_imm(Binary.ADD, factors, factors, eps, rows)
    v.v_un(Unary.RSQRT, factors, factors, rows)
    with v.stepping(rows, _F32 * width, _F32) as (row, factor):
        for at, count in pieces:
            place = target.at(_F32 * at, row)
            v.v_bins(Binary.MUL, place, source.at(_F32 * at, row), factors.at(0, factor), count)
            v.v_bin(Binary.MUL, place, place, gain + _F32 * at, count)


def _binary(operation: Binary) -> Callable[[_Step, Value, Value], Value]:
    def emit(step: _Step, left: Value, right: Value) -> Value:
        a, b = step.rows(left), step.rows(right)
        target = step.target(a.space, a.width)

        def each(v: Stream, row: Register, at: int, count: int) -> None:
            left_at, right_at = a.buffer.at(at, row), b.buffer.at(at, row)
            v.v_bin(operation, target.buffer.at(at, row), left_at, right_at, count)

        step.each(target, each)
        return target

    return emit


def _activation(step: _Step, value: Value) -> Value:
    source = step.rows(value)
    target = step.target(source.space, source.width)
    kind = Unary.SILU if get(step.op, "kind") == "silu" else Unary.GELU_TANH

    def each(v: Stream, row: Register, at: int, count: int) -> None:
        v.v_un(kind, target.buffer.at(at, row), source.buffer.at(at, row), count)

    step.each(target, each)
    return target


def _softcap(step: _Step, value: Value) -> Value:
    source, cap = step.rows(value), get(step.op, "cap")
    target = step.target(source.space, source.width)

    def each(v: Stream, row: Register, at: int, count: int) -> None:
        place = target.buffer.at(at, row)
        v.v_imm(Binary.MUL, place, source.buffer.at(at, row), 1 / cap, count)
        v.v_un(Unary.TANH, place, place, count)
        v.v_imm(Binary.MUL, place, place, cap, count)

    step.each(target, each)
    return target


def _quantize(step: _Step, value: Value) -> Value:
    element = TensorType.of(step.op.operation.results[0].type).element
    return quantize_rows(step.scope, step.rows(value), element, step.name)


def quantize_rows(scope: Scope, source: Rows, element: str, name: str) -> Codes | Halves:
    """Own rows as a8, bf16 or f16; where rows are shared, to all cores."""
    if element == A8:
        return _codes(scope, source, name)
    kind = Conversion.F32_F16 if element == "f16" else Conversion.F32_BF16
    return _halves(scope, source, name, kind)


def _codes(scope: Scope, source: Rows, name: str) -> Codes:
    space, k = source.space, source.width
    whole = Codes(
        space,
        scope.buffer(f"{name}.codes", space.most * k),
        scope.buffer(f"{name}.scales", space.most * k // BLOCK * _F32),
        k,
    )
    codes, scales = whole.codes, whole.scales
    if space.shared:
        codes = scope.buffer(f"{name}.own.codes", space.owned * k)
        scales = scope.buffer(f"{name}.own.scales", space.owned * whole.scale_bytes)
    for core in scope.cores:
        v = core.vector
        strides = (source.row_bytes, k, whole.scale_bytes)
        with v.stepping(scope.own(v, space), *strides) as (row, code, scale):
            for at, count in scope.group.pieces(k):
                place = source.buffer.at(_F32 * at, row)
                v.v_q8(codes.at(at, code), scales.at(at // BLOCK * _F32, scale), place, count)
    if space.shared:
        parts = [(codes, whole.codes, k), (scales, whole.scales, whole.scale_bytes)]
        rows_to_all(scope, space, parts)
    return whole


def _halves(scope: Scope, source: Rows, name: str, kind: Conversion) -> Halves:
    space, k = source.space, source.width
    whole = Halves(space, scope.buffer(f"{name}.halves", space.most * _BF16 * k), k)
    own = whole.buffer
    if space.shared:
        own = scope.buffer(f"{name}.own.halves", space.owned * _BF16 * k)
    for core in scope.cores:
        v = core.vector
        with v.stepping(scope.own(v, space), source.row_bytes, _BF16 * k) as (row, half):
            for at, count in scope.group.pieces(k):
                place = source.buffer.at(_F32 * at, row)
                v.v_cvt(kind, own.at(_BF16 * at, half), place, count)
    if space.shared:
        rows_to_all(scope, space, [(own, whole.buffer, _BF16 * k)])
    return whole


def _select_rows(step: _Step, value: Value, _: Value) -> Value:
    """The wanted rows on every core: who owns a row sends it, all others send nothing."""
    scope, source = step.scope, step.rows(value)
    space = scope.spaces["r"]
    target = step.target(space, source.width)
    first_row = ARG_FIRST_TOKEN + source.space.most
    if not source.space.shared:
        for core in scope.cores:
            v = core.vector
            with v.stepping(scope.total(v, space), target.row_bytes, 1) as (row, number):
                _copy_row(scope, v, source, target, row, number, first_row)
        return target

    def sender(core: CoreProgram, arrived: str, sent: str) -> int:
        s = core.send
        with s.registers(2) as (at, own):
            for number in range(space.most):
                s.arg(at, first_row + number)
                _emit_own(scope, s, source.space, at, own)
                s.mul(at, at, source.row_bytes)
                s.send(
                    target.buffer.at(number * target.row_bytes),
                    source.buffer.at(0, at),
                    source.row_bytes,
                    own,
                    scope.group.area.all(),
                    stride_d=target.row_bytes,
                    stride_a=source.row_bytes,
                    signal=arrived,
                    sent=sent,
                )
        return space.most

    exchange(scope, sender, space.most * len(scope.cores), [target.buffer])
    return target


def _copy_row(
    scope: Scope, v: Stream, source: Rows, target: Rows, row: Register, number: Register, first: int
) -> None:
    with v.registers(1) as (at,):
        v.arg(at, first, number)
        v.mul(at, at, source.row_bytes)
        for piece, count in scope.group.pieces(source.width):
            place = target.buffer.at(_F32 * piece, row)
            v.v_un(Unary.COPY, place, source.buffer.at(_F32 * piece, at), count)


def _emit_own(scope: Scope, s: Stream, space: RowSpace, row: Register, own: Register) -> None:
    """row = its number among the core's own rows, own = 1 if it is one of them, else 0."""
    with s.registers(1) as (behind,):
        s.mul(own, scope.first(s, space), -1)
        s.add(row, row, own)
        # min(max(row + 1, 0), 1) + min(max(rows - row, 0), 1) - 1
        s.most(own, row, 1)
        s.least(own, own, 0, 0, 1)
        s.mul(behind, row, -1)
        rows = scope.own(s, space)
        if isinstance(rows, Register):
            s.add(behind, behind, rows)
        else:
            s.add(behind, behind, imm=rows)
        s.most(behind, behind)
        s.least(behind, behind, 0, 0, 1)
        s.add(own, own, behind, imm=-1)


_EMITTERS: dict[str, Callable[..., Value]] = {
    "embed": _embed,
    "select_rows": _select_rows,
    "rms_norm": _rms_norm,
    "add": _binary(Binary.ADD),
    "mul": _binary(Binary.MUL),
    "activation": _activation,
    "softcap": _softcap,
    "quantize": _quantize,
}
