"""Store one head's key and value at a position of the cache (see `infc.ir.kv_storage`)."""

from __future__ import annotations

from dataclasses import dataclass

from infc.backends.cpu.codegen.builder import LANES, Builder, Value
from infc.backends.cpu.kernels.kv_elements import emit_round_bf16, group_bytes
from infc.backends.cpu.kernels.kv_layout import STRIP, KVLayer
from infc.backends.cpu.kernels.rows import F32_BYTES, for_each_vector, load_f32
from infc.ir.kv_storage import (
    KV_KEY_GROUP,
    LARGEST_CODE,
    LIMITS,
    SCALE_BYTES,
    SMALLEST_MAGNITUDE,
)


def emit_append(
    b: Builder, kv: KVLayer, key: Value, value: Value, region: Value, head: Value, position: Value
) -> None:
    """Store f32 `key` and `value` `[head_dim]` of a kv head at `position % capacity`.

    Args:
        region: the slot's region of the layer.
    """
    _Append(b, kv, region, head, b.rem(position, kv.capacity)).emit(key, value)


@dataclass(frozen=True)
class _Append:
    b: Builder
    kv: KVLayer
    region: Value
    head: Value
    place: Value

    def emit(self, key: Value, value: Value) -> None:
        b, kv = self.b, self.kv
        strip, lane = b.div(self.place, STRIP), b.rem(self.place, STRIP)
        first = b.add(b.mul(self.head, kv.head_bytes), b.mul(strip, kv.strip_bytes))
        keys = b.at(b.at(self.region, first), b.mul(lane, kv.pack * kv.element_bytes))
        pair, half = b.div(self.place, kv.pack), b.rem(self.place, kv.pack)
        row = b.add(b.mul(pair, kv.head_dim * kv.pack), half)
        first = b.add(b.mul(self.head, kv.head_bytes), b.mul(row, kv.element_bytes))
        values = b.at(b.at(self.region, kv.v_offset), first)
        poison = self.poison(key, value)
        if kv.scaled:
            scale = self.key_scale_at(strip, lane)
            self.quantized_key(key, keys, scale, poison)
            self.quantized_value(value, values)
            return

        def store(at: Value, lanes: int) -> None:
            element = b.div(at, F32_BYTES)
            k = b.fadd(self.limited(key, at, lanes), b.splat(poison))
            self.store_key(k, b.at(keys, b.mul(element, STRIP * kv.element_bytes)), lanes)
            v = self.limited(value, at, lanes)
            self.store_value(v, b.at(values, b.mul(element, kv.pack * kv.element_bytes)), lanes)

        for_each_vector(b, kv.head_dim, store)

    # ---- numbers ---------------------------------------------------------------------------

    def poison(self, key: Value, value: Value) -> Value:
        """0, or NaN where the key or the value is not finite; a scalar f32."""
        b, kv = self.b, self.kv
        vector = b.vec(LANES, b.f32)
        zero = b.const(0.0, vector)
        sums = zero

        def nothing(at: Value, lanes: int, total: Value) -> Value:
            # 0 times infinity is NaN.
            total = b.fma(load_f32(b, key, at, lanes), zero, total)
            return b.fma(load_f32(b, value, at, lanes), zero, total)

        whole = kv.head_dim // LANES * LANES * F32_BYTES
        (sums,) = b.loop(
            0,
            whole,
            LANES * F32_BYTES,
            [sums],
            body=lambda at, total: nothing(at, LANES, total),
        )
        if kv.head_dim % LANES:
            sums = nothing(b.idx(whole), kv.head_dim % LANES, sums)
        total = b.reduce("add", sums)
        # Always the same NaN: rounding counts on zeros in its lower half.
        nan = b.const(float("nan"), b.f32)
        return b.select(b.fcmp("oeq", total, total), b.const(0.0, b.f32), nan)

    def limited(self, row: Value, at: Value, lanes: int = LANES) -> Value:
        """A vector of a row without what is beyond the range; NaN becomes some number."""
        b = self.b
        x = load_f32(b, row, at, lanes)
        limit = LIMITS[self.kv.dtype]
        return b.fmin(b.fmax(x, b.const(-limit, x.type)), b.const(limit, x.type))

    # ---- floats ----------------------------------------------------------------------------

    def store_key(self, x: Value, to: Value, lanes: int) -> None:
        """Scatter consecutive elements of a key: one position is one lane of many vectors."""
        b, kv = self.b, self.kv
        if kv.dtype == "bf16":
            bits = emit_round_bf16(b, x)
            even, odd = (b.shuffle(bits, bits, range(i, LANES, 2)) for i in (0, 1))
            upper = b.const(-(2**16), even.type)
            pairs = b.bit_or(b.shr(even, 16), b.bit_and(odd, upper))
            for i in range(lanes // 2):
                b.store(b.extract(pairs, i), b.at(to, i * group_bytes(kv)), F32_BYTES)
            return
        narrowed = b.trunc_f(x, b.vec(LANES, b.f16)) if kv.dtype == "f16" else x
        for i in range(lanes):
            b.store(b.extract(narrowed, i), b.at(to, i * group_bytes(kv)), kv.element_bytes)

    def store_value(self, x: Value, to: Value, lanes: int) -> None:
        b, kv = self.b, self.kv
        if kv.dtype == "bf16":
            # The other halves are another position's, which another thread may be storing.
            halves = b.trunc_i(b.shr(emit_round_bf16(b, x), 16), b.vec(LANES, b.i16))
            for i in range(lanes):
                b.store(b.extract(halves, i), b.at(to, i * F32_BYTES), kv.element_bytes)
            return
        narrowed = b.trunc_f(x, b.vec(LANES, b.f16)) if kv.dtype == "f16" else x
        b.store_first(narrowed, to, lanes, kv.element_bytes)

    # ---- codes -----------------------------------------------------------------------------

    def key_scale_at(self, strip: Value, lane: Value) -> Value:
        """Where the scale of a key's first group lies."""
        b, kv = self.b, self.kv
        scales = b.add(
            b.mul(self.head, kv.head_key_scale_bytes), b.mul(strip, kv.strip_scale_bytes)
        )
        return b.at(
            b.at(self.region, kv.key_scales_offset), b.add(scales, b.mul(lane, SCALE_BYTES))
        )

    def quantized_key(self, key: Value, keys: Value, scale_at: Value, poison: Value) -> None:
        b, kv = self.b, self.kv
        run_bytes = KV_KEY_GROUP * F32_BYTES

        def group(first: Value, elements: int) -> None:
            starts = range(0, elements, LANES)
            vectors = [
                self.limited(b.at(key, first), b.idx(i * F32_BYTES), min(LANES, elements - i))
                for i in starts
            ]
            scale, inverse = self.scale_of(vectors)
            bits = b.bitcast(b.fadd(scale, poison), b.i32)
            to = b.at(scale_at, b.mul(b.div(first, run_bytes), STRIP * SCALE_BYTES))
            b.store(b.trunc_i(b.shr(bits, 16), b.i16), to, SCALE_BYTES)
            element = b.at(keys, b.mul(b.div(first, F32_BYTES), STRIP))
            for i, x in zip(starts, vectors, strict=True):
                codes = self.codes(x, inverse)
                for lane in range(min(LANES, elements - i)):
                    b.store(b.extract(codes, lane), b.at(element, (i + lane) * STRIP), 1)

        whole = kv.head_dim // KV_KEY_GROUP
        b.loop(0, whole * run_bytes, run_bytes, body=lambda first: group(first, KV_KEY_GROUP))
        if kv.head_dim % KV_KEY_GROUP:
            group(b.idx(whole * run_bytes), kv.head_dim % KV_KEY_GROUP)

    def quantized_value(self, value: Value, values: Value) -> None:
        b, kv = self.b, self.kv
        vector = b.vec(LANES, b.f32)
        whole = kv.head_dim // LANES * LANES * F32_BYTES

        def widest(at: Value, largest: Value) -> Value:
            return b.fmax(largest, b.fabs(self.limited(value, at)))

        (largest,) = b.loop(0, whole, LANES * F32_BYTES, [b.const(0.0, vector)], body=widest)
        vectors = [largest]
        if kv.head_dim % LANES:
            vectors.append(self.limited(value, b.idx(whole), kv.head_dim % LANES))
        scale, inverse = self.scale_of(vectors)
        offset = b.add(b.mul(self.head, kv.head_value_scale_bytes), b.mul(self.place, SCALE_BYTES))
        to = b.at(b.at(self.region, kv.value_scales_offset), offset)
        b.store(b.trunc_i(b.shr(b.bitcast(scale, b.i32), 16), b.i16), to, SCALE_BYTES)

        def store(at: Value, lanes: int) -> None:
            codes = self.codes(self.limited(value, at, lanes), inverse)
            b.store_first(codes, b.at(values, b.div(at, F32_BYTES)), lanes, 1)

        for_each_vector(b, kv.head_dim, store)

    def scale_of(self, vectors: list[Value]) -> tuple[Value, Value]:
        """The scale of all elements of some vectors, and its inverse (0 for none): f32 scalars."""
        b = self.b
        largest = b.fabs(vectors[0])
        for x in vectors[1:]:
            largest = b.fmax(largest, b.fabs(x))
        size = b.reduce("maxnumf", largest)
        zero = b.const(0.0, b.f32)
        counts = b.fcmp("oge", size, b.const(SMALLEST_MAGNITUDE, b.f32))
        scale = b.fmul(size, b.const(1.0 / LARGEST_CODE, b.f32))
        bits = b.bit_and(emit_round_bf16(b, b.splat(scale)), b.const(-(2**16), b.vec(LANES, b.i32)))
        rounded = b.bitcast(b.extract(bits, 0), b.f32)
        inverse = b.fdiv(b.const(1.0, b.f32), rounded)
        return b.select(counts, rounded, zero), b.select(counts, inverse, zero)

    def codes(self, x: Value, inverse: Value) -> Value:
        b = self.b
        scaled = b.round_even(b.fmul(x, b.splat(inverse)))
        return b.trunc_i(b.f_to_si(scaled, b.vec(LANES, b.i32)), b.vec(LANES, b.i8))
