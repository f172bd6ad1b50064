"""Bytes of the matrices of a model file, in the storage types that they have there."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

from infc.cost.kernels.queries import DTYPE_BYTES
from infc.frontends.source import ModelSource

_PRODUCTS = {
    "queries": ("q", "k", "v"),
    "output": ("o",),
    "gated": ("gate", "up"),
    "down": ("down",),
}
"""The matrices of a block that one product reads together."""
_FLOATS_OF_A_BYTE = "f8_e4m3"


@dataclass(frozen=True)
class BlockBytes:
    """What the matrices of one block take, by the product that reads them.

    Attributes:
        queries: of q, k and v.
        output: of the product behind the attention.
        gated: of gate and up.
        down: of the last one.
    """

    queries: int
    output: int
    gated: int
    down: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.queries + self.output + self.gated + self.down


@dataclass(frozen=True)
class FileWeights:
    """What the matrices of a file take.

    Attributes:
        blocks: one a layer.
        embedding: bytes of the table.
        head: bytes of the vocabulary head, which are those of the table where it is tied.
        types: storage types, the one with the most bytes first.
        head_type: of the head.
        dtype, head_dtype: the dtypes of the cost model whose bytes come nearest to those of the
            blocks and of the head.
    """

    blocks: tuple[BlockBytes, ...]
    embedding: int
    head: int
    types: tuple[str, ...]
    head_type: str
    dtype: str
    head_dtype: str


def file_weights(source: ModelSource) -> FileWeights:
    """What an opened model holds."""
    roles, tensors = source.config.weights, source.tensors

    def size(role: str) -> int:
        return tensors[roles[role]].size_bytes

    prefixes = [f"layers.{index}." for index in range(len(source.config.layers))]
    blocks = tuple(
        BlockBytes(
            **{
                product: sum(size(prefix + part) for part in parts)
                for product, parts in _PRODUCTS.items()
            }
        )
        for prefix in prefixes
    )
    head = tensors[roles.get("head", roles["embed"])]
    matrices = [tensors[name] for name in roles.values() if len(tensors[name].shape) > 1]
    types: dict[str, int] = {}
    for info in matrices:
        types[info.storage] = types.get(info.storage, 0) + info.size_bytes
    parts = [part for group in _PRODUCTS.values() for part in group]
    weights = sum(math.prod(tensors[roles[p + part]].shape) for p in prefixes for part in parts)
    return FileWeights(
        blocks=blocks,
        embedding=size("embed"),
        head=head.size_bytes,
        types=tuple(sorted(types, key=lambda name: (-types[name], name))),
        head_type=head.storage,
        dtype=_nearest(sum(block.total for block in blocks) / max(1, weights), types),
        head_dtype=_nearest(head.size_bytes / math.prod(head.shape), {head.storage}),
    )


def _nearest(bytes_each: float, types: Collection[str]) -> str:
    """The dtype whose elements take the most similar number of bytes."""
    byte = "fp8" if _FLOATS_OF_A_BYTE in types else "int8"
    return min(("fp4", byte, "bf16", "f32"), key=lambda name: abs(DTYPE_BYTES[name] - bytes_each))
