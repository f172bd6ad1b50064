"""One block of keys of an attention unit: scores, softmax terms, weighted values.

Lanes are computed in panels of a few, whose sums fit the registers. Panels of the widest size read
keys and values from a staged copy in f32, made once a block; smaller ones read the cache itself,
which is faster for few lanes. Either way every sum runs in the same order over the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import zip_longest

from infc.backends.cpu.codegen.builder import LANES, Builder, Value
from infc.backends.cpu.kernels.attention_operands import LINE_BYTES, Block, KeyStrip, Operands
from infc.backends.cpu.kernels.attention_shape import (
    VECTOR_BYTES,
    Scratch,
    Shape,
    accumulators,
    panel_sizes,
    stages,
    widest_panel,
)
from infc.backends.cpu.kernels.kv_elements import emit_load_group, group_bytes
from infc.backends.cpu.kernels.kv_layout import STRIP
from infc.backends.cpu.kernels.rows import F32_BYTES, emit_softcap, load_f32, store_f32
from infc.backends.cpu.kernels.vmath import ROUNDING_MAGIC, ROUNDING_MAGIC_BITS

MASKED = -1e30
"""Score of an invisible key, and the maximum before any key: large, but finite, so that differences
of two of them are 0 rather than NaN."""

_PREFETCH_LOCALITY = 2
"""Prefetched a block ahead, which is more than the nearest cache holds."""

LOG2_E = 1.4426950408889634
_LOWEST_EXPONENT = -126.0
_EXP2 = (  # (2**r - 1) / r for |r| <= 1/2, fitted for the smallest relative error: 2e-9
    1.5353361959569156e-4,
    1.3398875016719103e-3,
    9.61843691766262e-3,
    5.5503323674201965e-2,
    2.4022647738456726e-1,
    6.931471824645996e-1,
)


def emit_exp2(b: Builder, x: Value) -> Value:
    """`2 ** x` for `x <= 0`, within 1 unit in the last place; exactly 1 for 0; at least 2**-126."""
    x = b.fmax(x, b.const(_LOWEST_EXPONENT, x.type))
    magic = b.const(ROUNDING_MAGIC, x.type)
    shifted = b.fadd(x, magic)
    r = b.fsub(x, b.fsub(shifted, magic))
    value = b.const(_EXP2[0], x.type)
    for coefficient in _EXP2[1:]:
        value = b.fma(value, r, b.const(coefficient, x.type))
    value = b.fma(value, r, b.const(1.0, x.type))
    ints = b.vec(LANES, b.i32)
    exponent = b.sub(b.bitcast(shifted, ints), ROUNDING_MAGIC_BITS)
    return b.bitcast(b.add(b.bitcast(value, ints), b.shl(exponent, 23)), x.type)


class BlockEmitter:
    """Emits the work on one block of keys."""

    def __init__(self, b: Builder, shape: Shape, scratch: Value) -> None:
        self.b, self.shape, self.base = b, shape, scratch
        self.parts = Scratch.plan(shape)
        self.operands = Operands(b, shape, scratch)
        self.vector = b.vec(LANES, b.f32)
        self.widest = widest_panel(b.isa)

    def emit(self, block: Block) -> None:
        """Add a block of keys to the state of all lanes."""
        b = self.b
        if stages(b.isa, self.shape.lanes):
            b.when(b.cmp("sge", block.lanes, self.widest), lambda: self.operands.stage(block))
        self._panels(block, partial(self._scores, block))
        b.loop(0, block.lanes, body=lambda lane: self._softmax(block, lane))
        self._panels(block, partial(self._weigh, block))

    def part(self, part: int, lane: Value, lane_bytes: int = VECTOR_BYTES) -> Value:
        """The place of a lane in a part of the scratch."""
        return self.b.at(self.base, self.b.add(self.b.mul(lane, lane_bytes), part))

    def _reads_staged(self, size: int) -> bool:
        return size == self.widest

    def _prefetches(self, size: int) -> bool:
        """Whether panels ask for a block's values while they read its keys, and for the next keys.

        Few lanes wait for memory. It gains a third with f16; f32 saturates the memory without.
        """
        return not self._reads_staged(size) and self.shape.kv.dtype != "f32"

    # ---- panels ----------------------------------------------------------------------------

    def _panels(self, block: Block, body: Callable[[int, Value, Value], None]) -> None:
        """Cut the lanes into panels, largest first: `body(size, start, stop)` for those of a size.

        The body opens its loops over keys or elements outside the loop over the panels, so that
        what the panels share is read from the nearest cache.
        """
        b = self.b
        done = b.idx(0)
        for size in panel_sizes(b.isa, self.shape.lanes):
            stop = b.add(done, b.mul(b.div(b.sub(block.lanes, done), size), size))
            b.when(b.cmp("slt", done, stop), partial(body, size, done, stop))
            done = stop

    def _multiply(
        self,
        sums: Sequence[Value],
        left: Value,
        lane_bytes: int,
        taken: int,
        right: Sequence[Callable[[], Sequence[Value]]],
    ) -> list[Value]:
        """`sums[r][c] += left[r][i] * right[c]()[i]` for all `i < taken`, in their order.

        Column by column, so that few operands wait in registers: with all columns loaded first,
        sums of panels of one and two lanes were kept on the stack where registers are few.

        Args:
            sums: of the first lane, by column, then of the next one.
            left: where the first lane's scalars are; the next one's are `lane_bytes` further on.
            right: by column, what loads its vectors.
        """
        b, out, columns = self.b, list(sums), len(right)
        scalars: dict[tuple[int, int], Value] = {}
        for c, load in enumerate(right):
            for i, vector in enumerate(load()[:taken]):
                for r in range(len(out) // columns):
                    if c == 0:
                        at = b.at(left, r * lane_bytes + i * F32_BYTES)
                        scalars[i, r] = b.splat(b.load(at, b.f32, F32_BYTES))
                    place = r * columns + c
                    out[place] = b.fma(scalars[i, r], vector, out[place])
        return out

    # ---- scores ----------------------------------------------------------------------------

    def _scores(self, block: Block, size: int, start: Value, stop: Value) -> None:
        """`scores[lane, key] = sum(query[lane, d] * key[d, key])`, summed over d in order."""
        b = self.b
        available = self.shape.key_block // STRIP
        limit = max(1, accumulators(b.isa) // size)
        columns = max(c for c in range(1, min(limit, available) + 1) if available % c == 0)

        def strips(strip: Value) -> None:
            staged = self._reads_staged(size)
            keys = [
                self.operands.key_strip(block, b.add(strip, c), staged=staged)
                for c in range(columns)
            ]
            b.loop(start, stop, size, body=partial(self._score_panel, size, strip, keys))

        b.loop(0, block.strips, columns, body=strips)

    def _score_panel(self, size: int, strip: Value, keys: list[KeyStrip], lane: Value) -> None:
        b, shape, kv = self.b, self.shape, self.shape.kv
        query = self.part(self.parts.queries, lane, shape.dim_bytes)
        prefetches = self._prefetches(size)
        pack = 1 if keys[0].staged else kv.pack
        elements = self._elements_a_line() if prefetches else pack

        def step(d: Value, scales: Sequence[Value], *sums: Value) -> Sequence[Value]:
            if prefetches:
                ahead = b.add(b.mul(d, STRIP * kv.element_bytes), kv.v_offset)
                for key in keys:
                    b.prefetch(b.at(key.at, ahead), _PREFETCH_LOCALITY)
            left = b.at(query, b.mul(d, F32_BYTES))
            out: Sequence[Value] = sums
            for first in range(0, elements, pack):
                rights = [
                    partial(self.operands.load_key, key, d, first, scale)
                    for key, scale in zip_longest(keys, scales)
                ]
                at = b.at(left, first * F32_BYTES)
                out = self._multiply(out, at, shape.dim_bytes, pack, rights)
            return out

        zeros = [b.const(0.0, self.vector)] * (size * len(keys))
        sums = self.operands.each_element(keys, elements, zeros, step)
        scores = self.part(self.parts.scores, lane, shape.score_bytes)
        first = b.at(scores, b.mul(strip, VECTOR_BYTES))
        for i, value in enumerate(sums):
            r, c = divmod(i, len(keys))
            store_f32(b, value, first, r * shape.score_bytes + c * VECTOR_BYTES)

    def _elements_a_line(self) -> int:
        """Elements of a strip's keys in a line of the cache, or a divisor of that."""
        kv = self.shape.kv
        in_line = LINE_BYTES // (STRIP * kv.element_bytes)
        return max(kv.pack, in_line if kv.head_dim % in_line == 0 else kv.pack)

    # ---- softmax ---------------------------------------------------------------------------

    def _softmax(self, block: Block, lane: Value) -> None:
        """Turn a lane's scores into terms and bring its maximum and its sum up to date.

        Scores are in units of `log2(e)`, so that terms are powers of two.
        """
        b, parts = self.b, self.parts
        scores = self.part(parts.scores, lane, self.shape.score_bytes)
        masked, zero = b.const(MASKED, self.vector), b.const(0.0, self.vector)
        largest = self._mask_scores(block, lane, scores)
        maximum_at = self.part(parts.maxima, lane)
        before = load_f32(b, maximum_at, 0)
        maximum = b.fmax(before, b.splat(b.reduce("maxnumf", largest)))
        correction = emit_exp2(b, b.fsub(before, maximum))
        store_f32(b, maximum, maximum_at, 0)
        store_f32(b, correction, self.part(parts.corrections, lane), 0)

        def term(strip: Value, total: Value) -> Value:
            at = b.mul(strip, VECTOR_BYTES)
            x = load_f32(b, scores, at)
            # Where all is masked so far the maximum is the mask too, and the power would be 1.
            seen = b.fcmp("ogt", x, masked)
            # A score that is NaN stays NaN.
            value = b.select(seen, emit_exp2(b, b.fsub(x, maximum)), b.fmul(x, zero))
            scales = self.operands.value_scales(block, strip)
            weight = value
            if scales is not None:  # an unseen position's may be anything
                weight = b.select(seen, b.fmul(value, scales), value)
            store_f32(b, weight, scores, at)
            return b.fadd(total, value)

        weights_at = self.part(parts.weights, lane)
        total = b.fmul(load_f32(b, weights_at, 0), correction)
        (total,) = b.loop(0, block.strips, 1, [total], body=term)
        store_f32(b, total, weights_at, 0)

    def _mask_scores(self, block: Block, lane: Value, scores: Value) -> Value:
        """Cap the scores, mask what the lane does not see; the largest of each vector element."""
        b, shape = self.b, self.shape
        position = b.load(self.part(self.parts.positions, lane), b.vec(LANES, b.i32), F32_BYTES)
        iota = b.lanes(range(LANES), b.i32)
        masked = b.const(MASKED, self.vector)

        def mask(strip: Value, largest: Value) -> Value:
            at = b.mul(strip, VECTOR_BYTES)
            x = load_f32(b, scores, at)
            if shape.softcap is not None:
                capped = b.fmul(emit_softcap(b, x, shape.softcap), b.const(LOG2_E, self.vector))
                x = b.select(b.fcmp("oeq", x, x), capped, x)  # NaN stays NaN
            first = b.mul(b.add(block.first_strip, strip), STRIP)
            distance = b.sub(position, b.add(b.splat(b.trunc_i(first, b.i32)), iota))
            if shape.window is None:
                visible = b.cmp("sge", distance, 0)
            else:  # unsigned: later positions are very far
                visible = b.cmp("ult", distance, shape.window)
            x = b.select(visible, x, masked)
            store_f32(b, x, scores, at)
            return b.fmax(largest, x)

        return b.loop(0, block.strips, 1, [masked], body=mask)[0]

    # ---- weighted values -------------------------------------------------------------------

    def _weigh(self, block: Block, size: int, start: Value, stop: Value) -> None:
        """`sums[lane, d] = sums[lane, d] * correction + sum(term[lane, key] * value[key, d])`."""
        b, vectors = self.b, self.shape.vectors
        passes = -(-vectors // max(1, accumulators(b.isa) // size))
        columns = -(-vectors // passes)  # passes of much the same width
        whole = vectors // columns * columns

        def elements(count: int, first: Value) -> None:
            panel = partial(self._weigh_panel, block, size, count, first)
            b.loop(start, stop, size, body=panel)

        b.loop(0, whole, columns, body=partial(elements, columns))
        if whole < vectors:
            elements(vectors - whole, b.idx(whole))

    def _weigh_panel(self, block: Block, size: int, count: int, first: Value, lane: Value) -> None:
        """The part of `_weigh` of `size` lanes and of `count` vectors from `first` on."""
        b, shape, parts = self.b, self.shape, self.parts
        sums_at = b.at(self.part(parts.sums, lane, shape.dim_bytes), b.mul(first, VECTOR_BYTES))
        terms = self.part(parts.scores, lane, shape.score_bytes)
        sums = []
        for r in range(size):
            correction = load_f32(b, self.part(parts.corrections, lane), r * VECTOR_BYTES)
            for c in range(count):
                before = load_f32(b, sums_at, r * shape.dim_bytes + c * VECTOR_BYTES)
                sums.append(b.fmul(before, correction))
        if self._reads_staged(size):
            sums = self._add_staged(block, count, first, terms, sums)
        else:
            sums = self._add_cached(block, size, count, first, terms, sums)
        for i, value in enumerate(sums):
            r, c = divmod(i, count)
            store_f32(b, value, sums_at, r * shape.dim_bytes + c * VECTOR_BYTES)

    def _load_staged(self, at: Value) -> list[Value]:
        return [self.operands.load_f32(at)]

    def _add_staged(
        self, block: Block, count: int, first: Value, terms: Value, sums: list[Value]
    ) -> list[Value]:
        b, stride = self.b, self.shape.staged_stride
        values = b.at(self.base, b.add(b.mul(first, stride), self.parts.staged_values))

        def key(j: Value, *sums: Value) -> list[Value]:
            row = b.at(values, b.mul(j, VECTOR_BYTES))
            rights = [partial(self._load_staged, b.at(row, c * stride)) for c in range(count)]
            left = b.at(terms, b.mul(j, F32_BYTES))
            return self._multiply(sums, left, self.shape.score_bytes, 1, rights)

        return b.loop(0, block.visible, 1, sums, body=key)

    def _add_cached(
        self, block: Block, size: int, count: int, first: Value, terms: Value, sums: list[Value]
    ) -> list[Value]:
        b, kv = self.b, self.shape.kv
        vector_bytes, row_bytes = group_bytes(kv), kv.head_dim * kv.element_bytes

        def strip(index: Value, *sums: Value) -> list[Value]:
            offset = b.mul(first, vector_bytes)
            values = b.at(self.operands.cached_strip(block, index), b.add(offset, kv.v_offset))
            terms_at = b.at(terms, b.mul(index, VECTOR_BYTES))
            next_strip = self.operands.cached_strip(block, b.add(index, block.ahead))
            ahead = b.at(next_strip, offset)

            def positions(taken: int, j: Value, *sums: Value) -> list[Value]:
                at = b.mul(j, row_bytes)
                if self._prefetches(size):
                    for line in range(0, count * vector_bytes, LINE_BYTES):
                        b.prefetch(b.at(ahead, b.add(at, line)), _PREFETCH_LOCALITY)
                row = b.at(values, at)
                left = b.at(terms_at, b.mul(j, F32_BYTES))
                rights = [
                    partial(emit_load_group, b, kv, b.at(row, c * vector_bytes))
                    for c in range(count)
                ]
                return self._multiply(sums, left, self.shape.score_bytes, taken, rights)

            # No key beyond the last visible one is multiplied: there may be none yet.
            keys = b.min(b.sub(block.visible, b.mul(index, STRIP)), STRIP)
            pairs = b.sub(keys, b.rem(keys, kv.pack))
            out = b.loop(0, pairs, kv.pack, sums, body=partial(positions, kv.pack))
            if kv.pack == 1:
                return out
            return b.when(
                b.cmp("slt", pairs, keys),
                lambda: positions(1, pairs, *out),
                lambda: out,
                [self.vector] * len(out),
            )

        return b.loop(0, block.strips, 1, sums, body=strip)
