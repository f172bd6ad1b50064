"""Causal attention over the cache: online softmax over blocks of keys anchored at fixed positions.

A work unit is some consecutive rows of one sequence and some query heads that share a kv head; each
pair of row and head is a *lane* of the unit. For every block of keys the unit computes scores of all
lanes, their softmax terms, then adds the weighted values: two matrix products with the block's keys
and values in the nearest cache. (Milakov and Gimelshein, "Online normalizer calculation for
softmax"; Dao et al., "FlashAttention".)

The numbers of a row do not depend on the unit it is in: every sum runs over its keys in one order,
blocks begin at absolute multiples of `key_block`, and a block in which a row sees nothing leaves its
state exactly as it was (its terms are 0 and its correction is `exp(0) = 1`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from infc.backends.cpu.codegen.builder import LANES, Builder, Value
from infc.backends.cpu.codegen.isa import Isa
from infc.backends.cpu.kernels.kv_layout import STRIP, KVLayer
from infc.backends.cpu.kernels.rows import (
    F32_BYTES,
    emit_softcap,
    for_each_vector,
    load_f32,
    store_f32,
)
from infc.backends.cpu.kernels.vmath import emit_exp

_VECTOR_BYTES = LANES * F32_BYTES
_MASKED = -1e30
"""Score of an invisible key, and the maximum before any key: large, but finite, so that differences
of two of them are 0 rather than NaN."""


@dataclass(frozen=True)
class AttentionSpec:
    """The attention of one layer class.

    Attributes:
        heads: query heads, a multiple of the kv heads.
        kv: the layer's cache, which also says kv heads, head_dim and capacity.
        window: a row sees this many positions, itself included; `None` for all.
        scale: factor of the scores.
        softcap: `c` of `c * tanh(score / c)`, or `None`.
        max_rows: rows in one call, at most.
    """

    heads: int
    kv: KVLayer
    window: int | None
    scale: float
    softcap: float | None
    max_rows: int

    @property
    def group(self) -> int:
        """Query heads that share a kv head."""
        return self.heads // self.kv.kv_heads

    @property
    def padded_dim(self) -> int:
        """`head_dim`, rounded up to whole vectors."""
        return -(-self.kv.head_dim // LANES) * LANES


@dataclass(frozen=True)
class AttentionMapping:
    """How the work is cut.

    Attributes:
        row_tile: lanes (rows times query heads) of a unit; it does not change the result.
        key_block: keys of a block, a multiple of 16; it is part of the order of summation.
    """

    row_tile: int
    key_block: int


def candidates(spec: AttentionSpec, isa: Isa) -> list[AttentionMapping]:
    """Mappings worth considering, the default first."""
    largest = _panel_sizes(isa, spec.max_rows * spec.group)[0]
    tiles = [2 * largest, largest, 4 * largest] if spec.max_rows > 1 else [spec.group]
    return [
        AttentionMapping(max(tile, spec.group), key_block)
        for key_block in (64, 128)
        for tile in tiles
    ]


def attention_scratch_bytes(spec: AttentionSpec, mapping: AttentionMapping) -> int:
    """Bytes of scratch of one thread, aligned to 64 bytes."""
    return _Scratch.plan(spec, mapping).total


def _accumulators(isa: Isa) -> int:
    """16-lane sums that fit the registers beside the operands: three quarters of them."""
    return isa.vector_registers * isa.vector_bytes // _VECTOR_BYTES * 3 // 4


def _panel_sizes(isa: Isa, lanes: int) -> list[int]:
    """Lanes computed together, largest first; 1 is among them, so any number can be made up."""
    largest = _accumulators(isa) // 2 if _accumulators(isa) >= 24 else _accumulators(isa)
    sizes = [size for size in (largest, 4, 2, 1) if size <= min(largest, lanes)]
    return sorted(set(sizes), reverse=True)


def _columns(isa: Isa, panel: int, available: int) -> int:
    """Vectors beside `panel` lanes that fit the registers, a divisor of those there are."""
    limit = max(1, _accumulators(isa) // panel)
    return max(c for c in range(1, min(limit, available) + 1) if available % c == 0)


@dataclass(frozen=True)
class _Scratch:
    """Byte offsets in a thread's scratch, and the bytes of a lane in each part."""

    queries: int  # f32 [lane, padded_dim]: scaled
    sums: int  # f32 [lane, padded_dim]: weighted values so far
    scores: int  # f32 [lane, key_block]: scores, then softmax terms
    maxima: int  # f32 [lane, 16]: largest score so far, in every element
    weights: int  # f32 [lane, 16]: terms so far, their sum still to be taken over the elements
    corrections: int  # f32 [lane, 16]: exp(old maximum - new maximum), in every element
    positions: int  # i32 [lane, 16]: the row's position, in every element
    total: int
    dim_bytes: int
    score_bytes: int

    @classmethod
    def plan(cls, spec: AttentionSpec, mapping: AttentionMapping) -> _Scratch:
        lanes = max(mapping.row_tile, spec.group)
        dim_bytes, score_bytes = spec.padded_dim * F32_BYTES, mapping.key_block * F32_BYTES
        offsets = [0]
        for size in (dim_bytes, dim_bytes, score_bytes, *[_VECTOR_BYTES] * 4):
            offsets.append(offsets[-1] + lanes * size)
        return cls(*offsets, dim_bytes, score_bytes)


