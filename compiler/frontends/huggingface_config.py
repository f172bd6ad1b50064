"""From config.json to a model's configuration.

Both ways of spelling are read: that of transformers 5 (`rope_parameters`, `layer_types`) and the
older one (`rope_theta`, `rope_scaling`, `rope_local_base_freq`, `sliding_window_pattern`).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from infc.frontends.families import BY_MODEL_TYPE, Family
from infc.frontends.findings import Findings
from infc.frontends.rope import (
    LinearScaling,
    Llama3Scaling,
    Scaling,
    YarnScaling,
    rope,
    yarn_magnitude,
)
from infc.frontends.settings import Settings
from infc.frontends.source import LayerConfig, ModelConfig, RopeConfig, TensorInfo

_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
_SPELLINGS = {"silu": "silu", "gelu_tanh": "gelu_pytorch_tanh"}
_SLIDING, _FULL = "sliding_attention", "full_attention"
_MAX_HEAD_DIM = 1 << 16
_MAX_LAYERS = 1 << 12  # of a configuration without tensors: each layer takes memory here


def find_family(
    values: Mapping[str, object], findings: Findings, location: str
) -> tuple[Family, Settings, bool] | None:
    """Family, settings of the text model, and whether its head is its embedding.

    None where the family is not known, which is noted.
    """
    model_type = values.get("model_type")
    family = BY_MODEL_TYPE.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        shown = f'"{model_type}"' if isinstance(model_type, str) else "none"
        findings.unsupported(
            f"expected one of the model types {', '.join(sorted(BY_MODEL_TYPE))}, got {shown}"
        )
        return None
    outer = settings = Settings(values, findings, location, family.defaults)
    text = values.get("text_config")
    if isinstance(text, Mapping):  # a model that also sees: its text part is what runs
        settings = Settings(text, findings, f"{location}: text_config", family.defaults)
    key = "tie_word_embeddings"
    return family, settings, settings.flag(key, False) and outer.flag(key, False)


def read_config(
    settings: Settings, family: Family, tensors: Mapping[str, TensorInfo] | None
) -> ModelConfig:
    """The configuration without its weights; what is wrong goes to the findings of `settings`.

    `tensors` are those of the model, None where there is only its config.json.
    """
    hidden = settings.integer("hidden_size")
    heads = settings.integer("num_attention_heads")
    kv_heads = settings.integer("num_key_value_heads", heads)
    if heads % kv_heads and settings.findings.settings_are_sound:
        settings.wrong("num_attention_heads", f"a multiple of {kv_heads} heads", str(heads))
    head_dim = settings.integer("head_dim", max(1, hidden // heads))
    layer_count = settings.integer("num_hidden_layers")
    most = _MAX_LAYERS if tensors is None else len(tensors)
    if layer_count > most:
        among = f"{most} layers" if tensors is None else f"as many layers as tensors, {most}"
        settings.wrong("num_hidden_layers", f"at most {among}", str(layer_count))
        layer_count = 1
    query_scalar = settings.number("query_pre_attn_scalar", float(head_dim))
    _refuse_foreign(settings, family)
    return ModelConfig(
        family=family.name,
        vocab_size=settings.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=settings.integer("intermediate_size"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        layers=_layers(settings, family, layer_count, head_dim),
        context_length=settings.integer("max_position_embeddings"),
        norm_eps=settings.number("rms_norm_eps", 1e-6),
        activation=family.activation,
        attention_scale=float(query_scalar**-0.5),
        norm_offset=family.norm_offset,
        embedding_scale=float(np.float32(hidden**0.5)) if family.scales_embedding else 1.0,
        attention_softcap=settings.optional_number("attn_logit_softcapping"),
        final_softcap=settings.optional_number("final_logit_softcapping"),
        query_key_norm=family.query_key_norm,
        post_norms=family.post_norms,
    )


def _refuse_foreign(settings: Settings, family: Family) -> None:
    """Notes settings that change what the model computes in ways infc does not know."""
    key = "hidden_activation" if settings.has("hidden_activation") else "hidden_act"
    activation = settings.text(key, _SPELLINGS[family.activation])
    if _ACTIVATIONS.get(activation) != family.activation:
        settings.findings.unsupported(
            f'expected "{_SPELLINGS[family.activation]}" in "{key}" of a {family.name} model, '
            f'got "{activation}"',
            settings.location,
        )
    if settings.flag("use_bidirectional_attention", False):
        settings.findings.unsupported("bidirectional attention", settings.location)


def _layers(
    settings: Settings, family: Family, count: int, head_dim: int
) -> tuple[LayerConfig, ...]:
    if head_dim > _MAX_HEAD_DIM:
        settings.wrong("head_dim", f"at most {_MAX_HEAD_DIM}", str(head_dim))
        return ()
    everywhere, windowed = _ropes(settings, family, head_dim)
    window = settings.integer("sliding_window", 0, minimum=0) or None
    sliding = _sliding_layers(settings, family, count)
    if any(sliding) and window is None and settings.raw("layer_types") is not None:
        settings.wrong("sliding_window", "a window for the layers that slide", "nothing")
    return tuple(
        LayerConfig(window, windowed) if slides and window else LayerConfig(None, everywhere)
        for slides in sliding
    )


def _sliding_layers(settings: Settings, family: Family, count: int) -> list[bool]:
    """Which layers see a window only."""
    types = settings.raw("layer_types")
    if types is not None:
        known = isinstance(types, list) and all(one in (_SLIDING, _FULL) for one in types)
        if not known or not isinstance(types, list):
            settings.findings.unsupported(
                f'expected only "{_SLIDING}" and "{_FULL}" in "layer_types", got others',
                settings.location,
            )
            return [False] * count
        if len(types) != count:
            settings.wrong("layer_types", f"{count} layers", str(len(types)))
        return [one == _SLIDING for one in types]
    if family.window_pattern:
        every = settings.integer("sliding_window_pattern", family.window_pattern)
        return [(index + 1) % every != 0 for index in range(count)]
    if "max_window_layers" in family.defaults:  # the Qwens: off by default, then from a layer on
        first = settings.integer("max_window_layers", minimum=0)
        enabled = settings.flag("use_sliding_window", False)
        return [enabled and index >= first for index in range(count)]
    return [family.name == "mistral"] * count


def _ropes(settings: Settings, family: Family, head_dim: int) -> tuple[RopeConfig, RopeConfig]:
    """The rotary embeddings of layers that see all and of those that slide."""
    base = settings.number("rope_theta", 10000.0 if family.local_rope_base is None else 1e6)
    parameters = settings.nested("rope_parameters")
    if parameters is None:
        parameters = settings.nested("rope_scaling")
    if parameters is not None and (parameters.has(_FULL) or parameters.has(_SLIDING)):
        full, local = parameters.nested(_FULL), parameters.nested(_SLIDING)
        local_base = settings.number("rope_local_base_freq", family.local_rope_base or base)
        return (
            _rope(settings, full, base, head_dim),
            _rope(settings, local, local_base, head_dim),
        )
    everywhere = _rope(settings, parameters, base, head_dim)
    if family.local_rope_base is None:
        return everywhere, everywhere
    local_base = settings.number("rope_local_base_freq", family.local_rope_base)
    return everywhere, _rope(settings, None, local_base, head_dim)


def _rope(
    settings: Settings, parameters: Settings | None, base: float, head_dim: int
) -> RopeConfig:
    """One rotary embedding from its parameters, for which `base` is the default."""
    partial = settings.number("partial_rotary_factor", 1.0)
    scaling = None
    if parameters is not None:
        base = parameters.number("rope_theta", base)
        partial = parameters.number("partial_rotary_factor", partial)
        scaling = _scaling(settings, parameters)
    dimensions = int(head_dim * min(partial, 1.0))
    if dimensions < 2 or dimensions % 2 or partial > 1 or base <= 1:
        settings.findings.config(
            "expected an even number of rotated dimensions up to the head's and a theta above 1, "
            f"got {dimensions} of {head_dim} and {base:g}",
            settings.location,
        )
        return RopeConfig(())
    return rope(dimensions, base, scaling)


def _scaling(settings: Settings, parameters: Settings) -> Scaling | None:
    kind = parameters.text("rope_type", parameters.text("type", "default"))
    if kind == "default":
        return None
    context = settings.integer("max_position_embeddings")
    original = parameters.integer(
        "original_max_position_embeddings",
        settings.integer("original_max_position_embeddings", context),
    )
    if kind == "linear":
        return LinearScaling(parameters.number("factor"))
    if kind == "llama3":
        low, high = parameters.number("low_freq_factor"), parameters.number("high_freq_factor")
        if low >= high:
            parameters.wrong("high_freq_factor", f"more than low_freq_factor {low:g}", f"{high:g}")
        return Llama3Scaling(parameters.number("factor"), low, high, original)
    if kind == "yarn":
        factor = parameters.number("factor", context / original)
        weights = parameters.optional_number("mscale"), parameters.optional_number("mscale_all_dim")
        magnitude = yarn_magnitude(factor)
        if weights[0] and weights[1]:
            magnitude = yarn_magnitude(factor, weights[0]) / yarn_magnitude(factor, weights[1])
        return YarnScaling(
            factor,
            original,
            parameters.number("attention_factor", magnitude),
            parameters.optional_number("beta_fast") or 32.0,
            parameters.optional_number("beta_slow") or 1.0,
            parameters.flag("truncate", True),
        )
    settings.findings.unsupported(f'rotary embeddings scaled by "{kind}"', parameters.location)
    return None
