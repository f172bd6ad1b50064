"""Norm, rotate and store: from projected q, k and v to rotated q and an extended cache.

One item is one head of one row, done by a warp; the items of all rows are dealt to the warps of all
blocks. A lane has both numbers of each of its pairs, so that nothing crosses lanes but the sum of a
norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from infc.backends.cuda.codegen.builder import WARP, GpuBuilder, Value
from infc.backends.cuda.kernels.frame import WARPS, Emitted
from infc.backends.cuda.kernels.kv_layout import ELEMENT_BYTES, VALUE_STRIDE, KVLayer
from infc.ir.kv_storage import LIMITS

F32_BYTES = 4
_INDEX_BYTES = 4
_LARGEST = LIMITS["f32"]


@dataclass(frozen=True)
class RotarySpec:
    """What one layer class does to its projections.

    Attributes:
        heads: query heads.
        kv: the layer's cache, which also says kv heads and head_dim.
        rope_pairs: pairs of elements that are rotated; 0 for none, at most `head_dim / 2`. Elements
            from `2 * rope_pairs` on pass through.
        interleaved: pair `i` is elements `(2i, 2i + 1)`; otherwise `(i, i + rope_pairs)`.
        norm: RMS norm of each q and k head before the rotation.
        norm_eps: epsilon of that norm.
        norm_offset: added to the norm weights.
    """

    heads: int
    kv: KVLayer
    rope_pairs: int
    interleaved: bool
    norm: bool = False
    norm_eps: float = 1e-6
    norm_offset: float = 0.0


@dataclass(frozen=True)
class _Arguments:
    q: Value  # f32 [rows, heads, head_dim]
    k: Value  # f32 [rows, kv_heads, head_dim]
    v: Value  # f32 [rows, kv_heads, head_dim]
    q_out: Value  # f32 [rows, heads, head_dim]
    q_norm: Value | None  # f32 [head_dim]
    k_norm: Value | None  # f32 [head_dim]
    table: Value  # f32 [max_context, rope_pairs, 2]: cos, sin
    cache: Value  # the layer's
    positions: Value  # i32 [rows]
    row_slots: Value  # i32 [rows]


@dataclass(frozen=True)
class _Run:
    """Neighbouring elements of a head in one lane.

    Attributes:
        first: the first of them, i32.
        count: 1, 2 or 4; `first` is a multiple of it.
        there: i1: whether the lane has them; None where all lanes do. Where not, `first` is 0.
    """

    first: Value
    count: int
    there: Value | None


@dataclass(frozen=True)
class _Pairs:
    """Runs of a lane that are rotated together: one of 2n elements where pairs are interleaved,
    else two of n."""

    runs: tuple[_Run, ...]
    table: _Run  # cos and sin of the pairs: twice as many numbers as pairs


def emit_rotary(b: GpuBuilder, name: str, spec: RotarySpec) -> Emitted:
    """Define `@name(q, k, v, q_out, [q_norm, k_norm,] table, cache, positions, row_slots, rows,
    cta, ctas)`: pointers and three i32.

    Rotated queries go to `q_out`, keys and values to the cache at the places of the rows' slots
    and positions, stored as `infc.ir.kv_storage` says.
    """
    norms = 2 if spec.norm else 0
    with b.function(name, [b.ptr] * (8 + norms) + [b.i32] * 3) as (*pointers, rows, cta, ctas):
        if not spec.norm:
            pointers[4:4] = [None, None]
        head_emitter = _Heads(b, spec, _Arguments(*pointers))
        items_a_row = spec.heads + spec.kv.kv_heads

        def item(number: Value) -> None:
            row, head = b.div(number, items_a_row), b.rem(number, items_a_row)
            b.when(
                b.cmp("slt", head, spec.heads),
                lambda: head_emitter.query(row, head),
                lambda: head_emitter.append(row, b.sub(head, spec.heads)),
            )

        # Few items go to warps of different blocks.
        first = b.add(b.mul(b.warp(), ctas), cta)
        b.loop(first, b.mul(rows, items_a_row), b.mul(ctas, WARPS), body=item)
        b.ret()
    return Emitted(name)


class _Heads:
    """Emits what a warp does to one head."""

    def __init__(self, b: GpuBuilder, spec: RotarySpec, arguments: _Arguments) -> None:
        self.b = b
        self.spec = spec
        self.arguments = arguments
        self.lane = b.lane()
        self.pairs = self._deal_pairs()
        self.rest = self._deal(2 * spec.rope_pairs, spec.kv.head_dim - 2 * spec.rope_pairs)

    # ---- which elements a lane has -----------------------------------------------------------

    def _deal(self, start: int, count: int) -> list[_Run]:
        """Elements `[start, start + count)` over the lanes."""
        fits = (w for w in (4, 2) if start % w == 0 and count % (w * WARP) == 0)
        width = next(fits, 1)
        return [
            self._run(start, width, index, count) for index in range(-(-count // (width * WARP)))
        ]

    def _run(self, start: int, width: int, index: int, count: int) -> _Run:
        """The lane's run number `index` of `width` of `count` elements from `start` on."""
        b = self.b
        first = b.add(b.mul(self.lane, width), index * WARP * width)
        there = None
        if count < (index + 1) * WARP * width:
            there = b.cmp("slt", first, count)
        if start:
            first = b.add(first, start)
        return _Run(first if there is None else b.select(there, first, b.idx(0)), width, there)

    def _deal_pairs(self) -> list[_Pairs]:
        """The pairs over the lanes: two neighbours a lane where they go round, else one."""
        pairs = self.spec.rope_pairs
        width = 2 if pairs % (2 * WARP) == 0 else 1
        dealt = []
        for index in range(-(-pairs // (width * WARP))):
            table = self._run(0, 2 * width, index, 2 * pairs)
            if self.spec.interleaved:
                runs: tuple[_Run, ...] = (table,)
            else:
                runs = tuple(self._run(s, width, index, pairs) for s in (0, pairs))
            dealt.append(_Pairs(runs, table))
        return dealt

    def _all_runs(self) -> list[_Run]:
        return [*(run for pairs in self.pairs for run in pairs.runs), *self.rest]

    # ---- memory ------------------------------------------------------------------------------

    def _load(self, source: Value, run: _Run) -> list[Value]:
        """The run's numbers of f32 at `source`; zeros where the lane has none."""
        b = self.b
        pointer = b.at(source, b.wide(b.mul(run.first, F32_BYTES)))
        if run.count == 1:
            numbers = [b.load(pointer, b.f32, F32_BYTES)]
        else:
            vector = b.load(pointer, b.vec(run.count, b.f32), F32_BYTES * run.count)
            numbers = [b.extract(vector, i) for i in range(run.count)]
        if run.there is None:
            return numbers
        return [b.select(run.there, x, b.const(0.0, b.f32)) for x in numbers]

    def _where(self, run: _Run, value: Value, pointer: Value, align: int) -> None:
        b = self.b
        if run.there is None:
            b.store(value, pointer, align)
        else:
            b.when(run.there, lambda: b.store(value, pointer, align))

    def _row_of(self, source: Value, row: Value, heads: int, head: Value) -> Value:
        b = self.b
        index = b.add(b.mul(b.wide(row), heads), b.wide(head))
        return b.at(source, b.mul(index, self.spec.kv.head_dim * F32_BYTES))

    def _index(self, source: Value, row: Value) -> Value:
        b = self.b
        return b.load(b.at(source, b.wide(b.mul(row, _INDEX_BYTES))), b.i32, _INDEX_BYTES)

    # ---- a head ------------------------------------------------------------------------------

    def query(self, row: Value, head: Value) -> None:
        """Norm and rotate a query."""
        b, a, heads = self.b, self.arguments, self.spec.heads
        values = self._turned(row, self._row_of(a.q, row, heads, head), a.q_norm)
        target = self._row_of(a.q_out, row, heads, head)
        for run, numbers in zip(self._all_runs(), values, strict=True):
            value = numbers[0] if run.count == 1 else b.vector_of(numbers)
            pointer = b.at(target, b.wide(b.mul(run.first, F32_BYTES)))
            self._where(run, value, pointer, F32_BYTES * run.count)

    def append(self, row: Value, head: Value) -> None:
        """Norm and rotate a key, put it and its value into the cache."""
        b, a, kv = self.b, self.arguments, self.spec.kv
        runs = self._deal(0, kv.head_dim)
        source = self._row_of(a.v, row, kv.kv_heads, head)
        value = [self._load(source, run) for run in runs]
        key = self._turned(row, self._row_of(a.k, row, kv.kv_heads, head), a.k_norm)
        place = kv.place(b, self._index(a.positions, row))
        slot = self._index(a.row_slots, row)
        poison = self._poison([x for numbers in (*key, *value) for x in numbers])

        keys = kv.key_at(b, kv.head_keys(b, a.cache, slot, head), place)
        for run, numbers in zip(self._all_runs(), key, strict=True):
            halves = self._halves([b.fadd(self._limited(x), poison) for x in numbers])
            stored = halves[0] if run.count == 1 else b.vector_of(halves)
            pointer = b.at(keys, b.wide(b.mul(run.first, ELEMENT_BYTES)))
            self._where(run, stored, pointer, ELEMENT_BYTES * run.count)

        values = kv.value_at(b, kv.head_values(b, a.cache, slot, head), place)
        for run, numbers in zip(runs, value, strict=True):
            pointer = b.at(values, b.wide(b.mul(run.first, VALUE_STRIDE)))
            for i, half in enumerate(self._halves([self._limited(x) for x in numbers])):
                self._where(run, half, b.at(pointer, i * VALUE_STRIDE), ELEMENT_BYTES)

    def _turned(self, row: Value, source: Value, weight: Value | None) -> list[list[Value]]:
        """`rope(norm(source))`: numbers of all runs."""
        b, pairs = self.b, self.spec.rope_pairs
        values = [self._load(source, run) for run in self._all_runs()]
        gains = (
            [self._load(weight, run) for run in self._all_runs()] if weight is not None else None
        )
        position = b.wide(self._index(self.arguments.positions, row))
        table = b.at(self.arguments.table, b.mul(position, 2 * pairs * F32_BYTES))
        angles = [self._load(table, dealt.table) for dealt in self.pairs]
        if gains is not None:
            values = self._normed(values, gains)
        turned, left = [], iter(values)
        for dealt, numbers in zip(self.pairs, angles, strict=True):
            cos, sin = numbers[0::2], numbers[1::2]
            taken = [next(left) for _ in dealt.runs]
            if self.spec.interleaved:
                first, second = taken[0][0::2], taken[0][1::2]
            else:
                first, second = taken
            low, high = self._rotate(first, second, cos, sin)
            if self.spec.interleaved:
                turned.append([x for pair in zip(low, high, strict=True) for x in pair])
            else:
                turned += [low, high]
        return [*turned, *left]

    def _rotate(
        self,
        first: Sequence[Value],
        second: Sequence[Value],
        cos: Sequence[Value],
        sin: Sequence[Value],
    ) -> tuple[list[Value], list[Value]]:
        b = self.b
        low, high = [], []
        for x, y, c, s in zip(first, second, cos, sin, strict=True):
            low.append(b.fma(x, c, b.fneg(b.fmul(y, s))))
            high.append(b.fma(x, s, b.fmul(y, c)))
        return low, high

    def _normed(
        self, values: Sequence[Sequence[Value]], gains: Sequence[Sequence[Value]]
    ) -> list[list[Value]]:
        b, spec = self.b, self.spec
        total = b.const(0.0, b.f32)
        for x in (x for numbers in values for x in numbers):
            total = b.fma(x, x, total)
        total = b.warp_reduce(b.fadd, total)
        share, eps = b.const(1.0 / spec.kv.head_dim, b.f32), b.const(spec.norm_eps, b.f32)
        inverse = b.rsqrt(b.fma(total, share, eps))
        offset = b.const(spec.norm_offset, b.f32)

        def one(x: Value, gain: Value) -> Value:
            return b.fmul(b.fmul(x, inverse), b.fadd(gain, offset) if spec.norm_offset else gain)

        return [
            [one(x, g) for x, g in zip(*numbers, strict=True)]
            for numbers in zip(values, gains, strict=True)
        ]

    # ---- what the cache keeps ------------------------------------------------------------------

    def _poison(self, numbers: Sequence[Value]) -> Value:
        """0, or NaN where any lane has a number that is not finite; f32."""
        b = self.b
        finite = b.const(1, b.i1)
        for x in numbers:
            within = b.fcmp("ole", b.fabs(x), b.const(_LARGEST, b.f32))
            finite = b.bit_and(finite, within)
        all_finite = b.cmp("eq", b.ballot(finite), -1)
        return b.select(all_finite, b.const(0.0, b.f32), b.const(float("nan"), b.f32))

    def _limited(self, x: Value) -> Value:
        """`x` within the range of the cache; NaN becomes some number."""
        b = self.b
        limit = LIMITS[self.spec.kv.dtype]
        return b.fmin(b.fmax(x, b.const(-limit, b.f32)), b.const(limit, b.f32))

    def _halves(self, numbers: Sequence[Value]) -> list[Value]:
        """Numbers as the cache has them, 16 bits each."""
        b = self.b
        kind = b.f16 if self.spec.kv.dtype == "f16" else b.bf16
        return [b.trunc_f(x, kind) for x in numbers]
