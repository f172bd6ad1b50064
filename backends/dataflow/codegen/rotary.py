"""Rotary kernels: norms of heads, rotations, and the call's rows of keys and values.

Where every core owns all rows it works on the heads of its own group only (see `kv_home`): no other
core needs them from it. Where rows are shared each core does all heads of its rows, and sends their
keys and values to the cores of the head's group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from infc.backends.dataflow.codegen.builder import CoreProgram
from infc.backends.dataflow.codegen.exchange import all_as_rows, as_rows
from infc.backends.dataflow.codegen.kv_home import KVHome
from infc.backends.dataflow.codegen.kv_rows import (
    Move,
    emit_flat_halves,
    emit_halves,
    emit_tail,
    own_head_bytes,
    send_rows,
)
from infc.backends.dataflow.codegen.rows import emit_gain
from infc.backends.dataflow.codegen.scope import Kernel, Scope
from infc.backends.dataflow.codegen.stream import Register, Stream
from infc.backends.dataflow.codegen.values import (
    Appended,
    Cache,
    Columns,
    RopeTable,
    Rows,
    Value,
    Weight,
)
from infc.backends.dataflow.isa import Binary, Pairing, Reduction, Unary
from infc.diagnostics import InternalError
from infc.ir.attributes import get
from infc.ir.mlir import ir
from infc.passes.walk import body

_F32, _F16 = 4, 2


def emit_rotary(kernel: Kernel, scope: Scope) -> list[Value]:
    """A `rotary` kernel."""
    arguments = kernel.function.regions[0].blocks[0].arguments
    values: dict[Any, Value] = dict(zip(arguments, kernel.operands, strict=True))
    columns = [name for name, value in values.items() if isinstance(value, Columns)]
    # Where products are under way the first one is taken as soon as it is there.
    at_once = 1 if scope.products else len(columns)
    heads = _Heads(scope, kernel)
    for number, op in enumerate(body(kernel.function)):
        name = op.operation.name.removeprefix("infc.")
        if name == "func.return":
            return [values[value] for value in op.operation.operands]
        if any(value in columns for value in op.operation.operands):
            rows = all_as_rows(scope, [values[value] for value in columns[:at_once]])
            values.update(zip(columns[:at_once], rows, strict=True))
            columns, at_once = columns[at_once:], len(columns)
        operands = [values[value] for value in op.operation.operands]
        emit = _EMITTERS[name]
        values[op.operation.results[0]] = emit(heads, op, f"{name}{number}", *operands)
    raise InternalError("a kernel has no return")


class _Heads:
    """Which heads a core works on.

    Attributes:
        home: of the cache that the kernel appends to, None where it does not.
    """

    def __init__(self, scope: Scope, kernel: Kernel) -> None:
        self.scope = scope
        caches = [value for value in kernel.operands if isinstance(value, Cache)]
        self.home = KVHome.of(caches[0].kind, len(scope.cores), scope.machine) if caches else None

    def own(self, core: CoreProgram, rows: Rows, head_dim: int) -> tuple[int, int]:
        """First head and number of heads."""
        heads = rows.width // head_dim
        if self.home is None or rows.space.shared:
            return 0, heads
        count = heads // self.home.groups
        return core.index // self.home.span * count, count

    def cores(self, rows: Rows) -> list[CoreProgram]:
        """Those that have something to do."""
        home = self.home
        if home is None or rows.space.shared:
            return list(self.scope.cores)
        return [c for c in self.scope.cores if home.stripe(c.index) < home.stripes]

    @contextmanager
    def each(
        self, core: CoreProgram, rows: Rows, head_dim: int
    ) -> Iterator[tuple[Stream, Register, Register]]:
        """The body for each head of each own row: the row's number and the head's place in rows."""
        v = core.vector
        first, count = self.own(core, rows, head_dim)
        with v.stepping(self.scope.own(v, rows.space), 1) as (row,), v.registers(1) as (at,):
            v.mul(at, row, rows.row_bytes)
            v.add(at, at, imm=_F32 * head_dim * first)
            with v.loop(count):
                yield v, row, at
                v.add(at, at, imm=_F32 * head_dim)


def _rms_norm(heads: _Heads, op: ir.OpView, name: str, value: Value, weight: Value) -> Value:
    """Row by row: the sums of all its heads, then one factor for each."""
    scope, rows = heads.scope, as_rows(heads.scope, value)
    if not isinstance(weight, Weight):
        raise InternalError("a gain is no weight")
    e = int(get(op, "head_dim"))
    factors = scope.buffer(f"{name}.factors", rows.width // e * _F32)
    result = scope.buffer(name, _F32 * rows.space.owned * rows.width)
    for core in heads.cores(rows):
        v, (first, count) = core.vector, heads.own(core, rows, e)
        gain = emit_gain(scope, core, weight, get(op, "offset"), f"{name}.gain")
        with v.stepping(scope.own(v, rows.space), rows.row_bytes) as (row,):
            for head in range(count):
                place = rows.buffer.at(_F32 * e * (first + head), row)
                v.v_red(Reduction.SUMSQ, factors.at(_F32 * head), place, e)
            v.v_imm(Binary.MUL, factors, factors, 1 / e, count)
            v.v_imm(Binary.ADD, factors, factors, get(op, "eps"), count)
            v.v_un(Unary.RSQRT, factors, factors, count)
            for head in range(count):
                at = _F32 * e * (first + head)
                target = result.at(at, row)
                factor = factors.at(_F32 * head)
                v.v_bins(Binary.MUL, target, rows.buffer.at(at, row), factor, e)
                v.v_bin(Binary.MUL, target, target, gain, e)
    return Rows(rows.space, result, rows.width)


def _rope(heads: _Heads, op: ir.OpView, name: str, value: Value, _: Value, table: Value) -> Value:
    scope, rows = heads.scope, as_rows(heads.scope, value)
    if not isinstance(table, RopeTable):
        raise InternalError("a rotary kernel has no table")
    head_dim, pairs = int(get(op, "head_dim")), table.pairs
    kind = Pairing.INTERLEAVED if get(op, "interleaved") else Pairing.HALVES
    result = scope.buffer(name, _F32 * rows.space.owned * rows.width)
    rest = head_dim - 2 * pairs
    for core in heads.cores(rows):
        with heads.each(core, rows, head_dim) as (v, row, at), v.registers(1) as (angle,):
            v.mul(angle, row, 2 * _F32 * pairs)
            place, target = rows.buffer.at(0, at), result.at(0, at)
            v.v_rope(kind, target, place, table.buffer.at(0, angle), pairs)
            if rest:
                behind = 2 * _F32 * pairs
                v.v_un(Unary.COPY, target + behind, place + behind, rest)
    return Rows(rows.space, result, rows.width)


def _kv_append(
    heads: _Heads, op: ir.OpView, name: str, cache: Value, k: Value, v: Value, *_: Value
) -> Value:
    """Keys and values as f16 rows on all cores of the head's group."""
    scope, home = heads.scope, heads.home
    keys, values = as_rows(scope, k), as_rows(scope, v)
    if not isinstance(cache, Cache) or home is None:
        raise InternalError("a rotary kernel has no cache")
    space, e = keys.space, home.kind.head_dim
    held = own_head_bytes(scope, home, space)
    rows = scope.buffer(f"{name}.rows", home.heads * held)
    # Without padding between keys and values a vector takes all heads at once.
    flat = space.shared and home.value_offset == _F16 * e
    made, made_bytes = rows, held
    if space.shared:
        made_bytes = space.owned * home.row_bytes
        made = scope.buffer(f"{name}.own", home.kind.kv_heads * made_bytes)
    for core in heads.cores(keys):
        if flat:
            emit_flat_halves(core, scope, (keys, values), made)
        else:
            own = heads.own(core, keys, e)
            emit_halves(scope, core, home, (keys, values), own, made, made_bytes)
        emit_tail(scope, core, home, space, rows, held)
    if flat:
        part, row = _F16 * keys.width, 2 * _F16 * keys.width
        moves = [Move(n * part, _F16 * e, row, n * _F16 * e, _F16 * e) for n in range(2)]
        send_rows(scope, home, space, made, rows, held, moves)
    elif space.shared:
        move = Move(0, made_bytes, home.row_bytes, 0, home.row_bytes)
        send_rows(scope, home, space, made, rows, held, [move])
    return Appended(cache, space, rows, held)


_EMITTERS: dict[str, Callable[..., Value]] = {
    "rms_norm": _rms_norm,
    "rope": _rope,
    "kv_append": _kv_append,
}