@dataclass(frozen=True)
class _Arguments:
    q: Value  # f32 [m, heads, head_dim]
    kv: Value  # the layer's cache, slot 0 first
    out: Value  # f32 [m, heads, head_dim]
    positions: Value  # i32 [m]
    row_slots: Value  # i32 [m]
    m: Value
    thread: Value
    threads: Value
    scratch: Value


@dataclass(frozen=True)
class _Unit:
    """Rows `start <= row < end` times `heads` query heads from `first_head` on."""

    start: Value
    end: Value
    first_head: Value
    heads: Value
    lanes: Value
    keys: Value  # the kv head's keys
    lowest: Value  # first visible position of any row
    highest: Value  # last one


@dataclass(frozen=True)
class _Block:
    first_strip: Value  # absolute position of the block's first key, over 16
    strips: Value  # strips with a visible key
    keys: Value  # visible keys, counted from the first of the block


def emit_attention(
    b: Builder, name: str, spec: AttentionSpec, mapping: AttentionMapping
) -> None:
    """Define `@name(q, kv, out, positions, row_slots: ptr, m, thread, threads: i64, scratch: ptr)`.

    Row `r` at `positions[r]` of `row_slots[r]` attends to itself and what is before it, as far as
    the window goes; its key must have been appended. `q` and `out` are f32 `[m, heads, head_dim]`,
    `kv` is the layer's cache, `scratch` the calling thread's own.
    """
    if mapping.key_block % STRIP:
        raise ValueError(f"key_block {mapping.key_block} is not a multiple of {STRIP}")
    arguments = [*[b.ptr] * 5, *[b.i64] * 3, b.ptr]
    with b.function(name, arguments) as values:
        _Attention(b, spec, mapping, _Arguments(*values)).emit()
        b.ret()


