"""Functions of one float32, as sequences of float32 operations: what the vector unit's bits are.

Every operation rounds to the nearest float32, ties to even; none is contracted with another;
subnormals are kept. `exp`, `tanh`, `silu` and `gelu_tanh` are within 4 units in the last place for
every argument (`rsqrt` 2), exact in their limits, and pass a NaN on; which NaN is not defined. The
polynomials are those of Cephes (S. Moshier, `expf.c` and `tanhf.c`).
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from infc.backends.dataflow.simulator.compiled import bare_part

F32: Final[Any] = np.float32
U32: Final[Any] = np.uint32
I32: Final[Any] = np.int32

_ONE: Final = F32(1)
_TWO: Final = F32(2)
_MAGIC: Final = F32(12582912)  # 1.5 * 2**23: added to v, it leaves round(v) in the low bits
_MAGIC_BITS: Final = I32(0x4B400000)
_LOWEST: Final = F32(-120)  # e ** -120 is 0, and so it is times the largest argument of silu
_HIGHEST: Final = F32(89)  # e ** 89 is infinite
_LOG2_E: Final = F32(1.44269504088896341)
_LN2_HIGH: Final = F32(0.693359375)  # 9 bits: its product with a whole number of 8 bits is exact
_LN2_LOW: Final = F32(-2.12194440e-4)
_E0: Final = F32(1.9875691500e-4)
_E1: Final = F32(1.3981999507e-3)
_E2: Final = F32(8.3334519073e-3)
_E3: Final = F32(4.1665795894e-2)
_E4: Final = F32(1.6666665459e-1)
_E5: Final = F32(5.0000001201e-1)
_T0: Final = F32(-5.70498872745e-3)
_T1: Final = F32(2.06390887954e-2)
_T2: Final = F32(-5.37397155531e-2)
_T3: Final = F32(1.33314422036e-1)
_T4: Final = F32(-3.33332819422e-1)
_TANH_SMALL: Final = F32(0.625)

# gelu_tanh(v) = v / (1 + exp(-z)), z = 2 sqrt(2 / pi) (v + 0.044715 v**3) = S v (v v + B)
_GELU_FAR: Final = F32(12)  # z(12) = 142
_SLOPE: Final = 2 * (2 / np.pi) ** 0.5 * 0.044715
_SLOPE_HIGH: Final = F32(round(_SLOPE * 2**15) / 2**15)  # 12 bits
_SLOPE_LOW: Final = F32(_SLOPE - float(_SLOPE_HIGH))
_BASE: Final = 1 / 0.044715
_BASE_HIGH: Final = F32(_BASE)
_BASE_LOW: Final = F32(_BASE - float(_BASE_HIGH))
_TOP_BITS: Final = U32(0xFFFFF000)  # sign, exponent and 12 bits of a number


@bare_part
def bits(v: F32) -> U32:
    """The bits of a float32."""
    return F32(v).view(np.uint32)


@bare_part
def from_bits(v: U32) -> F32:
    """The float32 with these bits."""
    return U32(v).view(np.float32)


@bare_part
def _power(n: I32) -> F32:
    """2 ** n, for -126 <= n <= 127."""
    return from_bits(U32((n + I32(127)) << I32(23)))


@bare_part
def _reduced_exp(v: F32, low: F32) -> tuple[F32, F32, F32]:
    """Three factors of e ** (v + low); `low` is an error of `v`, and the last two are powers of 2.

    Cody and Waite: v = n ln2 + r, a polynomial in r, and 2 ** n in two parts, for it may be too
    large or too small for one float32.
    """
    v = _LOWEST if v < _LOWEST else v
    v = _HIGHEST if v > _HIGHEST else v
    shifted = v * _LOG2_E + _MAGIC
    n = shifted - _MAGIC
    r = (v - n * _LN2_HIGH) - n * _LN2_LOW + low
    p = ((((_E0 * r + _E1) * r + _E2) * r + _E3) * r + _E4) * r + _E5
    p = p * (r * r) + r + _ONE
    whole = I32(bits(shifted)) - _MAGIC_BITS
    half = whole >> I32(1)
    return p, _power(half), _power(whole - half)


@bare_part
def exp(v: F32) -> F32:
    """E ** v."""
    p, scale, more = _reduced_exp(v, F32(0))
    return p * scale * more


@bare_part
def tanh(v: F32) -> F32:
    """Hyperbolic tangent."""
    square = v * v
    p = (((_T0 * square + _T1) * square + _T2) * square + _T3) * square + _T4
    size = abs(v)
    small = p * square * size + size
    large = _ONE - _TWO / (exp(size + size) + _ONE)
    result = small if size < _TANH_SMALL else large
    return from_bits(bits(result) | (bits(v) & U32(0x80000000)))


@bare_part
def _sigmoid_product(v: F32, z: F32, low: F32) -> F32:
    """`v / (1 + e ** -(z + low))`, for v and z of the same sign, without overflow and loss."""
    # For v < 0 it is v e**z / (1 + e**z); the powers of 2 come last, so that the result is rounded
    # once where it is subnormal.
    sign = F32(1) if v < F32(0) else F32(-1)
    p, scale, more = _reduced_exp(sign * z, sign * low)
    below = _ONE + p * scale * more
    if v < F32(0):
        return v * p / below * scale * more
    return v / below


@bare_part
def silu(v: F32) -> F32:
    """`v * sigmoid(v)`."""
    far = _LOWEST if v < _LOWEST else v
    return _sigmoid_product(far, far, F32(0))


@bare_part
def gelu_tanh(v: F32) -> F32:
    """The tanh form of GELU.

    Its exponent is computed to about 32 bits, as an error of 1 unit in the last place of an
    exponent of 64 is one of 64 units in the result: products of parts of 12 bits are exact.
    """
    far = -_GELU_FAR if v < -_GELU_FAR else v
    x = _GELU_FAR if far > _GELU_FAR else far
    top = from_bits(bits(x) & _TOP_BITS)
    rest = x - top
    # q + q_low = x x + B: Knuth's sum of two numbers and its error
    square = top * top
    q = square + _BASE_HIGH
    added = q - square
    q_low = (square - (q - added)) + (_BASE_HIGH - added)
    q_low = q_low + (rest * (top + x) + _BASE_LOW)
    # s + s_low = S x
    s = top * _SLOPE_HIGH
    s_low = rest * _SLOPE_HIGH + x * _SLOPE_LOW
    # z + low = (s + s_low) (q + q_low): Dekker's product and its error
    z = s * q
    s_top, q_top = from_bits(bits(s) & _TOP_BITS), from_bits(bits(q) & _TOP_BITS)
    s_rest, q_rest = s - s_top, q - q_top
    low = ((s_top * q_top - z) + s_top * q_rest + s_rest * q_top) + s_rest * q_rest
    low = low + (s * q_low + s_low * (q + q_low))
    total = z + low
    return _sigmoid_product(far, total, low - (total - z))


@bare_part
def rsqrt(v: F32) -> F32:
    """The reciprocal of the square root, both rounded."""
    return _ONE / np.sqrt(v)


@bare_part
def to_bf16(v: F32) -> U32:
    """The bits of v as bf16, rounded to nearest, ties to even."""
    b = bits(v)
    rounded = (b + U32(0x7FFF) + ((b >> U32(16)) & U32(1))) >> U32(16)
    return (b >> U32(16)) | U32(0x40) if v != v else rounded


@bare_part
def from_bf16(h: U32) -> F32:
    """The number with these bits as bf16."""
    return from_bits(U32(h) << U32(16))


@bare_part
def to_f16(v: F32) -> U32:
    """The bits of v as f16, rounded to nearest, ties to even; the largest where v is beyond."""
    b = bits(v)
    size = b & U32(0x7FFFFFFF)
    # Adding 1/2, whose last place is that of the smallest f16, rounds what is subnormal there.
    small = bits(from_bits(size) + F32(0.5)) - U32(0x3F000000)
    normal = (size - U32(112 << 23) + U32(0xFFF) + ((size >> U32(13)) & U32(1))) >> U32(13)
    h = small if size < U32(0x38800000) else normal
    h = U32(0x7BFF) if size >= U32(0x477FF000) else h
    h = U32(0x7E00) if v != v else h
    return h | ((b >> U32(16)) & U32(0x8000))


@bare_part
def from_f16(h: U32) -> F32:
    """The number with these bits as f16."""
    h = U32(h)
    size = h & U32(0x7FFF)
    # The exponent's bias differs by 112; multiplying does right by subnormals.
    b = bits(from_bits(size << U32(13)) * from_bits(U32((127 + 112) << 23)))
    b = (size << U32(13)) | U32(0x7F800000) if size >= U32(0x7C00) else b
    return from_bits(b | ((h & U32(0x8000)) << U32(16)))


@bare_part
def larger(a: F32, b: F32) -> F32:
    """The larger; a NaN if either is one; `b` where they are equal."""
    return a if a > b or a != a else b


@bare_part
def smaller(a: F32, b: F32) -> F32:
    """The smaller; a NaN if either is one; `b` where they are equal."""
    return a if a < b or a != a else b
