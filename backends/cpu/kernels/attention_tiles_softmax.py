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
        is_first: `i1`, whether the group has looked at no block before.
        is_last: whether it looks at none behind.
    """

    first: Value
    start: Value
    clear_start: Value
    clear_stop: Value
    stop: Value
    is_first: Value
    is_last: Value


@dataclass(frozen=True)
class LaneGroup:
    """Up to 32 lanes whose scores are computed together.

    Attributes:
        first: the first lane of the unit.
        home: where their state begins, as a lane of the scratch.
        lanes: how many there are.
        tall: tiles that hold them.
    """

    first: Value
    home: Value
    lanes: Value
    tall: int


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

    def emit(self, keys: Range, group: LaneGroup, beside: Callable[[Value], None]) -> Value:
        """Turn the scores of a group into terms, bring maxima and sums up to date.

        The maxima of all lanes come first: each is a chain of dependent steps, and many chains at
        once keep the processor busy.

        Args:
            keys: the steps that have scores.
            group: the lanes.
            beside: prefetches for a lane; nothing here waits for memory.

        Returns:
            `i1`: whether any correction may be other than 1.
        """
        b = self.b
        b.loop(0, group.lanes, body=lambda index: self._largest(keys, group, index))
        changed = b.const(0, b.i1)
        for tile in range(group.tall):
            changed = b.bit_or(changed, self._corrections(group, tile))

        def lane(index: Value) -> None:
            beside(b.add(group.first, index))
            self._terms(keys, group, index)

        b.loop(0, group.lanes, body=lane)
        return changed

    def _scores(self, index: Value) -> Value:
        """The scores of a lane of the group."""
        b = self.b
        return b.at(self.base, b.add(b.mul(index, self.shape.score_bytes), self.parts.scores))

    def _scalar(self, part: int, lane: Value) -> Value:
        """The place of a lane in a part that has one number a lane."""
        return self.b.at(self.base, self.b.add(self.b.mul(lane, F32_BYTES), part))

    def _corrections(self, group: LaneGroup, tile: int) -> Value:
        """New maxima and the corrections of 16 lanes; whether any maximum changed."""
        b, parts = self.b, self.parts
        corrections_at = b.at(self.base, parts.corrections + tile * _VECTOR_BYTES)
        maxima_at = b.at(self._scalar(parts.maxima, group.home), tile * _VECTOR_BYTES)
        before = b.load(maxima_at, self.vector, F32_BYTES)
        largest = b.load(corrections_at, self.vector, F32_BYTES)
        now = emit_maximum(b, b.round_even(largest), before)
        b.store(now, maxima_at, F32_BYTES)
        # Differences of whole numbers: 1 where they are equal, 0 below 2**-126.
        lowest = b.const(_LOWEST_EXPONENT - 1, self.vector)
        exponent = b.f_to_si(emit_maximum(b, b.fsub(before, now), lowest), b.vec(LANES, b.i32))
        bits = b.shl(b.add(exponent, int(1 - _LOWEST_EXPONENT)), 23)
        b.store(b.bitcast(bits, self.vector), corrections_at, F32_BYTES)
        grown = b.bitcast(b.fcmp("ogt", now, before), b.vec(1, b.i16))
        return b.cmp("ne", b.extract(grown, 0), 0)

    # ---- maximum ---------------------------------------------------------------------------

    def _largest(self, keys: Range, group: LaneGroup, index: Value) -> None:
        """Cap the scores, mask what the lane does not see, store the largest one.

        It goes to the place of the correction that is computed from it.
        """
        b = self.b
        scores = self._scores(index)
        position_at = self._scalar(self.parts.positions, b.add(group.first, index))
        position = b.splat(b.load(position_at, b.i32, F32_BYTES))
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
        b.store(b.extract(x, 0), self._scalar(self.parts.corrections, index), F32_BYTES)

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

    def _terms(self, keys: Range, group: LaneGroup, index: Value) -> None:
        """Overwrite the scores with bf16 terms, which take half of the room, and add them up."""
        b, parts = self.b, self.parts
        scores, lane = self._scores(index), b.add(group.home, index)
        maximum = b.splat(b.load(self._scalar(parts.maxima, lane), b.f32, F32_BYTES))
        correction = b.splat(b.load(self._scalar(parts.corrections, index), b.f32, F32_BYTES))
        weights_at = b.at(self.base, b.add(b.mul(lane, _VECTOR_BYTES), parts.weights))

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
