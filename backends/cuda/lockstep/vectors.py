"""Lanes: `vector`, casts of bits, and the fields of structs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from infc.backends.cuda.lockstep.memory import Array
from infc.backends.cuda.lockstep.numbers import function_of
from infc.backends.cuda.lockstep.reading import FunctionReader, Kind, Step
from infc.backends.cuda.lockstep.threads import LockstepError, Registers, Threads, Where
from infc.ir.mlir import ir


def as_kind(raw: Array, kind: Kind) -> Array:
    """Bytes `[threads, bytes]` as values; they are read in place."""
    if kind.dtype == np.bool_:
        raise LockstepError("i1 has no place in memory: widen it first")
    values = raw.view(kind.dtype)
    return values if kind.lanes else values[:, 0]


def as_bytes(value: Array) -> Array:
    """Values as bytes `[threads, bytes]`."""
    return np.ascontiguousarray(value).reshape(len(value), -1).view(np.uint8)


def _bitcast(fn: FunctionReader, op: Any, where: Where) -> Step:
    (a,) = fn.operands(op)
    (to,) = fn.results(op)
    of, kind = fn.kind(op.operands[0]), fn.kind(op.results[0])
    if of.dtype.itemsize == kind.dtype.itemsize and of.lanes == kind.lanes:
        dtype = kind.dtype

        def same(r: Registers, t: Threads) -> None:
            r[to] = r[a].view(dtype)

        return same

    def step(r: Registers, t: Threads) -> None:
        r[to] = as_kind(as_bytes(r[a]), kind)

    return step


def _positions(op: Any, name: str) -> list[int]:
    return [int(i) for i in ir.DenseI64ArrayAttr(op.attributes[name])]


def _broadcast(fn: FunctionReader, op: Any, where: Where) -> Step:
    (a,) = fn.operands(op)
    (to,) = fn.results(op)
    lanes = fn.kind(op.results[0]).lanes

    def step(r: Registers, t: Threads) -> None:
        value = r[a]
        r[to] = np.repeat(value[:, None] if value.ndim == 1 else value, lanes, axis=1)

    return step


def _shuffle(fn: FunctionReader, op: Any, where: Where) -> Step:
    a, b = fn.operands(op)
    (to,) = fn.results(op)
    mask = np.array(_positions(op, "mask"))
    lanes = fn.kind(op.operands[0]).lanes
    if (mask < lanes).all():
        start, count = int(mask[0]), len(mask)
        if (mask == np.arange(start, start + count)).all():

            def part(r: Registers, t: Threads) -> None:
                r[to] = r[a][:, start : start + count]

            return part

        def one(r: Registers, t: Threads) -> None:
            r[to] = r[a].take(mask, axis=1)

        return one

    def both(r: Registers, t: Threads) -> None:
        first, second = r[a], r[b]
        if len(first) != len(second):
            count = max(len(first), len(second))
            first, second = (np.broadcast_to(v, (count, v.shape[1])) for v in (first, second))
        r[to] = np.concatenate((first, second), axis=1).take(mask, axis=1)

    return both


def _extract(fn: FunctionReader, op: Any, where: Where) -> Step:
    a, *rest = fn.operands(op)
    (to,) = fn.results(op)
    if rest:
        raise LockstepError(f"expected a constant lane at {where}")
    (lane,) = _positions(op, "static_position")

    def step(r: Registers, t: Threads) -> None:
        r[to] = r[a][:, lane]

    return step


def _insert(fn: FunctionReader, op: Any, where: Where) -> Step:
    value, vector = fn.operands(op)
    (to,) = fn.results(op)
    (lane,) = _positions(op, "static_position")

    def step(r: Registers, t: Threads) -> None:
        new, old = r[value], r[vector]
        out = np.repeat(old, len(new), axis=0) if len(old) < len(new) else old.copy()
        out[:, lane] = new
        r[to] = out

    return step


def _from_elements(fn: FunctionReader, op: Any, where: Where) -> Step:
    slots = fn.operands(op)
    (to,) = fn.results(op)
    dtype = fn.kind(op.results[0]).dtype

    def step(r: Registers, t: Threads) -> None:
        values = [r[slot] for slot in slots]
        out = np.empty((max(map(len, values)), len(slots)), dtype)
        for lane, value in enumerate(values):
            out[:, lane] = value
        r[to] = out

    return step


def _to_elements(fn: FunctionReader, op: Any, where: Where) -> Step:
    (a,) = fn.operands(op)
    slots = fn.results(op)

    def step(r: Registers, t: Threads) -> None:
        for lane, slot in enumerate(slots):
            r[slot] = r[a][:, lane]

    return step


_REDUCTIONS = {
    "add": "add{}",
    "mul": "mul{}",
    "and": "andi",
    "or": "ori",
    "xor": "xori",
    "minsi": "minsi",
    "maxsi": "maxsi",
    "minui": "minui",
    "maxui": "maxui",
    "maxnumf": "maxnumf",
    "minnumf": "minnumf",
    "maximumf": "maximumf",
    "minimumf": "minimumf",
}


def _reduce(fn: FunctionReader, op: Any, where: Where) -> Step:
    """In the order of the lanes; `arith` has the scalar of each."""
    a, *start = fn.operands(op)
    (to,) = fn.results(op)
    kind = fn.kind(op.results[0])
    word = str(op.attributes["kind"]).removeprefix("#vector.kind<").removesuffix(">")
    function = function_of("arith." + _REDUCTIONS[word].format("f" if kind.is_float else "i"), kind)

    def step(r: Registers, t: Threads) -> None:
        value = r[a]
        parts = [value[:, lane] for lane in range(value.shape[1])]
        total = r[start[0]] if start else parts.pop(0)
        for part in parts:
            total = function(total, part)
        r[to] = total

    return step


def _field(fn: FunctionReader, op: Any, where: Where) -> Step:
    (a,) = fn.operands(op)
    (to,) = fn.results(op)
    (place,) = _positions(op, "position")

    def step(r: Registers, t: Threads) -> None:
        r[to] = r[a][place]

    return step


def _same(fn: FunctionReader, op: Any, where: Where) -> Step:
    """Casts that change nothing here: pointers of all spaces are numbers."""
    (a,) = fn.operands(op)
    (to,) = fn.results(op)
    dtype = fn.kind(op.results[0]).dtype

    def step(r: Registers, t: Threads) -> None:
        r[to] = r[a].astype(dtype, copy=False)

    return step


READERS: dict[str, Callable[[FunctionReader, Any, Where], Step | None]] = {
    "arith.bitcast": _bitcast,
    "llvm.bitcast": _bitcast,
    "vector.bitcast": _bitcast,
    "vector.broadcast": _broadcast,
    "vector.shuffle": _shuffle,
    "vector.extract": _extract,
    "vector.insert": _insert,
    "vector.from_elements": _from_elements,
    "vector.to_elements": _to_elements,
    "vector.reduction": _reduce,
    "llvm.extractvalue": _field,
    "llvm.ptrtoint": _same,
    "llvm.inttoptr": _same,
    "llvm.addrspacecast": _same,
}
