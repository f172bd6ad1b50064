"""From GGUF metadata to a model's configuration.

Keys and their defaults are those of the GGUF specification and of llama.cpp, which writes and reads
these files; a key below is meant under the architecture's name (`gemma3.block_count`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from infc.frontends.families import Family
from infc.frontends.rope import LinearScaling, Scaling, YarnScaling, rope, yarn_magnitude
from infc.frontends.settings import Settings
from infc.frontends.source import LayerConfig, ModelConfig, TensorInfo
from infc.frontends.weights import GGUF_NAMES

ROPE_FACTORS = "rope_freqs.weight"
_MAX_HEAD_DIM = 1 << 16


def read_config(
    settings: Settings,
    family: Family,
    tensors: Mapping[str, TensorInfo],
    token_count: int | None,
    read_factors: Callable[[], NDArray[np.float32]],
) -> ModelConfig:
    """The configuration without its weights; what is wrong goes to the findings of `settings`.

    Args:
        settings: the metadata, with the architecture as prefix.
        family: of the architecture.
        tensors: of all shards.
        token_count: tokens in the tokenizer, None without one.
        read_factors: gives the numbers of `rope_freqs.weight`; called only where it is there.
    """
    hidden = settings.integer("embedding_length")
    heads = _same_in_all_layers(settings, "attention.head_count")
    kv_heads = _same_in_all_layers(settings, "attention.head_count_kv", heads)
    if heads % kv_heads and settings.findings.settings_are_sound:
        settings.wrong("attention.head_count", f"a multiple of {kv_heads} heads", str(heads))
    head_dim = settings.integer("attention.key_length", max(1, hidden // heads))
    value_dim = settings.integer("attention.value_length", head_dim)
    if value_dim != head_dim:
        settings.findings.unsupported(
            f"expected values of {head_dim} dimensions a head as for keys, got {value_dim}",
            settings.location,
        )
    if settings.integer("expert_count", 0, minimum=0) > 0:
        settings.findings.unsupported("mixtures of experts", settings.location)
    layer_count = settings.integer("block_count")
    if layer_count > len(tensors):
        settings.wrong(
            "block_count", f"at most as many layers as tensors, {len(tensors)}", str(layer_count)
        )
        layer_count = 1
    softcaps = {
        key: settings.optional_number(key) if settings.has(key) else default
        for key, default in zip(
            ("attn_logit_softcapping", "final_logit_softcapping"),
            family.softcap_defaults,
            strict=True,
        )
    }
    return ModelConfig(
        family=family.name,
        vocab_size=_vocabulary(settings, tensors, token_count),
        hidden_size=hidden,
        intermediate_size=_same_in_all_layers(settings, "feed_forward_length"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        layers=_layers(settings, family, layer_count, head_dim, tensors, read_factors),
        context_length=settings.integer("context_length"),
        norm_eps=settings.number("attention.layer_norm_rms_epsilon"),
        activation=family.activation,
        attention_scale=_attention_scale(settings, family, layer_count, hidden / heads, head_dim),
        embedding_scale=float(np.float32(hidden**0.5)) if family.scales_embedding else 1.0,
        attention_softcap=softcaps["attn_logit_softcapping"],
        final_softcap=softcaps["final_logit_softcapping"],
        query_key_norm=family.query_key_norm,
        post_norms=family.post_norms,
    )


def _same_in_all_layers(settings: Settings, key: str, default: int | None = None) -> int:
    """A whole number that the format also allows as one a layer."""
    value = settings.raw(key)
    if isinstance(value, list) and value:
        if any(one != value[0] for one in value):
            settings.findings.unsupported(
                f'expected the same "{key}" in all layers, got different ones', settings.location
            )
        if isinstance(value[0], int) and 0 < value[0] < 2**31:
            return int(value[0])
    return settings.integer(key, default)


def _vocabulary(
    settings: Settings, tensors: Mapping[str, TensorInfo], token_count: int | None
) -> int:
    """Rows of the embedding; the other places that say the vocabulary's size must agree."""
    embedding = tensors.get(GGUF_NAMES.embed)
    rows = embedding.shape[0] if embedding is not None else token_count or 1
    announced = settings.integer("vocab_size", rows)
    if announced != rows:
        settings.wrong("vocab_size", f"the {rows} rows of the embedding", str(announced))
    if token_count is not None and token_count != rows:
        settings.findings.config(
            f"expected a tokenizer of {rows} tokens, the rows of the embedding, got {token_count}",
            settings.location,
        )
    return rows


