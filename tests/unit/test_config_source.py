"""A model of which only the config.json is here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from infc.diagnostics import Code, InternalError, UserError
from infc.driver.lowering import lower_model
from infc.frontends.config_source import ConfigSource
from infc.ir.attributes import from_attribute
from infc.ir.context import context
from infc.ir.levels import Level, level_of
from infc.pipeline.options import CompileOptions

CONFIGS = Path(__file__).parents[2] / "samples" / "configs"


def test_sizes_follow_from_the_configuration() -> None:
    source = ConfigSource(CONFIGS / "llama-3.1-8b.json", "q8_0")
    matrices = {name: info for name, info in source.tensors.items() if len(info.shape) == 2}
    assert sum(info.shape[0] * info.shape[1] for info in matrices.values()) == 8_029_995_008
    assert {info.storage for info in matrices.values()} == {"q8_0"}
    down = matrices[source.config.weights["layers.31.down"]]
    assert (down.shape, down.size_bytes) == ((4096, 14336), 4096 * 14336 * 34 // 32)
    norm = source.tensors[source.config.weights["final_norm"]]
    assert (norm.storage, norm.size_bytes) == ("f32", 4 * 4096)


def test_norms_of_heads_are_among_the_tensors() -> None:
    source = ConfigSource(CONFIGS / "qwen3-32b.json", "bf16")
    assert source.tensors[source.config.weights["layers.0.q_norm"]].shape == (128,)


def test_there_are_no_numbers() -> None:
    source = ConfigSource(CONFIGS / "llama-3.1-8b.json", "bf16")
    with pytest.raises(InternalError, match="no bytes of 'x'"):
        source.data("x")


def test_the_type_of_the_matrices_is_part_of_the_model() -> None:
    path = CONFIGS / "llama-3.1-8b.json"
    assert ConfigSource(path, "bf16").digest() != ConfigSource(path, "q8_0").digest()


def test_what_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        ConfigSource(tmp_path / "config.json", "bf16")
    assert error.value.code is Code.MODEL_NOT_FOUND
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "mamba"}))
    with pytest.raises(UserError) as error:
        ConfigSource(path, "bf16")
    assert error.value.code is Code.MODEL_UNSUPPORTED


def test_a_backend_gets_its_module() -> None:
    options = CompileOptions(max_context=64, chunk=16)
    with context():
        source = ConfigSource(CONFIGS / "llama-3.1-8b.json", "q4_0")
        module, target = lower_model(source, "dataflow:systolic-hbm", options)
        assert level_of(module) is Level.SCHEDULE
        signature = from_attribute(module.operation.attributes["infc.signature"])
    assert target.name == "dataflow:systolic-hbm"
    assert (signature["vocab_size"], signature["kv_heads"]) == (128256, 8)
