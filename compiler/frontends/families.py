"""Model families as data: what their blocks look like and how their weights are named.

All families are decoder-only transformers of the same blocks; a family says which of the options
it takes. How the settings are spelt is the business of `gguf_config.py` and
`huggingface_config.py`; which tensors follow from them that of `weights.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType


@dataclass(frozen=True)
class Family:
    """One family.

    Attributes:
        name: as in `ModelConfig.family`.
        gguf_architectures: values of `general.architecture`.
        model_types: values of `model_type` in config.json.
        activation: of the gate.
        interleaved_in_gguf: GGUF files permute the rows of q and k so that rotated pairs are
            neighbours.
        norm_offset: added to norm weights in Hugging Face files; GGUF files contain it already.
        scales_embedding: embeddings are multiplied by sqrt(hidden_size).
        query_key_norm, post_norms: as in `ModelConfig`.
        qkv_bias: q, k and v always have a bias.
        window_pattern: every how-manieth layer sees all, the others a window; 0 where all layers
            are alike.
        window: in GGUF files that do not give one.
        local_rope_base: theta of the windowed layers, where it differs.
        query_scale_layers: numbers of layers of those models whose queries are scaled by
            hidden_size / heads rather than head_dim (GGUF files do not say).
        softcap_defaults: of GGUF files that do not give them: attention, final.
        defaults: of config.json, which leaves out what equals them.
    """

    name: str
    gguf_architectures: tuple[str, ...]
    model_types: tuple[str, ...]
    activation: str = "silu"
    interleaved_in_gguf: bool = False
    norm_offset: float = 0.0
    scales_embedding: bool = False
    query_key_norm: bool = False
    post_norms: bool = False
    qkv_bias: bool = False
    window_pattern: int = 0
    window: int | None = None
    local_rope_base: float | None = None
    query_scale_layers: tuple[int, ...] = ()
    softcap_defaults: tuple[float | None, float | None] = (None, None)
    defaults: Mapping[str, object] = field(default_factory=dict)


_GEMMA2_DEFAULTS = {
    "vocab_size": 256000,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "max_position_embeddings": 8192,
    "sliding_window": 4096,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "tie_word_embeddings": True,
}
_GEMMA3_DEFAULTS = {
    "vocab_size": 262208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "max_position_embeddings": 131072,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
}

FAMILIES = (
    Family("llama", ("llama",), ("llama",), interleaved_in_gguf=True),
    # GGUF files of Mistral models call themselves llama.
    Family(
        "mistral",
        (),
        ("mistral",),
        defaults={
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
            "sliding_window": 4096,
        },
    ),
    Family(
        "qwen2",
        ("qwen2",),
        ("qwen2",),
        qkv_bias=True,
        defaults={"max_position_embeddings": 32768, "max_window_layers": 28},
    ),
    Family(
        "qwen3",
        ("qwen3",),
        ("qwen3",),
        query_key_norm=True,
        defaults={"head_dim": 128, "max_position_embeddings": 32768, "max_window_layers": 28},
    ),
    Family(
        "gemma2",
        ("gemma2",),
        ("gemma2",),
        activation="gelu_tanh",
        norm_offset=1.0,
        scales_embedding=True,
        post_norms=True,
        window_pattern=2,
        window=4096,
        query_scale_layers=(46,),  # 27B
        softcap_defaults=(50.0, 30.0),
        defaults=_GEMMA2_DEFAULTS,
    ),
    Family(
        "gemma3",
        ("gemma3",),
        ("gemma3", "gemma3_text"),
        activation="gelu_tanh",
        norm_offset=1.0,
        scales_embedding=True,
        query_key_norm=True,
        post_norms=True,
        window_pattern=6,
        local_rope_base=10000.0,
        query_scale_layers=(62,),  # 27B
        defaults=_GEMMA3_DEFAULTS,
    ),
)

BY_ARCHITECTURE: Mapping[str, Family] = MappingProxyType(
    {name: family for family in FAMILIES for name in family.gguf_architectures}
)
"""Families by `general.architecture`."""

BY_MODEL_TYPE: Mapping[str, Family] = MappingProxyType(
    {name: family for family in FAMILIES for name in family.model_types}
)
"""Families by `model_type`."""
