"""What each dtype keeps of keys and values."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infc.ir.kv_storage import KV_DTYPES, LIMITS, load_kv, position_bytes, store_kv

# The largest error as a part of the largest of the elements that share a scale.
PRECISION = {"f32": 0.0, "f16": 2**-11, "bf16": 2**-8, "int8": 0.502 / 127 + 2**-9 / 127}


@given(
    dtype=st.sampled_from(sorted(KV_DTYPES)),
    head_dim=st.sampled_from([8, 10, 32, 42, 80]),
    exponents=st.tuples(st.integers(-14, 14), st.integers(-14, 14)),
    seed=st.integers(0, 2**16),
)
def test_what_was_read_is_stored_again_as_the_same(
    dtype: str, head_dim: int, exponents: tuple[int, int], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    k, v = rng.standard_normal((2, 3, 2, head_dim), dtype=np.float32)
    k, v = k * np.float32(2.0 ** exponents[0]), v * np.float32(2.0 ** exponents[1])
    read = load_kv(store_kv(k, v, dtype))
    again = load_kv(store_kv(*read, dtype))
    for x, once, twice in zip((k, v), read, again, strict=True):
        np.testing.assert_array_equal(twice, once)
        largest = np.abs(x).max(axis=-1, keepdims=True)
        assert (np.abs(once - x) <= PRECISION[dtype] * largest + 2**-25).all()


@pytest.mark.parametrize("dtype", KV_DTYPES)
def test_the_range_is_finite_and_poison_is_in_the_key(dtype: str) -> None:
    k, v = np.ones((2, 4, 2, 40), np.float32)
    k[0, 0, 1], v[0, 1, 2] = 3.4e38, -3.4e38
    k[1, 0, 39], v[2, 0, 0], v[3, 1, 5] = np.inf, -np.inf, np.nan
    keys, values = load_kv(store_kv(k, v, dtype))
    assert np.isfinite(values).all()
    assert np.isfinite(keys[0]).all()
    assert keys[0, 0, 1] == pytest.approx(min(3.4e38, LIMITS[dtype]), rel=2**-8)
    poisoned = [[False, False], [True, False], [True, False], [False, True]]
    assert np.isnan(keys).any(axis=-1).tolist() == poisoned


def test_groups_of_tiny_numbers_become_zeros() -> None:
    k = np.full((1, 1, 64), 1e-38, np.float32)
    k[0, 0, 32:] = 1.0
    keys, _ = load_kv(store_kv(k, k, "int8"))
    assert (keys[0, 0, :32] == 0).all()
    np.testing.assert_allclose(keys[0, 0, 32:], 1.0, rtol=2**-9)


def test_bytes_of_a_position() -> None:
    sizes = {dtype: position_bytes(dtype, 80) for dtype in KV_DTYPES}
    assert sizes == {"f32": 640, "f16": 320, "bf16": 320, "int8": 160 + 2 * 4}
