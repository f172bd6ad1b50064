"""Folders with weights of 8-bit floats: what is read from them, against other implementations."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from oracle.families import make_family
from oracle.scaled_floats import CODES, SCHEMES, quantize, write_scaled_floats

from infc.frontends import open_model
from infc.frontends.config_source import ConfigSource
from infc.ir.storage import STORAGE_TYPES

STORAGE = STORAGE_TYPES["f8_e4m3"]
SHAPES = {"hidden_size": 160, "intermediate_size": 288, "num_hidden_layers": 1}
"""Rows of one whole block of 128 and a part of one, and of two and a part."""


def test_the_codebook_is_the_format() -> None:
    """Against a formula of its own, which knows nothing of subnormals."""
    assert STORAGE.codebook is not None
    np.testing.assert_array_equal(STORAGE.codebook, CODES)
    np.testing.assert_array_equal(np.signbit(STORAGE.codebook[[0, 128]]), [False, True])
    assert np.nanmax(STORAGE.codebook) == 448
    with pytest.raises(ValueError, match="read-only"):
        STORAGE.codebook[0] = 1


def test_the_codebook_is_that_of_ml_dtypes() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    codes = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn)
    np.testing.assert_array_equal(STORAGE.codebook, codes.astype(np.float32))


@pytest.mark.parametrize("k", [32, 128, 160, 384])
def test_rows_are_codes_and_then_scales(k: int) -> None:
    rng = np.random.default_rng(k)
    codes = rng.integers(0, 127, (5, k), np.uint8)
    scales = rng.normal(size=(5, -(-k // 128))).astype(np.float32)
    raw = np.concatenate([codes, scales.view(np.uint8)], axis=1).reshape(-1)
    assert STORAGE.size_bytes((5, k)) == raw.size
    expected = CODES[codes] * scales.repeat(128, axis=1)[:, :k]
    np.testing.assert_array_equal(STORAGE.dequantize(raw, (5, k)), expected)
    parts = STORAGE.unpack(raw, (5, k))
    np.testing.assert_array_equal(parts.values(), expected)
    np.testing.assert_array_equal(parts.codes, codes)
    np.testing.assert_array_equal(parts.scales, scales)


def test_matrices_larger_than_a_chunk() -> None:
    rng = np.random.default_rng(4)
    codes = rng.integers(0, 127, (2100, 160), np.uint8)
    scales = rng.normal(size=(2100, 2)).astype(np.float32)
    raw = np.concatenate([codes, scales.view(np.uint8)], axis=1).reshape(-1)
    expected = CODES[codes] * scales.repeat(128, axis=1)[:, :160]
    np.testing.assert_array_equal(STORAGE.dequantize(raw, (2100, 160)), expected)


@pytest.mark.parametrize("scale_type", ["F32", "BF16"])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("family", ["llama2", "qwen3"])
def test_folders(tmp_path: Path, family: str, scheme: str, scale_type: str) -> None:
    """Every number is that of the folder, bit for bit."""
    config, tensors = make_family(family, **SHAPES)
    meant = write_scaled_floats(tmp_path, config, tensors, scheme, scale_type)
    source = open_model(tmp_path)
    assert sorted(source.tensors) == sorted(meant)
    for name, expected in meant.items():
        info = source.tensors[name]
        assert info.storage == ("f8_e4m3" if name.endswith("_proj.weight") else "f32")
        raw = source.data(name)
        assert raw.size == info.size_bytes
        got = STORAGE_TYPES[info.storage].dequantize(raw, info.shape)
        np.testing.assert_array_equal(got, expected)
    source.close()


@pytest.mark.parametrize("block", [(128, 128), (1, 160), (48, 160)])
def test_numbers_are_those_of_torch(tmp_path: Path, block: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch")
    numbers = np.random.default_rng(2).normal(size=(48, 160)).astype(np.float32)
    codes, scales, meant = quantize(numbers, block)
    eights = torch.from_numpy(codes).view(torch.float8_e4m3fn).to(torch.float32)
    factors = torch.from_numpy(scales).repeat_interleave(block[0], 0)[:48]
    factors = factors.repeat_interleave(block[1], 1)[:, :160]
    np.testing.assert_array_equal(meant, (eights * factors).numpy())


def test_blocks_of_compressed_tensors(tmp_path: Path) -> None:
    config, tensors = make_family("llama2", **SHAPES)
    meant = write_scaled_floats(tmp_path, config, tensors, "block")
    path = tmp_path / "config.json"
    weights = {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [128, 128]}
    settings = {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }
    path.write_text(json.dumps(config | {"quantization_config": settings}))
    source = open_model(tmp_path)
    name = "model.layers.0.mlp.down_proj.weight"
    got = STORAGE.dequantize(source.data(name), source.tensors[name].shape)
    np.testing.assert_array_equal(got, meant[name])
    source.close()


def test_a_configuration_alone(tmp_path: Path) -> None:
    config, _ = make_family("llama2")
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config | {"quantization_config": SCHEMES["block"][0]}))
    assert ConfigSource(path, "f8_e4m3").tensors[
        "model.layers.0.mlp.up_proj.weight"
    ].size_bytes == (96 * (64 + 4))
