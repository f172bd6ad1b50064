"""Operations on rows of f32: emitted in place, or as a function of their own (`argmax`).

Pointers need only the alignment of their element. A row of `d` elements is `d // 16` vectors and
one masked vector for the rest, so nothing beyond the row is read or written. `dst` may be a source.
"""

from __future__ import annotations

from collections.abc import Callable

from infc.backends.cpu.codegen.builder import LANES, Builder, Value
from infc.backends.cpu.kernels.vmath import emit_gelu_tanh, emit_silu, emit_tanh

F32_BYTES = 4
_VECTOR_BYTES = LANES * F32_BYTES
_SQUARE_ACCUMULATORS = 4
_ARGMAX_ACCUMULATORS = 4
_ACTIVATIONS = {"silu": emit_silu, "gelu_tanh": emit_gelu_tanh}


def load_f32(b: Builder, pointer: Value, offset: Value | int, lanes: int = LANES) -> Value:
    """Load the first `lanes` of a vector of f32 at a byte offset; zero in the other lanes."""
    return b.load_first(b.at(pointer, offset), b.vec(LANES, b.f32), lanes, F32_BYTES)


def store_f32(
    b: Builder, value: Value, pointer: Value, offset: Value | int, lanes: int = LANES
) -> None:
    """Store the first `lanes` of a vector of f32 at a byte offset."""
    b.store_first(value, b.at(pointer, offset), lanes, F32_BYTES)


def for_each_vector(b: Builder, d: int, body: Callable[[Value, int], None]) -> None:
    """Run `body(byte_offset, lanes)` over the vectors of a row of `d` elements."""
    whole = d // LANES * _VECTOR_BYTES

    def step(offset: Value) -> None:
        body(offset, LANES)

    if whole:
        b.loop(0, whole, _VECTOR_BYTES, body=step)
    if d % LANES:
        body(b.idx(whole), d % LANES)


