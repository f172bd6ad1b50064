"""Tiny random models of every supported family, made from a NumPy seed alone.

`make_family` answers with a Hugging Face `config.json` and tensors under Hugging Face names;
`oracle.files` writes them as a Hugging Face folder or as a GGUF file. Weights are drawn so that
logits have a standard deviation of 1 to 3 and so that windows, soft caps, norms, biases and rotary
scaling each change them by far more than any tolerance.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Config = dict[str, Any]
Tensors = dict[str, NDArray[np.float32]]

WINDOW = 12
"""Positions a sliding layer sees; no divisor or multiple of the chunk the tests use."""

_BASE: Config = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 320,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "float32",
}

_GEMMA: Config = {
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_act": "gelu_pytorch_tanh",
    "attention_bias": False,
    "sliding_window": WINDOW,
    "tie_word_embeddings": True,
    "pad_token_id": 0,
}

_FAMILIES: dict[str, Config] = {
    # Every head has its own keys; the output matrix is a tensor of its own.
    "llama2": {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_act": "silu",
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "attention_bias": False,
    },
    # Of 8 frequencies the first is kept, the second blended, and the others divided by 8.
    "llama3": {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "vocab_size": 300,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
        "tie_word_embeddings": True,
        "attention_bias": False,
    },
    # Every layer slides; the heads together are wider than the hidden size.
    "mistral": {
        "model_type": "mistral",
        "architectures": ["MistralForCausalLM"],
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "head_dim": 32,
        "rope_theta": 10000.0,
        "sliding_window": WINDOW,
        "tie_word_embeddings": False,
    },
    # Biases on queries, keys and values; one head of keys for all.
    "qwen2": {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "hidden_act": "silu",
        "num_key_value_heads": 1,
        "rope_theta": 1000000.0,
        "use_sliding_window": False,
        "sliding_window": WINDOW,
        "max_window_layers": 1,
        "tie_word_embeddings": True,
    },
    # Norms on queries and keys.
    "qwen3": {
        "model_type": "qwen3",
        "architectures": ["Qwen3ForCausalLM"],
        "hidden_act": "silu",
        "head_dim": 32,
        "rope_theta": 1000000.0,
        "attention_bias": False,
        "use_sliding_window": False,
        "sliding_window": None,
        "tie_word_embeddings": True,
    },
    # Soft caps low enough to bite; sliding and full layers take turns.
    "gemma2": {
        "model_type": "gemma2",
        "architectures": ["Gemma2ForCausalLM"],
        **_GEMMA,
        "num_hidden_layers": 4,
        "rope_theta": 10000.0,
        "query_pre_attn_scalar": 16,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 4.0,
    },
    # Five sliding layers, then one full layer with another rotary base.
    "gemma3": {
        "model_type": "gemma3_text",
        "architectures": ["Gemma3ForCausalLM"],
        **_GEMMA,
        "num_hidden_layers": 6,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
        "query_pre_attn_scalar": 32,
        "sliding_window_pattern": 6,
    },
    # As the largest Gemma 3: scaled positions in the full layers, an attention scale that is not
    # the head's; layer kinds spelt out, a vocabulary that is no multiple of 16.
    "gemma3_scaled": {
        "model_type": "gemma3_text",
        "architectures": ["Gemma3ForCausalLM"],
        **_GEMMA,
        "num_hidden_layers": 3,
        "vocab_size": 300,
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
        "rope_scaling": {"rope_type": "linear", "factor": 4.0},
        "query_pre_attn_scalar": 24,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
}

FAMILY_NAMES: tuple[str, ...] = tuple(_FAMILIES)
"""All models of this file."""

GGUF_FAMILY_NAMES: tuple[str, ...] = tuple(n for n in FAMILY_NAMES if n != "gemma3_scaled")
"""Those a GGUF file can describe: it has no key for a Gemma's attention scale or layer kinds."""