def _attention_scale(
    settings: Settings, family: Family, layers: int, hidden_per_head: float, head_dim: int
) -> float:
    scale = settings.optional_number("attention.scale")
    if scale is not None:
        return scale
    dimensions = hidden_per_head if layers in family.query_scale_layers else head_dim
    return float(dimensions**-0.5)


def _layers(
    settings: Settings,
    family: Family,
    count: int,
    head_dim: int,
    tensors: Mapping[str, TensorInfo],
    read_factors: Callable[[], NDArray[np.float32]],
) -> tuple[LayerConfig, ...]:
    dimensions = settings.integer("rope.dimension_count", head_dim)
    if dimensions % 2 or dimensions > head_dim or head_dim > _MAX_HEAD_DIM:
        settings.wrong(
            "rope.dimension_count",
            f"an even number up to the head's dimensions (at most {_MAX_HEAD_DIM})",
            f"{dimensions} of {head_dim}",
        )
        return ()
    divisors = _divisors(settings, dimensions, tensors.get(ROPE_FACTORS), read_factors)
    base = settings.number("rope.freq_base", 10000.0)
    scaling = _scaling(settings)
    interleaved = family.interleaved_in_gguf
    everywhere = rope(dimensions, base, scaling, interleaved=interleaved, divisors=divisors)
    windowed = everywhere
    if family.local_rope_base is not None:
        local = settings.number("rope.freq_base_swa", family.local_rope_base)
        windowed = rope(dimensions, local, interleaved=interleaved)
    return tuple(
        LayerConfig(window, everywhere if window is None else windowed)
        for window in _windows(settings, family, count)
    )


def _divisors(
    settings: Settings,
    dimensions: int,
    factors: TensorInfo | None,
    read_factors: Callable[[], NDArray[np.float32]],
) -> NDArray[np.float32] | None:
    """The factors of `rope_freqs.weight`, [dimensions / 2], where the file has them."""
    if factors is None:
        return None
    if factors.shape != (dimensions // 2,) or factors.storage != "f32":
        got = "x".join(map(str, factors.shape))
        settings.findings.tensor(
            f"expected shape {dimensions // 2} of f32, got {got} of {factors.storage}",
            factors.location,
        )
        return None
    divisors = read_factors()
    if not np.all(np.isfinite(divisors) & (divisors > 0)):
        settings.findings.tensor("expected finite factors above zero, got others", factors.location)
    return divisors


def _windows(settings: Settings, family: Family, count: int) -> list[int | None]:
    """The window of each layer."""
    window = settings.integer("attention.sliding_window", family.window or 0, minimum=0) or None
    key = "attention.sliding_window_pattern"
    pattern = settings.raw(key)
    if isinstance(pattern, list):  # one truth value a layer
        if len(pattern) < count:
            settings.wrong(key, f"{count} layers", f"{len(pattern)}")
            return [None] * count
        return [window if windowed else None for windowed in pattern[:count]]
    every = settings.integer(key, family.window_pattern, minimum=0)
    return [None if every and (index + 1) % every == 0 else window for index in range(count)]


def _scaling(settings: Settings) -> Scaling | None:
    """Scaling of the rotary embedding, or None."""
    factor = settings.number("rope.scaling.factor", settings.number("rope.scale_linear", 1.0))
    kind = settings.text("rope.scaling.type", "linear")
    if kind == "none" or (kind == "linear" and factor == 1.0):
        return None
    if kind == "linear":
        return LinearScaling(factor)
    foreign = ("rope.scaling.yarn_ext_factor", "rope.scaling.yarn_log_multiplier")
    if kind != "yarn" or any(settings.has(key) for key in foreign):
        settings.findings.unsupported(f'rotary embeddings scaled by "{kind}"', settings.location)
        return None
    magnitude = settings.number("rope.scaling.attn_factor", 1.0) * yarn_magnitude(factor)
    return YarnScaling(
        factor,
        settings.integer(
            "rope.scaling.original_context_length", settings.integer("context_length")
        ),
        magnitude,
        settings.number("rope.scaling.yarn_beta_fast", 32.0),
        settings.number("rope.scaling.yarn_beta_slow", 1.0),
    )