def emit_sum_of_squares(b: Builder, src: Value, d: int) -> Value:
    """The sum of the squares of a row `[d]`, always in the same order; an f32 scalar."""
    vector = b.vec(LANES, b.f32)
    zero = b.const(0.0, vector)
    stride = _SQUARE_ACCUMULATORS * _VECTOR_BYTES
    whole = d * F32_BYTES // stride * stride

    def square(offset: Value, *sums: Value) -> list[Value]:
        loaded = [
            load_f32(b, src, b.add(offset, i * _VECTOR_BYTES)) for i in range(_SQUARE_ACCUMULATORS)
        ]
        return [b.fma(x, x, total) for x, total in zip(loaded, sums, strict=True)]

    sums = b.loop(0, whole, stride, [zero] * _SQUARE_ACCUMULATORS, body=square)
    for i, start in enumerate(range(whole // F32_BYTES, d, LANES)):
        x = load_f32(b, src, start * F32_BYTES, min(LANES, d - start))
        sums[i] = b.fma(x, x, sums[i])
    return b.reduce("add", b.fadd(b.fadd(sums[0], sums[1]), b.fadd(sums[2], sums[3])))


def emit_inverse_rms(b: Builder, src: Value, d: int, eps: float) -> Value:
    """`1 / sqrt(mean(x * x) + eps)` of a row `[d]`, in every lane of a vector."""
    mean = b.fmul(emit_sum_of_squares(b, src, d), b.const(1.0 / d, b.f32))
    root = b.fsqrt(b.fadd(mean, b.const(eps, b.f32)))
    return b.splat(b.fdiv(b.const(1.0, b.f32), root))


def emit_scaled_weight(
    b: Builder, weight: Value, offset: Value | int, lanes: int, add: float
) -> Value:
    """A vector of norm weights, `weight + add` (Gemma stores weights around zero, `add` 1)."""
    w = load_f32(b, weight, offset, lanes)
    return w if add == 0.0 else b.fadd(w, b.const(add, w.type))


def emit_rms_norm_row(
    b: Builder, src: Value, weight: Value, dst: Value, d: int, eps: float, offset: float
) -> None:
    """`dst = src / rms(src) * (weight + offset)` for rows `[d]`."""
    inverse = emit_inverse_rms(b, src, d, eps)

    def body(at: Value, lanes: int) -> None:
        x = b.fmul(load_f32(b, src, at, lanes), inverse)
        store_f32(b, b.fmul(x, emit_scaled_weight(b, weight, at, lanes, offset)), dst, at, lanes)

    for_each_vector(b, d, body)


def emit_add_row(b: Builder, x: Value, y: Value, dst: Value, d: int) -> None:
    """`dst = x + y` for rows `[d]`."""

    def body(at: Value, lanes: int) -> None:
        total = b.fadd(load_f32(b, x, at, lanes), load_f32(b, y, at, lanes))
        store_f32(b, total, dst, at, lanes)

    for_each_vector(b, d, body)


def emit_scale_row(b: Builder, src: Value, factor: float, dst: Value, d: int) -> None:
    """`dst = src * factor` for rows `[d]`."""
    factors = b.const(factor, b.vec(LANES, b.f32))

    def body(at: Value, lanes: int) -> None:
        store_f32(b, b.fmul(load_f32(b, src, at, lanes), factors), dst, at, lanes)

    for_each_vector(b, d, body)


def emit_copy_row(b: Builder, src: Value, dst: Value, d: int) -> None:
    """`dst = src` for rows `[d]`."""

    def body(at: Value, lanes: int) -> None:
        store_f32(b, load_f32(b, src, at, lanes), dst, at, lanes)

    for_each_vector(b, d, body)


def emit_softcap(b: Builder, x: Value, cap: float) -> Value:
    """`cap * tanh(x / cap)` of a vector."""
    scaled = b.fmul(x, b.const(1.0 / cap, x.type))
    return b.fmul(emit_tanh(b, scaled), b.const(cap, x.type))


def emit_softcap_row(b: Builder, src: Value, cap: float, dst: Value, d: int) -> None:
    """`dst = cap * tanh(src / cap)` for rows `[d]`."""

    def body(at: Value, lanes: int) -> None:
        store_f32(b, emit_softcap(b, load_f32(b, src, at, lanes), cap), dst, at, lanes)

    for_each_vector(b, d, body)


def emit_activation_mul_row(
    b: Builder, kind: str, gate: Value, up: Value, dst: Value, d: int
) -> None:
    """`dst = activation(gate) * up` for rows `[d]`; `kind` is `silu` or `gelu_tanh`."""
    activation = _ACTIVATIONS[kind]

    def body(at: Value, lanes: int) -> None:
        gated = b.fmul(activation(b, load_f32(b, gate, at, lanes)), load_f32(b, up, at, lanes))
        store_f32(b, gated, dst, at, lanes)

    for_each_vector(b, d, body)


def emit_argmax(b: Builder, name: str, n: int) -> None:
    """Define `@name(logits: ptr, out: ptr, rows: i64, thread: i64, threads: i64)`.

    `logits` is f32 `[rows, n]`, `out` i32 `[rows]`: the index of the largest element, the lowest
    one of equals. NaN never wins. Rows are split over the threads.
    """
    arguments = [b.ptr, b.ptr, b.i64, b.i64, b.i64]
    with b.function(name, arguments) as (logits, out, rows, thread, threads):

        def row(r: Value) -> None:
            best = _emit_row_argmax(b, b.at(logits, b.mul(r, n * F32_BYTES)), n)
            b.store(best, b.at(out, b.mul(r, 4)), 4)

        b.loop(thread, rows, threads, body=row)
        b.ret()


def _emit_row_argmax(b: Builder, row: Value, n: int) -> Value:
    count = _ARGMAX_ACCUMULATORS
    vector_f, vector_i = b.vec(LANES, b.f32), b.vec(LANES, b.i32)
    lowest = b.const(float("-inf"), vector_f)
    first = [b.lanes(range(LANES * i, LANES * (i + 1)), b.i32) for i in range(count)]
    stride = count * LANES
    whole = n // stride * stride

    def better(x: Value, index: Value, best: Value, best_index: Value) -> tuple[Value, Value]:
        larger = b.fcmp("ogt", x, best)
        return b.select(larger, x, best), b.select(larger, index, best_index)

    def step(at: Value, *carried: Value) -> list[Value]:
        values, indices = list(carried[:count]), list(carried[count:])
        start = b.splat(b.trunc_i(at, b.i32))
        for i in range(count):
            x = load_f32(b, row, b.add(b.mul(at, F32_BYTES), i * _VECTOR_BYTES))
            values[i], indices[i] = better(x, b.add(start, first[i]), values[i], indices[i])
        return [*values, *indices]

    carried = b.loop(0, whole, stride, [*[lowest] * count, *first], body=step)
    values, indices = carried[:count], carried[count:]
    for i, start in enumerate(range(whole, n, LANES)):
        lanes = min(LANES, n - start)
        index = b.lanes(range(start, start + LANES), b.i32)
        inside = b.lanes([lane < lanes for lane in range(LANES)], b.i1)
        x = b.select(inside, load_f32(b, row, start * F32_BYTES, lanes), lowest)
        values[i], indices[i] = better(x, index, values[i], indices[i])
    largest = values[0]
    for value in values[1:]:
        largest = b.fmax(largest, value)
    winner = b.splat(b.reduce("maxnumf", largest))
    none = b.const(2**31 - 1, vector_i)
    lowest_index = none
    for value, index in zip(values, indices, strict=True):
        candidate = b.select(b.fcmp("oeq", value, winner), index, none)
        lowest_index = b.select(b.cmp("slt", candidate, lowest_index), candidate, lowest_index)
    return b.reduce("minsi", lowest_index)
