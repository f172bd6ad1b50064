"""The CPU's attention against NumPy, and its promise that a row's bits depend on nothing else."""

import ctypes
import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

import llvmlite.binding as llvm_binding
import numpy as np
import pytest

from infc.backends.cpu.codegen.builder import Builder
from infc.backends.cpu.codegen.isa import Isa
from infc.backends.cpu.codegen.linking import link_shared
from infc.backends.cpu.codegen.toolchain import emit_object, lower_to_llvm
from infc.backends.cpu.kernels.attention import (
    AttentionMapping,
    AttentionSpec,
    attention_scratch_bytes,
    attention_shared_bytes,
    candidates,
    emit_attention,
    split_candidates,
)
from infc.backends.cpu.kernels.dealing import DEAL_BYTES
from infc.backends.cpu.kernels.kv_layout import KVLayout
from infc.ir.kv_storage import load_kv, store_kv
from infc.ir.mlir import ir

TRIPLE = llvm_binding.get_default_triple()
HOST = llvm_binding.get_host_cpu_features()
ISAS = {}
if HOST.get("avx2") and HOST.get("fma") and HOST.get("f16c"):
    ISAS["avx2"] = Isa(TRIPLE, "x86-64-v3", "", 32, 16, "avx2", False)
if HOST.get("avx512vl") and HOST.get("avx512bw"):
    ISAS["avx512"] = Isa(TRIPLE, "x86-64-v4", "", 64, 32, "avx512-vnni", False)
if not ISAS:
    pytest.skip("needs an x86 processor with AVX2", allow_module_level=True)

SLOTS = 3
POSITIONS = 150
CHUNK = 37
# name -> heads, kv_heads, head_dim, window, capacity, soft cap, cache, row_tile, key_block.
# A ring must hold window + CHUNK - 1 positions.
CASES = {
    "shared": (4, 1, 256, None, 160, None, "f32", 24, 64),
    "ring": (8, 2, 64, 50, 96, None, "f16", 48, 64),
    "capped": (2, 2, 80, None, 160, 5.0, "f16", 12, 32),
    "odd": (3, 1, 10, 20, 64, None, "f16", 8, 16),
    "single": (5, 1, 16, None, 160, None, "f32", 1, 128),
    "pairs": (4, 1, 256, 50, 96, None, "bf16", 24, 64),
    "odd-pairs": (3, 1, 10, None, 160, 5.0, "bf16", 8, 16),
    "codes": (8, 2, 64, 50, 96, 5.0, "int8", 48, 64),
    "odd-codes": (4, 2, 80, None, 160, None, "int8", 4, 32),
    "few-codes": (3, 1, 10, 20, 64, None, "int8", 8, 16),
}
KERNELS = [(case, isa) for case in CASES for isa in ISAS]


