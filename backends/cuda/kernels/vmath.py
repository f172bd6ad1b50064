"""Elementary functions of an f32, as straight-line code on the special function unit.

Each is within a few units in the last place (`softcap` of its cap), exact in its limits
(`exp(-inf) = 0`, `tanh(inf) = 1`), gives no NaN for a finite number, and passes a NaN on.
"""

from __future__ import annotations

from collections.abc import Callable

from infc.backends.cuda.codegen.builder import GpuBuilder, Value

_LOG2_E = 1.4426950216293335
"""An f32; what is missing of log2(e) is `_LOG2_E_REST`."""
_LOG2_E_REST = 1.9259629911266175e-08
_LN2 = 0.6931471805599453
_FAR = 128.0
"""`e ** 128` is infinite, `e ** -128` is 0."""
_TANH = (
    -5.70498872745e-3,
    2.06390887954e-2,
    -5.37397155531e-2,
    1.33314422036e-1,
    -3.33332819422e-1,
)
"""Cephes (S. Moshier, `tanhf.c`), for magnitudes below `_TANH_SMALL`."""
_TANH_SMALL = 0.625
_GELU_CUBIC = 0.044715
_GELU_SLOPE = -1.5957691216057308  # -2 * sqrt(2 / pi)


def emit_exp(b: GpuBuilder, x: Value) -> Value:
    """`e ** x`; results that are subnormal may be 0."""
    low, high = b.const(-_FAR, b.f32), b.const(_FAR, b.f32)
    x = b.select(b.fcmp("olt", x, low), low, x)  # in this order a NaN stays
    x = b.select(b.fcmp("ogt", x, high), high, x)
    # The exponent of 2 is rounded; what was rounded away is a factor close to 1.
    scale = b.const(_LOG2_E, b.f32)
    exponent = b.fmul(x, scale)
    lost = b.fma(x, scale, b.fneg(exponent))
    lost = b.fma(x, b.const(_LOG2_E_REST, b.f32), lost)
    factor = b.fma(lost, b.const(_LN2, b.f32), b.const(1.0, b.f32))
    return b.fmul(b.exp2(exponent), factor)


def emit_tanh(b: GpuBuilder, x: Value) -> Value:
    """Hyperbolic tangent."""
    square = b.fmul(x, x)
    polynomial = b.const(_TANH[0], b.f32)
    for coefficient in _TANH[1:]:
        polynomial = b.fma(polynomial, square, b.const(coefficient, b.f32))
    small = b.fma(b.fmul(polynomial, square), x, x)

    size = b.fabs(x)
    one = b.const(1.0, b.f32)
    grown = b.fadd(emit_exp(b, b.fadd(size, size)), one)
    large = b.fma(b.reciprocal(grown), b.const(-2.0, b.f32), one)
    sign = b.bit_and(b.bits(x), -(2**31))
    large = b.number(b.bit_or(b.bits(large), sign), b.f32)
    return b.select(b.fcmp("olt", size, b.const(_TANH_SMALL, b.f32)), small, large)


def emit_silu(b: GpuBuilder, x: Value) -> Value:
    """`x * sigmoid(x)`."""
    return b.fmul(x, _sigmoid_of_minus(b, b.fneg(x)))


def emit_gelu_tanh(b: GpuBuilder, x: Value) -> Value:
    """The tanh form of GELU: `x / 2 * (1 + tanh(u))`, `u = sqrt(2 / pi) * (x + 0.044715 x**3)`.

    Computed as `x / (1 + exp(-2 u))`, which is the same number without the cancellation at x < 0.
    """
    cubic = b.fma(b.fmul(x, x), b.const(_GELU_CUBIC, b.f32), b.const(1.0, b.f32))
    exponent = b.fmul(b.fmul(x, b.const(_GELU_SLOPE, b.f32)), cubic)
    return b.fmul(x, _sigmoid_of_minus(b, exponent))


def emit_softcap(b: GpuBuilder, x: Value, cap: float) -> Value:
    """`cap * tanh(x / cap)`."""
    return b.fmul(emit_tanh(b, b.fmul(x, b.const(1.0 / cap, b.f32))), b.const(cap, b.f32))


def _sigmoid_of_minus(b: GpuBuilder, x: Value) -> Value:
    """`1 / (1 + e ** x)`."""
    return b.reciprocal(b.fadd(emit_exp(b, x), b.const(1.0, b.f32)))


ACTIVATIONS: dict[str, Callable[[GpuBuilder, Value], Value]] = {
    "silu": emit_silu,
    "gelu_tanh": emit_gelu_tanh,
}
