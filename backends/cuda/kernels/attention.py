"""Causal attention over the cache, on matrix instructions, with an online softmax.

Calls of many rows (`attention_tiles`) share staged keys between the warps of a block; in calls of
few rows (`attention_parts`) the keys of a row are divided over warps and blocks. What is done with
some keys is the same (`attention_step`). The numbers of a row depend on its own position and keys
alone: not on the other rows, nor on the number of blocks.
"""

from __future__ import annotations

from infc.backends.cuda.codegen.builder import GpuBuilder
from infc.backends.cuda.kernels.attention_parts import (
    Arguments,
    PartsAttention,
    Records,
    most_parts,
)
from infc.backends.cuda.kernels.attention_spec import AttentionMapping, AttentionSpec
from infc.backends.cuda.kernels.attention_tiles import TilesAttention, tiles_a_warp
from infc.backends.cuda.kernels.frame import Emitted

__all__ = [
    "AttentionMapping",
    "AttentionSpec",
    "attention_arrivals",
    "attention_mapping",
    "attention_scratch_bytes",
    "emit_attention",
]


def attention_mapping(spec: AttentionSpec, typical_rows: int, ctas: int) -> AttentionMapping:
    """How to cut the work of calls of so many rows for so many blocks."""
    if typical_rows * spec.group > 4 * 16:
        return AttentionMapping(tiles=tiles_a_warp(spec))
    owners = typical_rows * spec.kv.kv_heads * Records(spec, 1).tiles
    return AttentionMapping(tiles=0, parts=min(most_parts(spec), max(1, ctas // owners)))


def attention_scratch_bytes(spec: AttentionSpec, mapping: AttentionMapping) -> int:
    """Bytes of `partials`, 256-aligned, with nothing in it."""
    return 0 if mapping.tiles else Records(spec, mapping.parts).size_bytes


def attention_arrivals(spec: AttentionSpec, mapping: AttentionMapping) -> int:
    """How many i32 `arrivals` has, zero before and after."""
    return Records(spec, mapping.parts).count if attention_scratch_bytes(spec, mapping) else 0


def emit_attention(
    b: GpuBuilder, name: str, spec: AttentionSpec, mapping: AttentionMapping
) -> Emitted:
    """Define `@name(q, cache, positions, row_slots, out, partials, arrivals, rows, cta, ctas)`.

    The last three are i32, the others pointers to global memory. `q` is f32 `[rows, heads *
    head_dim]`, `out` the same or `abf16` rows, `cache` the layer's cache (`kv_layout`), `positions`
    and `row_slots` are i32 `[rows]`. A row attends to itself and to what is before it in its slot,
    as far as the window goes; its key has been appended.
    """
    pointers, numbers = [b.ptr] * 7, [b.i32] * 3
    with b.function(name, [*pointers, *numbers]) as values:
        a = Arguments(*values)
        if mapping.tiles:
            TilesAttention(b, spec, mapping.tiles, a).emit()
            work_bytes = TilesAttention.work_bytes(spec, mapping.tiles)
        else:
            PartsAttention(b, spec, mapping.parts, a).emit()
            work_bytes = PartsAttention.work_bytes(spec)
        b.ret()
    return Emitted(name, work_bytes)
