"""What a model file is to the rest of infc: a description, named tensors, and a tokenizer.

A frontend opens files and answers with a `ModelSource`. Tensor data stay in the files until they
are packed: one tensor at a time is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a model file.

    Attributes:
        name: as in the file.
        shape: outermost dimension first; a linear weight is `(out, in)`.
        storage: the name of its storage type (`f32`, `bf16`, `q8_0`, `q4_k`, ...): a key of
            `infc.ir.storage.STORAGE_TYPES`.
        size_bytes: bytes it takes in the file.
        location: file and tensor as an error message should name them.
    """

    name: str
    shape: tuple[int, ...]
    storage: str
    size_bytes: int
    location: str


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding.

    Attributes:
        inverse_frequencies: radians a position for each rotated pair, all scaling applied
            (float32 values); its length is half the number of rotated dimensions.
        interleaved: pairs are (2i, 2i+1) rather than (i, i + n/2).
        magnitude: factor on cos and sin (YaRN's attention factor; 1.0 otherwise).
    """

    inverse_frequencies: tuple[float, ...]
    interleaved: bool = False
    magnitude: float = 1.0


@dataclass(frozen=True)
class LayerConfig:
    """What may differ from layer to layer.

    Attributes:
        window: a query sees keys at distance < window; None sees all before it.
        rope: its rotary embedding.
    """

    window: int | None
    rope: RopeConfig


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer in terms of shared blocks.

    Attributes:
        family: `llama`, `mistral`, `qwen2`, `qwen3`, `gemma2`, `gemma3`.
        activation: `silu` or `gelu_tanh`, of the gate.
        norm_offset: added to every norm weight (1.0 where files store weight - 1).
        embedding_scale: factor on the embedded tokens.
        attention_scale: factor on query-key products (before the soft cap).
        attention_softcap, final_softcap: `c * tanh(x / c)`, None for none.
        query_key_norm: RMS norm of each query and key head.
        post_norms: RMS norm also after attention and after the feed-forward block.
        weights: role -> tensor name. Roles: `embed`, `head` (absent where tied), `final_norm`;
            for layer i `layers.{i}.` + `attn_norm q k v o q_bias k_bias v_bias o_bias q_norm k_norm
            post_attn_norm ffn_norm gate up down post_ffn_norm`, those that exist.
    """

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    heads: int
    kv_heads: int
    head_dim: int
    layers: tuple[LayerConfig, ...]
    context_length: int
    norm_eps: float
    activation: str
    attention_scale: float
    norm_offset: float = 0.0
    embedding_scale: float = 1.0
    attention_softcap: float | None = None
    final_softcap: float | None = None
    query_key_norm: bool = False
    post_norms: bool = False
    weights: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TokenizerSource:
    """All a tokenizer is made of, still in the model's own terms.

    Attributes:
        kind: `gguf` (fields under `tokenizer.ggml.`) or `huggingface` (a tokenizer.json).
        fields: for `gguf` the metadata whose keys start with `tokenizer.`, as Python values (the
            long arrays as lists); for `huggingface` the parsed tokenizer_config.json,
            special_tokens_map.json and generation_config.json, keyed by file name.
        data: the bytes of tokenizer.json, for `huggingface`.
        chat_template: the Jinja text, or None.
    """

    kind: str
    fields: Mapping[str, object]
    data: bytes | None
    chat_template: str | None


class ModelSource(Protocol):
    """An opened model. Close it when the weights have been packed."""

    path: Path
    format: str
    """`gguf` or `huggingface`."""
    config: ModelConfig
    tensors: Mapping[str, TensorInfo]

    @property
    def tokenizer(self) -> TokenizerSource | None:
        """The tokenizer, or None where the model carries none (read lazily)."""

    def data(self, name: str) -> NDArray[np.uint8]:
        """The bytes of a tensor, read-only, 1-D; raises INF1009 where the file changed.

        Each call reads them afresh: a mapping would kill the process if the file were cut short.
        """

    def digest(self) -> str:
        """sha256 over all files that matter, hexadecimal; computed once."""

    def files(self) -> list[Path]:
        """The files the model is read from, all shards: nothing may be written over them."""

    def close(self) -> None:
        """Close the files."""
