"""CUDA's attention in lockstep, against NumPy."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
from cuda_functions import DeviceFunction, put
from numpy.typing import NDArray

from infc.backends.cuda.kernels.attention import (
    AttentionMapping,
    AttentionSpec,
    attention_arrivals,
    attention_scratch_bytes,
    emit_attention,
    few_rows_mapping,
    many_rows_mapping,
)
from infc.backends.cuda.kernels.kv_layout import KVLayer, KVLayout
from infc.backends.cuda.lockstep import Device
from infc.ir.kv_storage import load_kv, store_kv
from infc.reference.abf16 import abf16_row_bytes, from_abf16
from infc.target.runnable import KVBlock

F32 = NDArray[np.float32]
SLOTS = 3
MAX_ROWS = 64
CHUNK = 50
EXACTNESS = {"f16": 4e-3, "bf16": 3e-2}
"""Queries, keys, terms and values are rounded."""


@dataclass(frozen=True)
class Case:
    """Heads, kv heads, head_dim; positions that are there."""

    heads: int
    kv_heads: int
    head_dim: int
    positions: int
    window: int | None = None
    capacity: int = 640
    softcap: float | None = None
    dtype: str = "f16"
    out: str = "f32"


CASES = {
    "single": Case(1, 1, 16, 200),
    "shared": Case(8, 2, 64, 330),
    "ring": Case(6, 2, 32, 400, window=70, capacity=128),
    "odd": Case(3, 1, 80, 150, dtype="bf16", out="abf16"),
    "capped": Case(4, 4, 48, 150, softcap=5.0, out="abf16"),
    "wide": Case(4, 1, 256, 300, window=90, capacity=140),
    "many": Case(10, 1, 128, 90, dtype="bf16", softcap=30.0),
}


class Kernel:
    """An attention function beside a cache that holds random keys and values."""

    def __init__(self, name: str, mapping: AttentionMapping) -> None:
        case = self.case = CASES[name]
        self.layout = KVLayout(case.kv_heads, case.head_dim, (case.capacity,), SLOTS, case.dtype)
        self.mapping = mapping
        self.spec = AttentionSpec(
            case.heads,
            KVLayer(case.kv_heads, case.head_dim, case.capacity, case.dtype, SLOTS),
            case.window,
            case.head_dim**-0.5,
            case.softcap,
            MAX_ROWS,
            case.out,
        )
        self.function = DeviceFunction(
            lambda b: emit_attention(b, "attention", self.spec, mapping), 7
        )
        rng = np.random.default_rng(7)
        shape = (SLOTS, case.positions, case.kv_heads, case.head_dim)
        stored = store_kv(
            *(rng.standard_normal(shape, np.float32).reshape(-1, *shape[2:]) for _ in range(2)),
            case.dtype,
        )
        self.k, self.v = (x.reshape(shape) for x in load_kv(stored))
        shape = (SLOTS, case.positions, case.heads, case.head_dim)
        self.q = 2 * rng.standard_normal(shape, np.float32)

    def cache(self, last: int) -> NDArray[np.uint8]:
        """A cache to which positions up to `last` were appended. What was not is keys that are no
        numbers and values that are large."""
        raw = np.zeros(self.layout.total_bytes, np.uint8)
        places = raw.view(np.uint16)
        values = self.spec.kv.values_offset // 2
        places[:values], places[values:] = 0xFFFF, 0x7000

        def read(offset: int, size: int) -> NDArray[np.uint8]:
            return raw[offset : offset + size].copy()

        def write(offset: int, data: NDArray[np.uint8]) -> None:
            raw[offset : offset + data.size] = data

        first = max(0, last + 1 - self.case.capacity)
        for slot in range(SLOTS):
            k, v = self.k[slot, first : last + 1], self.v[slot, first : last + 1]
            self.layout.import_block(
                read, write, slot, KVBlock(first, last + 1, (first,), [k], [v])
            )
        return raw

    def __call__(
        self,
        cache: NDArray[np.uint8],
        rows: list[tuple[int, int]],
        *,
        grid: int = 2,
        seed: int | None = None,
    ) -> F32:
        """Attention of `(slot, position)` rows: f32 `[len(rows), heads, head_dim]`."""
        slots, positions = (np.array(x, np.int32) for x in zip(*rows, strict=True))
        width = self.case.heads * self.case.head_dim
        row_bytes = abf16_row_bytes(width) if self.case.out == "abf16" else 4 * width
        device = Device()
        arrays = (self.q[slots, positions], cache, positions, slots)
        q, kv, places, row_slots = (put(device, x) for x in arrays)
        out = device.allocate(len(rows) * row_bytes)
        partials = device.allocate(max(attention_scratch_bytes(self.spec, self.mapping), 4))
        counters = np.zeros(max(attention_arrivals(self.spec, self.mapping), 1), np.int32)
        arrivals = put(device, counters)
        arguments = [q, kv, places, row_slots, out, partials, arrivals, len(rows)]
        self.function.run(device, arguments, grid=grid, seed=seed)
        assert not device.read(arrivals, np.int32, counters.shape).any()
        if self.case.out == "abf16":
            padded = -(-width // 32) * 32
            written = np.stack(
                [device.read(out + r * row_bytes, np.uint8, 2 * padded) for r in range(len(rows))]
            )
            numbers = from_abf16(written, padded)
            assert not numbers[:, width:].any()
            numbers = numbers[:, :width]
        else:
            numbers = device.read(out, np.float32, (len(rows), width))
        return numbers.reshape(len(rows), self.case.heads, self.case.head_dim)

    def expected(self, slot: int, position: int) -> NDArray[np.float64]:
        """The same row in float64."""
        first = 0 if self.case.window is None else max(0, position - self.case.window + 1)
        k, v = (x[slot, first : position + 1].astype(np.float64) for x in (self.k, self.v))
        k, v = (np.repeat(x, self.spec.group, axis=1) for x in (k, v))
        scores = np.einsum("hd,khd->hk", self.q[slot, position], k) * self.spec.scale
        if self.spec.softcap is not None:
            scores = self.spec.softcap * np.tanh(scores / self.spec.softcap)
        terms = np.exp(scores - scores.max(axis=1, keepdims=True))
        return np.einsum("hk,khd->hd", terms / terms.sum(axis=1, keepdims=True), v)

    def check(self, got: F32, rows: list[tuple[int, int]]) -> None:
        """Compare rows with NumPy."""
        want = np.stack([self.expected(*row) for row in rows])
        atol = EXACTNESS[self.case.dtype] if self.case.out == "f32" else 3e-2
        np.testing.assert_allclose(got, want, rtol=0, atol=atol)


@functools.cache
def tiled(case: str, tiles: int = 1, streams: int = 1) -> Kernel:
    return Kernel(case, AttentionMapping(tiles, streams=streams))


@functools.cache
def parted(case: str, parts: int = 3, streams: int = 8) -> Kernel:
    return Kernel(case, AttentionMapping(0, parts, streams))


def chunk(slot: int, last: int, count: int) -> list[tuple[int, int]]:
    return [(slot, position) for position in range(max(0, last + 1 - count), last + 1)]


def ended(kernel: Kernel, count: int) -> tuple[NDArray[np.uint8], list[tuple[int, int]]]:
    """A full cache and the last positions of a slot."""
    last = kernel.case.positions - 1
    return kernel.cache(last), chunk(1, last, count)


@pytest.mark.parametrize("case", CASES)
def test_many_rows(case: str) -> None:
    attention = tiled(case)
    cache, rows = ended(attention, 33)
    attention.check(attention(cache, rows), rows)


@pytest.mark.parametrize("case", ["shared", "capped", "many"])
def test_two_tiles_a_warp(case: str) -> None:
    attention = tiled(case, tiles=2)
    cache, rows = ended(attention, 50)
    attention.check(attention(cache, rows), rows)


@pytest.mark.parametrize(
    ("case", "tiles", "streams"),
    [("shared", 2, 2), ("single", 1, 8), ("ring", 1, 4), ("wide", 1, 2)],
)
def test_warps_that_take_keys_in_turns(case: str, tiles: int, streams: int) -> None:
    attention = tiled(case, tiles, streams)
    cache, rows = ended(attention, 11)
    rows = [(0, rows[0][1] - 20), *rows]
    together = attention(cache, rows)
    attention.check(together, rows)
    np.testing.assert_array_equal(attention(cache, rows[7:], grid=3), together[7:])


@pytest.mark.parametrize("case", ["shared", "ring"])
def test_chunks_of_a_prompt_give_the_bits_of_one_call(case: str) -> None:
    attention = tiled(case)
    cache, rows = ended(attention, CHUNK)
    together = attention(cache, rows, grid=1)
    attention.check(together, rows)
    for first, count in ((0, 1), (1, 7), (8, 16), (24, 26)):
        part = attention(cache, rows[first : first + count], grid=3)
        np.testing.assert_array_equal(part, together[first : first + count])


@pytest.mark.parametrize("case", ["shared", "ring"])
def test_rows_of_several_sequences_give_the_bits_of_each(case: str) -> None:
    attention = tiled(case)
    last = attention.case.positions - 1
    cache = attention.cache(last)
    parts = [chunk(2, last, 5), chunk(0, last - 3, 21), [(1, last)], chunk(2, last - 5, 3)]
    together = attention(cache, [row for part in parts for row in part], grid=4)
    alone = np.concatenate([attention(cache, part) for part in parts])
    np.testing.assert_array_equal(together, alone)
    attention.check(together, [row for part in parts for row in part])


@pytest.mark.parametrize("case", ["odd", "wide"])
def test_a_prompt_from_its_start(case: str) -> None:
    attention = tiled(case)
    rows = chunk(2, 34, 35)
    attention.check(attention(attention.cache(34), rows), rows)


@pytest.mark.parametrize(
    ("case", "streams"),
    [
        *((case, 8) for case in CASES),
        *((case, 2) for case in ("single", "ring", "wide")),
        ("odd", 4),
    ],
)
def test_few_rows(case: str, streams: int) -> None:
    attention = parted(case, streams=streams)
    last = attention.case.positions - 1
    rows = [(1, last), (0, last - 33)]
    attention.check(attention(attention.cache(last), rows), rows)


@pytest.mark.parametrize("parts", [1, 8])
@pytest.mark.parametrize("case", ["single", "ring", "wide"])
def test_parts(case: str, parts: int) -> None:
    attention = parted(case, parts, streams=2)
    cache, last = attention.cache(80), attention.case.positions - 1
    rows = [(0, 0), (2, 63), (1, 64), (0, 80)]
    attention.check(attention(cache, rows, grid=3), rows)
    attention.check(attention(attention.cache(last), [(0, last)], grid=4), [(0, last)])


@pytest.mark.parametrize(("case", "streams"), [("shared", 8), ("ring", 2)])
def test_bits_of_few_rows_depend_on_the_position_alone(case: str, streams: int) -> None:
    attention = parted(case, 8, streams)
    last = attention.case.positions - 1
    cache, rows = attention.cache(last), [(2, last), (0, last - 1), (0, last)]
    together = attention(cache, rows, grid=1)
    np.testing.assert_array_equal(attention(cache, rows, grid=7), together)
    alone = [attention(cache, [row], grid=3)[0] for row in rows]
    np.testing.assert_array_equal(np.stack(alone), together)


@pytest.mark.parametrize("make", [tiled, parted])
def test_no_order_of_warps_and_blocks_shows(make: Callable[[str], Kernel]) -> None:
    attention = make("ring")
    cache, rows = ended(attention, 3)
    together = attention(cache, rows, grid=3)
    for seed in (1, 2):
        np.testing.assert_array_equal(attention(cache, rows, grid=3, seed=seed), together)


@pytest.mark.parametrize("make", [tiled, parted])
@pytest.mark.parametrize("case", ["ring", "odd"])
def test_a_key_that_is_not_a_number_harms_those_alone_who_see_it(
    case: str, make: Callable[[str], Kernel]
) -> None:
    attention = make(case)
    last = attention.case.positions - 1
    rows = chunk(1, last, 4)
    clean = attention(attention.cache(last), rows)
    attention.k[1, last - 1], kept = np.nan, attention.k[1, last - 1].copy()
    broken = attention.cache(last)
    attention.k[1, last - 1] = kept
    got = attention(broken, rows)
    np.testing.assert_array_equal(got[:2], clean[:2])
    assert np.isnan(got[2:]).all()


def test_parts_are_no_more_than_keys_can_be_divided_into() -> None:
    kv = KVLayer(kv_heads=8, head_dim=64, capacity=8192, dtype="f16", slots=1)
    spec = AttentionSpec(32, kv, None, 0.125, None, max_rows=1)
    mapping = few_rows_mapping(spec, rows=1, context=2048, blocks=132)
    assert mapping == AttentionMapping(tiles=0, parts=16, streams=4)
    assert attention_arrivals(spec, mapping) == 8
    assert few_rows_mapping(replace(spec, window=256), 1, 256, 132).parts == 3
    assert few_rows_mapping(replace(spec, max_rows=64), 64, 2048, 132).parts == 1
    assert attention_scratch_bytes(spec, AttentionMapping(tiles=0)) == 0


def test_blocks_have_as_many_rows_as_leave_work_for_all() -> None:
    kv = KVLayer(kv_heads=8, head_dim=64, capacity=8192, dtype="f16", slots=1)
    spec = AttentionSpec(32, kv, None, 0.125, None, max_rows=2048)
    most = 232448
    assert many_rows_mapping(spec, 2048, 132, most) == AttentionMapping(2)
    assert many_rows_mapping(spec, 512, 132, most) == AttentionMapping(2, streams=4)
    assert many_rows_mapping(spec, 50, 132, most) == AttentionMapping(1, streams=8)
    wide = replace(spec, kv=replace(kv, kv_heads=1, head_dim=256), heads=4)
    assert many_rows_mapping(wide, 2048, 132, most) == AttentionMapping(1, streams=2)
    assert many_rows_mapping(wide, 2048, 132, 160 << 10) == AttentionMapping(1)
    assert many_rows_mapping(wide, 2048, 132, 99 << 10).tiles == 0


def test_what_does_not_fit_the_registers_is_refused() -> None:
    kv = KVLayer(kv_heads=1, head_dim=256, capacity=64, dtype="f16", slots=1)
    spec = AttentionSpec(1, kv, None, 1.0, None, max_rows=1)
    with pytest.raises(ValueError, match="2 tiles of head_dim 256 are too many"):
        Kernel("wide", AttentionMapping(tiles=2))
    with pytest.raises(ValueError, match="head_dim 272 is larger than 256"):
        replace(spec, kv=replace(kv, head_dim=272))
