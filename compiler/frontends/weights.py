"""Which tensors a model must have, under which names, in which shapes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from infc.frontends.families import Family
from infc.frontends.findings import Findings
from infc.frontends.source import ModelConfig, TensorInfo

_GGUF_LAYER = {
    "attn_norm": "attn_norm.weight",
    "q": "attn_q.weight",
    "k": "attn_k.weight",
    "v": "attn_v.weight",
    "o": "attn_output.weight",
    "q_bias": "attn_q.bias",
    "k_bias": "attn_k.bias",
    "v_bias": "attn_v.bias",
    "o_bias": "attn_output.bias",
    "q_norm": "attn_q_norm.weight",
    "k_norm": "attn_k_norm.weight",
    "post_attn_norm": "post_attention_norm.weight",
    "ffn_norm": "ffn_norm.weight",
    "gate": "ffn_gate.weight",
    "up": "ffn_up.weight",
    "down": "ffn_down.weight",
    "post_ffn_norm": "post_ffw_norm.weight",
}
_HUGGINGFACE_LAYER = {
    "attn_norm": "input_layernorm.weight",
    "q": "self_attn.q_proj.weight",
    "k": "self_attn.k_proj.weight",
    "v": "self_attn.v_proj.weight",
    "o": "self_attn.o_proj.weight",
    "q_bias": "self_attn.q_proj.bias",
    "k_bias": "self_attn.k_proj.bias",
    "v_bias": "self_attn.v_proj.bias",
    "o_bias": "self_attn.o_proj.bias",
    "q_norm": "self_attn.q_norm.weight",
    "k_norm": "self_attn.k_norm.weight",
    "ffn_norm": "post_attention_layernorm.weight",
    "gate": "mlp.gate_proj.weight",
    "up": "mlp.up_proj.weight",
    "down": "mlp.down_proj.weight",
}
# Where a block has norms on both of its sides, `post_attention_layernorm` is what it says; in the
# other families it is the norm before the feed-forward block.
_HUGGINGFACE_POST_NORMS = {
    "post_attn_norm": "post_attention_layernorm.weight",
    "ffn_norm": "pre_feedforward_layernorm.weight",
    "post_ffn_norm": "post_feedforward_layernorm.weight",
}
# Where the text part of a model may sit: plain, saved without its head, and within models that
# also see (the older and the newer way of saving those).
_HUGGINGFACE_PREFIXES = (
    ("model.", "lm_head.weight"),
    ("", "lm_head.weight"),
    ("language_model.model.", "language_model.lm_head.weight"),
    ("model.language_model.", "lm_head.weight"),
)


@dataclass(frozen=True)
class Names:
    """How one file names its tensors.

    Attributes:
        embed, head, final_norm: full names.
        layer_prefix: with `{}` for the layer's number.
        layer: role -> name after the prefix.
        part: tensors whose names start so belong to the model; others are left alone.
        ignored: endings of names that carry nothing a program needs.
    """

    embed: str
    head: str
    final_norm: str
    layer_prefix: str
    layer: Mapping[str, str]
    part: str
    ignored: tuple[str, ...]


GGUF_NAMES = Names(
    embed="token_embd.weight",
    head="output.weight",
    final_norm="output_norm.weight",
    layer_prefix="blk.{}.",
    layer=_GGUF_LAYER,
    part="",
    ignored=("rope_freqs.weight", ".attn_rot_embd.weight"),
)


def huggingface_names(tensors: Mapping[str, TensorInfo], family: Family) -> Names:
    """The names of a Hugging Face model, found by where its embedding is."""
    prefix, head = _HUGGINGFACE_PREFIXES[0]
    for candidate in _HUGGINGFACE_PREFIXES:
        if f"{candidate[0]}embed_tokens.weight" in tensors:
            prefix, head = candidate
            break
    layer = _HUGGINGFACE_LAYER | (_HUGGINGFACE_POST_NORMS if family.post_norms else {})
    return Names(
        embed=f"{prefix}embed_tokens.weight",
        head=head,
        final_norm=f"{prefix}norm.weight",
        layer_prefix=f"{prefix}layers.{{}}.",
        layer=layer,
        part=prefix,
        ignored=("rotary_emb.inv_freq",),
    )


def resolve_weights(
    config: ModelConfig,
    family: Family,
    names: Names,
    tensors: Mapping[str, TensorInfo],
    findings: Findings,
    *,
    tied: bool,
) -> ModelConfig:
    """`config` with its `weights` filled in.

    Notes every tensor that is missing, has another shape than the settings say, or is there without
    a place in the family.

    Args:
        config: complete but for `weights`.
        family: of the model.
        names: of the file.
        tensors: of the file.
        findings: where to note.
        tied: the head is the embedding, whatever else is in the file.
    """
    weights: dict[str, str] = {}
    for role, name, shape, required in expected_tensors(config, family, names, tied=tied):
        info = tensors.get(name)
        if info is None:
            if required:
                findings.tensor(f'expected tensor "{name}" of shape {_text(shape)}, got none')
            continue
        weights[role] = name
        if info.shape != shape:
            findings.tensor(
                f"expected shape {_text(shape)}, got {_text(info.shape)}", info.location
            )
    used = set(weights.values()) | ({names.head} if tied else set())
    for name, info in tensors.items():
        if name not in used and name.startswith(names.part) and not name.endswith(names.ignored):
            findings.unsupported(
                f"the tensor has no place in a {family.name} model of {len(config.layers)} layers",
                info.location,
            )
    return replace(config, weights=weights)


def expected_tensors(
    config: ModelConfig, family: Family, names: Names, *, tied: bool
) -> Iterator[tuple[str, str, tuple[int, ...], bool]]:
    """Role, tensor name, shape, and whether it must be there."""
    hidden, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    yield "embed", names.embed, (config.vocab_size, hidden), True
    yield "final_norm", names.final_norm, (hidden,), True
    if not tied:
        yield "head", names.head, (config.vocab_size, hidden), True
    layer: dict[str, tuple[tuple[int, ...], bool]] = {
        "attn_norm": ((hidden,), True),
        "q": ((queries, hidden), True),
        "k": ((keys, hidden), True),
        "v": ((keys, hidden), True),
        "o": ((hidden, queries), True),
        "q_bias": ((queries,), family.qkv_bias),
        "k_bias": ((keys,), family.qkv_bias),
        "v_bias": ((keys,), family.qkv_bias),
        "o_bias": ((hidden,), False),
        "ffn_norm": ((hidden,), True),
        "gate": ((inner, hidden), True),
        "up": ((inner, hidden), True),
        "down": ((hidden, inner), True),
    }
    if family.query_key_norm:
        layer |= {"q_norm": ((config.head_dim,), True), "k_norm": ((config.head_dim,), True)}
    if family.post_norms:
        layer |= {"post_attn_norm": ((hidden,), True), "post_ffn_norm": ((hidden,), True)}
    for index in range(len(config.layers)):
        for role, (shape, required) in layer.items():
            name = names.layer_prefix.format(index) + names.layer[role]
            yield f"layers.{index}.{role}", name, shape, required


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(str(dimension) for dimension in shape)
