"""Norm, rotate and store: from projected q, k and v to rotated q and an extended cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from infc.backends.cpu.codegen.builder import LANES, Builder, Value
from infc.backends.cpu.kernels.dealing import Team, emit_dealt_items
from infc.backends.cpu.kernels.kv_append import emit_append
from infc.backends.cpu.kernels.kv_layout import KVLayer
from infc.backends.cpu.kernels.rows import (
    F32_BYTES,
    emit_inverse_rms,
    emit_scaled_weight,
    for_each_vector,
    load_f32,
    store_f32,
)

_Load = Callable[[Value, int], Value]
_EVEN = range(0, 2 * LANES, 2)
_ODD = range(1, 2 * LANES, 2)


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
    q: Value  # f32 [m, heads, head_dim]
    k: Value  # f32 [m, kv_heads, head_dim]
    v: Value  # f32 [m, kv_heads, head_dim]
    q_out: Value  # f32 [m, heads, head_dim]
    q_norm: Value | None  # f32 [head_dim]
    k_norm: Value | None  # f32 [head_dim]
    table: Value  # f32 [max_context, rope_pairs, 2]: cos, sin
    kv: Value  # the layer's cache, slot 0 first
    positions: Value  # i32 [m]
    row_slots: Value  # i32 [m]


def emit_rotary_append(b: Builder, name: str, spec: RotarySpec) -> None:
    """Define `@name(q, k, v, q_out, [q_norm, k_norm,] table, kv, positions, row_slots, m, thread,
    threads, deal)`: pointers, three `i64`, a pointer.

    Rotated queries go to `q_out` (which may be `q`), keys and values to the cache at
    `position % capacity` of the row's slot. `k` is overwritten by the rotated keys. The work of a
    row is one item a head, and the items of all rows are dealt to the threads.
    """
    norms = 2 if spec.norm else 0
    with b.function(name, [b.ptr] * (8 + norms) + [b.i64] * 3 + [b.ptr]) as arguments:
        *pointers, m, thread, threads, deal = arguments
        if not spec.norm:
            pointers[4:4] = [None, None]
        a = _Arguments(*pointers)
        items_a_row = spec.heads + spec.kv.kv_heads

        def item(i: Value) -> None:
            row, head = b.div(i, items_a_row), b.rem(i, items_a_row)
            position = b.as_i64(b.load(b.at(a.positions, b.mul(row, 4)), b.i32, 4))
            b.when(
                b.cmp("slt", head, spec.heads),
                lambda: _rotate_query(b, spec, a, row, head, position),
                lambda: _append(b, spec, a, row, b.sub(head, spec.heads), position),
            )

        emit_dealt_items(b, Team(thread, threads, deal), b.mul(m, items_a_row), item)
        b.ret()


def _rotate_query(
    b: Builder, spec: RotarySpec, a: _Arguments, row: Value, head: Value, position: Value
) -> None:
    offset = b.mul(b.add(b.mul(row, spec.heads), head), spec.kv.head_dim * F32_BYTES)
    src, dst = b.at(a.q, offset), b.at(a.q_out, offset)
    _emit_head(b, spec, src, dst, a.q_norm, _table_row(b, spec, a, position))


def _append(
    b: Builder, spec: RotarySpec, a: _Arguments, row: Value, head: Value, position: Value
) -> None:
    kv = spec.kv
    offset = b.mul(b.add(b.mul(row, kv.kv_heads), head), kv.head_dim * F32_BYTES)
    k, v = b.at(a.k, offset), b.at(a.v, offset)
    _emit_head(b, spec, k, k, a.k_norm, _table_row(b, spec, a, position))
    slot = b.as_i64(b.load(b.at(a.row_slots, b.mul(row, 4)), b.i32, 4))
    emit_append(b, kv, k, v, b.at(a.kv, b.mul(slot, kv.slot_stride)), head, position)


def _table_row(b: Builder, spec: RotarySpec, a: _Arguments, position: Value) -> Value:
    return b.at(a.table, b.mul(position, spec.rope_pairs * 2 * F32_BYTES))


def _emit_head(
    b: Builder, spec: RotarySpec, src: Value, dst: Value, weight: Value | None, table: Value
) -> None:
    """`dst = rope(norm(src))` for one head; `dst` may be `src`."""
    d = spec.kv.head_dim
    inverse = emit_inverse_rms(b, src, d, spec.norm_eps) if weight is not None else None

    def load(offset: Value, lanes: int) -> Value:
        x = load_f32(b, src, offset, lanes)
        if weight is None or inverse is None:
            return x
        return b.fmul(
            b.fmul(x, inverse), emit_scaled_weight(b, weight, offset, lanes, spec.norm_offset)
        )

    def rotate(offset: Value, lanes: int) -> None:
        """Pairs `offset / 4 ...`: `lanes` of them."""
        doubled = b.mul(offset, 2)
        cos, sin = _load_pairs(b, lambda at, n: load_f32(b, table, at, n), doubled, lanes)
        if spec.interleaved:
            first, second = _load_pairs(b, load, doubled, lanes)
        else:
            second_at = b.add(offset, spec.rope_pairs * F32_BYTES)
            first, second = load(offset, lanes), load(second_at, lanes)
        turned = b.fma(first, cos, b.fneg(b.fmul(second, sin)))
        turned_second = b.fma(first, sin, b.fmul(second, cos))
        if spec.interleaved:
            _store_pairs(b, turned, turned_second, dst, doubled, lanes)
        else:
            store_f32(b, turned, dst, offset, lanes)
            store_f32(b, turned_second, dst, second_at, lanes)

    for_each_vector(b, spec.rope_pairs, rotate)
    rotated_bytes = 2 * spec.rope_pairs * F32_BYTES

    def keep(offset: Value, lanes: int) -> None:
        at = b.add(offset, rotated_bytes)
        store_f32(b, load(at, lanes), dst, at, lanes)

    if spec.norm or src != dst:
        for_each_vector(b, d - 2 * spec.rope_pairs, keep)


def _halves(lanes: int) -> tuple[int, int]:
    """How many of `2 * lanes` elements lie in the first and in the second vector."""
    return min(LANES, 2 * lanes), max(0, 2 * lanes - LANES)


def _load_pairs(b: Builder, load: _Load, offset: Value, lanes: int) -> tuple[Value, Value]:
    """The first and the second elements of `lanes` adjacent pairs."""
    low_count, high_count = _halves(lanes)
    low = load(offset, low_count)
    high = low
    if high_count:
        high = load(b.add(offset, LANES * F32_BYTES), high_count)
    return b.shuffle(low, high, _EVEN), b.shuffle(low, high, _ODD)


def _store_pairs(
    b: Builder, first: Value, second: Value, dst: Value, offset: Value, lanes: int
) -> None:
    low_count, high_count = _halves(lanes)
    half = LANES // 2
    mixed = [[i // 2 + LANES * (i % 2) + part * half for i in range(LANES)] for part in (0, 1)]
    store_f32(b, b.shuffle(first, second, mixed[0]), dst, offset, low_count)
    if high_count:
        high_at = b.add(offset, LANES * F32_BYTES)
        store_f32(b, b.shuffle(first, second, mixed[1]), dst, high_at, high_count)
