"""Tiny random models that live in memory: a `ModelSource` without a file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from infc.frontends.source import (
    LayerConfig,
    ModelConfig,
    RopeConfig,
    TensorInfo,
    TokenizerSource,
)
from infc.ir.storage import STORAGE_TYPES


@dataclass(frozen=True)
class Shape:
    """What a tiny model is like; the defaults are a plain one."""

    windows: tuple[int | None, ...] = (None,)
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    hidden: int = 64
    intermediate: int = 96
    vocab: int = 48
    activation: str = "silu"
    interleaved: bool = False
    rope_pairs: int = 8
    query_key_norm: bool = False
    post_norms: bool = False
    attention_softcap: float | None = None
    final_softcap: float | None = None
    norm_offset: float = 0.0
    embedding_scale: float = 1.0
    tied: bool = True
    bias: bool = False
    storage: str = "f32"
    """Of the matrices; vectors are f32."""
    seed: int = 0


class MemorySource:
    """A `ModelSource` of random weights; tensors are named by their roles."""

    path = Path("tiny.gguf")
    format = "gguf"

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._random = np.random.default_rng(shape.seed)
        self._bytes: dict[str, NDArray[np.uint8]] = {}
        self.tensors: Mapping[str, TensorInfo] = {}
        self._draw()
        self.config: ModelConfig = replace(
            _config(shape), weights={name: name for name in self.tensors}
        )

    @property
    def tokenizer(self) -> TokenizerSource | None:
        return None

    def data(self, name: str) -> NDArray[np.uint8]:
        return self._bytes[name]

    def digest(self) -> str:
        return hashlib.sha256(repr(self._shape).encode()).hexdigest()

    def files(self) -> list[Path]:
        return []

    def close(self) -> None:
        pass

    def _draw(self) -> None:
        s = self._shape
        queries, keys = s.heads * s.head_dim, s.kv_heads * s.head_dim
        self._matrix("embed", s.vocab, s.hidden, 2.0)
        for index in range(len(s.windows)):
            prefix = f"layers.{index}."
            self._vector(prefix + "attn_norm", s.hidden)
            self._matrix(prefix + "q", queries, s.hidden, 1.6)
            self._matrix(prefix + "k", keys, s.hidden, 1.6)
            self._matrix(prefix + "v", keys, s.hidden)
            if s.bias:
                for role, rows in (("q", queries), ("k", keys), ("v", keys)):
                    self._vector(prefix + role + "_bias", rows)
            if s.query_key_norm:
                self._vector(prefix + "q_norm", s.head_dim)
                self._vector(prefix + "k_norm", s.head_dim)
            self._matrix(prefix + "o", s.hidden, queries, 2.0)
            self._vector(prefix + "ffn_norm", s.hidden)
            self._matrix(prefix + "gate", s.intermediate, s.hidden, 1.6)
            self._matrix(prefix + "up", s.intermediate, s.hidden, 1.6)
            self._matrix(prefix + "down", s.hidden, s.intermediate)
            if s.post_norms:
                self._vector(prefix + "post_attn_norm", s.hidden)
                self._vector(prefix + "post_ffn_norm", s.hidden)
        self._vector("final_norm", s.hidden)
        if not s.tied:
            self._matrix("head", s.vocab, s.hidden, 2.0)

    def _vector(self, name: str, size: int) -> None:
        drawn = 1.0 - self._shape.norm_offset + 0.3 * self._random.standard_normal(size)
        self._add(name, drawn.astype(np.float32), "f32")

    def _matrix(self, name: str, rows: int, columns: int, gain: float = 1.0) -> None:
        drawn = self._random.standard_normal((rows, columns)) * (gain / np.sqrt(columns))
        self._add(name, drawn.astype(np.float32), self._shape.storage)

    def _add(self, name: str, values: NDArray[np.float32], storage: str) -> None:
        if storage == "f32":
            raw = values.reshape(-1).view(np.uint8)
        else:
            kind = gguf.GGMLQuantizationType[storage.upper()]
            raw = np.ascontiguousarray(gguf.quants.quantize(values, kind)).reshape(-1)
        self._bytes[name] = raw.view(np.uint8)
        size = STORAGE_TYPES[storage].size_bytes(values.shape)
        info = TensorInfo(name, values.shape, storage, size, f"tiny.gguf: {name}")
        self.tensors = {**self.tensors, name: info}


def _config(s: Shape) -> ModelConfig:
    def rope(base: float) -> RopeConfig:
        exponents = np.arange(s.rope_pairs) / s.rope_pairs
        frequencies = (base**-exponents).astype(np.float32)
        return RopeConfig(tuple(float(f) for f in frequencies), s.interleaved)

    return ModelConfig(
        family="tiny",
        vocab_size=s.vocab,
        hidden_size=s.hidden,
        intermediate_size=s.intermediate,
        heads=s.heads,
        kv_heads=s.kv_heads,
        head_dim=s.head_dim,
        # Sliding layers have a rotary base of their own, as a Gemma's.
        layers=tuple(
            LayerConfig(window, rope(10000.0 if window is None else 1000.0)) for window in s.windows
        ),
        context_length=128,
        norm_eps=1e-6,
        activation=s.activation,
        attention_scale=s.head_dim**-0.5,
        norm_offset=s.norm_offset,
        embedding_scale=s.embedding_scale,
        attention_softcap=s.attention_softcap,
        final_softcap=s.final_softcap,
        query_key_norm=s.query_key_norm,
        post_norms=s.post_norms,
    )
