"""Online softmax of one lane's scores of a block of keys, with terms in bf16.

Scores are in units of `log2(e)`, so that terms are powers of two. The maximum that is subtracted is
a whole number, the nearest one to the largest score: terms stay below `2 ** 0.5`, corrections are
powers of two, and most blocks need none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from infc.backends.cpu.codegen.amx import TILE_ROW_BYTES
from infc.backends.cpu.codegen.builder import LANES, Builder, Value
from infc.backends.cpu.kernels.attention_block import LOG2_E
from infc.backends.cpu.kernels.attention_tiles_shape import STEP_KEYS, TileScratch, TileShape
from infc.backends.cpu.kernels.bf16_panels import emit_rounded
from infc.backends.cpu.kernels.rows import F32_BYTES, emit_softcap

_VECTORS = STEP_KEYS // LANES
_VECTOR_BYTES = LANES * F32_BYTES
_STEP_BYTES = STEP_KEYS * F32_BYTES
_LOWEST_EXPONENT = -126.0
_ROUND_DOWN = 1
_CURRENT_ROUNDING = 4
_EXP2 = (  # 2**r for 0 <= r < 1, fitted for the smallest relative error: 1e-4
    0.07802449,
    0.22606716,
    0.69583354,
    0.9999252,
)


@dataclass(frozen=True)
class Range:
    """Steps of a block that a group of lanes looks at; in the middle part every lane sees all keys.

    Attributes:
        first: position of the block's first key.
        start, clear_start, clear_stop, stop: steps, counted from there, in this order.
    """

    first: Value
    start: Value
    clear_start: Value
    clear_stop: Value
    stop: Value


def emit_maximum(b: Builder, x: Value, y: Value) -> Value:
    """The larger of two `f32[16]`, and `y` where `x` is no number: one instruction."""
    rounding = b.const(_CURRENT_ROUNDING, b.i32)
    return b.intrinsic("llvm.x86.avx512.max.ps.512", x.type, x, y, rounding)


def emit_term(b: Builder, x: Value) -> Value:
    """`2 ** x` for `x` below 2**31 within 1e-4 of it, and 0 below `2 ** -126`.

    A NaN stays one. Beside bf16, which rounds to 2e-3, more coefficients would not show.
    """
    every, rounding = b.const(-1, b.i16), b.const(_CURRENT_ROUNDING, b.i32)
    down = b.const(_ROUND_DOWN, b.i32)
    r = b.intrinsic("llvm.x86.avx512.mask.reduce.ps.512", x.type, x, down, x, every, rounding)
    value = b.const(_EXP2[0], x.type)
    for coefficient in _EXP2[1:]:
        value = b.fma(value, r, b.const(coefficient, x.type))
    name = "llvm.x86.avx512.mask.scalef.ps.512"
    value = b.intrinsic(name, x.type, value, x, x, every, rounding)
    # Subnormal numbers would be slow, and tile products take them for 0 anyway.
    tiny = b.fcmp("olt", x, b.const(_LOWEST_EXPONENT, x.type))
    return b.select(tiny, b.const(0.0, x.type), value)


class Softmax:
    """Emits the softmax of the lanes of a group."""

    def __init__(self, b: Builder, shape: TileShape, scratch: Value) -> None:
        self.b, self.shape, self.base = b, shape, scratch
        self.parts = TileScratch.plan(shape)
        self.vector = b.vec(LANES, b.f32)

    def emit(self, keys: Range, group: Value, lanes: Value) -> Value:
        """Turn the scores of a group into terms, bring maxima and sums up to date.

        Args:
            keys: the steps that have scores.
            group: the first lane.
            lanes: lanes of the group.

        Returns:
            `i1`: whether any correction is other than 1.
        """
        b = self.b

        def lane(index: Value, changed: Value) -> Value:
            return b.bit_or(changed, self._lane(keys, b.add(group, index), index))

        return b.loop(0, lanes, 1, [b.const(0, b.i1)], body=lane)[0]

    def _lane(self, keys: Range, lane: Value, index: Value) -> Value:
        b, parts = self.b, self.parts
        scores = b.at(self.base, b.add(b.mul(index, self.shape.score_bytes), parts.scores))
        scalar = b.at(self.base, b.mul(lane, F32_BYTES))
        maximum_at = b.at(scalar, parts.maxima)
        largest = self._largest(keys, scores, b.load(b.at(scalar, parts.positions), b.i32, 4))
        before = b.load(maximum_at, b.f32, F32_BYTES)
        maximum = emit_maximum(b, b.round_even(largest), b.splat(before))
        now = b.extract(maximum, 0)
        b.store(now, maximum_at, F32_BYTES)
        correction = self._correction(before, now)
        at = b.at(self.base, b.add(b.mul(index, F32_BYTES), parts.corrections))
        b.store(correction, at, F32_BYTES)
        self._terms(keys, scores, lane, maximum, b.splat(correction))
        return b.fcmp("ogt", now, before)

    def _correction(self, before: Value, now: Value) -> Value:
        """`2 ** (before - now)` of whole numbers: 1 where they are equal, 0 below `2 ** -126`."""
        b = self.b
        exponent = b.fmax(b.fsub(before, now), b.const(_LOWEST_EXPONENT - 1, b.f32))
        biased = b.add(b.f_to_si(exponent, b.i32), int(1 - _LOWEST_EXPONENT))
        return b.bitcast(b.shl(biased, 23), b.f32)

    # ---- maximum ---------------------------------------------------------------------------

    def _largest(self, keys: Range, scores: Value, position: Value) -> Value:
        """Cap the scores and mask what the lane does not see; the largest in every element."""
        b = self.b
        position = b.splat(position)
        lowest = b.const(float("-inf"), self.vector)

        def step(is_clear: bool) -> Callable[..., list[Value]]:
            def body(index: Value, *largest: Value) -> list[Value]:
                at = b.at(scores, b.mul(index, _STEP_BYTES))
                out = []
                for i in range(_VECTORS):
                    x = b.load(b.at(at, i * _VECTOR_BYTES), self.vector, F32_BYTES)
                    x = self._capped(x)
                    if not is_clear:
                        first = b.add(keys.first, b.add(b.mul(index, STEP_KEYS), i * LANES))
                        x = b.select(self._visible(position, first), x, lowest)
                    if not is_clear or self.shape.softcap is not None:
                        b.store(x, b.at(at, i * _VECTOR_BYTES), F32_BYTES)
                    out.append(emit_maximum(b, x, largest[i]))
                return out

            return body

        largest = [lowest] * _VECTORS
        if self.shape.window is not None:
            largest = b.loop(keys.start, keys.clear_start, 1, largest, body=step(False))
        largest = b.loop(keys.clear_start, keys.clear_stop, 1, largest, body=step(True))
        largest = b.loop(keys.clear_stop, keys.stop, 1, largest, body=step(False))
        x = emit_maximum(b, *largest)
        for distance in (8, 4, 2, 1):
            other = b.shuffle(x, x, [lane ^ distance for lane in range(LANES)])
            x = emit_maximum(b, other, x)
        return x

    def _capped(self, x: Value) -> Value:
        if self.shape.softcap is None:
            return x
        b = self.b
        return b.fmul(emit_softcap(b, x, self.shape.softcap), b.const(LOG2_E, x.type))

    def _visible(self, position: Value, first: Value) -> Value:
        """Which of 16 keys from `first` on a lane at `position` sees."""
        b = self.b
        keys = b.add(b.splat(b.trunc_i(first, b.i32)), b.lanes(range(LANES), b.i32))
        distance = b.sub(position, keys)
        if self.shape.window is None:
            return b.cmp("sge", distance, 0)
        return b.cmp("ult", distance, self.shape.window)  # later positions are very far

    # ---- terms -----------------------------------------------------------------------------

    def _terms(
        self, keys: Range, scores: Value, lane: Value, maximum: Value, correction: Value
    ) -> None:
        """Overwrite the scores with bf16 terms, which take half of the room."""
        b = self.b
        weights_at = b.at(self.base, b.add(b.mul(lane, _VECTOR_BYTES), self.parts.weights))

        def step(index: Value, *totals: Value) -> list[Value]:
            at = b.at(scores, b.mul(index, _STEP_BYTES))
            terms = []
            for i in range(_VECTORS):
                x = b.load(b.at(at, i * _VECTOR_BYTES), self.vector, F32_BYTES)
                terms.append(emit_term(b, b.fsub(x, maximum)))
            to = b.at(scores, b.mul(index, TILE_ROW_BYTES))
            b.store(emit_rounded(b, *terms), to, TILE_ROW_BYTES)
            return [b.fadd(total, term) for total, term in zip(totals, terms, strict=True)]

        zero = b.const(0.0, self.vector)
        before = b.fmul(b.load(weights_at, self.vector, F32_BYTES), correction)
        totals = b.loop(keys.start, keys.stop, 1, [before, zero], body=step)
        b.store(b.fadd(*totals), weights_at, F32_BYTES)
