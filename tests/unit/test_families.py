"""Every family's configuration, read from both kinds of file and in both spellings."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray
from oracle.families import (
    FAMILY_NAMES,
    GGUF_FAMILY_NAMES,
    WINDOW,
    make_family,
    sliding_layers,
)
from oracle.files import write_gguf, write_huggingface

from infc.diagnostics import UserError
from infc.frontends import open_model
from infc.frontends.families import BY_ARCHITECTURE, BY_MODEL_TYPE
from infc.frontends.findings import Findings
from infc.frontends.gguf_config import read_config as read_gguf_config
from infc.frontends.huggingface_config import read_config
from infc.frontends.rope import LinearScaling, Llama3Scaling, YarnScaling, rope, yarn_magnitude
from infc.frontends.settings import Settings
from infc.frontends.source import ModelConfig, TensorInfo

# A table of tensors that only has to be long enough for the number of layers.
MANY = {str(index): TensorInfo(str(index), (1,), "f32", 4, "") for index in range(999)}


SHARED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "heads",
    "kv_heads",
    "head_dim",
    "context_length",
    "activation",
    "attention_scale",
    "embedding_scale",
    "attention_softcap",
    "final_softcap",
    "query_key_norm",
    "post_norms",
)


def huggingface(values: dict[str, Any]) -> ModelConfig:
    findings = Findings("model")
    family = BY_MODEL_TYPE[values["model_type"]]
    config = read_config(Settings(values, findings, "config.json", family.defaults), family, MANY)
    findings.raise_if_any()
    return config


def from_metadata(architecture: str, values: dict[str, Any]) -> ModelConfig:
    findings = Findings("model")
    keyed = {f"{architecture}.{key}": value for key, value in values.items()}
    settings = Settings(keyed, findings, "model.gguf", prefix=f"{architecture}.")
    config = read_gguf_config(
        settings, BY_ARCHITECTURE[architecture], MANY, 100, lambda: np.ones(1, np.float32)
    )
    findings.raise_if_any()
    return config


def frequencies(config: ModelConfig, layer: int) -> NDArray[np.float64]:
    return np.asarray(config.layers[layer].rope.inverse_frequencies)


def geometric(dimensions: int, base: float) -> NDArray[np.float64]:
    """The frequencies by their definition."""
    return np.asarray(base ** (-np.arange(0, dimensions, 2) / dimensions))


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_huggingface_families(name: str, tmp_path: Path) -> None:
    values, tensors = make_family(name)
    write_huggingface(tmp_path, values, tensors)
    config = open_model(tmp_path).config
    assert config.family == values["model_type"].removesuffix("_text")
    assert (config.vocab_size, config.hidden_size) == (values["vocab_size"], 64)
    assert (config.heads, config.kv_heads) == (4, values["num_key_value_heads"])
    assert config.head_dim == values["head_dim"]
    assert config.norm_eps == values["rms_norm_eps"]
    scalar = float(values.get("query_pre_attn_scalar", values["head_dim"]))
    assert config.attention_scale == pytest.approx(scalar**-0.5)
    assert [layer.window for layer in config.layers] == [
        WINDOW if slides else None for slides in sliding_layers(values)
    ]
    gemma = name.startswith("gemma")
    assert config.norm_offset == (1.0 if gemma else 0.0)
    assert config.embedding_scale == (8.0 if gemma else 1.0)
    assert config.activation == ("gelu_tanh" if gemma else "silu")
    assert not any(layer.rope.interleaved for layer in config.layers)
    assert sorted(config.weights.values()) == sorted(tensors)
    assert ("head" in config.weights) == (not values["tie_word_embeddings"])
    assert ("layers.1.q_bias" in config.weights) == (name == "qwen2")
    assert config.query_key_norm == ("layers.1.q_norm" in config.weights)
    assert config.post_norms == ("layers.1.post_ffn_norm" in config.weights)


@pytest.mark.parametrize("name", GGUF_FAMILY_NAMES)
def test_gguf_says_what_the_folder_says(name: str, tmp_path: Path) -> None:
    values, tensors = make_family(name)
    write_gguf(tmp_path / "model.gguf", values, tensors)
    (tmp_path / "folder").mkdir()
    write_huggingface(tmp_path / "folder", values, tensors)
    ours = open_model(tmp_path / "model.gguf").config
    theirs = open_model(tmp_path / "folder").config
    for key in SHARED:
        assert getattr(ours, key) == getattr(theirs, key), key
    assert ours.norm_eps == pytest.approx(theirs.norm_eps)
    assert ours.norm_offset == 0.0  # the file's norm weights already contain it
    assert set(ours.weights) == set(theirs.weights)
    llama = values["model_type"] in ("llama", "mistral")
    for one, other in zip(ours.layers, theirs.layers, strict=True):
        assert one.window == other.window
        assert one.rope.interleaved == llama
        np.testing.assert_allclose(
            one.rope.inverse_frequencies, other.rope.inverse_frequencies, rtol=3e-7
        )


def test_weights_lead_to_the_tensors(tmp_path: Path) -> None:
    values, tensors = make_family("gemma2")
    write_gguf(tmp_path / "model", values, tensors)
    source = open_model(tmp_path / "model")
    assert source.config.weights["layers.3.ffn_norm"] == "blk.3.ffn_norm.weight"
    assert source.config.weights["layers.3.post_attn_norm"] == "blk.3.post_attention_norm.weight"
    got = source.data("blk.3.ffn_norm.weight").view("<f4")
    want = tensors["model.layers.3.pre_feedforward_layernorm.weight"] + np.float32(1)
    np.testing.assert_array_equal(got, want)


def test_default_rope_is_geometric() -> None:
    got = rope(128, 500000.0).inverse_frequencies
    np.testing.assert_allclose(got, geometric(128, 500000.0), rtol=3e-7)
    assert all(np.float32(one) == one for one in got)
    assert rope(64, 10000.0, LinearScaling(4.0)).inverse_frequencies[0] == 0.25


def test_llama3_rope_keeps_high_and_divides_low_frequencies() -> None:
    scaling = Llama3Scaling(32.0, 1.0, 4.0, 8192)
    got = np.asarray(rope(64, 500000.0, scaling).inverse_frequencies)
    plain = geometric(64, 500000.0)
    turns = 8192 * plain / (2 * math.pi)
    share = np.clip((turns - 1.0) / (4.0 - 1.0), 0, 1)
    np.testing.assert_allclose(got, plain * ((1 - share) / 32 + share), rtol=1e-6)
    assert 0 < np.count_nonzero((share > 0) & (share < 1)) < 32


def test_yarn_rope() -> None:
    scaling = YarnScaling(4.0, 32768, yarn_magnitude(4.0))
    got = rope(128, 1e6, scaling)
    assert got.magnitude == pytest.approx(0.1 * math.log(4) + 1)
    share = np.asarray(got.inverse_frequencies) / geometric(128, 1e6)
    # Values of transformers 5.23 for the same settings: the ramp goes from dimension 23 to 40.
    np.testing.assert_allclose(share[:24], 1, rtol=1e-6)
    np.testing.assert_allclose(share[40:], 0.25, rtol=1e-6)
    np.testing.assert_allclose(share[24:40], 1 - 0.75 * np.arange(1, 17) / 17, rtol=1e-5)


def test_new_and_old_spelling_agree() -> None:
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "vocab_size": 100,
        "max_position_embeddings": 131072,
    }
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    llama = {"model_type": "llama", **sizes}
    old = huggingface({**llama, "rope_theta": 5e5, "rope_scaling": scaling})
    older = huggingface(
        {
            **llama,
            "rope_theta": 5e5,
            "rope_scaling": {"type" if k == "rope_type" else k: v for k, v in scaling.items()},
        }
    )
    new = huggingface({**llama, "rope_parameters": {**scaling, "rope_theta": 5e5}})
    assert old == older == new
    gemma = {"model_type": "gemma3_text", **sizes, "num_hidden_layers": 6, "head_dim": 16}
    old = huggingface(
        {**gemma, "sliding_window": 8, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    )
    new = huggingface(
        {
            **gemma,
            "sliding_window": 8,
            "layer_types": ["sliding_attention"] * 5 + ["full_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        }
    )
    assert old == new
    np.testing.assert_allclose(frequencies(new, 0), geometric(16, 1e4), rtol=3e-7)
    np.testing.assert_allclose(frequencies(new, 5), geometric(16, 1e6) / 8, rtol=3e-7)


def test_what_config_json_leaves_out() -> None:
    """The text part of google/gemma-3-4b-it names six settings; the rest are defaults."""
    config = huggingface(
        {
            "model_type": "gemma3_text",
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024,
        }
    )
    assert (config.heads, config.kv_heads, config.head_dim) == (8, 4, 256)
    assert (config.vocab_size, config.context_length) == (262208, 131072)
    assert [i for i, layer in enumerate(config.layers) if layer.window is None] == [
        5, 11, 17, 23, 29,
    ]  # fmt: skip


MISTRAL = {
    "model_type": "mistral",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "vocab_size": 100,
}


def test_null_is_not_absent() -> None:
    """Mistral 7B v0.2 says `null`: no window; a file without the key means 4096."""
    assert huggingface(MISTRAL).layers[0].window == 4096
    assert huggingface({**MISTRAL, "sliding_window": None}).layers[0].window is None


def test_qwen_slides_from_a_layer_on_when_told() -> None:
    qwen = {**MISTRAL, "model_type": "qwen2", "sliding_window": 7, "max_window_layers": 1}
    assert [layer.window for layer in huggingface(qwen).layers] == [None, None]
    told = huggingface({**qwen, "use_sliding_window": True})
    assert [layer.window for layer in told.layers] == [None, 7]


GEMMA = {
    "context_length": 8192,
    "embedding_length": 4608,
    "block_count": 46,
    "feed_forward_length": 36864,
    "attention.head_count": 32,
    "attention.head_count_kv": 16,
    "attention.key_length": 128,
    "attention.layer_norm_rms_epsilon": 1e-6,
}


def test_largest_gemmas_scale_by_hidden_size_per_head() -> None:
    assert from_metadata("gemma2", GEMMA).attention_scale == pytest.approx(144**-0.5)
    smaller = from_metadata("gemma2", {**GEMMA, "block_count": 42})
    assert smaller.attention_scale == pytest.approx(128**-0.5)
    told = from_metadata("gemma2", {**GEMMA, "attention.scale": 0.5})
    assert told.attention_scale == 0.5


def test_gemma_defaults_of_gguf() -> None:
    two = from_metadata("gemma2", GEMMA)
    assert (two.attention_softcap, two.final_softcap) == (50.0, 30.0)
    assert [layer.window for layer in two.layers[:4]] == [4096, None, 4096, None]
    three = from_metadata(
        "gemma3", {**GEMMA, "attention.sliding_window": 512, "rope.freq_base": 1e6}
    )
    assert (three.attention_softcap, three.final_softcap) == (None, None)
    assert [layer.window for layer in three.layers[:7]] == [512] * 5 + [None, 512]
    np.testing.assert_allclose(frequencies(three, 0), geometric(128, 1e4), rtol=3e-7)
    np.testing.assert_allclose(frequencies(three, 5), geometric(128, 1e6), rtol=3e-7)


def test_gemma3_gguf_scales_only_layers_that_see_all() -> None:
    config = from_metadata(
        "gemma3",
        {
            **GEMMA,
            "attention.sliding_window": 1024,
            "attention.sliding_window_pattern": 2,
            "rope.freq_base": 1e6,
            "rope.freq_base_swa": 5e3,
            "rope.scaling.type": "linear",
            "rope.scaling.factor": 8.0,
        },
    )
    np.testing.assert_allclose(frequencies(config, 0), geometric(128, 5e3), rtol=3e-7)
    np.testing.assert_allclose(frequencies(config, 1), geometric(128, 1e6) / 8, rtol=3e-7)
    spelt = from_metadata(
        "gemma3",
        {
            **GEMMA,
            "block_count": 3,
            "attention.sliding_window": 9,
            "attention.sliding_window_pattern": [False, True, True],
        },
    )
    assert [layer.window for layer in spelt.layers] == [None, 9, 9]


def test_rope_factors_divide(tmp_path: Path) -> None:
    values, tensors = make_family("llama3")
    write_gguf(tmp_path / "model.gguf", values, tensors)
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    factors = next(t.data for t in reader.tensors if t.name == "rope_freqs.weight")
    assert factors.max() == 8
    got = frequencies(open_model(tmp_path / "model.gguf").config, 0)
    np.testing.assert_allclose(got, geometric(16, 5e5) / factors, rtol=3e-7)


@pytest.mark.parametrize(
    ("prefix", "head"),
    [
        ("language_model.model.", "language_model.lm_head.weight"),
        ("model.language_model.", "lm_head.weight"),
    ],
)
def test_text_part_of_a_model_that_sees(prefix: str, head: str, tmp_path: Path) -> None:
    values, tensors = make_family("gemma3", tie_word_embeddings=False)
    inner = {k: v for k, v in values.items() if k not in ("tie_word_embeddings", "architectures")}
    outer = {
        "model_type": "gemma3",
        "text_config": inner,
        "vision_config": {"hidden_size": 3},
        "tie_word_embeddings": False,
    }
    renamed = {
        head if name == "lm_head.weight" else prefix + name.removeprefix("model."): tensor
        for name, tensor in tensors.items()
    }
    renamed["vision_tower.patch.weight"] = np.zeros((3, 3), np.float32)
    write_huggingface(tmp_path, outer, renamed)
    config = open_model(tmp_path).config
    assert config.weights["head"] == head
    assert config.weights["embed"] == f"{prefix}embed_tokens.weight"
    assert "vision_tower.patch.weight" not in config.weights.values()


def test_tensors_without_a_place_are_refused(tmp_path: Path) -> None:
    values, tensors = make_family("llama2")
    tensors["model.layers.0.mlp.up_proj.bias"] = np.zeros(96, np.float32)
    write_huggingface(tmp_path, values, tensors)
    with pytest.raises(UserError, match="no place in a llama model of 2 layers") as caught:
        open_model(tmp_path)
    assert caught.value.code == "INF1006"


def test_tied_by_the_settings(tmp_path: Path) -> None:
    """Some files keep a copy of the embedding as the head."""
    values, tensors = make_family("qwen3")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    write_huggingface(tmp_path, values, tensors)
    assert "head" not in open_model(tmp_path).config.weights


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "relu"}, 'expected "silu" in "hidden_act" of a mistral model, got "relu"'),
        ({"rope_scaling": {"type": "longrope"}}, 'rotary embeddings scaled by "longrope"'),
        ({"layer_types": ["chunked_attention"] * 2}, "expected only"),
        ({"num_attention_heads": 9}, "expected a multiple of 8 heads"),
        ({"rms_norm_eps": float("nan")}, "expected a finite number above zero"),
        ({"hidden_size": "64"}, 'expected a whole number from 1 to 2147483647 in "hidden_size"'),
        ({"vocab_size": True}, 'in "vocab_size", got true'),
        ({"num_hidden_layers": 10**9}, "at most as many layers as tensors, 999"),
        ({"head_dim": 7}, "expected an even number of rotated dimensions"),
        ({"rope_theta": 0}, "expected a finite number above zero"),
        ({"rope_parameters": [1]}, 'expected an object in "rope_parameters", got a list'),
    ],
)
def test_settings_that_cannot_be(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        huggingface({**MISTRAL, **change})
    assert message in str(caught.value)


def test_all_wrong_settings_are_listed() -> None:
    with pytest.raises(UserError) as caught:
        huggingface(json.loads('{"model_type": "llama"}'))
    named = " ".join(problem.message for problem in caught.value.diagnostic.problems)
    for key in (
        "hidden_size",
        "num_attention_heads",
        "num_hidden_layers",
        "vocab_size",
        "intermediate_size",
        "max_position_embeddings",
    ):
        assert f'"{key}"' in named
