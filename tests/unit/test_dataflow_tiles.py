"""Weights as tiles: the numbers they stand for, and scales that f16 cannot hold."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from dataflow_models import load_dataflow
from numpy.typing import NDArray
from oracle.families import make_family
from oracle.files import write_gguf
from small_models import SmallModels, feed, random_tokens, relative_error

from infc.backends.dataflow.tiles import LINE_BYTES, Matrix, TileFormat, scale_factor, tile_format
from infc.ir.storage import STORAGE_TYPES

U8 = NDArray[np.uint8]
QUANTISED = sorted(name for name in STORAGE_TYPES if (f := tile_format(name)) and not f.is_float)
ROWS, COLUMNS = 6, 512


def random_matrix(storage: str, exponent: int = 0) -> U8:
    """Blocks of random codes whose f16 fields are about `2 ** exponent / 64`."""
    kind = STORAGE_TYPES[storage]
    rng = np.random.default_rng(len(storage))
    count = ROWS * COLUMNS // kind.block_elems
    blocks = rng.integers(0, 256, (count, kind.block_bytes), np.uint8)
    for at in kind.half_offsets:
        fields = rng.uniform(0.5, 1.0, count) * 2.0 ** (exponent - 6)
        blocks[:, at : at + 2] = fields.astype(np.float16).view(np.uint8).reshape(-1, 2)
    return blocks.reshape(-1)


def numbers_of(tile: U8, form: TileFormat, n: int, k: int) -> NDArray[np.float32]:
    """What a tile means, as the machine's manual says."""
    flat = tile[: form.scales_offset(n, k)]
    if form.bits == 4:
        codes = np.stack([flat & 15, flat >> 4], axis=1).reshape(n, k).astype(np.float32)
        codes -= 0 if form.has_min else 8
    else:
        codes = flat.view(np.int8).reshape(n, k).astype(np.float32)
    groups = n * k // form.group

    def fields(at: int) -> NDArray[np.float32]:
        halves = tile[at : at + 2 * groups].view(np.float16).astype(np.float32)
        return np.repeat(halves.reshape(n, k // form.group), form.group, axis=1)

    numbers = codes * fields(form.scales_offset(n, k))
    return numbers + fields(form.mins_offset(n, k)) if form.has_min else numbers


@pytest.mark.parametrize("storage", QUANTISED)
@pytest.mark.parametrize("exponent", [0, -9, 15])
def test_a_tile_is_the_part_of_the_matrix(storage: str, exponent: int) -> None:
    raw = random_matrix(storage, exponent)
    matrix = Matrix(raw, storage, (ROWS, COLUMNS))
    form = tile_format(storage)
    assert form is not None
    whole = STORAGE_TYPES[storage].dequantize(raw, (ROWS, COLUMNS))
    tile = matrix.tile(slice(1, 4), slice(256, 512), 5)
    assert len(tile) % LINE_BYTES == 0
    found = numbers_of(tile, form, 5, 256) * np.float32(matrix.factor)
    # Scales have 11 bits; where a matrix has minima, both are rounded.
    assert np.abs(found[:3] - whole[1:4, 256:]).max() <= 2e-3 * np.abs(whole).max()
    assert not found[3:].any()
    record = matrix.rows(slice(2, 4)).reshape(2, -1)
    for row, number in zip(record, (2, 3), strict=True):
        alone = numbers_of(row, form, 1, COLUMNS)[0] * np.float32(matrix.factor)
        assert np.abs(alone - whole[number]).max() <= 2e-3 * np.abs(whole).max()


def test_scales_in_the_range_of_f16_stay_as_they_are() -> None:
    for storage in QUANTISED:
        assert scale_factor(random_matrix(storage), storage) == 1.0
    assert scale_factor(random_matrix("q6_k", 15), "q6_k") > 1.0
    assert scale_factor(random_matrix("q8_0", -14), "q8_0") < 1.0


def test_floats_stay_as_they_are() -> None:
    raw = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float16)
    tile = Matrix(raw.reshape(-1).view(np.uint8), "f16", (4, 64)).tile(
        slice(1, 3), slice(32, 64), 2
    )
    assert np.array_equal(tile.view(np.float16).reshape(2, 32), raw[1:3, 32:])


def test_f32_matrices_have_no_tiles() -> None:
    assert tile_format("f32") is None


def test_products_with_tiny_scales(small_models: SmallModels, tmp_path: Path) -> None:
    """Queries and keys are normed behind their products, so their scale changes little."""
    config, tensors = make_family("qwen3")
    small = {name: t * np.float32(2.0**-12) for name, t in tensors.items() if "q_proj" in name}
    path = tmp_path / "small.gguf"
    write_gguf(path, config, tensors | small, "Q8_0")
    reader = gguf.GGUFReader(path)
    raw = next(t for t in reader.tensors if t.name == "blk.0.attn_q.weight").data
    assert scale_factor(np.ascontiguousarray(raw).view(np.uint8).reshape(-1), "q8_0") < 1.0
    tokens = random_tokens(config["vocab_size"], 12)
    found = load_dataflow(path, "dataflow:test").runnable
    reference = small_models.runnable(path, "reference", max_batch=1)
    results = [feed(runnable, runnable.new_kv(), tokens) for runnable in (found, reference)]
    assert relative_error(*results) <= 1e-1
