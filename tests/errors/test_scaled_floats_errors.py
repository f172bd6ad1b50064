"""What users read when weights of 8-bit floats are not as they must be: the whole text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from oracle.families import make_family
from oracle.scaled_floats import SCHEMES, write_safetensors, write_scaled_floats

import infc
from infc.cost.model_shape import read_shape
from infc.diagnostics import UserError
from infc.frontends import check_finite, open_model
from infc.frontends.files import ModelFile
from infc.frontends.safetensors_header import read_safetensors

NAME = "model.layers.0.mlp.up_proj.weight"
SCALE = "model.layers.0.mlp.up_proj.weight_scale"
ONE_LAYER = {"num_hidden_layers": 1}
Stored = dict[str, tuple[str, NDArray[Any]]]
_NUMPY = {"F32": np.float32, "F8_E4M3": np.uint8}


def folder(path: Path, scheme: str, change: Callable[[Stored], object]) -> Path:
    """A folder with some of its tensors changed."""
    config, tensors = make_family("llama2", **ONE_LAYER)
    write_scaled_floats(path, config, tensors, scheme)
    file = ModelFile(path / "model.safetensors")
    stored: Stored = {}
    for entry in read_safetensors(file):
        raw = file.read(entry.offset, entry.size_bytes)
        stored[entry.name] = (
            entry.dtype,
            raw.view(_NUMPY[entry.dtype]).reshape(entry.shape).copy(),
        )
    file.close()
    change(stored)
    write_safetensors(path / "model.safetensors", stored)
    return path


def text_of(action: Callable[[], object], path: Path) -> str:
    with pytest.raises(UserError) as caught:
        action()
    return str(caught.value).replace(str(path), "DIR")


def opening(path: Path) -> str:
    return text_of(lambda: open_model(path), path)


def put(name: str, dtype: str, held: NDArray[Any]) -> Callable[[Stored], object]:
    return lambda stored: stored.update({name: (dtype, held)})


def test_scales_are_missing(tmp_path: Path) -> None:
    path = folder(tmp_path, "row", lambda stored: stored.pop(SCALE))
    assert opening(path) == (
        "error[INF1004]: the model's tensors are not as expected\n"
        "  --> DIR\n"
        f'   - expected scales in "{NAME}_scale_inv" or "{NAME}_scale", got neither '
        f'(DIR/model.safetensors: tensor "{NAME}")'
    )


def test_scales_of_another_shape(tmp_path: Path) -> None:
    path = folder(tmp_path, "row", put(SCALE, "F32", np.ones((96, 2), np.float32)))
    assert opening(path) == (
        "error[INF1004]: the model's tensors are not as expected\n"
        "  --> DIR\n"
        '   - expected scales of shape one number or 96x1 (no block in "quantization_config" of '
        "config.json), got 96x2 "
        f'(DIR/model.safetensors: tensor "{SCALE}")'
    )


def test_blocks_of_another_shape(tmp_path: Path) -> None:
    """Not guessed from the shapes: of a last block that is cut short nobody could tell."""
    path = folder(tmp_path, "block", put(f"{SCALE}_inv", "F32", np.ones((2, 1), np.float32)))
    assert opening(path) == (
        "error[INF1004]: the model's tensors are not as expected\n"
        "  --> DIR\n"
        f"   - expected scales of shape one number, 96x1 or 1x1, got 2x1 "
        f'(DIR/model.safetensors: tensor "{SCALE}_inv")'
    )


@pytest.mark.parametrize("number", [np.nan, np.inf, 1e37])
def test_scales_that_are_no_numbers(tmp_path: Path, number: float) -> None:
    scales = np.ones((96, 1), np.float32)
    scales[[3, 5]] = number
    path = folder(tmp_path, "row", put(SCALE, "F32", scales))
    assert opening(path) == (
        "error[INF1004]: the model's tensors are not as expected\n"
        "  --> DIR\n"
        "   - expected scales that are finite, also times 448, got 2 that are not "
        f'(DIR/model.safetensors: tensor "{SCALE}")'
    )


def test_scales_of_another_type(tmp_path: Path) -> None:
    path = folder(tmp_path, "row", put(SCALE, "F8_E8M0", np.full((96, 1), 127, np.uint8)))
    assert opening(path) == (
        "error[INF1006]: the model needs what infc does not support\n"
        "  --> DIR\n"
        f'   - scales of type F8_E8M0 (DIR/model.safetensors: tensor "{SCALE}")'
    )


def test_the_other_float_of_eight_bits(tmp_path: Path) -> None:
    path = folder(tmp_path, "row", put(NAME, "F8_E5M2", np.zeros((96, 64), np.uint8)))
    assert opening(path) == (
        "error[INF1006]: the model needs what infc does not support\n"
        "  --> DIR\n"
        f'   - storage type F8_E5M2 (DIR/model.safetensors: tensor "{NAME}")'
    )


def test_what_is_no_matrix_of_a_product(tmp_path: Path) -> None:
    def change(stored: Stored) -> None:
        stored["model.embed_tokens.weight"] = ("F8_E4M3", np.zeros((320, 64), np.uint8))
        stored["model.embed_tokens.weight_scale"] = ("F32", np.ones((1,), np.float32))
        stored["model.norm.weight"] = ("F8_E4M3", np.zeros(64, np.uint8))
        stored["model.norm.weight_scale"] = ("F32", np.ones((1,), np.float32))

    assert opening(folder(tmp_path, "row", change)) == (
        "error[INF1006]: the model needs what infc does not support\n"
        "  --> DIR\n"
        "   - expected 8-bit floats in matrices only, in rows of a multiple of 32, got shape 64 "
        '(DIR/model.safetensors: tensor "model.norm.weight")\n'
        "   - an embedding of 8-bit floats "
        '(DIR/model.safetensors: tensor "model.embed_tokens.weight")'
    )


def test_rows_that_are_no_multiple_of_32(tmp_path: Path) -> None:
    config, tensors = make_family("llama2", **ONE_LAYER, intermediate_size=100)
    write_scaled_floats(tmp_path, config, tensors, "row")
    name = "model.layers.0.mlp.down_proj.weight"
    assert opening(tmp_path) == (
        "error[INF1006]: the model needs what infc does not support\n"
        "  --> DIR\n"
        "   - expected 8-bit floats in matrices only, in rows of a multiple of 32, got shape "
        f'64x100 (DIR/model.safetensors: tensor "{name}")'
    )


def test_codes_that_are_no_numbers(tmp_path: Path) -> None:
    codes = np.zeros((96, 64), np.uint8)
    codes[7, [3, 9]] = 0x7F, 0xFF
    path = folder(tmp_path, "row", put(NAME, "F8_E4M3", codes))
    source = open_model(path)
    expected = (
        "error[INF1008]: expected finite weights, got others in 1 tensors\n"
        "  --> DIR\n"
        f'   - 2 numbers are NaN or infinite (DIR/model.safetensors: tensor "{NAME}")\n'
        "   = hint: the file is damaged or was converted wrongly: get it again"
    )
    assert text_of(lambda: check_finite(source, source.config.weights.values()), path) == expected
    source.close()
    output = tmp_path / "model.infc"
    assert text_of(lambda: infc.compile(path, target="reference", output=output), path) == expected


@pytest.mark.parametrize(
    ("settings", "got"),
    [
        ({"quant_method": "gptq", "bits": 4}, '"gptq"'),
        ({"bits": 4}, '"nothing"'),
        (
            {"quant_method": "compressed-tensors", "format": "pack-quantized"},
            'the format "pack-quantized"',
        ),
    ],
)
@pytest.mark.parametrize("scheme", ["row", "block"])
def test_other_ways_of_quantising(
    tmp_path: Path, settings: dict[str, Any], got: str, scheme: str
) -> None:
    """One finding, whatever the tensors look like."""
    config, tensors = make_family("llama2", **ONE_LAYER, intermediate_size=160)
    write_scaled_floats(tmp_path, config, tensors, scheme)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config | {"quantization_config": settings}))
    expected = (
        "error[INF1006]: the model needs what infc does not support\n"
        "  --> DIR\n"
        '   - weights quantised as in "quantization_config": expected one of the methods fp8, '
        'fbgemm_fp8, compressed-tensors (in the format "float-quantized"), '
        f"got {got} (DIR/config.json)"
    )
    assert opening(tmp_path) == expected
    alone = expected.replace("--> DIR\n", "--> DIR/config.json\n")
    assert text_of(lambda: read_shape(path), tmp_path) == alone


@pytest.mark.parametrize("block", [[128, 64], [0, 128], [128], "128x128"])
def test_blocks_of_another_size(tmp_path: Path, block: object) -> None:
    config, tensors = make_family("llama2", **ONE_LAYER, intermediate_size=160)
    write_scaled_floats(tmp_path, config, tensors, "block")
    settings = SCHEMES["block"][0] | {"weight_block_size": block}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config | {"quantization_config": settings}))
    assert opening(tmp_path) == (
        "error[INF1006]: the model needs what infc does not support\n"
        "  --> DIR\n"
        "   - expected blocks of some rows and a multiple of 128 columns that share a scale, "
        f"got {block} (DIR/config.json: quantization_config)"
    )