def make_family(name: str, **overrides: object) -> tuple[Config, Tensors]:
    """A model's `config.json` and its tensors, the same for the same arguments everywhere.

    Args:
        name: one of `FAMILY_NAMES`.
        overrides: entries of the configuration to change, as `hidden_size=256`.
    """
    config = {**_BASE, **_FAMILIES[name], **overrides}
    return config, _draw_tensors(config, np.random.default_rng(zlib.crc32(name.encode())))


def is_gemma(config: Mapping[str, Any]) -> bool:
    """Whether norms are stored as weight - 1 and embeddings are scaled by sqrt(hidden size)."""
    return str(config["model_type"]).startswith("gemma")


def sliding_layers(config: Mapping[str, Any]) -> list[bool]:
    """Which layers slide."""
    layers = range(config["num_hidden_layers"])
    kinds = config.get("layer_types")
    if kinds is not None:
        return [kind == "sliding_attention" for kind in kinds]
    period = {"mistral": 0, "gemma2": 2, "gemma3_text": config.get("sliding_window_pattern", 6)}
    if config["model_type"] not in period:
        return [False for _ in layers]
    every = period[config["model_type"]]
    return [every == 0 or (layer + 1) % every != 0 for layer in layers]


def _draw_tensors(config: Config, rng: np.random.Generator) -> Tensors:
    """Tensors in Hugging Face naming; linear weights are `[out, in]`."""
    hidden, inner, head_dim = (config[k] for k in ("hidden_size", "intermediate_size", "head_dim"))
    q_rows = config["num_attention_heads"] * head_dim
    kv_rows = config["num_key_value_heads"] * head_dim
    family = config["model_type"]
    gemma = is_gemma(config)

    def matrix(rows: int, columns: int, gain: float = 1.0) -> NDArray[np.float32]:
        drawn = rng.standard_normal((rows, columns)) * (gain / np.sqrt(columns))
        return np.asarray(drawn, np.float32)

    def norm(size: int) -> NDArray[np.float32]:
        drawn = 0.3 * rng.standard_normal(size) + (0.0 if gemma else 1.0)
        return np.asarray(drawn, np.float32)

    tensors: Tensors = {"model.embed_tokens.weight": matrix(config["vocab_size"], hidden, 2.0)}
    for layer in range(config["num_hidden_layers"]):
        add = _adder(tensors, f"model.layers.{layer}.")
        add("input_layernorm.weight", norm(hidden))
        # Gains above one make attention choose: with flat scores a wrong mask hardly shows.
        add("self_attn.q_proj.weight", matrix(q_rows, hidden, 1.6))
        add("self_attn.k_proj.weight", matrix(kv_rows, hidden, 1.6))
        add("self_attn.v_proj.weight", matrix(kv_rows, hidden))
        add("self_attn.o_proj.weight", matrix(hidden, q_rows, 2.0))
        if family == "qwen2":
            for part, rows in (("q", q_rows), ("k", kv_rows), ("v", kv_rows)):
                bias = rng.standard_normal(rows).astype(np.float32)
                add(f"self_attn.{part}_proj.bias", bias)
        if family in ("qwen3", "gemma3_text"):
            add("self_attn.q_norm.weight", norm(head_dim))
            add("self_attn.k_norm.weight", norm(head_dim))
        add("post_attention_layernorm.weight", norm(hidden))
        if gemma:
            add("pre_feedforward_layernorm.weight", norm(hidden))
            add("post_feedforward_layernorm.weight", norm(hidden))
        add("mlp.gate_proj.weight", matrix(inner, hidden, 1.6))
        add("mlp.up_proj.weight", matrix(inner, hidden, 1.6))
        add("mlp.down_proj.weight", matrix(hidden, inner))
    tensors["model.norm.weight"] = norm(hidden)
    if not config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = matrix(config["vocab_size"], hidden, 2.0)
    return tensors


def _adder(tensors: Tensors, prefix: str) -> Callable[[str, NDArray[np.float32]], None]:
    def add(name: str, tensor: NDArray[np.float32]) -> None:
        tensors[prefix + name] = tensor

    return add
