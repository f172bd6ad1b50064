"""Arithmetic: `arith` and `math` on scalars and vectors.

f32 is rounded as IEEE says; `fma` is computed in f64, so that it is rounded twice, which differs
from once in rare ties only. bf16 is computed in f32 and rounded to the nearest, ties to even.
`exp2` and `rsqrt` are better than the approximations of the GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from infc.backends.cuda.lockstep.memory import Array
from infc.backends.cuda.lockstep.reading import FunctionReader, Kind, Step, Waits
from infc.backends.cuda.lockstep.threads import LockstepError, Registers, Threads, Where
from infc.ir.mlir import ir

Function = Callable[..., Array]


def widen(bits: Array) -> Array:
    """bf16 as f32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def round_bf16(values: Array) -> Array:
    """f32 rounded to bf16, ties to even; u16."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded: Array = ((bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16).astype(np.uint16)
    nan = np.isnan(values)
    if nan.any():
        rounded[nan] = 0x7FFF
    return rounded


def unsigned(a: Array) -> Array:
    """The same bits."""
    return a.view(f"u{a.dtype.itemsize}") if a.dtype.kind == "i" else a


def _unsigned(function: Function) -> Function:
    return lambda a, b: function(unsigned(a), unsigned(b)).view(a.dtype)


def _compare_unsigned(function: Function) -> Function:
    return lambda a, b: function(unsigned(a), unsigned(b))


def _in_f32(function: Function) -> Function:
    return lambda *values: round_bf16(function(*(widen(v) for v in values)))


def _through_f64(function: Function) -> Function:
    """For numbers that are better computed in f64 and rounded to what they are."""
    return lambda *values: function(*(v.astype(np.float64) for v in values)).astype(values[0].dtype)


def _erf(a: Array) -> Array:
    from scipy.special import erf

    return np.asarray(erf(a))


_FLOATS: dict[str, Function] = {
    "arith.addf": np.add,
    "arith.subf": np.subtract,
    "arith.mulf": np.multiply,
    "arith.divf": np.divide,
    "arith.negf": np.negative,
    "arith.maxnumf": np.fmax,
    "arith.minnumf": np.fmin,
    "arith.maximumf": np.maximum,
    "arith.minimumf": np.minimum,
    "arith.remf": np.fmod,
    "math.absf": np.abs,
    "math.sqrt": np.sqrt,
    "math.floor": np.floor,
    "math.ceil": np.ceil,
    "math.trunc": np.trunc,
    "math.roundeven": np.rint,
    "math.copysign": np.copysign,
    "math.fma": _through_f64(lambda a, b, c: a * b + c),
    "math.rsqrt": _through_f64(lambda a: 1 / np.sqrt(a)),
    "math.exp2": _through_f64(np.exp2),
    "math.exp": _through_f64(np.exp),
    "math.log": _through_f64(np.log),
    "math.log2": _through_f64(np.log2),
    "math.sin": _through_f64(np.sin),
    "math.cos": _through_f64(np.cos),
    "math.tanh": _through_f64(np.tanh),
    "math.erf": _through_f64(_erf),
    "math.powf": _through_f64(np.power),
}
_WIDE_INTEGERS: dict[str, Function] = {
    "arith.addi": np.add,
    "arith.subi": np.subtract,
    "arith.muli": np.multiply,
    "arith.divsi": lambda a, b: (np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b))).astype(
        a.dtype
    ),
    "arith.remsi": np.fmod,
    "arith.minsi": np.minimum,
    "arith.maxsi": np.maximum,
    "arith.andi": np.bitwise_and,
    "arith.ori": np.bitwise_or,
    "arith.xori": np.bitwise_xor,
    "arith.shli": np.left_shift,
    "arith.shrsi": np.right_shift,
    "arith.divui": _unsigned(np.floor_divide),
    "arith.remui": _unsigned(np.remainder),
    "arith.minui": _unsigned(np.minimum),
    "arith.maxui": _unsigned(np.maximum),
    "arith.shrui": _unsigned(np.right_shift),
    "math.absi": np.abs,
}
_BOOLS: dict[str, Function] = {
    "arith.addi": np.logical_xor,
    "arith.subi": np.logical_xor,
    "arith.muli": np.logical_and,
    "arith.andi": np.logical_and,
    "arith.ori": np.logical_or,
    "arith.xori": np.logical_xor,
}
_DIVISIONS = ("arith.divui", "arith.remui", "arith.divsi", "arith.remsi")


def function_of(name: str, kind: Kind) -> Function:
    """What an operation of `arith` or `math` does to arrays of a type."""
    if kind.is_float:
        function = _FLOATS[name]
        return _in_f32(function) if kind.bf16 else function
    return (_BOOLS if kind.dtype == np.bool_ else _WIDE_INTEGERS)[name]


def _arithmetic(fn: FunctionReader, op: Any, where: Where) -> Step:
    slots, kind = fn.operands(op), fn.kind(op.results[0])
    function = function_of(op.name, kind)
    (to,) = fn.results(op)
    if len(slots) == 1:
        (a,) = slots

        def one(r: Registers, t: Threads) -> None:
            r[to] = function(r[a])

        return one
    if len(slots) == 3:
        a, b, c = slots

        def three(r: Registers, t: Threads) -> None:
            r[to] = function(r[a], r[b], r[c])

        return three
    a, b = slots

    def two(r: Registers, t: Threads) -> None:
        r[to] = function(r[a], r[b])

    def divide(r: Registers, t: Threads) -> None:
        divisor = r[b]
        if np.count_nonzero(divisor) < divisor.size:
            t.fail(where, int(np.argmin(divisor != 0)), "divides by zero")
        r[to] = function(r[a], divisor)

    return divide if op.name in _DIVISIONS else two


_INTEGER_PREDICATES: tuple[Function, ...] = (
    np.equal,
    np.not_equal,
    np.less,
    np.less_equal,
    np.greater,
    np.greater_equal,
    _compare_unsigned(np.less),
    _compare_unsigned(np.less_equal),
    _compare_unsigned(np.greater),
    _compare_unsigned(np.greater_equal),
)


def _unordered(function: Function) -> Function:
    return lambda a, b: function(a, b) | np.isnan(a) | np.isnan(b)


_ORDERED: tuple[Function, ...] = (
    np.equal,
    np.greater,
    np.greater_equal,
    np.less,
    np.less_equal,
    lambda a, b: (a < b) | (a > b),
    lambda a, b: ~(np.isnan(a) | np.isnan(b)),
)
_UNORDERED: tuple[Function, ...] = (
    *(_unordered(function) for function in _ORDERED[:5]),
    np.not_equal,
    lambda a, b: np.isnan(a) | np.isnan(b),
)
_FLOAT_PREDICATES: tuple[Function, ...] = (
    lambda a, b: np.zeros(np.broadcast_shapes(a.shape, b.shape), bool),
    *_ORDERED,
    *_UNORDERED,
    lambda a, b: np.ones(np.broadcast_shapes(a.shape, b.shape), bool),
)


def _compare(fn: FunctionReader, op: Any, where: Where) -> Step:
    a, b = fn.operands(op)
    (to,) = fn.results(op)
    number = ir.IntegerAttr(op.attributes["predicate"]).value
    if op.name == "arith.cmpi":
        function = _INTEGER_PREDICATES[number]
    else:
        function = _FLOAT_PREDICATES[number]
        if fn.kind(op.operands[0]).bf16:
            inner = function
            function = lambda a, b: inner(widen(a), widen(b))  # noqa: E731

    def step(r: Registers, t: Threads) -> None:
        r[to] = function(r[a], r[b])

    return step


def _convert(fn: FunctionReader, op: Any, where: Where) -> Step:
    (a,) = fn.operands(op)
    (to,) = fn.results(op)
    function = _conversion(op.name, fn.kind(op.operands[0]), fn.kind(op.results[0]))

    def step(r: Registers, t: Threads) -> None:
        r[to] = function(r[a])

    return step


def _conversion(name: str, of: Kind, to: Kind) -> Function:
    dtype = to.dtype
    if name in ("arith.extf", "arith.truncf"):
        before: Function = widen if of.bf16 else lambda a: a
        if to.bf16:
            return lambda a: round_bf16(before(a))
        return lambda a: before(a).astype(dtype)
    if name in ("arith.extui", "arith.uitofp", "arith.index_castui"):
        if to.bf16:
            return lambda a: round_bf16(unsigned(a).astype(np.float32))
        return lambda a: unsigned(a).astype(dtype)
    if name == "arith.trunci" and dtype == np.bool_:
        return lambda a: (a & 1) != 0
    if name in ("arith.extsi", "arith.sitofp") and of.dtype == np.bool_:
        return lambda a: -a.astype(dtype)
    if name == "arith.sitofp" and to.bf16:
        return lambda a: round_bf16(a.astype(np.float32))
    if name in ("arith.fptosi", "arith.fptoui") and of.bf16:
        return lambda a: widen(a).astype(dtype)
    return lambda a: a.astype(dtype)


def _constant(fn: FunctionReader, op: Any, where: Where) -> None:
    (value,) = op.results
    attribute = op.attributes["value"]
    fn.new_constant(value, attribute, lambda: _held(attribute, fn.kind(value)))


def _held(attribute: Any, kind: Kind) -> Array:
    """A constant as an array, `[1]` or `[1, lanes]`."""
    values: list[Any]
    if isinstance(attribute, ir.DenseElementsAttr):
        values = [attribute.get_splat_value()] if attribute.is_splat else list(attribute)
        values = [v.value if isinstance(v, ir.Attribute) else v for v in values]
    else:
        values = [attribute.value]
    if kind.bf16:
        held = round_bf16(np.array(values, np.float32))
    elif kind.is_float or kind.dtype == np.bool_:
        held = np.array(values).astype(kind.dtype)
    else:
        bits = 8 * kind.dtype.itemsize
        wrapped = [(int(v) + (1 << (bits - 1))) % (1 << bits) - (1 << (bits - 1)) for v in values]
        held = np.array(wrapped, kind.dtype)
    if kind.lanes:
        held = np.ascontiguousarray(np.broadcast_to(held, (1, kind.lanes)))
    return held


def _select(fn: FunctionReader, op: Any, where: Where) -> Step:
    c, a, b = fn.operands(op)
    (to,) = fn.results(op)
    lanes = fn.kind(op.results[0]).lanes and not fn.kind(op.operands[0]).lanes

    def step(r: Registers, t: Threads) -> None:
        condition = r[c]
        r[to] = np.where(condition[:, None] if lanes else condition, r[a], r[b])

    return step


def _permute(selector: int) -> tuple[list[int], list[int]]:
    places = [selector >> (4 * i) & 15 for i in range(4)]
    return [place & 7 for place in places], [i for i, place in enumerate(places) if place & 8]


def _permute_bytes(fn: FunctionReader, op: Any, where: Where) -> Step:
    a, b, _ = fn.operands(op)
    (to,) = fn.results(op)
    held = fn.constant(op.operands[2])
    if held is None:
        raise LockstepError(f"expected a constant selector at {where}")
    order, signs = _permute(int(held[0]))

    def step(r: Registers, t: Threads) -> None:
        low, high = np.broadcast_arrays(r[a], r[b])
        out = np.stack((low, high), axis=1).view(np.uint8).take(order, axis=1)
        for byte in signs:
            out[:, byte] = np.where(out[:, byte] & 128, 255, 0)
        r[to] = out.view(np.int32)[:, 0]

    return step


def pure(function: Function) -> Callable[[FunctionReader, Any, Where], Step]:
    """Reads an operation whose only result is computed from its operands."""

    def reader(fn: FunctionReader, op: Any, where: Where) -> Step:
        slots = fn.operands(op)
        (to,) = fn.results(op)

        def step(r: Registers, t: Threads) -> None:
            r[to] = function(*(r[slot] for slot in slots))

        return step

    return reader


def _flushed(function: Function) -> Function:
    """Subnormal numbers, that come in or would come out, are zero (`.ftz`)."""

    def flush(a: Array) -> Array:
        return a * (np.abs(a) >= np.float32(2**-126))

    return lambda *values: flush(function(*(flush(value) for value in values)))


def _half_fma(a: Array, b: Array, c: Array) -> Array:
    return (a.astype(np.float64) * b + c).astype(np.float16)


INTRINSICS: dict[str, Callable[[FunctionReader, Any, Where], Step]] = {
    "llvm.nvvm.prmt": _permute_bytes,
    "llvm.nvvm.ex2.approx.f": pure(_FLOATS["math.exp2"]),
    "llvm.nvvm.ex2.approx.ftz.f": pure(_flushed(_FLOATS["math.exp2"])),
    "llvm.nvvm.rsqrt.approx.f": pure(_FLOATS["math.rsqrt"]),
    "llvm.nvvm.rsqrt.approx.ftz.f": pure(_flushed(_FLOATS["math.rsqrt"])),
    "llvm.nvvm.rcp.approx.ftz.f": pure(_flushed(_through_f64(lambda a: 1 / a))),
    "llvm.nvvm.lg2.approx.f": pure(_FLOATS["math.log2"]),
    "llvm.nvvm.fma.rn.f16x2": pure(_half_fma),
    "llvm.nvvm.fma.rn.bf16x2": pure(_in_f32(_FLOATS["math.fma"])),
}
_CONVERSIONS = (
    "extf",
    "truncf",
    "extui",
    "extsi",
    "trunci",
    "sitofp",
    "uitofp",
    "fptosi",
    "fptoui",
)
READERS: dict[str, Callable[[FunctionReader, Any, Where], Step | Waits | None]] = {
    **dict.fromkeys((*_FLOATS, *_WIDE_INTEGERS), _arithmetic),
    "arith.cmpi": _compare,
    "arith.cmpf": _compare,
    **{f"arith.{name}": _convert for name in _CONVERSIONS},
    "arith.constant": _constant,
    "arith.select": _select,
}
