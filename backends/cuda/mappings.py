"""What the cost model chooses from, and what each choice asks of the machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from infc.backends.cuda.fetching import fetched_ahead
from infc.backends.cuda.kernels.attention import (
    AttentionSpec,
    few_rows_mapping,
    many_rows_mapping,
)
from infc.backends.cuda.kernels.attention_spec import MAX_HEAD_DIM
from infc.backends.cuda.kernels.kv_layout import KVLayer
from infc.backends.cuda.kernels.product_spec import ProductSpec, Segment
from infc.backends.cuda.kernels.tile_mapping import TileMapping, stage_of, tile_candidates
from infc.backends.cuda.kernels.weights import layout_for
from infc.backends.cuda.lowering.matmul_form import STREAM, TILES, stream_fits
from infc.backends.cuda.target import arch_of, shared_bytes_of, sm_count
from infc.cost.roofline import Work
from infc.ir.attributes import get
from infc.ir.kv_storage import position_bytes
from infc.ir.mlir import ir
from infc.target.backend import KernelMapping, KernelSummary
from infc.target.schema import Target

REPLICATED_ROWS = 8
"""Up to so many rows of a step every block computes row operations for itself, a warp a row: all
blocks reading them from the L2 takes less than a barrier of all of them."""
_HEAD_STEP = 16
"""Numbers that a matrix instruction sums over."""
REPLICATED_HEADS = 16
"""The same of heads that are rotated, a warp a head: two for each warp. All blocks then write the
same keys into the cache, and each reads what it wrote itself."""
_STEP_STAGES_BYTES = 64 * 1024
"""Shared memory that tiles of a step take, where it can be helped."""
_HBM = "hbm"


def lacking(op: ir.Operation) -> str | None:
    """Why a graph-level op cannot be compiled, or None."""
    if op.name == "infc.attention":
        head_dim = get(op, "head_dim")
        if head_dim % _HEAD_STEP or head_dim > MAX_HEAD_DIM:
            return (
                f"expected a head_dim of a multiple of {_HEAD_STEP} up to {MAX_HEAD_DIM}, "
                f"got {head_dim}"
            )
    return None


def kernel_candidates(kernel: KernelSummary, target: Target) -> Sequence[KernelMapping]:
    """Mappings of one kernel, the best guess first."""
    if kernel.kind == "matmul":
        return _product_candidates(kernel, target)
    if kernel.kind == "attention":
        return _attention_candidates(kernel, target)
    if kernel.kind in ("rows", "rotary"):
        items = kernel.rows * kernel.shapes.get("rotated_heads", 1)
        few = items <= (REPLICATED_ROWS if kernel.kind == "rows" else REPLICATED_HEADS)
        usual = "rows" if kernel.kind == "rows" else "items"
        return [{"partition": "replicate" if few and kernel.phase == "decode" else usual}]
    return [{"partition": "items"}]


def product_spec(kernel: KernelSummary) -> ProductSpec:
    """What the emitter is told of a product; biases and a soft cap, which cost little, apart."""
    return ProductSpec(
        k=kernel.matrices[0][1],
        segments=tuple(Segment(n, layout_for(storage).name) for n, _, storage in kernel.matrices),
        combine=kernel.gate or None,
        max_rows=kernel.rows,
        out=kernel.out,
    )


def _product_candidates(kernel: KernelSummary, target: Target) -> Sequence[KernelMapping]:
    """Few rows stay in shared memory while weights stream past; many are cut into tiles."""
    spec, alone = product_spec(kernel), kernel.phase == "prefill"
    shared_bytes = shared_bytes_of(target)
    cuts = tile_candidates(spec, arch_of(target), entry=alone, shared_bytes=shared_bytes)
    cuts = cuts or tile_candidates(spec, arch_of(target), entry=alone)
    if not alone:  # others of the step may want a ring behind it
        cuts = [cut for cut in cuts if _stage_bytes(spec, cut) <= _STEP_STAGES_BYTES] or cuts
    tiles = [{"product": TILES, **asdict(cut)} for cut in cuts]
    return [{"product": STREAM}, *tiles] if stream_fits(spec, shared_bytes) else tiles


def _stage_bytes(spec: ProductSpec, cut: TileMapping) -> int:
    """Shared memory that the stages of a tiled product take."""
    outputs = range(len(spec.outputs))
    return cut.stages * max(stage_of(spec, cut, output).size_bytes for output in outputs)


def _attention_candidates(kernel: KernelSummary, target: Target) -> Sequence[KernelMapping]:
    """Rows share keys in prefill; in decode the keys of a row are divided among blocks."""
    shapes = kernel.shapes
    kv = KVLayer(
        kv_heads=shapes["kv_heads"],
        head_dim=shapes["head_dim"],
        capacity=shapes["capacity"],
        dtype=kernel.kv_dtype,
        slots=kernel.rows,
    )
    spec = AttentionSpec(
        heads=shapes["heads"],
        kv=kv,
        window=shapes["window"] or None,
        scale=1.0,
        softcap=None,
        max_rows=kernel.rows,
        out=kernel.out,
    )
    rows, blocks = kernel.typical_rows, sm_count(target)
    if kernel.phase == "prefill":
        return [asdict(many_rows_mapping(spec, rows, blocks, shared_bytes_of(target)))]
    return [asdict(few_rows_mapping(spec, rows, shapes["context"], blocks))]


def kernel_work(kernel: KernelSummary, mapping: KernelMapping, target: Target) -> Work:
    """Weights and the cache come from the large memory, the cache of one sequence; activations
    stay in the L2 and are not counted. A kernel has a barrier of the device behind it, or is a
    launch of its own, which takes about as long; one that every block does for itself has none.
    Streamed weights of a step are fetched through barriers."""
    replicated = mapping.get("partition") == "replicate"
    blocks = sm_count(target) if replicated else 1
    streamed = kernel.phase == "decode" and mapping.get("product") == STREAM
    moved, operations = kernel.weight_bytes, dict(kernel.operations)
    if kernel.kind == "attention":
        shapes = kernel.shapes
        position = shapes["kv_heads"] * position_bytes(kernel.kv_dtype, shapes["head_dim"])
        moved += shapes["context"] * position
        operations = {"f16": operations["f32"]}
    return Work(
        bytes={_HBM: float(moved)},
        operations={dtype: count * blocks for dtype, count in operations.items()},
        barriers=0 if replicated else 1,
        ahead=fetched_ahead(kernel, target) if streamed else None,
    )
