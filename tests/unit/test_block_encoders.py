"""Numbers to quantised blocks: the format is GGUF's, and the codes are good ones."""

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from infc.frontends.block_encoders import ENCODED, encode
from infc.ir.storage import STORAGE_TYPES

F32 = NDArray[np.float32]
WORST = {"q8_0": 0.008, "q6_k": 0.022, "q4_k": 0.09, "q4_0": 0.11}
"""Relative error that random normal numbers must not reach."""


def normal(rows: int = 64, k: int = 512, seed: int = 0) -> F32:
    return (np.random.default_rng(seed).normal(size=(rows, k)) * 0.02).astype(np.float32)


def rounded(storage: str, numbers: F32) -> F32:
    return STORAGE_TYPES[storage].dequantize(encode(storage, numbers), numbers.shape)


def relative(numbers: F32, other: F32) -> float:
    return float(np.sqrt(np.square(other - numbers).sum() / np.square(numbers).sum()))


@pytest.mark.parametrize("storage", ENCODED)
def test_the_bytes_are_those_of_the_format(storage: str) -> None:
    numbers = normal()
    raw = encode(storage, numbers)
    assert (raw.dtype, raw.shape) == (np.uint8, (STORAGE_TYPES[storage].size_bytes(numbers.shape),))
    kind = gguf.GGMLQuantizationType[storage.upper()]
    theirs = gguf.quants.dequantize(raw.reshape(len(numbers), -1), kind)
    np.testing.assert_array_equal(theirs, rounded(storage, numbers))


@pytest.mark.parametrize("storage", WORST)
def test_little_is_lost(storage: str) -> None:
    assert 0 < relative(normal(), rounded(storage, normal())) < WORST[storage]


@pytest.mark.parametrize("storage", ["q4_k", "q6_k"])
def test_searching_beats_spanning_the_range(storage: str) -> None:
    """A group with one far number: some of it is better given up."""
    numbers = normal(seed=1)
    numbers[:, ::32] *= 4
    bits, group = (4, 32) if storage == "q4_k" else (6, 16)
    groups = numbers.reshape(-1, group)
    low, high = groups.min(1, keepdims=True), groups.max(1, keepdims=True)
    if storage == "q6_k":
        high = np.abs(groups).max(1, keepdims=True)
        low = -high
    step = (high - low) / (2**bits - 1)
    plain = (np.rint((groups - low) / step) * step + low).reshape(numbers.shape)
    assert relative(numbers, rounded(storage, numbers)) < relative(numbers, plain)


@pytest.mark.parametrize("storage", ENCODED)
@pytest.mark.parametrize(
    "numbers",
    [
        pytest.param(np.zeros((2, 256), np.float32), id="zeros"),
        pytest.param(np.full((1, 256), 0.5, np.float32), id="one-value"),
        pytest.param(np.full((1, 256), -3.0, np.float32), id="one-negative-value"),
        pytest.param(np.abs(normal(4, 256)) + 1, id="far-above-zero"),
        pytest.param(-np.abs(normal(4, 256)) - 1, id="far-below-zero"),
        pytest.param(np.eye(2, 256, dtype=np.float32), id="one-number"),
        pytest.param(normal(4, 256) * np.float32(1e4), id="large"),
    ],
)
def test_unusual_blocks(storage: str, numbers: F32) -> None:
    got = rounded(storage, numbers)
    assert np.isfinite(got).all()
    # Half a step of the coarsest type, of a group that spans zero and its largest number.
    assert np.abs(got - numbers).max() <= np.abs(numbers).max() / 7


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.02, 1.0, 300.0]),
    st.sampled_from(["q4_k", "q6_k"]),
)
def test_no_number_is_off_by_more_than_its_group_explains(
    seed: int, scale: float, storage: str
) -> None:
    random = np.random.default_rng(seed)
    numbers = (random.standard_t(3, size=(2, 512)) * scale).astype(np.float32)
    got = rounded(storage, numbers)
    largest = np.abs(numbers.reshape(4, 256)).max(axis=1)
    # A group is as coarse as its scale, a whole number of steps of 1/63 or 1/127 of the largest.
    allowed = 0.2 if storage == "q4_k" else 0.06
    assert (np.abs(got - numbers).reshape(4, 256).max(axis=1) <= allowed * largest).all()


@pytest.mark.parametrize("storage", ["q4_k", "q6_k"])
def test_a_block_does_not_depend_on_its_neighbours(storage: str) -> None:
    numbers = normal(300, 512)
    parts = [encode(storage, numbers[at : at + 7]) for at in range(0, 300, 7)]
    np.testing.assert_array_equal(encode(storage, numbers), np.concatenate(parts))


@pytest.mark.parametrize("storage", ["q4_k", "q6_k"])
def test_encoding_again_changes_little(storage: str) -> None:
    once = rounded(storage, normal())
    assert relative(once, rounded(storage, once)) < 0.5 * relative(normal(), once)