class Kernel:
    """A compiled attention function beside a cache that holds random keys and values."""

    def __init__(self, case: str, isa: str, row_tile: int | None = None, parts: int = 1) -> None:
        heads, kv_heads, head_dim, window, capacity, softcap, dtype, tile, key_block = CASES[case]
        self.layout = KVLayout(kv_heads, head_dim, (capacity,), SLOTS, dtype)
        scale = head_dim**-0.5
        layer = self.layout.layer(0)
        self.spec = AttentionSpec(heads, layer, window, scale, softcap, max_rows=64)
        mapping = AttentionMapping(row_tile or tile, key_block, parts)
        self.scratch_bytes = attention_scratch_bytes(self.spec, mapping)
        self.shared_bytes = attention_shared_bytes(self.spec, mapping)
        self.library = _compile(self.spec, mapping, ISAS[isa])
        rng = np.random.default_rng(7)
        shape = (SLOTS, POSITIONS, kv_heads, head_dim)
        self.k, self.v = rng.standard_normal((2, *shape), dtype=np.float32)
        self.k, self.v = (
            x.reshape(shape)
            for x in load_kv(
                store_kv(*(x.reshape(-1, kv_heads, head_dim) for x in (self.k, self.v)), dtype)
            )
        )
        shape = (SLOTS, POSITIONS, heads, head_dim)
        self.q = 2 * rng.standard_normal(shape, dtype=np.float32)

    def cache(self, last: int) -> np.ndarray:
        """A cache to which positions up to `last` were appended, and nothing but NaN before."""
        cache = _aligned(self.layout.total_bytes)
        cache[:] = 0xFF
        capacity = self.layout.capacity[0]
        positions = range(max(0, last + 1 - capacity), last + 1)
        for slot in range(SLOTS):
            k, v = self.k[slot, positions], self.v[slot, positions]
            self.layout.import_positions(cache, 0, slot, positions, k, v)
        return cache

    def __call__(
        self, cache: np.ndarray, rows: list[tuple[int, int]], threads: int = 1
    ) -> np.ndarray:
        """Attention of `(slot, position)` rows: f32 `[len(rows), heads, head_dim]`."""
        slots, positions = (np.array(x, dtype=np.int32) for x in zip(*rows, strict=True))
        q = np.ascontiguousarray(self.q[slots, positions])
        out = np.full_like(q, np.nan)
        shared = _aligned(self.shared_bytes + 64)
        shared[:] = 0xFF
        deal = np.zeros(DEAL_BYTES, np.uint8)
        arrivals = np.zeros((self.spec.max_rows, self.spec.kv.kv_heads), np.int32)
        for thread in range(threads):
            scratch = _aligned(self.scratch_bytes + 64)
            scratch[:] = 0xFF
            self.library.run(
                *map(_pointer, (q, cache, out, positions, slots)),
                *map(ctypes.c_int64, (len(rows), thread, threads)),
                *map(_pointer, (deal, scratch, shared, arrivals)),
            )
            assert (scratch[self.scratch_bytes :] == 0xFF).all(), "scratch overrun"
        assert (shared[self.shared_bytes :] == 0xFF).all(), "overrun of the shared scratch"
        assert not arrivals.any()
        assert not deal.any()
        return out

    def expected(self, slot: int, position: int) -> np.ndarray:
        """The same row in float64."""
        first = 0 if self.spec.window is None else max(0, position - self.spec.window + 1)
        k, v = (x[slot, first : position + 1].astype(np.float64) for x in (self.k, self.v))
        k, v = (np.repeat(x, self.spec.group, axis=1) for x in (k, v))
        scores = np.einsum("hd,khd->hk", self.q[slot, position], k) * self.spec.scale
        if self.spec.softcap is not None:
            scores = self.spec.softcap * np.tanh(scores / self.spec.softcap)
        terms = np.exp(scores - scores.max(axis=1, keepdims=True))
        return np.einsum("hk,khd->hd", terms / terms.sum(axis=1, keepdims=True), v)


def _compile(spec: AttentionSpec, mapping: AttentionMapping, isa: Isa) -> ctypes.CDLL:
    with ir.Context(), ir.Location.unknown():
        module = ir.Module.create()
        b = Builder(module, isa)
        emit_attention(b, "attention", spec, mapping)
        types = [*[b.ptr] * 5, *[b.i64] * 3, *[b.ptr] * 4]
        with b.function("run", types, private=False) as arguments:
            b.call("attention", arguments if mapping.parts > 1 else arguments[:-2])
            b.ret()
        lower_to_llvm(module)
        shared = link_shared(emit_object(module, isa))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "attention.so")
        path.write_bytes(shared)
        return ctypes.CDLL(str(path))


def _aligned(size: int) -> np.ndarray:
    raw = np.zeros(size + 64, dtype=np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size]


def _pointer(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


@functools.cache
def kernel(case: str, isa: str) -> Kernel:
    return Kernel(case, isa)


@functools.cache
def parted(case: str, isa: str) -> Kernel:
    """The kernel whose rows have up to four parts."""
    return Kernel(case, isa, parts=4)


def chunk(slot: int, first: int, count: int = CHUNK) -> list[tuple[int, int]]:
    return [(slot, position) for position in range(first, min(first + count, POSITIONS))]


@pytest.mark.parametrize(("case", "isa"), KERNELS)
def test_attention_matches_numpy(case: str, isa: str) -> None:
    attention = kernel(case, isa)
    for first in range(0, POSITIONS, CHUNK):
        rows = chunk(1, first)
        got = attention(attention.cache(rows[-1][1]), rows)
        want = np.stack([attention.expected(*row) for row in rows])
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("case", "isa"), KERNELS)
def test_bits_depend_neither_on_threads_nor_on_the_other_rows(case: str, isa: str) -> None:
    attention = kernel(case, isa)
    rows = [*chunk(2, 90), *chunk(0, 113, 5), (1, 126)]
    cache = attention.cache(126)
    together = attention(cache, rows)
    for threads in (2, 3):
        np.testing.assert_array_equal(attention(cache, rows, threads), together)
    for threads in (1, 2):
        alone = [attention(cache, [row], threads)[0] for row in rows[::4]]
        np.testing.assert_array_equal(np.stack(alone), together[::4])


