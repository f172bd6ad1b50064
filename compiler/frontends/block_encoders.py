"""Numbers to quantised blocks, for `--quantize`: what `infc.ir.storage` decodes.

`q8_0`, `q4_0`, `q4_1`, `q5_0` and `q5_1` come from the `gguf` package. The two types with scales of
scales are made here. Each group of numbers tries a few step widths around the one that spans its
range; for the codes that a width gives, the best scale (and minimum) in the sense of least squares
has a closed form, and the width with the smallest squared error wins. Then the scales of a block
are rounded to their own small integers, and the codes are chosen anew for the rounded scales.

All sums are trees of halves over the leading axis, so the same numbers give the same bytes on every
machine, whatever the width of its vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import gguf
import numpy as np
from numpy.typing import NDArray

_F32 = NDArray[np.float32]
_U8 = NDArray[np.uint8]

_BLOCK = 256
_CHUNK_BLOCKS = 512
"""Blocks encoded at a time: the temporaries stay in the second cache or near it."""

_NUDGES_4 = (-1.2, -0.8, -0.4, 0.0, 0.4, 0.8)
"""Added to the 15 steps that span a group's range: fewer steps cover more than the range, more
steps cut its ends off and divide the rest more finely."""
_NUDGES_6 = (-1.0, 0.0, 1.0)
"""Added to the 32 steps from zero to the largest magnitude."""


def encode(storage: str, numbers: _F32) -> _U8:
    """The blocks of a matrix, one dimension of bytes.

    Args:
        storage: one of `ENCODED`.
        numbers: [n, k], finite, k a multiple of the type's block.
    """
    if storage not in _ENCODERS:
        kind = gguf.GGMLQuantizationType[storage.upper()]
        with np.errstate(over="ignore"):  # a scale beyond f16 is for the caller to refuse
            return np.ascontiguousarray(gguf.quants.quantize(numbers, kind)).reshape(-1)
    blocks = numbers.reshape(-1, _BLOCK)
    parts = [blocks[at : at + _CHUNK_BLOCKS] for at in range(0, len(blocks), _CHUNK_BLOCKS)]
    with np.errstate(all="ignore"):
        return np.concatenate([_ENCODERS[storage](part) for part in parts]).reshape(-1)


def _sum(terms: _F32) -> _F32:
    """The sum over the leading axis, whose length is a power of two."""
    while len(terms) > 1:
        half = len(terms) // 2
        terms = terms[:half] + terms[half:]
    total: _F32 = terms[0]
    return total


def _groups(blocks: _F32, size: int) -> _F32:
    """[b, 256] -> [size, b, 256 // size]: a group's numbers along the leading axis."""
    return np.ascontiguousarray(blocks.reshape(len(blocks), -1, size).transpose(2, 0, 1))


def _inverse(x: _F32) -> _F32:
    """1 / x, and 0 for 0."""
    inverse: _F32 = np.divide(np.float32(1), x, out=np.zeros_like(x), where=x != 0)
    return inverse


def _half(x: _F32) -> tuple[_U8, _F32]:
    """float16 of [b] as bytes [b, 2], and what it means."""
    narrow = x.astype("<f2")
    return narrow.view(np.uint8).reshape(-1, 2), narrow.astype(np.float32)


def _best_affine(x: _F32) -> tuple[_F32, _F32]:
    """Scale and offset of each group for codes 0 to 15: [32, b, 8] -> [b, 8] twice.

    `x ~ scale * code - offset` with both not negative, as the type wants it.
    """
    low = np.minimum(x.min(axis=0), np.float32(0))
    spread = x.max(axis=0) - low
    inverse = _inverse(spread)
    above = x - low
    total, squares = _sum(x), _sum(x * x)
    count = np.float32(len(x))
    best = np.full_like(low, np.inf)
    scale, offset = spread / np.float32(15), -low
    for nudge in _NUDGES_4:
        codes = np.rint(above * (inverse * np.float32(15 + nudge)))
        np.minimum(codes, np.float32(15), out=codes)
        q, qq, qx = _sum(codes), _sum(codes * codes), _sum(codes * x)
        determinant = count * qq - q * q
        s = (count * qx - q * total) * _inverse(determinant)
        # A group above zero has no offset: the line goes through the origin then.
        o = np.maximum((q * s - total) / count, np.float32(0))
        s = np.maximum(np.where(o > 0, s, qx * _inverse(qq)), np.float32(0))
        # sum (x - s code + o)^2, multiplied out
        error = squares + s * (s * qq - 2 * qx) + o * (count * o + 2 * total - 2 * s * q)
        better = error < best
        best = np.where(better, error, best)
        scale, offset = np.where(better, s, scale), np.where(better, o, offset)
    return scale, offset


def _encode_q4_k(blocks: _F32) -> _U8:
    """[b, 256] -> [b, 144]: d, dmin: f16, 12 bytes of 6-bit scales and minima, nibbles."""
    x = _groups(blocks, 32)  # [32, b, 8]
    scale, offset = _best_affine(x)
    out = np.empty((len(blocks), 144), np.uint8)
    steps = []
    for at, values in ((0, scale), (2, offset)):
        largest = values.max(axis=1)
        out[:, at : at + 2], unit = _half(largest / np.float32(63))
        whole = np.rint(values * _inverse(unit)[:, None])
        steps.append((np.clip(whole, 0, 63), unit[:, None]))
    (scales, d), (minima, dmin) = steps
    step, base = d * scales, dmin * minima
    codes = np.rint((x + base) * _inverse(step))
    codes = np.clip(codes, 0, 15).astype(np.uint8)  # [32, b, 8]
    s, m = scales.astype(np.uint8), minima.astype(np.uint8)
    out[:, 4:8] = s[:, :4] | (s[:, 4:] >> 4) << 6
    out[:, 8:12] = m[:, :4] | (m[:, 4:] >> 4) << 6
    out[:, 12:16] = (s[:, 4:] & 15) | (m[:, 4:] & 15) << 4
    # Groups 2i and 2i + 1 are the low and the high nibbles of the same 32 bytes.
    nibbles = codes[:, :, 0::2] | codes[:, :, 1::2] << 4  # [32, b, 4]
    out[:, 16:] = nibbles.transpose(1, 2, 0).reshape(len(blocks), 128)
    return out


def _best_scale(x: _F32) -> _F32:
    """Scale of each group for codes -32 to 31: [16, b, 16] -> [b, 16]."""
    high, low = x.max(axis=0), x.min(axis=0)
    # The side with the larger magnitude gets the code that only negative numbers have.
    extreme = np.where(high > -low, high, low)
    inverse = _inverse(extreme)
    best = np.full_like(extreme, -1)
    scale: _F32 = np.zeros_like(extreme)
    for nudge in _NUDGES_6:
        codes = np.rint(x * (inverse * np.float32(-(32 + nudge))))
        np.clip(codes, -32, 31, out=codes)
        qq, qx = _sum(codes * codes), _sum(codes * x)
        s = qx * _inverse(qq)
        # The squared error is sum x^2 - gain.
        gain = s * qx
        better = gain > best
        best, scale = np.where(better, gain, best), np.where(better, s, scale)
    return scale


def _encode_q6_k(blocks: _F32) -> _U8:
    """[b, 256] -> [b, 210]: low nibbles, high pairs, 16 int8 scales, d: f16."""
    x = _groups(blocks, 16)  # [16, b, 16]
    scale = _best_scale(x)
    high, low = scale.max(axis=1), scale.min(axis=1)
    extreme = np.where(high > -low, high, low)
    out = np.empty((len(blocks), 210), np.uint8)
    out[:, 208:210], d = _half(extreme / np.float32(-128))
    scales = np.clip(np.rint(scale * _inverse(d)[:, None]), -128, 127)
    codes = np.rint(x * _inverse(d[:, None] * scales))
    codes = (np.clip(codes, -32, 31) + np.float32(32)).astype(np.uint8)
    flat = codes.transpose(1, 2, 0).reshape(len(blocks), 2, 4, 32)  # halves, quarters, elements
    lower, upper = flat & 15, flat >> 4
    out[:, 0:128] = (lower[:, :, :2] | lower[:, :, 2:] << 4).reshape(len(blocks), 128)
    pairs = upper[:, :, 0] | upper[:, :, 1] << 2 | upper[:, :, 2] << 4 | upper[:, :, 3] << 6
    out[:, 128:192] = pairs.reshape(len(blocks), 64)
    out[:, 192:208] = scales.astype(np.int8).view(np.uint8)
    return out


_ENCODERS: Mapping[str, Callable[[_F32], _U8]] = {"q4_k": _encode_q4_k, "q6_k": _encode_q6_k}
ENCODED = ("q8_0", "q6_k", "q5_1", "q5_0", "q4_k", "q4_1", "q4_0")
"""Storage types that numbers can be converted to, the most precise first."""
