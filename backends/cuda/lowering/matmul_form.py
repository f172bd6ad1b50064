"""Products of the memory level: streamed through the ring, or in tiles."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields

from infc.backends.cuda.codegen.builder import GpuBuilder
from infc.backends.cuda.kernels.frame import WORK_OFFSET
from infc.backends.cuda.kernels.packing import layout_named
from infc.backends.cuda.kernels.product_spec import ProductSpec, Segment
from infc.backends.cuda.kernels.ring import Ring
from infc.backends.cuda.kernels.stream import emit_stream
from infc.backends.cuda.kernels.stream_shape import StreamShape
from infc.backends.cuda.kernels.tile_mapping import TileMapping
from infc.backends.cuda.kernels.tiles import emit_tiles
from infc.backends.cuda.lowering.forms import Form, Word
from infc.diagnostics import Code, InternalError, UserError
from infc.ir.attributes import get
from infc.ir.mlir import ir
from infc.ir.types import ABF16, TensorType
from infc.passes.codegen.builder import Value
from infc.passes.codegen.kernel_body import KernelBody

STREAM, TILES = "stream", "tiles"
"""What the mapping of a product says in `product`: weights pass by rows that stay in shared memory,
or both are cut into tiles."""
LEAST_RING_BYTES = 48 * 1024
"""A ring holds at least this much: what a multiprocessor has on the way from memory, and as much
again that is being multiplied."""
_MOST_SLOT_BYTES = 32 * 1024
_SLOT_BLOCKS = (64, 32, 16, 8)
"""Blocks of a panel that a slot has room for, eight or fewer for each warp: as many as leave
`_SLOTS` slots, since each run of blocks is waited for."""
_SLOTS = 5


def stream_fits(spec: ProductSpec, shared_bytes: int) -> bool:
    """Whether the rows of a product stay in shared memory while its weights pass by."""
    try:
        work_bytes = StreamShape(spec).work_bytes
    except ValueError:  # more rows than the kernel takes
        return False
    return WORK_OFFSET + work_bytes + LEAST_RING_BYTES <= shared_bytes


def ring_for(specs: Iterable[ProductSpec], work_bytes: int, shared_bytes: int) -> Ring | None:
    """The ring of a program, behind the work of its kernels; None where no product is streamed.

    Args:
        specs: the streamed products.
        work_bytes: of all other kernels; where they leave too little of a block's `shared_bytes`,
            they cannot be together with a ring, and have no part in where it lies.
    """
    specs = tuple(specs)
    if not specs:
        return None
    own = max(StreamShape(spec).work_bytes for spec in specs)
    together = max(own, work_bytes)
    if WORK_OFFSET + together + LEAST_RING_BYTES > shared_bytes:
        together = own
    offset = -(-(WORK_OFFSET + together) // 128) * 128
    panels = {
        (spec.blocks, layout_named(segment.layout).block_bytes)
        for spec in specs
        for segment in spec.segments
    }
    slots = slot_bytes = 0
    for most in _SLOT_BLOCKS:
        wanted = max(min(min(most, blocks) * size, _MOST_SLOT_BYTES) for blocks, size in panels)
        slot_bytes = -(-wanted // 128) * 128
        slots = min((shared_bytes - offset) // slot_bytes, WORK_OFFSET // 16)
        if slots >= _SLOTS:
            break
    return Ring(slots, slot_bytes, offset)


def product_spec(body: KernelBody, rows: int) -> ProductSpec:
    """The emitter's specification of a product, `linear`s of one input with what is behind them."""
    segments = []
    for op in body.named("linear"):
        operands = list(op.operation.operands)
        layout = body.buffer(body.source[operands[1]]).layout
        n = int(TensorType.of(operands[1].type).shape[0])
        segments.append(Segment(n, layout, bias=len(operands) > 2))
    gates, caps = body.named("activation"), body.named("softcap")
    kind = TensorType.of(body.named("linear")[0].operation.operands[0].type)
    if kind.element != ABF16:
        raise InternalError(f"a product takes {kind.element} rows, expected {ABF16}")
    return ProductSpec(
        k=int(kind.shape[1]),
        segments=tuple(segments),
        combine=get(gates[0], "kind") if gates else None,
        softcap=get(caps[0], "cap") if caps else None,
        max_rows=rows,
        out=ABF16 if body.named("quantize") else "f32",
    )


def is_streamed(body: KernelBody) -> bool:
    """Whether a kernel is a product that gets its weights through the ring."""
    return body.kind == "matmul" and body.mapping["product"] == STREAM


def streamed_spec(body: KernelBody, rows: int, shared_bytes: int) -> ProductSpec:
    """The specification of a streamed product.

    Raises:
        UserError: its rows do not fit beside a ring (INF2101): the mapping was edited.
    """
    spec = product_spec(body, rows)
    if not stream_fits(spec, shared_bytes):
        raise UserError(
            Code.PLAN,
            f"{rows} rows of {spec.k} numbers do not fit into shared memory beside a ring",
            location=str(body.function.location),
            hint=f'give the product another mapping than "{STREAM}"',
        )
    return spec


def matmul_form(b: GpuBuilder, name: str, body: KernelBody, rows: int, ring: Ring | None) -> Form:
    """A product, as its mapping says."""
    spec = product_spec(body, rows)
    weights, biases = [], []
    for op in body.named("linear"):
        operands = list(op.operation.operands)
        weights.append(body.source[operands[1]])
        biases += [body.source[operand] for operand in operands[2:]]
    x = body.source[body.named("linear")[0].operation.operands[0]]
    pointers = (x, *weights, *biases, *_outputs(body))
    if ring is None or not is_streamed(body):
        tiles = emit_tiles(b, name, spec, tile_mapping(body.mapping))
        return Form(tiles, (*pointers, "rows", "cta", "ctas"), body.row_symbol())
    numbers: tuple[Word, ...] = ("rows", "cta", "ctas", "first", "count")
    return Form(
        emit_stream(b, name, spec, ring),
        (*pointers, *numbers),
        body.row_symbol(),
        produce=(*weights, *numbers),
    )


def tile_mapping(mapping: Mapping[str, int | str]) -> TileMapping:
    """How tiles are cut, from a kernel's mapping."""
    values = {field.name: mapping[field.name] for field in fields(TileMapping)}
    return TileMapping(**values)  # type: ignore[arg-type]  # a name, and numbers


def _outputs(body: KernelBody) -> list[int]:
    """The buffers that a product writes."""
    ops: list[ir.OpView] = [
        op for name in ("linear", "mul", "softcap", "quantize") for op in body.named(name)
    ]
    made: list[Value] = [op.operation.results[0] for op in ops]
    return [body.target[value] for value in made if value in body.target]
