"""Pointers, loads, stores, atomics and fences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from infc.backends.cuda.lockstep.memory import Array, Memory
from infc.backends.cuda.lockstep.numbers import function_of
from infc.backends.cuda.lockstep.reading import FunctionReader, Kind, Step
from infc.backends.cuda.lockstep.threads import LockstepError, Registers, Threads, Where, everybody
from infc.backends.cuda.lockstep.vectors import as_bytes, as_kind
from infc.ir.mlir import ir

_SHARED_SPACES = (3, 7)


def memory_of(kind: Kind) -> Callable[[Threads], Memory]:
    """The memory that a pointer of a type points into."""
    if kind.space in _SHARED_SPACES:
        return lambda t: t.block.shared
    return lambda t: t.block.machine.device.memory


def _address_of(fn: FunctionReader, op: Any, where: Where) -> None:
    """Dynamic shared memory begins at 0."""
    fn.new_constant(op.results[0], "shared memory", lambda: np.zeros(1, np.int64))


def _element_pointer(fn: FunctionReader, op: Any, where: Where) -> Step:
    slots = fn.operands(op)
    (to,) = fn.results(op)
    element = str(op.attributes["elem_type"])
    (raw,) = ir.DenseI32ArrayAttr(op.attributes["rawConstantIndices"])
    if element != "i8":
        raise LockstepError(f"expected an offset in bytes, got {element} of {where}")
    if len(slots) == 1:
        (base,) = slots
        offset = int(raw)

        def constant(r: Registers, t: Threads) -> None:
            r[to] = r[base] + offset

        return constant
    base, index = slots

    def step(r: Registers, t: Threads) -> None:
        r[to] = r[base] + r[index]

    return step


def _align(op: Any, kind: Kind) -> int:
    if "alignment" in op.attributes:
        return int(ir.IntegerAttr(op.attributes["alignment"]).value)
    return kind.dtype.itemsize


def _is_ordered(op: Any) -> bool:
    return "ordering" in op.attributes and ir.IntegerAttr(op.attributes["ordering"]).value > 0


def _load(fn: FunctionReader, op: Any, where: Where) -> Step:
    (a,) = fn.operands(op)
    memory, kind = memory_of(fn.kind(op.operands[0])), fn.kind(op.results[0])
    (to,) = fn.results(op)
    size, align = kind.size_bytes, _align(op, kind)

    def step(r: Registers, t: Threads) -> None:
        r[to] = as_kind(memory(t).load(r[a], size, align, t, where), kind)

    def ordered(r: Registers, t: Threads) -> None:
        raw = memory(t).load(r[a], size, align, t, where, ordered=True)
        t.block.meet(t)
        r[to] = as_kind(raw, kind)

    return ordered if _is_ordered(op) else step


def _store(fn: FunctionReader, op: Any, where: Where) -> Step:
    v, a = fn.operands(op)
    memory, kind = memory_of(fn.kind(op.operands[1])), fn.kind(op.operands[0])
    align, ordered = _align(op, kind), _is_ordered(op)

    def step(r: Registers, t: Threads) -> None:
        address, value = r[a], as_bytes(r[v])
        if len(address) < len(value):
            address = np.repeat(address, len(value))
        if ordered:
            t.block.meet(t)
        memory(t).store(address, value, align, t, where, ordered=ordered)
        t.machine.progress += 1

    return step


def _lane_addresses(
    address: Array, mask: Array, size: int, count: int
) -> tuple[Array, Array, Array]:
    """Threads, lanes and addresses of the lanes that are set."""
    rows, lanes = np.nonzero(np.broadcast_to(mask, (count, mask.shape[1])))
    base = np.broadcast_to(address, (count,))
    return rows, lanes, base[rows] + lanes * size


def _masked_load(fn: FunctionReader, op: Any, where: Where) -> Step:
    a, m, rest = fn.operands(op)
    memory, kind = memory_of(fn.kind(op.operands[0])), fn.kind(op.results[0])
    (to,) = fn.results(op)
    size = kind.dtype.itemsize
    align = min(_align(op, kind), size)

    def step(r: Registers, t: Threads) -> None:
        address, mask, other = r[a], r[m], r[rest]
        count = max(len(address), len(mask), len(other))
        out = np.array(np.broadcast_to(other, (count, kind.lanes)))
        rows, lanes, places = _lane_addresses(address, mask, size, count)
        if len(rows):
            raw = memory(t).load(places, size, align, t, where, rows)
            out[rows, lanes] = raw.view(kind.dtype)[:, 0]
        r[to] = out

    return step


def _masked_store(fn: FunctionReader, op: Any, where: Where) -> Step:
    v, a, m = fn.operands(op)
    memory, kind = memory_of(fn.kind(op.operands[1])), fn.kind(op.operands[0])
    size = kind.dtype.itemsize
    align = min(_align(op, kind), size)

    def step(r: Registers, t: Threads) -> None:
        value, address, mask = r[v], r[a], r[m]
        count = max(len(address), len(mask), len(value))
        rows, lanes, places = _lane_addresses(address, mask, size, count)
        if len(rows):
            values = np.broadcast_to(value, (count, kind.lanes))[rows, lanes]
            memory(t).store(places, as_bytes(values), align, t, where, rows)
        t.machine.progress += 1

    return step


_ATOMICS = {
    1: "arith.addi",
    2: "arith.subi",
    3: "arith.andi",
    5: "arith.ori",
    6: "arith.xori",
    7: "arith.maxsi",
    8: "arith.minsi",
    9: "arith.maxui",
    10: "arith.minui",
    11: "arith.addf",
    13: "arith.maxnumf",
    14: "arith.minnumf",
}
_EXCHANGE = 0


def _atomic(fn: FunctionReader, op: Any, where: Where) -> Step:
    """Threads that meet at one place take turns by their number."""
    a, v = fn.operands(op)
    memory, kind = memory_of(fn.kind(op.operands[0])), fn.kind(op.operands[1])
    (to,) = fn.results(op)
    size, number = kind.size_bytes, ir.IntegerAttr(op.attributes["bin_op"]).value
    if number == _EXCHANGE:
        function: Callable[..., Array] = lambda old, new: new  # noqa: E731
    else:
        function = function_of(_ATOMICS[number], kind)

    def step(r: Registers, t: Threads) -> None:
        space = memory(t)
        t.block.meet(t)
        address, value = everybody(r[a], t), everybody(r[v], t)
        out = np.empty_like(value)
        left = np.arange(t.count)
        while len(left):
            _, first = np.unique(address[left], return_index=True)
            turn = left[first]
            old = as_kind(space.load(address[turn], size, size, t, where, turn, ordered=True), kind)
            new = as_bytes(np.asarray(function(old, value[turn]), kind.dtype))
            space.store(address[turn], new, size, t, where, turn, ordered=True)
            out[turn] = old
            left = np.delete(left, first)
        t.machine.progress += 1
        r[to] = out

    return step


def _nothing(fn: FunctionReader, op: Any, where: Where) -> None:
    """Operations take effect in order here."""


def _fence_async(fn: FunctionReader, op: Any, where: Where) -> Step:
    return lambda r, t: t.block.races.fence(t)


READERS: dict[str, Callable[[FunctionReader, Any, Where], Step | None]] = {
    "llvm.mlir.addressof": _address_of,
    "llvm.getelementptr": _element_pointer,
    "llvm.load": _load,
    "llvm.store": _store,
    "llvm.intr.masked.load": _masked_load,
    "llvm.intr.masked.store": _masked_store,
    "llvm.atomicrmw": _atomic,
    "llvm.fence": _nothing,
    "nvvm.fence.proxy": _fence_async,
    "nvvm.fence.mbarrier.init": _nothing,
}
