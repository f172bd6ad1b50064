"""The kernels of one step of a transformer on one device.

A block is two norms, the fused q, k and v product, rope (with the norms of queries and keys), the
attention, its output product, the fused gate and up product, the activation and the down product.
Tensor parallelism cuts the heads and the inner width (Shoeybi et al.: Megatron-LM,
arXiv 1909.08053): each of the two halves of a block ends in one all-reduce of the activations. Head
and embedding are cut along the vocabulary. Pipeline parallelism gives each stage as even a share
of the blocks as it can; activations are sent from stage to stage. Products with weights are in
the dtype of the weights, embedding and head in 16 bits: engines leave those alone. Where a file
says what each matrix takes, that is read, and dtypes are those of the arithmetic.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from infc.cost.file_weights import BlockBytes
from infc.cost.kernels.queries import (
    DTYPE_BYTES,
    Collective,
    DecodeAttention,
    Elementwise,
    Gemm,
    PrefillAttention,
    Query,
)
from infc.cost.model_shape import ModelShape
from infc.diagnostics import Code, UserError

ACTIVATION = "bf16"
"""Dtype of activations, embedding and head."""
ACTIVATION_BYTES = 2
_ALL_REDUCES_A_BLOCK = 2


@dataclass(frozen=True)
class Split:
    """How a model is spread over devices, and in which dtypes.

    Attributes:
        tensor: devices that share each block.
        pipeline: groups of such devices, one after the other, that share the blocks.
        dtype: of the weights of the blocks and of the arithmetic with them.
        kv_dtype: of the KV cache.
        head_dtype: of the vocabulary head, likewise.
    """

    tensor: int = 1
    pipeline: int = 1
    dtype: str = "bf16"
    kv_dtype: str = "bf16"
    head_dtype: str = ACTIVATION

    @property
    def devices(self) -> int:
        """All of them."""
        return self.tensor * self.pipeline


@dataclass(frozen=True)
class Rows:
    """What the sequences of one step bring along.

    Attributes:
        batch: sequences.
        length: new tokens of each; 1 in decoding.
        past: positions of each that are in the KV cache before.
    """

    batch: int
    length: int
    past: int

    @property
    def tokens(self) -> int:
        """New tokens of all sequences."""
        return self.batch * self.length


def check_split(shape: ModelShape, split: Split) -> None:
    """Raise UserError (INF5001) where a model cannot be cut so, or has no cost in a dtype."""
    for name, dtype in (("dtype", split.dtype), ("KV dtype", split.kv_dtype)):
        if dtype not in DTYPE_BYTES:
            known = ", ".join(DTYPE_BYTES)
            raise UserError(Code.OPTION, f"expected a {name} of {known}, got {dtype}")
    ways = split.tensor
    if ways < 1 or split.pipeline < 1:
        raise UserError(
            Code.OPTION,
            "expected tensor and pipeline parallelism of at least 1, "
            f"got {ways} and {split.pipeline}",
        )
    cut = {"heads": shape.heads, "inner width": shape.inner}
    for name, size in cut.items():
        if size % ways:
            raise UserError(
                Code.OPTION,
                f"expected a tensor parallelism that divides the {name} of {shape.name} ({size}), "
                f"got {ways}",
            )
    if shape.kv_heads % ways and ways % shape.kv_heads:
        raise UserError(
            Code.OPTION,
            f"expected a tensor parallelism that divides the KV heads of {shape.name} "
            f"({shape.kv_heads}) or is a multiple of them, got {ways}",
        )
    if split.pipeline > shape.layers:
        raise UserError(
            Code.OPTION,
            f"expected a pipeline parallelism of at most the layers of {shape.name} "
            f"({shape.layers}), got {split.pipeline}",
        )


def step_kernels(shape: ModelShape, split: Split, rows: Rows) -> Counter[Query]:
    """What one step runs, one device of each stage after the other, and how often.

    Decoding is a step of one token a sequence. Only the last position of a sequence has logits.
    """
    kernels: Counter[Query] = Counter()
    hidden_bytes = rows.tokens * shape.hidden * ACTIVATION_BYTES
    kernels[Elementwise(2 * hidden_bytes)] += 1  # the embedding
    held = (None,) * shape.layers if shape.weights is None else shape.weights.blocks
    for (window, block), layers in Counter(zip(shape.windows, held, strict=True)).items():
        for query in _block(shape, split, rows, window, block):
            kernels[query] += layers
    if split.tensor > 1:
        kernels[Collective("all-reduce", split.tensor, hidden_bytes)] += (
            _ALL_REDUCES_A_BLOCK * shape.layers + 1
        )
    if split.pipeline > 1:
        share = math.ceil(hidden_bytes / split.tensor)
        kernels[Collective("send", 2, share)] += split.pipeline - 1
    for query in _head(shape, split, rows.batch):
        kernels[query] += 1
    return kernels


def _block(
    shape: ModelShape, split: Split, rows: Rows, window: int, held: BlockBytes | None
) -> Iterator[Query]:
    """The kernels of one block on one device, without collectives; `held` is of all devices."""
    ways, tokens, hidden = split.tensor, rows.tokens, shape.hidden
    heads, kv_heads = shape.heads // ways, max(1, shape.kv_heads // ways)
    queries, keys = heads * shape.head_dim, kv_heads * shape.head_dim
    inner = shape.inner // ways
    wide = tokens * ACTIVATION_BYTES
    held = held or BlockBytes(0, 0, 0, 0)

    def product(n: int, k: int, weight_bytes: int) -> Gemm:
        return Gemm(tokens, n, k, split.dtype, math.ceil(weight_bytes / ways))

    # Each norm adds the residual: it reads and writes both.
    yield from [Elementwise(4 * hidden * wide)] * (4 if shape.post_norms else 2)
    yield product(queries + 2 * keys, hidden, held.queries)
    if shape.query_key_norm:
        yield Elementwise(2 * (queries + keys) * wide)
    yield Elementwise(2 * (queries + 2 * keys) * wide)  # rope, and the cache's new positions
    sizes = (rows.batch, heads, kv_heads, shape.head_dim)
    yield _attention(split, rows, window, sizes)
    yield product(hidden, queries, held.output)
    yield product(2 * inner, hidden, held.gated)
    yield Elementwise(3 * inner * wide)  # the activation
    yield product(hidden, inner, held.down)


def _attention(
    split: Split, rows: Rows, window: int, sizes: tuple[int, int, int, int]
) -> DecodeAttention | PrefillAttention:
    """`sizes` are batch, heads, KV heads and head dimensions."""
    batch, heads, kv_heads, head_dim = sizes
    kv_dtype = split.kv_dtype
    if rows.length == 1:
        return DecodeAttention(
            ACTIVATION, kv_dtype, batch, rows.past + 1, heads, kv_heads, head_dim, window
        )
    return PrefillAttention(
        ACTIVATION, kv_dtype, batch, rows.length, heads, kv_heads, head_dim, window, rows.past
    )


def _head(shape: ModelShape, split: Split, batch: int) -> Iterator[Query]:
    """Final norm and logits of one position a sequence."""
    yield Elementwise(2 * batch * shape.hidden * ACTIVATION_BYTES)
    share = math.ceil(shape.vocabulary / split.tensor)
    held = 0 if shape.weights is None else math.ceil(shape.weights.head / split.tensor)
    yield Gemm(batch, share, shape.hidden, split.head_dtype, held)
    if split.tensor > 1:
        logits = batch * shape.vocabulary * ACTIVATION_BYTES
        yield Collective("all-gather", split.tensor, logits)
