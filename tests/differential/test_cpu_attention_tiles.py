"""Attention on tile registers against NumPy, and its promise that bits depend on nothing else."""

from __future__ import annotations

import ctypes
import functools
import tempfile
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from infc.backends.cpu.codegen.builder import Builder
from infc.backends.cpu.codegen.linking import link_shared
from infc.backends.cpu.codegen.toolchain import emit_object, lower_to_llvm
from infc.backends.cpu.kernels.attention import (
    AttentionMapping,
    AttentionSpec,
    attention_scratch_bytes,
    candidates,
    emit_attention,
)
from infc.backends.cpu.kernels.dealing import DEAL_BYTES
from infc.backends.cpu.kernels.kv_layout import KVLayout
from infc.backends.cpu.probe import host_features
from infc.backends.cpu.target import isa_of, missing_features, resolve_cpu
from infc.ir.kv_storage import load_kv, round_to_bf16, store_kv
from infc.ir.mlir import ir
from infc.reference.abf16 import abf16_padded, abf16_row_bytes, from_abf16

TARGET = "cpu:x86-64-amx"
if missing_features(resolve_cpu(TARGET), host_features()):
    pytest.skip("needs a processor with AMX", allow_module_level=True)

SLOTS = 3
POSITIONS = 150
CHUNK = 37
ROUNDING = 2**-9 + 1e-4
"""Relative error of a term, and of an abf16 output: bf16 has 8 significant bits."""
LARGEST_VALUE = 5.0
# name -> heads, kv_heads, head_dim, window, capacity, soft cap, cache, row_tile, key_block, out.
# A ring must hold window + CHUNK - 1 positions. Between them: head_dim over and under whole steps
# of 32, groups from 1 to 8, lanes over and under whole tiles, keys of one and of many blocks.
CASES = {
    "shared": (4, 1, 256, None, 160, None, "f16", 64, 64, "f32"),
    "ring": (8, 2, 64, 50, 96, None, "f16", 96, 64, "abf16"),
    "capped": (2, 2, 80, None, 160, 5.0, "bf16", 12, 32, "abf16"),
    "odd": (3, 1, 10, 20, 64, None, "int8", 64, 32, "abf16"),
    "five": (5, 1, 16, None, 160, None, "bf16", 33, 128, "f32"),
    "codes": (8, 1, 96, 33, 80, None, "int8", 64, 64, "f32"),
    "wide": (2, 1, 128, None, 160, None, "f16", 256, 256, "f32"),
}