class _Attention:
    """Emits one attention function."""

    def __init__(
        self, b: Builder, spec: AttentionSpec, mapping: AttentionMapping, a: _Arguments
    ) -> None:
        self.b, self.spec, self.mapping, self.a = b, spec, mapping, a
        self.scratch = _Scratch.plan(spec, mapping)
        self.vector = b.vec(LANES, b.f32)
        lanes = min(max(mapping.row_tile, spec.group), spec.max_rows * spec.group)
        self.panels = _panel_sizes(b.isa, lanes)

    # ---- which work is whose ---------------------------------------------------------------

    def emit(self) -> None:
        """Count the tiles, then run the units that fall to this thread.

        Units are dealt back and forth (0 1 1 0 0 1 ...), because later rows see more keys.
        """
        b, a = self.b, self.a
        tiles = self._each_tile(lambda _tile, _start, _end: None)
        splits = self._head_splits(b.mul(tiles, self.spec.kv.kv_heads))
        units_a_tile = b.mul(splits, self.spec.kv.kv_heads)
        round_trip = b.mul(a.threads, 2)

        def tile_units(tile: Value, start: Value, end: Value) -> None:
            def unit(u: Value) -> None:
                turn = b.rem(b.add(b.mul(tile, units_a_tile), u), round_trip)
                backward = b.sub(b.sub(round_trip, 1), turn)
                owner = b.min(turn, backward)
                b.when(b.cmp("eq", owner, a.thread), lambda: self._run(start, end, u, splits))

            b.loop(0, units_a_tile, body=unit)

        self._each_tile(tile_units)

    def _each_tile(self, body: Callable[[Value, Value, Value], None]) -> Value:
        """Run `body(tile, start, end)` for runs of rows of one slot; returns how many there are."""
        b, a = self.b, self.a
        most = max(1, self.mapping.row_tile // self.spec.group)

        def slot(row: Value) -> Value:
            return b.load(b.at(a.row_slots, b.mul(row, 4)), b.i32, 4)

        def tile(start: Value, index: Value) -> list[Value]:
            limit = b.min(b.add(start, most), a.m)
            first = slot(start)

            def same(end: Value) -> Value:
                inside = b.cmp("slt", end, limit)
                # Past the limit there may be no row: look at the first one instead.
                return b.bit_and(inside, b.cmp("eq", slot(b.select(inside, end, start)), first))

            (end,) = b.loop_while([b.add(start, 1)], same, lambda end: [b.add(end, 1)])
            body(index, start, end)
            return [end, b.add(index, 1)]

        zero = b.idx(0)
        return b.loop_while([zero, zero], lambda start, _: b.cmp("slt", start, a.m), tile)[1]

    def _head_splits(self, shared_units: Value) -> Value:
        """Parts the heads of a group are cut into, so that few rows still feed all threads."""
        b = self.b
        if self.spec.group == 1:
            return b.idx(1)
        wanted = b.div(b.add(self.a.threads, b.sub(shared_units, 1)), b.max(shared_units, 1))
        return b.min(b.max(wanted, 1), self.spec.group)

    def _run(self, start: Value, end: Value, u: Value, splits: Value) -> None:
        b, a, spec = self.b, self.a, self.spec
        kv_head, split = b.div(u, splits), b.rem(u, splits)
        heads_a_split = b.div(b.add(b.sub(splits, 1), spec.group), splits)
        first = b.mul(split, heads_a_split)
        heads = b.max(b.sub(b.min(b.add(first, heads_a_split), spec.group), first), 0)
        slot = b.as_i64(b.load(b.at(a.row_slots, b.mul(start, 4)), b.i32, 4))
        region = b.mul(slot, spec.kv.slot_stride)

        def extend(row: Value, low: Value, high: Value) -> list[Value]:
            position = self._position(row)
            oldest = 0 if spec.window is None else b.sub(position, spec.window - 1)
            return [b.min(low, oldest), b.max(high, position)]

        own = self._position(start)
        lowest, highest = b.loop(start, end, 1, [own, own], body=extend)
        unit = _Unit(
            start=start,
            end=end,
            first_head=b.add(b.mul(kv_head, spec.group), first),
            heads=heads,
            lanes=b.mul(b.sub(end, start), heads),
            keys=b.at(a.kv, b.add(region, b.mul(kv_head, spec.kv.head_bytes))),
            lowest=b.max(lowest, 0),
            highest=highest,
        )
        b.when(b.cmp("sgt", heads, 0), lambda: self._unit(unit))

    def _position(self, row: Value) -> Value:
        b = self.b
        return b.as_i64(b.load(b.at(self.a.positions, b.mul(row, 4)), b.i32, 4))

    # ---- one unit --------------------------------------------------------------------------

    def _unit(self, unit: _Unit) -> None:
        b, keys_a_block = self.b, self.mapping.key_block
        self._each_lane(unit, self._begin)

        def block(index: Value) -> None:
            first = b.mul(index, keys_a_block)
            keys = b.min(b.sub(b.add(unit.highest, 1), first), keys_a_block)
            current = _Block(b.div(first, STRIP), b.ceil_div(keys, STRIP), keys)
            self._panels(unit, lambda size: self._scores(unit, current, size))
            b.loop(0, unit.lanes, body=lambda lane: self._softmax(current, lane))
            self._panels(unit, lambda size: self._weigh(unit, current, size))

        last = b.div(unit.highest, keys_a_block)
        b.loop(b.div(unit.lowest, keys_a_block), b.add(last, 1), body=block)
        self._each_lane(unit, self._finish)

    def _each_lane(self, unit: _Unit, body: Callable[[Value, Value, Value], None]) -> None:
        """Run `body(lane, row, offset)`, `offset` being the head's place in `q` and `out`."""
        b, spec = self.b, self.spec

        def row_lanes(row: Value) -> None:
            def one(head: Value) -> None:
                lane = b.add(b.mul(b.sub(row, unit.start), unit.heads), head)
                index = b.add(b.mul(row, spec.heads), b.add(unit.first_head, head))
                body(lane, row, b.mul(index, spec.kv.head_dim * F32_BYTES))

            b.loop(0, unit.heads, body=one)

        b.loop(unit.start, unit.end, body=row_lanes)

    def _panels(self, unit: _Unit, body: Callable[[int, Value, Value], None]) -> None:
        """Cut the lanes into panels, largest first: `body(size, start, stop)` for those of a size.

        The body opens its loops over keys or elements outside the loop over the panels, so that
        what the panels share is read from the nearest cache.
        """
        b = self.b
        done = b.idx(0)
        for size in self.panels:
            stop = b.add(done, b.mul(b.div(b.sub(unit.lanes, done), size), size))
            self._when_any(done, stop, size, body)
            done = stop

    def _when_any(
        self, start: Value, stop: Value, size: int, body: Callable[[int, Value, Value], None]
    ) -> None:
        self.b.when(self.b.cmp("slt", start, stop), lambda: body(size, start, stop))

    def _part(self, part: int, lane: Value, lane_bytes: int) -> Value:
        """The place of a lane in a part of the scratch."""
        return self.b.at(self.a.scratch, self.b.add(self.b.mul(lane, lane_bytes), part))

    def _begin(self, lane: Value, row: Value, offset: Value) -> None:
        """Scale the query and clear the lane's state."""
        b, s = self.b, self.scratch
        query, sums = (self._part(p, lane, s.dim_bytes) for p in (s.queries, s.sums))
        scale, zero = b.const(self.spec.scale, self.vector), b.const(0.0, self.vector)
        source = b.at(self.a.q, offset)

        def copy(at: Value, lanes: int) -> None:
            store_f32(b, b.fmul(load_f32(b, source, at, lanes), scale), query, at)
            store_f32(b, zero, sums, at)

        for_each_vector(b, self.spec.kv.head_dim, copy)
        lowest = b.const(_MASKED, self.vector)
        store_f32(b, lowest, self._part(s.maxima, lane, _VECTOR_BYTES), 0)
        store_f32(b, zero, self._part(s.weights, lane, _VECTOR_BYTES), 0)
        position = b.splat(b.trunc_i(self._position(row), b.i32))
        b.store(position, self._part(s.positions, lane, _VECTOR_BYTES), F32_BYTES)

    def _finish(self, lane: Value, _row: Value, offset: Value) -> None:
        """Divide by the sum of the terms and write the lane's output."""
        b, s = self.b, self.scratch
        total = b.reduce("add", load_f32(b, self._part(s.weights, lane, _VECTOR_BYTES), 0))
        inverse = b.splat(b.fdiv(b.const(1.0, b.f32), total))
        sums, out = self._part(s.sums, lane, s.dim_bytes), b.at(self.a.out, offset)

        def divide(at: Value, lanes: int) -> None:
            store_f32(b, b.fmul(load_f32(b, sums, at), inverse), out, at, lanes)

        for_each_vector(b, self.spec.kv.head_dim, divide)

    # ---- one block of keys -----------------------------------------------------------------

    def _cached(self, pointer: Value) -> Value:
        """Sixteen elements of the cache as f32."""
        b, kv = self.b, self.spec.kv
        if kv.dtype == "f32":
            return b.load(pointer, self.vector, kv.element_bytes)
        return b.ext_f(b.load(pointer, b.vec(LANES, b.f16), kv.element_bytes), self.vector)

    def _strip(self, unit: _Unit, block: _Block, strip: Value) -> Value:
        """The keys of a strip of the block; its values are `v_offset` further on."""
        b, kv = self.b, self.spec.kv
        place = b.rem(b.add(block.first_strip, strip), kv.strips)
        return b.at(unit.keys, b.mul(place, kv.strip_bytes))

    def _scores(self, unit: _Unit, block: _Block, size: int, start: Value, stop: Value) -> None:
        """`scores[lane, key] = sum(query[lane, d] * key[d, key])`, summed over d in order."""
        b, s = self.b, self.scratch
        columns = _columns(b.isa, size, self.mapping.key_block // STRIP)

        def strips(strip: Value) -> None:
            keys = [self._strip(unit, block, b.add(strip, c)) for c in range(columns)]

            def panel(lane: Value) -> None:
                query = self._part(s.queries, lane, s.dim_bytes)

                def step(d: Value, *sums: Value) -> list[Value]:
                    at = b.mul(d, STRIP * self.spec.kv.element_bytes)
                    loaded = [self._cached(b.at(k, at)) for k in keys]
                    return self._multiply(b.at(query, b.mul(d, F32_BYTES)), s.dim_bytes, size,
                                          loaded, sums)

                zeros = [b.const(0.0, self.vector)] * (size * columns)
                sums = b.loop(0, self.spec.kv.head_dim, 1, zeros, body=step)
                first = b.at(
                    self._part(s.scores, lane, s.score_bytes), b.mul(strip, _VECTOR_BYTES)
                )
                for i, value in enumerate(sums):
                    r, c = divmod(i, columns)
                    store_f32(b, value, first, r * s.score_bytes + c * _VECTOR_BYTES)

            b.loop(start, stop, size, body=panel)

        b.loop(0, block.strips, columns, body=strips)

    def _multiply(
        self, left: Value, left_stride: int, size: int, right: list[Value], sums: tuple[Value, ...]
    ) -> list[Value]:
        """One step of a product: `sums[r][c] += left[r] * right[c]`, `left` a column of scalars."""
        b = self.b
        out = []
        for r in range(size):
            scalar = b.splat(b.load(b.at(left, r * left_stride), b.f32, F32_BYTES))
            row = sums[r * len(right) : (r + 1) * len(right)]
            out += [b.fma(scalar, x, total) for x, total in zip(right, row, strict=True)]
        return out

    def _softmax(self, block: _Block, lane: Value) -> None:
        """Turn a lane's scores into terms and bring its maximum and its sum up to date."""
        b, s = self.b, self.scratch
        scores = self._part(s.scores, lane, s.score_bytes)
        position = b.load(
            self._part(s.positions, lane, _VECTOR_BYTES), b.vec(LANES, b.i32), F32_BYTES
        )
        iota = b.lanes(range(LANES), b.i32)
        masked, zero = b.const(_MASKED, self.vector), b.const(0.0, self.vector)

        def mask(strip: Value, largest: Value) -> Value:
            at = b.mul(strip, _VECTOR_BYTES)
            x = load_f32(b, scores, at)
            if self.spec.softcap is not None:
                x = emit_softcap(b, x, self.spec.softcap)
            first = b.mul(b.add(block.first_strip, strip), STRIP)
            distance = b.sub(position, b.add(b.splat(b.trunc_i(first, b.i32)), iota))
            if self.spec.window is None:
                visible = b.cmp("sge", distance, 0)
            else:  # unsigned: later positions are very far
                visible = b.cmp("ult", distance, self.spec.window)
            x = b.select(visible, x, masked)
            store_f32(b, x, scores, at)
            return b.fmax(largest, x)

        (largest,) = b.loop(0, block.strips, 1, [masked], body=mask)
        maximum_at = self._part(s.maxima, lane, _VECTOR_BYTES)
        before = load_f32(b, maximum_at, 0)
        maximum = b.fmax(before, b.splat(b.reduce("maxnumf", largest)))
        correction = emit_exp(b, b.fsub(before, maximum))
        store_f32(b, maximum, maximum_at, 0)
        store_f32(b, correction, self._part(s.corrections, lane, _VECTOR_BYTES), 0)

        def term(strip: Value, total: Value) -> Value:
            at = b.mul(strip, _VECTOR_BYTES)
            x = load_f32(b, scores, at)
            # Where all is masked so far the maximum is the mask too, and exp would give 1.
            seen = b.fcmp("ogt", x, masked)
            value = b.select(seen, emit_exp(b, b.fsub(x, maximum)), zero)
            store_f32(b, value, scores, at)
            return b.fadd(total, value)

        weights_at = self._part(s.weights, lane, _VECTOR_BYTES)
        total = b.fmul(load_f32(b, weights_at, 0), correction)
        (total,) = b.loop(0, block.strips, 1, [total], body=term)
        store_f32(b, total, weights_at, 0)

    def _weigh(self, unit: _Unit, block: _Block, size: int, start: Value, stop: Value) -> None:
        """`sums[lane, d] = sums[lane, d] * correction + sum(term[lane, key] * value[key, d])`."""
        b = self.b
        vectors = self.spec.padded_dim // LANES
        columns = min(vectors, _accumulators(b.isa) // size)
        whole = vectors // columns * columns

        def elements(first: Value | int, count: int) -> None:
            def panel(lane: Value) -> None:
                self._weigh_panel(unit, block, lane, first, size, count)

            b.loop(start, stop, size, body=panel)

        b.loop(0, whole, columns, body=lambda first: elements(first, columns))
        if whole < vectors:
            elements(whole, vectors - whole)

    def _weigh_panel(
        self, unit: _Unit, block: _Block, lane: Value, first: Value | int, size: int, count: int
    ) -> None:
        """The part of `_weigh` of `size` lanes and of `count` vectors from `first` on."""
        b, s, kv = self.b, self.scratch, self.spec.kv
        row_bytes = kv.head_dim * kv.element_bytes
        first = b.as_i64(first)
        sums_at = b.at(self._part(s.sums, lane, s.dim_bytes), b.mul(first, _VECTOR_BYTES))
        corrections = self._part(s.corrections, lane, _VECTOR_BYTES)
        terms = self._part(s.scores, lane, s.score_bytes)
        sums = []
        for r in range(size):
            correction = load_f32(b, corrections, r * _VECTOR_BYTES)
            for c in range(count):
                before = load_f32(b, sums_at, r * s.dim_bytes + c * _VECTOR_BYTES)
                sums.append(b.fmul(before, correction))

        def strip(index: Value, *sums: Value) -> list[Value]:
            values = b.at(
                self._strip(unit, block, index),
                b.add(b.mul(first, LANES * kv.element_bytes), kv.v_offset),
            )
            terms_at = b.at(terms, b.mul(index, _VECTOR_BYTES))

            def key(j: Value, *sums: Value) -> list[Value]:
                row = b.at(values, b.mul(j, row_bytes))
                loaded = [
                    self._cached(b.at(row, c * LANES * kv.element_bytes)) for c in range(count)
                ]
                left = b.at(terms_at, b.mul(j, F32_BYTES))
                return self._multiply(left, s.score_bytes, size, loaded, sums)

            # No key beyond the last visible one is touched: there may be none yet.
            keys = b.min(b.sub(block.keys, b.mul(index, STRIP)), STRIP)
            return b.loop(0, keys, 1, list(sums), body=key)

        out = b.loop(0, block.strips, 1, sums, body=strip)
        for i, value in enumerate(out):
            r, c = divmod(i, count)
            store_f32(b, value, sums_at, r * s.dim_bytes + c * _VECTOR_BYTES)
