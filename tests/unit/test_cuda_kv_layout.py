"""The CUDA backend's key-value cache: where things lie, and that what goes in comes out."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from infc.backends.cuda.kernels.kv_layout import KVLayer, KVLayout
from infc.target.runnable import KVBlock

Bytes = NDArray[np.uint8]


class Memory:
    """A cache in host memory; remembers how much of it was read."""

    def __init__(self, layout: KVLayout) -> None:
        self.bytes = np.zeros(layout.total_bytes, np.uint8)
        self.bytes_read = 0

    def read(self, offset: int, size: int) -> Bytes:
        self.bytes_read += size
        return self.bytes[offset : offset + size].copy()

    def write(self, offset: int, data: Bytes) -> None:
        self.bytes[offset : offset + data.size] = data


def block_of(layout: KVLayout, start: int, stop: int, first: Callable[[int], int]) -> KVBlock:
    """Random keys and values; a layer holds positions from `first(capacity)` on."""
    rng = np.random.default_rng(start)
    starts = tuple(first(capacity) for capacity in layout.capacity)
    keys, values = (
        [
            rng.standard_normal((stop - s, layout.kv_heads, layout.head_dim), np.float32)
            for s in starts
        ]
        for _ in range(2)
    )
    return KVBlock(start, stop, starts, keys, values)


def test_layers_are_aligned_and_hold_keys_and_values_of_all_slots() -> None:
    layout = KVLayout(kv_heads=3, head_dim=48, capacity=(65, 64), slots=2, dtype="f16")
    assert layout.layer_offsets[0] == 0
    assert all(offset % 256 == 0 for offset in layout.layer_offsets)
    assert layout.layer_offsets[1] >= 2 * 2 * 3 * 128 * 48 * 2
    assert layout.total_bytes - layout.layer_offsets[1] >= 2 * 2 * 3 * 64 * 48 * 2


def test_values_are_transposed_in_blocks_of_64_positions() -> None:
    layout = KVLayout(kv_heads=2, head_dim=16, capacity=(128,), slots=2, dtype="f16")
    memory, kv = Memory(layout), layout.layer(0)
    k = np.arange(1, 33, dtype=np.float32).reshape(1, 2, 16)
    layout.import_block(memory.read, memory.write, 1, KVBlock(70, 71, (70,), [k], [-k]))
    flat = memory.bytes.view(np.float16)
    slot, head, element = 1, 1, 5
    row = (slot * 2 + head) * 128
    assert flat[(row + 70) * 16 + element] == k[0, head, element]
    values = flat[kv.values_offset // 2 :]
    assert values[row * 16 + 64 * 16 + element * 64 + 6] == -k[0, head, element]
    assert np.count_nonzero(flat) == 64


@pytest.mark.parametrize(("dtype", "tolerance"), [("f16", 1e-3), ("bf16", 4e-3)])
@pytest.mark.parametrize(("start", "stop"), [(0, 70), (100, 130), (120, 200), (33, 33)])
def test_what_was_imported_is_exported(dtype: str, tolerance: float, start: int, stop: int) -> None:
    """Through the end of the ring too; storing it again gives the same bits."""
    layout = KVLayout(kv_heads=2, head_dim=16, capacity=(128, 80), slots=2, dtype=dtype)
    memory = Memory(layout)
    sent = block_of(layout, start, stop, lambda capacity: max(start, stop - capacity))
    layout.import_block(memory.read, memory.write, 1, sent)
    got = layout.export_block(memory.read, 1, start, stop)
    assert got.layer_starts == sent.layer_starts
    for layer in range(2):
        np.testing.assert_allclose(got.keys[layer], sent.keys[layer], tolerance, tolerance)
        np.testing.assert_allclose(got.values[layer], sent.values[layer], tolerance, tolerance)
    again = Memory(layout)
    layout.import_block(again.read, again.write, 1, got)
    np.testing.assert_array_equal(again.bytes, memory.bytes)
    other = layout.export_block(memory.read, 0, start, stop)
    assert not any(part.any() for part in (*other.keys, *other.values)), "another slot has changed"


def test_a_block_that_reaches_back_further_than_a_ring_is_cut() -> None:
    layout = KVLayout(kv_heads=1, head_dim=16, capacity=(70,), slots=1, dtype="bf16")
    memory = Memory(layout)
    sent = block_of(layout, 0, 200, lambda _: 0)
    layout.import_block(memory.read, memory.write, 0, sent)
    got = layout.export_block(memory.read, 0, 0, 200)
    assert got.layer_starts == (130,)
    np.testing.assert_allclose(got.keys[0], sent.keys[0][130:], rtol=4e-3)


def test_few_positions_of_a_long_cache_read_few_bytes() -> None:
    layout = KVLayout(kv_heads=2, head_dim=16, capacity=(4096,), slots=1, dtype="f16")
    memory = Memory(layout)
    layout.export_block(memory.read, 0, 60, 70)
    assert memory.bytes_read == 2 * 2 * 2 * 64 * 16 * 2


def test_what_is_not_finite_leaves_a_key_of_nan() -> None:
    layout = KVLayout(kv_heads=1, head_dim=16, capacity=(64,), slots=1, dtype="f16")
    memory = Memory(layout)
    k, v = np.ones((2, 2, 1, 16), np.float32)
    v[1, 0, 3] = np.inf
    layout.import_block(memory.read, memory.write, 0, KVBlock(0, 2, (0,), [k], [v]))
    got = layout.export_block(memory.read, 0, 0, 2)
    assert np.isnan(got.keys[0][1]).all()
    assert np.isfinite(got.keys[0][0]).all()
    assert np.isfinite(got.values[0]).all()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("head_dim", 40, "head_dim 40 is not a positive multiple of 16"),
        ("capacity", 0, "capacity 0 is not positive"),
        ("dtype", "int8", "dtype int8 is not one of f16, bf16"),
    ],
)
def test_a_shape_the_kernels_cannot_use_is_refused(field: str, value: object, message: str) -> None:
    arguments: dict[str, object] = {
        "kv_heads": 1,
        "head_dim": 16,
        "capacity": 64,
        "dtype": "f16",
        "slots": 1,
    }
    arguments[field] = value
    with pytest.raises(ValueError) as caught:
        KVLayer(**arguments)  # type: ignore[arg-type]
    assert str(caught.value) == message
