"""CUDA's attention in lockstep, against NumPy."""

import functools
from dataclasses import dataclass

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
def tiled(case: str, tiles: int = 1) -> Kernel:
    return Kernel(case, AttentionMapping(tiles))


@functools.cache
def parted(case: str, parts: int = 3, streams: int = 8) -> Kernel:
    return Kernel(case, AttentionMapping(0, parts, streams))


def chunk(slot: int, last: int, count: int) -> list[tuple[int, int]]:
    return [(slot, position) for position in range(max(0, last + 1 - count), last + 1)]


@pytest.mark.parametrize("case", CASES)
def test_many_rows(case: str) -> None:
    attention = tiled(case)
    last = attention.case.positions - 1
    rows = chunk(1, last, 33)
    attention.check(attention(attention.cache(last), rows), rows)


@pytest.mark.parametrize("streams", [2, 4, 8])
@pytest.mark.parametrize("case", CASES)
def test_few_rows(case: str, streams: int) -> None:
    attention = parted(case, streams=streams)
    last = attention.case.positions - 1
    rows = [(1, last), (0, last - 1), (1, last - 2)]
    attention.check(attention(attention.cache(last), rows), rows)
