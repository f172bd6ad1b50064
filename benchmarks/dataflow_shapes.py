"""Shapes of models that dataflow programs are timed with: configurations without weights.

Small ones have the widths that round machines are filled with; the others are those of published
models (their config.json on huggingface.co), some with fewer layers where all layers are alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

Config = Mapping[str, Any]


def _llama(hidden: int, ffn: int, heads: int, kv_heads: int, layers: int, **other: Any) -> Config:
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": hidden // heads,
        "vocab_size": 32000,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float32",
        **other,
    }


def _gemma3(hidden: int, ffn: int, heads: int, kv_heads: int, layers: int, **other: Any) -> Config:
    return {
        **_llama(hidden, ffn, heads, kv_heads, layers),
        "model_type": "gemma3_text",
        "architectures": ["Gemma3ForCausalLM"],
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_act": "gelu_pytorch_tanh",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "sliding_window": 512,
        "sliding_window_pattern": 6,
        "tie_word_embeddings": True,
        "pad_token_id": 0,
        **other,
    }


def _qwen(kind: str, hidden: int, ffn: int, heads: int, kv_heads: int, layers: int) -> Config:
    name = f"Qwen{kind}ForCausalLM"
    return {
        **_llama(hidden, ffn, heads, kv_heads, layers),
        "model_type": f"qwen{kind}",
        "architectures": [name],
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "use_sliding_window": False,
        "sliding_window": None,
        "tie_word_embeddings": True,
    }


SHAPES: Final[Mapping[str, Config]] = {
    "llama-tiny": _llama(64, 96, 4, 2, 2, vocab_size=320),
    "gemma-tiny": _gemma3(
        64, 96, 4, 1, 6, vocab_size=320, head_dim=32, query_pre_attn_scalar=32, sliding_window=12
    ),
    "qwen2-tiny": {**_qwen("2", 64, 96, 4, 1, 2), "vocab_size": 320},
    "qwen3-tiny": {**_qwen("3", 64, 96, 4, 2, 3), "vocab_size": 304, "head_dim": 32},
    "mistral-tiny": {
        **_llama(96, 160, 6, 2, 3, vocab_size=400),
        "model_type": "mistral",
        "architectures": ["MistralForCausalLM"],
        "sliding_window": 24,
    },
    "llama-512": _llama(512, 1376, 8, 4, 4, vocab_size=4096),
    "gemma-384": _gemma3(384, 1024, 4, 2, 6, vocab_size=8192, head_dim=96, sliding_window=128),
    "gemma3-270m": _gemma3(640, 2048, 4, 1, 18, vocab_size=262144),
    "tinyllama-1.1b": _llama(2048, 5632, 32, 4, 22),
    "qwen2.5-0.5b": {**_qwen("2", 896, 4864, 14, 2, 24), "vocab_size": 151936},
    "qwen3-0.6b": {**_qwen("3", 1024, 3072, 16, 8, 28), "vocab_size": 151936, "head_dim": 128},
    "llama-3.1-8b": _llama(
        4096, 14336, 32, 8, 32, vocab_size=128256, rope_theta=500000.0, tie_word_embeddings=False
    ),
}
"""config.json by name."""