@pytest.mark.parametrize(("case", "isa"), KERNELS)
def test_parts_of_the_keys_match_numpy(case: str, isa: str) -> None:
    attention = parted(case, isa)
    window = attention.spec.window
    first = 0 if window is None else attention.layout.capacity[0] - window
    for position in (*range(0, POSITIONS, 29), POSITIONS - 1):
        # Rows of several slots and, as far as the ring holds them, of one slot.
        rows = [(2, position), (0, max(0, position - min(first, 3))), (0, position)]
        got = attention(attention.cache(position), rows, threads=2)
        want = np.stack([attention.expected(*row) for row in rows])
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("case", "isa"), KERNELS)
def test_bits_of_parts_depend_on_the_position_alone(case: str, isa: str) -> None:
    attention = parted(case, isa)
    rows = [(2, 126), (0, 125), (1, 126), (0, 126)]
    cache = attention.cache(126)
    together = attention(cache, rows)
    for threads in (2, 3, 7, 40):
        np.testing.assert_array_equal(attention(cache, rows, threads), together)
    for threads in (1, 2, 11):
        alone = [attention(cache, [row], threads)[0] for row in rows]
        np.testing.assert_array_equal(np.stack(alone), together)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("make", [kernel, parted])
@pytest.mark.parametrize("case", ["ring", "capped", "pairs", "codes"])
def test_a_key_that_is_not_a_number_harms_those_alone_who_see_it(
    case: str, make: Callable[[str, str], Kernel], isa: str
) -> None:
    attention = make(case, isa)
    rows = chunk(1, 100, 30) if make is kernel else [(1, p) for p in range(100, 130)]
    clean = attention(attention.cache(129), rows)
    cache = attention.cache(129)
    k, v = np.ones((2, 1, attention.layout.kv_heads, attention.layout.head_dim), np.float32)
    v[..., 0] = np.inf
    attention.layout.import_positions(cache, 0, 1, [117], k, v)
    got = attention(cache, rows)
    np.testing.assert_array_equal(got[:17], clean[:17])
    assert np.isnan(got[17:]).all()


@pytest.mark.parametrize("isa", ISAS)
def test_bits_do_not_depend_on_the_row_tile(isa: str) -> None:
    attention, other = kernel("ring", isa), Kernel("ring", isa, row_tile=4)
    cache, rows = attention.cache(126), chunk(2, 90)
    np.testing.assert_array_equal(other(cache, rows), attention(cache, rows))


@pytest.mark.parametrize("isa", ISAS)
def test_chunks_give_the_bits_of_one_call(isa: str) -> None:
    attention = kernel("shared", isa)
    whole = attention(attention.cache(63), chunk(0, 0, 64))
    for first, count in ((0, 17), (17, 30), (47, 17)):
        rows = chunk(0, first, count)
        part = attention(attention.cache(rows[-1][1]), rows)
        np.testing.assert_array_equal(part, whole[first : first + count])


def test_the_default_mapping_fits_few_rows_as_well_as_many() -> None:
    layer = KVLayout(1, 64, (64,), 1, "f32").layer(0)
    isa = next(iter(ISAS.values()))
    tiles = []
    for max_rows in (1, 512):
        spec = AttentionSpec(4, layer, None, 0.125, None, max_rows)
        default = candidates(spec, isa)[0]
        tiles.append(default.row_tile)
        assert attention_scratch_bytes(spec, default) % 64 == 0
    assert tiles[0] == 4
    assert tiles[1] > tiles[0]


@pytest.mark.parametrize(
    ("window", "capacity", "parts"),
    [(None, 64, 1), (None, 512, 8), (None, 32768, 16), (512, 1024, 9), (2, 128, 2), (1, 64, 1)],
)
def test_a_row_has_no_more_parts_than_blocks(window: int | None, capacity: int, parts: int) -> None:
    layer = KVLayout(1, 64, (capacity,), 1, "f16").layer(0)
    default = split_candidates(AttentionSpec(4, layer, window, 0.125, None, 1))[0]
    assert (default.key_block, default.parts) == (64, parts)


def test_a_key_block_that_is_no_number_of_strips_is_refused() -> None:
    layer = KVLayout(1, 64, (64,), 1, "f32").layer(0)
    spec = AttentionSpec(4, layer, None, 0.125, None, 1)
    with pytest.raises(ValueError, match="key_block 24 is not a multiple of 16"):
        attention_scratch_bytes(spec, AttentionMapping(4, 24))
