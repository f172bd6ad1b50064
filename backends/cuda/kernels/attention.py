"""Causal attention over the cache, on matrix instructions, with an online softmax.

Calls of many rows (`attention_tiles`) share staged keys between the warps of a block; in calls of
few rows (`attention_parts`) the keys of a row are divided over warps and blocks. What is done with
some keys is the same (`attention_step`). The numbers of a row depend on its own position and keys
alone: not on the other rows, nor on the number of blocks.
"""

from __future__ import annotations

from infc.backends.cuda.codegen.builder import GpuBuilder
from infc.backends.cuda.kernels.attention_parts import PartsAttention
from infc.backends.cuda.kernels.attention_records import Records, most_parts
from infc.backends.cuda.kernels.attention_spec import (
    STEP_KEYS,
    Arguments,
    AttentionMapping,
    AttentionSpec,
)
from infc.backends.cuda.kernels.attention_tiles import TilesAttention
from infc.backends.cuda.kernels.attention_tiles_shape import TilesShape, most_tiles
from infc.backends.cuda.kernels.frame import WARPS, Emitted

__all__ = [
    "AttentionMapping",
    "AttentionSpec",
    "attention_arrivals",
    "attention_scratch_bytes",
    "emit_attention",
    "few_rows_mapping",
    "many_rows_mapping",
]


_MOST_PARTS = 64
"""Beyond it one block's merging takes longer than the others' reading saves."""
_WIDE_HEAD_DIM = 128
"""Heads beyond it give two warps enough to copy."""


def few_rows_mapping(spec: AttentionSpec, rows: int, context: int, blocks: int) -> AttentionMapping:
    """How to cut the work of calls of few rows.

    Args:
        rows: of a call.
        context: keys that a row sees.
        blocks: that run at once.
    """
    owners = rows * spec.kv.kv_heads * Records(spec, AttentionMapping(0)).tiles
    # With plenty of keys for each block all its warps have some; else more blocks have some.
    plenty = owners * (context // (STEP_KEYS * WARPS)) >= 2 * blocks
    streams = WARPS if plenty else 2 if spec.kv.head_dim > _WIDE_HEAD_DIM else 4
    parts = max(1, min(blocks // owners, _MOST_PARTS, most_parts(spec, streams)))
    return AttentionMapping(0, parts, streams)


def many_rows_mapping(
    spec: AttentionSpec, rows: int, blocks: int, shared_bytes: int
) -> AttentionMapping:
    """How to cut the work of calls of many rows.

    Args:
        rows: of a call.
        blocks: that run at once.
        shared_bytes: that a block may have.
    """
    fitting = [
        mapping
        for tiles in range(most_tiles(spec), 0, -1)
        for mapping in (AttentionMapping(tiles, streams=n) for n in (1, 2, 4, 8))
        if TilesShape(spec, mapping).fits(shared_bytes)
    ]
    if not fitting:  # wide heads in little shared memory: slower, rows read keys for themselves
        return few_rows_mapping(spec, rows, spec.kv.capacity, blocks)

    def items(mapping: AttentionMapping) -> int:
        return spec.kv.kv_heads * -(-rows * spec.group // TilesShape(spec, mapping).block_rows)

    # The largest blocks of rows of which there is one for every multiprocessor, or the smallest.
    busy = [mapping for mapping in fitting if items(mapping) >= blocks]
    return min(busy or fitting, key=lambda m: (items(m) * (1 if busy else -1), -m.tiles))


def attention_scratch_bytes(spec: AttentionSpec, mapping: AttentionMapping) -> int:
    """Bytes of `partials`, 256-aligned, with nothing in it."""
    return 0 if mapping.tiles else Records(spec, mapping).size_bytes


def attention_arrivals(spec: AttentionSpec, mapping: AttentionMapping) -> int:
    """How many i32 `arrivals` has, zero before and after."""
    return Records(spec, mapping).count if attention_scratch_bytes(spec, mapping) else 0


def emit_attention(
    b: GpuBuilder, name: str, spec: AttentionSpec, mapping: AttentionMapping
) -> Emitted:
    """Define `@name(q, cache, positions, row_slots, out, partials, arrivals, rows, cta, ctas)`.

    The last three are i32, the others pointers to global memory. `q` is f32 `[rows, heads *
    head_dim]`, `out` the same or `abf16` rows, `cache` the layer's cache (`kv_layout`), `positions`
    and `row_slots` are i32 `[rows]`. A row attends to itself and to what is before it in its slot,
    as far as the window goes; its key has been appended.
    """
    if mapping.tiles > most_tiles(spec):
        raise ValueError(f"{mapping.tiles} tiles of head_dim {spec.kv.head_dim} are too many")
    pointers, numbers = [b.ptr] * 7, [b.i32] * 3
    with b.function(name, [*pointers, *numbers]) as values:
        a = Arguments(*values)
        if mapping.tiles:
            TilesAttention(b, spec, mapping, a).emit()
            work_bytes = TilesShape(spec, mapping).work_bytes
        else:
            PartsAttention(b, spec, mapping, a).emit()
            work_bytes = PartsAttention.work_bytes(spec, mapping.streams)
        b.ret()
    return Emitted(name, work_bytes)