class Kernel:
    """A compiled attention function beside a cache that holds random keys and values."""

    def __init__(self, case: str, row_tile: int | None = None) -> None:
        heads, kv_heads, head_dim, window, capacity, cap, dtype, tile, key_block, out = CASES[case]
        self.layout = KVLayout(kv_heads, head_dim, (capacity,), SLOTS, dtype)
        layer = self.layout.layer(0)
        self.spec = AttentionSpec(heads, layer, window, head_dim**-0.5, cap, 64, out)
        mapping = AttentionMapping(row_tile or tile, key_block, tiles=True)
        self.scratch_bytes = attention_scratch_bytes(self.spec, mapping)
        self.library = compiled(self.spec, mapping)
        rng = np.random.default_rng(7)
        shape = (SLOTS, POSITIONS, kv_heads, head_dim)
        self.k, self.v = rng.standard_normal((2, *shape), dtype=np.float32)
        shape = (SLOTS, POSITIONS, heads, head_dim)
        self.q = 2 * rng.standard_normal(shape, dtype=np.float32)

    def cache(self, last: int) -> NDArray[np.uint8]:
        """A cache to which positions up to `last` were appended, and nothing but NaN before."""
        cache = aligned(self.layout.total_bytes)
        cache[:] = 0xFF
        positions = range(max(0, last + 1 - self.spec.kv.capacity), last + 1)
        for slot in range(SLOTS):
            k, v = self.k[slot, positions], self.v[slot, positions]
            self.layout.import_positions(cache, 0, slot, positions, k, v)
        return cache

    def __call__(
        self, cache: NDArray[np.uint8], rows: list[tuple[int, int]], threads: int = 1
    ) -> NDArray[np.float32]:
        """Attention of `(slot, position)` rows: f32 `[len(rows), heads, head_dim]`."""
        slots, positions = (np.array(x, dtype=np.int32) for x in zip(*rows, strict=True))
        q = np.ascontiguousarray(self.q[slots, positions])
        numbers = q.shape[1] * q.shape[2]
        row_bytes = 4 * numbers if self.spec.out == "f32" else abf16_row_bytes(numbers)
        out = aligned(len(rows) * row_bytes)
        out[:] = 0xFF
        deal = np.zeros(DEAL_BYTES, np.uint8)
        for thread in range(threads):
            scratch = aligned(self.scratch_bytes + 64)
            scratch[:] = 0xFF
            self.library.run(
                *map(pointer, (q, cache, out, positions, slots)),
                *map(ctypes.c_int64, (len(rows), thread, threads)),
                *map(pointer, (deal, scratch)),
            )
            assert (scratch[self.scratch_bytes :] == 0xFF).all(), "scratch overrun"
        assert not deal.any()
        if self.spec.out == "f32":
            return out.view(np.float32).reshape(q.shape)
        lines = out.reshape(len(rows), row_bytes)
        assert not lines[:, 2 * numbers : 2 * abf16_padded(numbers)].any(), "no zeros at the end"
        return from_abf16(lines, numbers).reshape(q.shape)

    def expected(self, slot: int, position: int) -> NDArray[np.float64]:
        """The same row in float64, from operands that are rounded as the kernel rounds them."""
        first = 0 if self.spec.window is None else max(0, position - self.spec.window + 1)
        stored = (x[slot, first : position + 1] for x in (self.k, self.v))
        kept = load_kv(store_kv(*stored, self.spec.kv.dtype))
        k, v = (np.repeat(round_to_bf16(x).astype(float), self.spec.group, axis=1) for x in kept)
        factor = np.float32(self.spec.scale * (np.log2(np.e) if self.spec.softcap is None else 1))
        q = round_to_bf16(self.q[slot, position] * factor)
        scores = np.einsum("hd,khd->hk", q, k)
        if self.spec.softcap is not None:
            scores = self.spec.softcap * np.tanh(scores / self.spec.softcap) * np.log2(np.e)
        terms = np.exp2(scores - scores.max(axis=1, keepdims=True))
        return np.einsum("hk,khd->hd", terms / terms.sum(axis=1, keepdims=True), v)


def compiled(spec: AttentionSpec, mapping: AttentionMapping) -> ctypes.CDLL:
    isa = isa_of(resolve_cpu(TARGET))
    with ir.Context(), ir.Location.unknown():
        module = ir.Module.create()
        b = Builder(module, isa)
        emit_attention(b, "attention", spec, mapping)
        with b.function(
            "run", [*[b.ptr] * 5, *[b.i64] * 3, b.ptr, b.ptr], private=False
        ) as arguments:
            b.call("attention", arguments)
            b.ret()
        lower_to_llvm(module)
        shared = link_shared(emit_object(module, isa))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "attention.so")
        path.write_bytes(shared)
        return ctypes.CDLL(str(path))


def aligned(size: int) -> NDArray[np.uint8]:
    raw = np.zeros(size + 64, dtype=np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size]


