"""Storage types against the `gguf` package, which is the format's own description."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from infc.diagnostics import InternalError
from infc.ir.storage import STORAGE_TYPES

IN_GGUF = [name for name, storage in STORAGE_TYPES.items() if storage.codebook is None]
QUANTISED = [name for name in IN_GGUF if not STORAGE_TYPES[name].is_float]
QUANTISABLE = ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0"]  # gguf can quantise these itself


def random_blocks(name: str, shape: tuple[int, ...], seed: int) -> NDArray[np.uint8]:
    """Random bytes with finite float fields: [size_bytes]."""
    storage = STORAGE_TYPES[name]
    rng = np.random.default_rng(seed)
    blocks = rng.integers(
        0, 256, (storage.size_bytes(shape) // storage.block_bytes, storage.block_bytes), np.uint8
    )
    for offset in storage.half_offsets:
        scales = rng.normal(0, 0.1, len(blocks)).astype("<f2")
        blocks[:, offset : offset + 2] = scales.view(np.uint8).reshape(-1, 2)
    return blocks.reshape(-1)


def oracle(name: str, raw: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.float32]:
    rows = raw.reshape(*shape[:-1], -1)
    kind = gguf.GGMLQuantizationType[name.upper()]
    return np.asarray(gguf.quants.dequantize(rows, kind), np.float32).reshape(shape)


def assert_same_bits(got: NDArray[np.float32], want: NDArray[np.float32]) -> None:
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32))


@pytest.mark.parametrize("name", IN_GGUF)
def test_block_sizes_are_those_of_the_format(name: str) -> None:
    storage = STORAGE_TYPES[name]
    sizes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name.upper()]]
    assert (storage.block_elems, storage.block_bytes) == sizes


@pytest.mark.parametrize("name", QUANTISED)
@pytest.mark.parametrize("shape", [(1, 256), (5, 768), (2, 3, 256)])
def test_random_bytes_dequantise_bit_for_bit(name: str, shape: tuple[int, ...]) -> None:
    raw = random_blocks(name, shape, seed=sum(shape))
    assert_same_bits(STORAGE_TYPES[name].dequantize(raw, shape), oracle(name, raw, shape))


@pytest.mark.parametrize("name", QUANTISED)
def test_tensors_larger_than_one_chunk(name: str) -> None:
    shape = (1031, 768)  # no whole number of chunks
    raw = random_blocks(name, shape, seed=3)
    assert_same_bits(STORAGE_TYPES[name].dequantize(raw, shape), oracle(name, raw, shape))
    assert_same_bits(STORAGE_TYPES[name].unpack(raw, shape).values(), oracle(name, raw, shape))


@pytest.mark.parametrize("name", QUANTISABLE)
def test_quantised_numbers_come_back_close(name: str) -> None:
    values = np.random.default_rng(1).normal(0, 1, (7, 96)).astype(np.float32)
    kind = gguf.GGMLQuantizationType[name.upper()]
    raw = np.asarray(gguf.quants.quantize(values, kind)).reshape(-1)
    got = STORAGE_TYPES[name].dequantize(raw, values.shape)
    assert_same_bits(got, oracle(name, raw, values.shape))
    step = np.abs(STORAGE_TYPES[name].unpack(raw, values.shape).scales).repeat(32, axis=1)
    # Half a step of rounding; the code range of q4_0 and q5_0 is one step short at its far end.
    assert np.all(np.abs(got - values) <= 1.1 * step)


@pytest.mark.parametrize("name", QUANTISED)
def test_unpack_describes_the_same_numbers(name: str) -> None:
    shape = (4, 512)
    storage = STORAGE_TYPES[name]
    raw = random_blocks(name, shape, seed=9)
    codes = storage.unpack(raw, shape)
    assert codes.codes.shape == shape
    assert codes.codes.max() < 2**storage.bits
    assert codes.group == storage.group
    assert codes.scales.shape == (4, 512 // storage.group)
    assert (codes.mins is not None) == storage.has_min
    # The formula of the contract in float64 differs by the rounding of one product and one sum.
    scales = codes.scales.astype(np.float64).repeat(codes.group, axis=1)
    exact = scales * (codes.codes.astype(np.float64) - codes.zero_point)
    bound = np.abs(exact) * 2.0**-24
    if codes.mins is not None:
        exact += codes.mins.astype(np.float64).repeat(codes.group, axis=1)
        bound += np.abs(exact) * 2.0**-24 * 1.01
    assert np.all(np.abs(oracle(name, raw, shape) - exact) <= bound * 1.01)
    assert_same_bits(codes.values(), oracle(name, raw, shape))


def test_floats_keep_their_bits() -> None:
    rng = np.random.default_rng(2)
    words = rng.integers(0, 2**16, 64, np.uint16)
    words = words[(words & 0x7F80) != 0x7F80]  # NaN payloads are not ours to keep
    raw = words.view(np.uint8)
    shape = (1, len(words))
    bf16 = STORAGE_TYPES["bf16"].dequantize(raw, shape)
    assert_same_bits(bf16, (words.astype(np.uint32) << 16).view(np.float32).reshape(shape))
    halves = words[(words & 0x7C00) != 0x7C00]
    f16 = STORAGE_TYPES["f16"].dequantize(halves.view(np.uint8), (len(halves),))
    np.testing.assert_array_equal(f16, halves.view(np.float16).astype(np.float32))
    single = rng.normal(size=(3, 5)).astype(np.float32)
    assert_same_bits(
        STORAGE_TYPES["f32"].dequantize(single.reshape(-1).view(np.uint8), (3, 5)), single
    )


def test_unaligned_bytes_are_fine() -> None:
    raw = random_blocks("q8_0", (2, 64), seed=4)
    shifted = np.concatenate([np.zeros(1, np.uint8), raw])[1:]
    assert_same_bits(
        STORAGE_TYPES["q8_0"].dequantize(shifted, (2, 64)), oracle("q8_0", raw, (2, 64))
    )
    single = np.arange(4, dtype=np.float32)
    shifted = np.concatenate([np.zeros(1, np.uint8), single.view(np.uint8)])[1:]
    np.testing.assert_array_equal(STORAGE_TYPES["f32"].dequantize(shifted, (4,)), single)


def test_the_result_is_a_copy() -> None:
    single = np.arange(4, dtype=np.float32)
    out = STORAGE_TYPES["f32"].dequantize(single.view(np.uint8), (4,))
    out[0] = 7
    assert single[0] == 0


def test_misuse_is_internal() -> None:
    with pytest.raises(InternalError, match="needs rows of a multiple of 256"):
        STORAGE_TYPES["q4_k"].size_bytes((2, 128))
    with pytest.raises(InternalError, match="needs 34 bytes"):
        STORAGE_TYPES["q8_0"].dequantize(np.zeros(33, np.uint8), (32,))
    with pytest.raises(InternalError, match="has no codes"):
        STORAGE_TYPES["f16"].unpack(np.zeros(64, np.uint8), (32,))
