"""What can be asked of the kernel models: sizes of one kernel on one chip."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Final, Literal

from infc.diagnostics import Code, UserError

DTYPE_BYTES: Final[Mapping[str, float]] = {
    "f32": 4.0,
    "bf16": 2.0,
    "f16": 2.0,
    "fp8": 1.0,
    "int8": 1.0,
    # Four bits and, for every 16 elements, a scale of 8 bits (the NVFP4 layout; MXFP4 has 32).
    "fp4": 0.5625,
}
"""Bytes an element takes in memory, its share of block scales included."""

CollectiveKind = Literal["all-reduce", "all-gather", "reduce-scatter", "all-to-all", "send"]
COLLECTIVE_KINDS: Final = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "send")


@dataclass(frozen=True)
class Gemm:
    """`[m, k] x [k, n] -> [m, n]`; activations and results 16 bits wide, weights as `dtype`.

    Attributes:
        m: rows, the tokens.
        n, k: output and input features of this device's share of the weights.
        dtype: of the weights and of the arithmetic; activations are converted to it on the fly.
        weight_bytes: that the weights take where that is not what `dtype` takes; else 0.
    """

    m: int
    n: int
    k: int
    dtype: str
    weight_bytes: int = 0

    @property
    def read_bytes(self) -> float:
        """Of the weights."""
        return self.weight_bytes or self.n * self.k * DTYPE_BYTES[self.dtype]

    def __post_init__(self) -> None:
        _check_sizes(self, may_be_zero=("weight_bytes",))
        _check_dtype(self.dtype)


@dataclass(frozen=True)
class PrefillAttention:
    """Causal attention of `length` new positions a sequence over them and `past` cached ones.

    Attributes:
        dtype: of queries and results.
        kv_dtype: of keys and values, and of the arithmetic.
        batch: sequences.
        length: new positions of each.
        heads, kv_heads: of this device's share.
        head_dim: elements of one head.
        window: positions a query sees at most, its own included; 0 means all.
        past: positions in the cache before the new ones.
    """

    dtype: str
    kv_dtype: str
    batch: int
    length: int
    heads: int
    kv_heads: int
    head_dim: int
    window: int = 0
    past: int = 0

    def __post_init__(self) -> None:
        _check_sizes(self, may_be_zero=("window", "past"))
        _check_dtype(self.dtype)
        _check_dtype(self.kv_dtype)
        _check_heads(self.heads, self.kv_heads)


@dataclass(frozen=True)
class DecodeAttention:
    """Attention of one new position a sequence over `context` cached ones.

    Attributes:
        dtype: of queries and results.
        kv_dtype: of keys and values.
        batch: sequences.
        context: positions each of them sees, its own included.
        heads, kv_heads: of this device's share.
        head_dim: elements of one head.
        window: positions a query sees at most, its own included; 0 means all.
    """

    dtype: str
    kv_dtype: str
    batch: int
    context: int
    heads: int
    kv_heads: int
    head_dim: int
    window: int = 0

    def __post_init__(self) -> None:
        _check_sizes(self, may_be_zero=("window",))
        _check_dtype(self.dtype)
        _check_dtype(self.kv_dtype)
        _check_heads(self.heads, self.kv_heads)


@dataclass(frozen=True)
class Collective:
    """An exchange between devices joined by the target's first link.

    Attributes:
        kind: what is exchanged.
        devices: that take part.
        bytes: of the whole tensor: what every device holds before an all-reduce or a
            reduce-scatter and after an all-gather; what one device sends in a send.
    """

    kind: CollectiveKind
    devices: int
    bytes: int

    def __post_init__(self) -> None:
        _check_sizes(self, may_be_zero=("bytes",))
        if self.kind not in COLLECTIVE_KINDS:
            raise UserError(
                Code.OPTION,
                f"kind must be one of {', '.join(COLLECTIVE_KINDS)}, got {self.kind!r}",
            )


@dataclass(frozen=True)
class Elementwise:
    """A kernel that reads and writes `bytes` of main memory: norm, rope, activation, embedding."""

    bytes: int

    def __post_init__(self) -> None:
        _check_sizes(self, may_be_zero=("bytes",))


Query = Gemm | PrefillAttention | DecodeAttention | Collective | Elementwise


def _check_sizes(query: Query, may_be_zero: tuple[str, ...] = ()) -> None:
    for field in fields(query):
        value = getattr(query, field.name)
        if isinstance(value, str):
            continue
        least = 0 if field.name in may_be_zero else 1
        if value < least:
            raise UserError(Code.OPTION, f"{field.name} must be at least {least}, got {value}")


def _check_dtype(dtype: str) -> None:
    if dtype not in DTYPE_BYTES:
        raise UserError(
            Code.OPTION, f"dtype must be one of {', '.join(DTYPE_BYTES)}, got {dtype!r}"
        )


def _check_heads(heads: int, kv_heads: int) -> None:
    if heads % kv_heads:
        raise UserError(
            Code.OPTION, f"heads must be a multiple of kv_heads ({kv_heads}), got {heads}"
        )