def pointer(array: NDArray[np.generic]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


@functools.cache
def kernel(case: str) -> Kernel:
    return Kernel(case)


def chunk(slot: int, first: int, count: int = CHUNK) -> list[tuple[int, int]]:
    return [(slot, position) for position in range(first, min(first + count, POSITIONS))]


def bits(x: NDArray[np.float32]) -> NDArray[np.uint32]:
    return x.view(np.uint32)


@pytest.mark.parametrize("case", CASES)
def test_attention_matches_numpy(case: str) -> None:
    attention = kernel(case)
    for first in range(0, POSITIONS, CHUNK):
        rows = chunk(1, first)
        got = attention(attention.cache(rows[-1][1]), rows)
        want = np.stack([attention.expected(*row) for row in rows])
        np.testing.assert_allclose(got, want, rtol=ROUNDING, atol=ROUNDING * LARGEST_VALUE)


@pytest.mark.parametrize("case", CASES)
def test_bits_depend_neither_on_threads_nor_on_the_other_rows(case: str) -> None:
    attention = kernel(case)
    rows = [*chunk(2, 90), *chunk(0, 113, 5), (1, 126)]
    cache = attention.cache(126)
    together = bits(attention(cache, rows))
    for threads in (2, 3):
        np.testing.assert_array_equal(bits(attention(cache, rows, threads)), together)
    for threads in (1, 2):
        alone = [bits(attention(cache, [row], threads))[0] for row in rows[::4]]
        np.testing.assert_array_equal(np.stack(alone), together[::4])


@pytest.mark.parametrize("case", ["ring", "codes"])
def test_bits_do_not_depend_on_the_row_tile(case: str) -> None:
    attention, other = kernel(case), Kernel(case, row_tile=8)
    cache, rows = attention.cache(126), chunk(2, 90)
    np.testing.assert_array_equal(bits(other(cache, rows)), bits(attention(cache, rows)))


@pytest.mark.parametrize("case", ["shared", "capped", "five", "wide"])
def test_chunks_give_the_bits_of_one_call(case: str) -> None:
    attention = kernel(case)
    whole = bits(attention(attention.cache(63), chunk(0, 0, 64)))
    for first, count in ((0, 17), (17, 30), (47, 17)):
        rows = chunk(0, first, count)
        part = attention(attention.cache(rows[-1][1]), rows)
        np.testing.assert_array_equal(bits(part), whole[first : first + count])


def test_far_scores_have_no_weight_and_no_nan() -> None:
    attention = Kernel("five")
    attention.q[0] *= 1000  # scores thousands of powers of two apart: nearly all terms vanish
    rows = chunk(0, 0, 64)
    got = attention(attention.cache(63), rows)
    want = np.stack([attention.expected(*row) for row in rows])
    np.testing.assert_allclose(got, want, rtol=ROUNDING, atol=ROUNDING * LARGEST_VALUE)


def test_a_position_that_is_not_finite_reaches_only_those_who_see_it() -> None:
    attention = Kernel("shared")
    attention.v[0, 20, 0, 3] = np.inf
    got = attention(attention.cache(63), chunk(0, 0, 64))
    assert np.isfinite(got[:20]).all()
    assert np.isnan(got[20:]).all()


def test_tiles_are_for_many_rows_and_caches_that_are_rounded_anyway() -> None:
    isa = isa_of(resolve_cpu(TARGET))
    choices = {}
    for dtype, rows in (("f16", 512), ("f32", 512), ("f16", 2)):
        layer = KVLayout(1, 64, (64,), 1, dtype).layer(0)
        spec = AttentionSpec(4, layer, None, 0.125, None, rows)
        choices[dtype, rows] = candidates(spec, isa)
        assert all(attention_scratch_bytes(spec, m) % 64 == 0 for m in choices[dtype, rows])
    assert choices["f16", 512][0] == AttentionMapping(512, 512, tiles=True)
    assert not any(mapping.tiles for mapping in choices["f32", 512] + choices["f16", 2])


def test_key_blocks_that_are_no_whole_steps_and_other_processors_are_refused() -> None:
    layer = KVLayout(1, 64, (64,), 1, "f16").layer(0)
    spec = AttentionSpec(4, layer, None, 0.125, None, 64)
    with pytest.raises(ValueError, match="key_block 48 is not a multiple of 32"):
        attention_scratch_bytes(spec, AttentionMapping(64, 48, tiles=True))
    with ir.Context(), ir.Location.unknown():
        b = Builder(ir.Module.create(), isa_of(resolve_cpu("cpu:x86-64-v4")))
        with pytest.raises(ValueError, match="tiles need tile registers, which x86-64-v4 lacks"):
            emit_attention(b, "attention", spec, AttentionMapping(64, 64, tiles=True))
