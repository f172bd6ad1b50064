"""What follows a product element by element, on columns: each core does its own, for all rows."""

from __future__ import annotations

from collections.abc import Sequence

from infc.backends.dataflow.codegen.builder import CoreProgram
from infc.backends.dataflow.codegen.exchange import exchange
from infc.backends.dataflow.codegen.memory import Buffer
from infc.backends.dataflow.codegen.scope import Scope
from infc.backends.dataflow.codegen.values import Codes, Columns, Halves, RowSpace, Value, Weight
from infc.backends.dataflow.isa import BLOCK, Binary, Conversion, Unary
from infc.diagnostics import InternalError
from infc.ir.types import A8


def _own(scope: Scope, value: Value) -> Columns:
    if not isinstance(value, Columns):
        raise InternalError(f"expected columns, got {type(value).__name__}")
    scope.await_products(value.buffer)
    return value


def _pieces(scope: Scope, core: CoreProgram, columns: Columns) -> Sequence[tuple[int, int]]:
    first, stop = columns.slices[core.index]
    return scope.group.pieces(stop - first)


def scale_columns(scope: Scope, columns: Columns, weight: Value) -> None:
    """The factor of a matrix whose scales were brought into range, in place."""
    for core in scope.cores:
        factor = scope.factor_of(core, weight) if isinstance(weight, Weight) else None
        if factor is None:
            return
        scope.await_products(columns.buffer)
        v = core.vector
        with v.stepping(scope.total(v, columns.space), columns.row_bytes) as (row,):
            for at, count in _pieces(scope, core, columns):
                place = columns.buffer.at(4 * at, row)
                v.v_bins(Binary.MUL, place, place, factor, count)


def add_bias(scope: Scope, columns: Columns, bias: Value) -> None:
    """The bias of each column, in place."""
    if not isinstance(bias, Weight):
        raise InternalError("a bias is no weight")
    scope.await_products(columns.buffer)
    for core in scope.cores:
        first, v = columns.slices[core.index][0], core.vector
        numbers = scope.vector(core, bias) + 4 * first
        with v.stepping(scope.total(v, columns.space), columns.row_bytes) as (row,):
            for at, count in _pieces(scope, core, columns):
                place = columns.buffer.at(4 * at, row)
                v.v_bin(Binary.ADD, place, place, numbers + 4 * at, count)


def apply_each(scope: Scope, value: Value, kind: Unary) -> Columns:
    """A function of each element, in place."""
    columns = _own(scope, value)
    for core in scope.cores:
        v = core.vector
        with v.stepping(scope.total(v, columns.space), columns.row_bytes) as (row,):
            for at, count in _pieces(scope, core, columns):
                place = columns.buffer.at(4 * at, row)
                v.v_un(kind, place, place, count)
    return columns


def softcap_columns(scope: Scope, value: Value, cap: float) -> Columns:
    """`cap * tanh(x / cap)`, in place."""
    columns = _own(scope, value)
    for core in scope.cores:
        v = core.vector
        with v.stepping(scope.total(v, columns.space), columns.row_bytes) as (row,):
            for at, count in _pieces(scope, core, columns):
                place = columns.buffer.at(4 * at, row)
                v.v_imm(Binary.MUL, place, place, 1.0 / cap, count)
                v.v_un(Unary.TANH, place, place, count)
                v.v_imm(Binary.MUL, place, place, cap, count)
    return columns


def multiply_each(scope: Scope, value: Value, other: Value) -> Columns:
    """Element by element, in place of the first."""
    columns, right = _own(scope, value), _own(scope, other)
    for core in scope.cores:
        v = core.vector
        with v.stepping(scope.total(v, columns.space), columns.row_bytes) as (row,):
            for at, count in _pieces(scope, core, columns):
                place = columns.buffer.at(4 * at, row)
                v.v_bin(Binary.MUL, place, place, right.buffer.at(4 * at, row), count)
    return columns


def quantize_columns(scope: Scope, value: Value, form: str) -> Value:
    """Columns as a8, bf16 or f16, all of them on every core."""
    columns = _own(scope, value)
    space, k = columns.space, columns.width
    if form == A8:
        return _columns_to_codes(scope, columns, space, k)
    kind = Conversion.F32_F16 if form == "f16" else Conversion.F32_BF16
    own = scope.buffer("halves.own", space.most * columns.row_bytes // 2)
    whole = scope.buffer("halves", space.most * 2 * k)
    for core in scope.cores:
        v = core.vector
        strides = (columns.row_bytes, columns.row_bytes // 2)
        with v.stepping(scope.total(v, space), *strides) as (row, half):
            for at, count in _pieces(scope, core, columns):
                source = columns.buffer.at(4 * at, row)
                v.v_cvt(kind, own.at(2 * at, half), source, count)
    _gather(scope, columns, [(own, whole, 2.0)])
    return Halves(space, whole, k)


def _columns_to_codes(scope: Scope, columns: Columns, space: RowSpace, k: int) -> Codes:
    """Each core quantises its columns, whole blocks of 32, and sends them to all."""
    own_codes = scope.buffer("codes.own", space.most * columns.row_bytes // 4)
    own_scales = scope.buffer("scales.own", space.most * columns.row_bytes // BLOCK)
    codes = scope.buffer("codes", space.most * k)
    scales = scope.buffer("scales", space.most * k // 8)
    for core in scope.cores:
        v = core.vector
        strides = (columns.row_bytes, columns.row_bytes // 4, columns.row_bytes // BLOCK)
        with v.stepping(scope.total(v, space), *strides) as (row, code, scale):
            for at, count in _pieces(scope, core, columns):
                source = columns.buffer.at(4 * at, row)
                v.v_q8(own_codes.at(at, code), own_scales.at(at // 8, scale), source, count)
    _gather(scope, columns, [(own_codes, codes, 1.0), (own_scales, scales, 1 / 8)])
    return Codes(space, codes, scales, k)


def _gather(scope: Scope, columns: Columns, parts: Sequence[tuple[Buffer, Buffer, float]]) -> None:
    """Every core's columns to all cores; parts are own columns, all columns, bytes a column."""

    def sender(core: CoreProgram, arrived: str, sent: str) -> int:
        first, stop = columns.slices[core.index]
        for own, whole, size in parts:
            core.send.send(
                whole.at(int(first * size)), own, int((stop - first) * size),
                scope.total(core.send, columns.space), scope.group.area.all(),
                stride_d=int(columns.width * size), stride_a=int(columns.row_bytes // 4 * size),
                signal=arrived, sent=sent,
            )  # fmt: skip
        return len(parts)

    exchange(scope, sender, len(parts) * len(scope.cores), [whole for _, whole, _ in parts])
