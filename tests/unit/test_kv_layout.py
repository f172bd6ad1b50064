"""The key-value cache: where things lie, and that what goes in comes out."""

import numpy as np
import pytest

from infc.backends.cpu.kernels.kv_layout import KVLayer, KVLayout


def _cache(layout: KVLayout) -> np.ndarray:
    return np.zeros(layout.total_bytes, dtype=np.uint8)


def test_regions_are_aligned_and_do_not_overlap() -> None:
    layout = KVLayout(kv_heads=3, head_dim=10, capacity=(32, 112), slots=2, dtype="f16")
    starts = [layout.offset(layer, slot) for layer in range(2) for slot in range(2)]
    ends = [*starts[1:], layout.total_bytes]
    for (layer, start), end in zip(enumerate(starts), ends, strict=True):
        shape = layout.layer(layer // 2)
        assert start % 64 == 0
        # Keys, values, and the vector that reads of the last, unfinished row may touch.
        assert end - start >= 2 * 3 * shape.capacity * 10 * 2 + 64


def test_whole_heads_need_no_slack() -> None:
    assert KVLayer(kv_heads=1, head_dim=256, capacity=64, dtype="f32").slot_stride == 2 * 64 * 1024


def test_keys_of_sixteen_positions_are_the_lanes_of_a_vector() -> None:
    layout = KVLayout(kv_heads=2, head_dim=8, capacity=(32,), slots=1, dtype="f32")
    cache = _cache(layout)
    k = np.arange(2 * 8, dtype=np.float32).reshape(1, 2, 8)
    layout.import_positions(cache, 0, 0, [19], k, -k)
    flat = cache.view(np.float32)
    head, element = 1, 5
    assert flat[((head * 2 + 1) * 8 + element) * 16 + 3] == k[0, head, element]
    values = flat[layout.layer(0).v_offset // 4 :]
    assert values[(head * 32 + 19) * 8 + element] == -k[0, head, element]


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("f32", 0.0), ("f16", 1e-3), ("bf16", 4e-3), ("int8", 2e-2)]
)
def test_export_returns_what_import_wrote_through_a_wrap(dtype: str, tolerance: float) -> None:
    layout = KVLayout(kv_heads=2, head_dim=24, capacity=(32, 48), slots=3, dtype=dtype)
    cache = _cache(layout)
    rng = np.random.default_rng(0)
    positions = range(40, 70)
    k, v = rng.standard_normal((2, 30, 2, 24), dtype=np.float32)
    layout.import_positions(cache, 1, 2, positions, k, v)
    got_k, got_v = layout.export_positions(cache, 1, 2, positions)
    np.testing.assert_allclose(got_k, k, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(got_v, v, rtol=tolerance, atol=tolerance)
    again = _cache(layout)
    layout.import_positions(again, 1, 2, positions, got_k, got_v)
    np.testing.assert_array_equal(again, cache)
    inside = slice(layout.offset(1, 2), layout.offset(1, 2) + layout.layer(1).slot_stride)
    cache[inside] = 0
    assert not cache.any(), "another region was written"


def test_two_elements_of_a_key_and_two_positions_of_a_value_share_a_lane() -> None:
    layout = KVLayout(kv_heads=2, head_dim=8, capacity=(32,), slots=1, dtype="bf16")
    cache = _cache(layout)
    k = np.arange(2 * 8, dtype=np.float32).reshape(1, 2, 8)
    layout.import_positions(cache, 0, 0, [19], k, -k)
    flat = (cache.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    head, element = 1, 5
    assert flat[(((head * 2 + 1) * 4 + element // 2) * 16 + 3) * 2 + 1] == k[0, head, element]
    values = flat[layout.layer(0).v_offset // 2 :]
    assert values[((head * 16 + 19 // 2) * 8 + element) * 2 + 1] == -k[0, head, element]


def test_codes_and_scales_of_a_head_lie_in_four_parts() -> None:
    layout = KVLayout(kv_heads=1, head_dim=40, capacity=(32,), slots=1, dtype="int8")
    cache, kv = _cache(layout), layout.layer(0)
    k = np.zeros((1, 1, 40), np.float32)
    k[0, 0, [3, 33]] = 254.0, -127.0
    layout.import_positions(cache, 0, 0, [18], k, 4 * k)
    assert cache[(1 * 40 + 3) * 16 + 2] == 127
    assert cache[(1 * 40 + 33) * 16 + 2].view(np.int8) == -127
    assert cache[kv.v_offset + 18 * 40 + 33].view(np.int8) == -64  # -508 / (1016 / 127), to even
    scales = (cache[kv.key_scales_offset :].view(np.uint16).astype(np.uint32) << 16).view("f4")
    assert scales[(1 * 2 + 0) * 16 + 2] == 2.0
    assert scales[(1 * 2 + 1) * 16 + 2] == 1.0
    assert scales[2 * 2 * 16 + 18] == 8.0
    assert np.count_nonzero(scales) == 3


def test_a_later_position_replaces_the_one_a_capacity_before() -> None:
    layout = KVLayout(kv_heads=1, head_dim=8, capacity=(16,), slots=1, dtype="f32")
    cache = _cache(layout)
    ones = np.ones((1, 1, 8), dtype=np.float32)
    layout.import_positions(cache, 0, 0, [3], ones, ones)
    layout.import_positions(cache, 0, 0, [19], 2 * ones, 2 * ones)
    assert layout.export_positions(cache, 0, 0, [3])[0].tolist() == (2 * ones).tolist()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("capacity", 40, "capacity 40 is not a positive multiple of 16"),
        ("head_dim", 9, "head_dim 9 is not even and at least 8"),
        ("dtype", "f8", "dtype f8 is not one of f32, f16, bf16, int8"),
    ],
)
def test_a_shape_the_kernels_cannot_use_is_refused(field: str, value: object, message: str) -> None:
    arguments: dict[str, object] = {"kv_heads": 1, "head_dim": 8, "capacity": 16, "dtype": "f32"}
    arguments[field] = value
    with pytest.raises(ValueError) as caught:
        KVLayer(**arguments)  # type: ignore[arg-type]
    assert str(caught.value) == message
