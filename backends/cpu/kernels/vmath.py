"""Elementary functions on `f32` values or vectors, as straight-line code: no calls, no branches.

Each is exact in its limits (`exp(-inf) = 0`, `tanh(inf) = 1`), gives no NaN for a finite input, and
passes a NaN on. The polynomials are those of Cephes (S. Moshier, `expf.c` and `tanhf.c`).
"""

from __future__ import annotations

from collections.abc import Sequence

from infc.backends.cpu.codegen.builder import Builder, Value
from infc.ir.mlir import ir

ROUNDING_MAGIC = 12582912.0
"""1.5 * 2**23: adding it to `v` leaves `round_to_even(v)` in the low bits, for `|v| < 2**22`."""
ROUNDING_MAGIC_BITS = 0x4B400000

_LOG2_E = 1.44269504088896341
_LN2_HIGH = 0.693359375
_LN2_LOW = -2.12194440e-4
_EXP = (
    1.9875691500e-4,
    1.3981999507e-3,
    8.3334519073e-3,
    4.1665795894e-2,
    1.6666665459e-1,
    5.0000001201e-1,
)
_EXP_LOWEST, _EXP_HIGHEST = -86.9, 89.0  # below: 0, for subnormals cost 100 cycles each; above: inf
_TANH = (
    -5.70498872745e-3,
    2.06390887954e-2,
    -5.37397155531e-2,
    1.33314422036e-1,
    -3.33332819422e-1,
)
_TANH_SMALL = 0.625
_EXP2_SHORT = (  # 2**r for 0 <= r < 1, fitted for the smallest relative error: 7.5e-5
    0.07802452147006989,
    0.22606715559959412,
    0.6958335638046265,
    0.9999251961708069,
)
_DROP_WHOLE = 1  # immediate of vreduceps: what is left of rounding down to a whole number
_GELU_CUBIC = 0.044715
_GELU_SLOPE = -1.5957691216057308  # -2 * sqrt(2 / pi)


def int_type_like(b: Builder, v: Value) -> ir.Type:
    """`i32`, or a vector of it with as many lanes as `v`."""
    return b.vec(ir.VectorType(v.type).shape[0], b.i32) if _is_vector(v) else b.i32


def _is_vector(v: Value) -> bool:
    return isinstance(v.type, ir.VectorType)


def _polynomial(b: Builder, v: Value, coefficients: Sequence[float]) -> Value:
    """Horner's rule; the highest power comes first."""
    result = b.const(coefficients[0], v.type)
    for coefficient in coefficients[1:]:
        result = b.fma(result, v, b.const(coefficient, v.type))
    return result


def emit_exp(b: Builder, v: Value) -> Value:
    """`e ** v`, within 2 units in the last place; 0 below `e ** -86.9` (1.8e-38).

    Cody and Waite: `v = n ln2 + r`, a polynomial in `r`, times `2 ** n`.
    """
    zero, low, high = (b.const(c, v.type) for c in (0.0, _EXP_LOWEST, _EXP_HIGHEST))
    vanishes = b.fcmp("olt", v, low)
    v = b.select(b.fcmp("ogt", low, v), low, v)  # in this order a NaN stays
    v = b.select(b.fcmp("olt", high, v), high, v)
    magic = b.const(ROUNDING_MAGIC, v.type)
    shifted = b.fma(v, b.const(_LOG2_E, v.type), magic)
    n = b.fsub(shifted, magic)
    r = b.fma(n, b.const(-_LN2_HIGH, v.type), v)
    r = b.fma(n, b.const(-_LN2_LOW, v.type), r)
    # Twice the power and half of 2 ** n: n is 128 at most, and 2 ** 128 is no f32.
    value = b.fma(_polynomial(b, r, _EXP), b.fmul(r, r), r)
    two = b.const(2.0, v.type)
    value = b.fma(value, two, two)
    exponent = b.sub(b.bitcast(shifted, int_type_like(b, v)), ROUNDING_MAGIC_BITS - 126)
    value = b.fmul(value, b.bitcast(b.shl(exponent, 23), v.type))
    return b.select(vanishes, zero, value)


def emit_tanh(b: Builder, v: Value) -> Value:
    """Hyperbolic tangent, within 2 units in the last place."""
    square = b.fmul(v, v)
    small = b.fma(b.fmul(_polynomial(b, square, _TANH), square), v, v)

    ints = int_type_like(b, v)
    sign = b.bit_and(b.bitcast(v, ints), -(2**31))
    size = b.fabs(v)
    one = b.const(1.0, v.type)
    grown = b.fadd(emit_exp(b, b.fadd(size, size)), one)
    large = b.fsub(one, b.fdiv(b.const(2.0, v.type), grown))
    large = b.bitcast(b.bit_or(b.bitcast(large, ints), sign), v.type)
    return b.select(b.fcmp("olt", size, b.const(_TANH_SMALL, v.type)), small, large)


def emit_silu(b: Builder, v: Value) -> Value:
    """`v * sigmoid(v)`."""
    return b.fdiv(v, b.fadd(emit_exp(b, b.fneg(v)), b.const(1.0, v.type)))


def emit_gelu_tanh(b: Builder, v: Value) -> Value:
    """The tanh form of GELU: `v / 2 * (1 + tanh(u))`, `u = sqrt(2 / pi) * (v + 0.044715 v**3)`.

    Computed as `v / (1 + exp(-2 u))`, which is the same number without the cancellation at v < 0.
    """
    one = b.const(1.0, v.type)
    cubic = b.fma(b.fmul(v, v), b.const(_GELU_CUBIC, v.type), one)
    exponent = b.fmul(b.fmul(v, b.const(_GELU_SLOPE, v.type)), cubic)
    return b.fdiv(v, b.fadd(emit_exp(b, exponent), one))


def emit_silu_short(b: Builder, v: Value) -> Value:
    """`v * sigmoid(v)` for results that are rounded to bf16; see `_emit_sigmoid_short`."""
    return b.fmul(v, _emit_sigmoid_short(b, b.fmul(v, b.const(-_LOG2_E, v.type))))


def emit_gelu_tanh_short(b: Builder, v: Value) -> Value:
    """The tanh form of GELU for results that are rounded to bf16; see `_emit_sigmoid_short`."""
    slope = _GELU_SLOPE * _LOG2_E
    factor = b.fma(b.fmul(v, v), b.const(slope * _GELU_CUBIC, v.type), b.const(slope, v.type))
    return b.fmul(v, _emit_sigmoid_short(b, b.fmul(v, factor)))


def _emit_sigmoid_short(b: Builder, v: Value) -> Value:
    """`1 / (1 + 2 ** v)` of a `vector<16xf32>` within 2**-13 of its value; AVX-512 only.

    A bf16 is within 2**-9 of what it stands for. A third of the instructions of the exact form,
    and no division; limits are exact, a NaN is passed on.
    """
    everywhere = b.const(-1, b.i16)
    here = b.const(4, b.i32)  # the current rounding, exceptions as they are
    fraction = b.intrinsic(
        "llvm.x86.avx512.mask.reduce.ps.512",
        v.type,
        *(v, b.const(_DROP_WHOLE, b.i32), v, everywhere, here),
    )
    power = b.intrinsic(
        "llvm.x86.avx512.mask.scalef.ps.512",
        v.type,
        *(_polynomial(b, fraction, _EXP2_SHORT), v, v, everywhere, here),
    )
    grown = b.fadd(power, b.const(1.0, v.type))
    return b.intrinsic("llvm.x86.avx512.rcp14.ps.512", v.type, grown, grown, everywhere)
