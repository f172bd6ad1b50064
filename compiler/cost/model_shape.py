"""What the cost of a language model depends on: its sizes, and what its matrices take.

A shape is read from a model's config.json alone, or from an opened model file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from infc.cost.file_weights import FileWeights, file_weights
from infc.cost.kernels.queries import DTYPE_BYTES
from infc.diagnostics import Code, InternalError, UserError
from infc.frontends.findings import Findings
from infc.frontends.huggingface_config import find_family, read_config
from infc.frontends.scaled_floats import read_block
from infc.frontends.settings import Settings
from infc.frontends.source import ModelConfig, ModelSource

_EXPERT_KEYS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


@dataclass(frozen=True)
class ModelShape:
    """A decoder-only transformer in numbers.

    Attributes:
        name: for messages and reports.
        vocabulary, hidden, inner: rows of the embedding, width, width of the feed-forward part.
        heads, kv_heads, head_dim: of attention.
        windows: one a layer: positions a query sees, 0 for all.
        context_length: positions the model was made for.
        tied: the embedding is also the head.
        qkv_bias, query_key_norm, post_norms: as in `infc.frontends.source.ModelConfig`.
        weights: what the matrices take where a file says so; None counts them by a dtype.
    """

    name: str
    vocabulary: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int
    windows: tuple[int, ...]
    context_length: int
    tied: bool
    qkv_bias: bool = False
    query_key_norm: bool = False
    post_norms: bool = False
    weights: FileWeights | None = None

    @property
    def layers(self) -> int:
        """Blocks."""
        return len(self.windows)

    @property
    def query_width(self) -> int:
        """Numbers of all query heads of a token."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Numbers of all key heads of a token (those of the values are as many)."""
        return self.kv_heads * self.head_dim

    @property
    def matrix_parameters(self) -> int:
        """Weights of the matrices of one block: q, k, v, o, gate, up, down."""
        attention = 2 * self.hidden * (self.query_width + self.kv_width)
        return attention + 3 * self.hidden * self.inner

    @property
    def vector_parameters(self) -> int:
        """Weights of the norms and biases of one block."""
        norms = self.hidden * (4 if self.post_norms else 2)
        biases = self.query_width + 2 * self.kv_width if self.qkv_bias else 0
        return norms + biases + (2 * self.head_dim if self.query_key_norm else 0)

    @property
    def embedding_parameters(self) -> int:
        """Weights of the embedding, which are also as many as the head's."""
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """All weights, those of a tied head once."""
        blocks = self.layers * (self.matrix_parameters + self.vector_parameters)
        return blocks + self.hidden + self.embedding_parameters * (1 if self.tied else 2)

    def kv_bytes(self, length: int, dtype: str) -> tuple[float, float]:
        """Bytes of the KV cache of a sequence of this length: a position, and whatever its length.

        A layer whose window is shorter than the sequence keeps a ring of that many positions.
        """
        rings = [window for window in self.windows if 0 < window < length]
        layer = 2 * self.kv_width * DTYPE_BYTES[dtype]
        return (self.layers - len(rings)) * layer, sum(rings) * layer


def read_shape(path: Path) -> ModelShape:
    """The shape that a config.json gives.

    Raises:
        UserError: no file (INF1001), no JSON object (INF1002), settings that are missing, that
            contradict one another (INF1005) or that ask for more than infc knows (INF1006).
    """
    try:
        values = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(
            Code.MODEL_NOT_FOUND,
            f"cannot read the configuration: {error.strerror}",
            location=str(path),
        ) from None
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, Mapping):
        raise UserError(
            Code.MODEL_FORMAT, "expected a JSON object, got something else", location=str(path)
        )
    name = values.get("_name_or_path")
    return shape_from_config(values, str(path), name if isinstance(name, str) and name else None)


def shape_from_config(
    values: Mapping[str, object], location: str, name: str | None = None
) -> ModelShape:
    """The shape that the settings of a config.json give; errors name `location`.

    Raises:
        UserError: as `read_shape`; one report of everything that is wrong.
    """
    findings = Findings(location)
    found = find_family(values, findings, location)
    experts = [key for key in _EXPERT_KEYS if values.get(key)]
    if experts:
        findings.unsupported(f'a mixture of experts ("{experts[0]}" is {values[experts[0]]})')
    if found is None:
        findings.raise_if_any()
        raise InternalError("findings were not raised")
    family, settings, tied = found
    read_block(Settings(values, findings, location), settings)
    config = read_config(settings, family, None)
    if findings.settings_are_sound and not settings.has("head_dim"):
        _expect_whole_heads(settings)
    bias = family.qkv_bias or settings.flag("attention_bias", False)
    findings.raise_if_any()
    return _shape(config, name or config.family, tied=tied, qkv_bias=bias)


def shape_from_source(source: ModelSource) -> ModelShape:
    """The shape of an opened model, with what its matrices take."""
    roles = source.config.weights
    shape = _shape(
        source.config,
        source.path.stem,
        tied="head" not in roles,
        qkv_bias="layers.0.q_bias" in roles,
    )
    return replace(shape, weights=file_weights(source))


def _expect_whole_heads(settings: Settings) -> None:
    hidden, heads = settings.integer("hidden_size"), settings.integer("num_attention_heads")
    if hidden % heads:
        settings.wrong("hidden_size", f"a multiple of {heads} heads", str(hidden))


def _shape(config: ModelConfig, name: str, *, tied: bool, qkv_bias: bool) -> ModelShape:
    return ModelShape(
        name=name,
        vocabulary=config.vocab_size,
        hidden=config.hidden_size,
        inner=config.intermediate_size,
        heads=config.heads,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        windows=tuple(layer.window or 0 for layer in config.layers),
        context_length=config.context_length,
        tied=tied,
        qkv_bias=qkv_bias,
        query_key_norm=config.query_key_norm,
        post_norms=config.post_norms,
    )
