"""Causal attention over the cache: online softmax over blocks of keys anchored at fixed positions.

For every block of keys the unit computes the scores
of all lanes, their softmax terms, then adds the weighted values: two matrix products with the
block's keys and values in the nearest cache. (Milakov and Gimelshein, "Online normalizer
calculation for softmax"; Dao et al., "FlashAttention".)

The numbers of a row do not depend on the unit it is in: every sum runs over its keys in one order,
blocks begin at absolute multiples of `key_block`, and a block in which a row sees nothing leaves
its state exactly as it was (its terms are 0 and its correction is `2 ** 0 = 1`).

Where calls have few rows, a unit is a part of the keys of one row (`attention_parts`). Where they
have many and the processor has tile registers, both products are bf16 (`attention_tiles`).
"""

from __future__ import annotations

from dataclasses import dataclass

from infc.backends.cpu.codegen.amx import TILE_ROWS
from infc.backends.cpu.codegen.builder import LANES, Builder, Value
from infc.backends.cpu.codegen.isa import Isa
from infc.backends.cpu.kernels.attention_block import LOG2_E, MASKED, BlockEmitter
from infc.backends.cpu.kernels.attention_operands import Block
from infc.backends.cpu.kernels.attention_output import AttentionOutput
from infc.backends.cpu.kernels.attention_parts import Parts, part_layout
from infc.backends.cpu.kernels.attention_shape import Scratch, Shape, widest_panel
from infc.backends.cpu.kernels.attention_tiles import emit_tile_attention
from infc.backends.cpu.kernels.attention_tiles_shape import TileScratch, TileShape
from infc.backends.cpu.kernels.attention_units import AttentionArguments, Unit, Units
from infc.backends.cpu.kernels.kv_layout import STRIP, KVLayer
from infc.backends.cpu.kernels.rows import F32_BYTES, for_each_vector, load_f32, store_f32


@dataclass(frozen=True)
class AttentionSpec:
    """The attention of one layer class.

    Attributes:
        heads: query heads, a multiple of the kv heads.
        kv: the layer's cache, which also says kv heads, head_dim and capacity.
        window: a row sees this many positions, itself included; `None` for all.
        scale: factor of the scores.
        softcap: `c` of `c * tanh(score / c)`, or `None`.
        max_rows: rows in one call, at most.
        out: form of the output rows `[heads * head_dim]`: `f32` or `abf16`.
    """

    heads: int
    kv: KVLayer
    window: int | None
    scale: float
    softcap: float | None
    max_rows: int
    out: str = "f32"

    @property
    def group(self) -> int:
        """Query heads that share a kv head."""
        return self.heads // self.kv.kv_heads


@dataclass(frozen=True)
class AttentionMapping:
    """How the work is cut.

    Attributes:
        row_tile: lanes (rows times query heads) of a unit; it does not change the result.
        key_block: keys of a block, a multiple of 16; it is part of the order of summation.
        parts: the most parts that a row's keys are divided into, which is part of the order too;
            with more than one a unit has one row.
        tiles: whether both products are bf16 ones on tile registers; key blocks are then multiples
            of 32, and units have many rows.
    """

    row_tile: int
    key_block: int
    parts: int = 1
    tiles: bool = False


PARTS = 16
"""Parts of a long row: enough for the balance of some threads, few enough to merge."""


def split_candidates(spec: AttentionSpec) -> list[AttentionMapping]:
    """Mappings for calls of few rows, each perhaps with many keys, the default first."""
    mappings = []
    for key_block in (64, 128):
        blocks = -(-spec.kv.capacity // key_block)
        if spec.window is not None:  # it may begin and end within a block
            blocks = min(blocks, (spec.window - 2) // key_block + 2)
        mappings.append(AttentionMapping(spec.group, key_block, min(PARTS, blocks)))
    return mappings


def candidates(spec: AttentionSpec, isa: Isa) -> list[AttentionMapping]:
    """Mappings for calls of many rows, the default first."""
    lanes = spec.max_rows * spec.group
    # A cache in f32 is there for the sake of exact numbers.
    if isa.amx and lanes >= TILE_ROWS and spec.kv.dtype != "f32":
        return _tile_candidates(spec, lanes)
    # Wider tiles share a staged block among more lanes; narrower ones balance short prompts better.
    panels = (4, 8, 2)
    tiles = [min(lanes, max(spec.group, count * widest_panel(isa))) for count in panels]
    return [
        AttentionMapping(tile, key_block)
        for key_block in (64, 128)
        for tile in dict.fromkeys(tiles)
    ]


def _tile_candidates(spec: AttentionSpec, lanes: int) -> list[AttentionMapping]:
    """Mappings for calls of many rows on tile registers, the default first."""
    tiles = dict.fromkeys(min(lanes, tile) for tile in (512, 256))
    return [
        AttentionMapping(tile, key_block, tiles=True) for key_block in (512, 256) for tile in tiles
    ]


def attention_scratch_bytes(spec: AttentionSpec, mapping: AttentionMapping) -> int:
    """Bytes of scratch of one thread, aligned to 64 bytes."""
    if mapping.tiles:
        return TileScratch.plan(_tile_shape(spec, mapping)).total
    return Scratch.plan(_shape(spec, mapping)).total


def attention_shared_bytes(spec: AttentionSpec, mapping: AttentionMapping) -> int:
    """Bytes of scratch that all threads share: the parts of all rows."""
    if mapping.parts == 1:
        return 0
    layout = part_layout(_shape(spec, mapping), mapping.parts, spec.group)
    return spec.max_rows * layout.row_bytes()


def _rows_a_tile(spec: AttentionSpec, mapping: AttentionMapping) -> int:
    if mapping.parts > 1:
        return 1
    return min(spec.max_rows, max(1, mapping.row_tile // spec.group))


def _shape(spec: AttentionSpec, mapping: AttentionMapping) -> Shape:
    if mapping.key_block % STRIP:
        raise ValueError(f"key_block {mapping.key_block} is not a multiple of {STRIP}")
    lanes = _rows_a_tile(spec, mapping) * spec.group
    return Shape(spec.kv, spec.window, spec.softcap, mapping.key_block, lanes)


def _tile_shape(spec: AttentionSpec, mapping: AttentionMapping) -> TileShape:
    return TileShape(
        heads=spec.heads,
        kv=spec.kv,
        window=spec.window,
        scale=spec.scale,
        softcap=spec.softcap,
        key_block=mapping.key_block,
        rows=_rows_a_tile(spec, mapping),
        out=spec.out,
    )


def emit_attention(b: Builder, name: str, spec: AttentionSpec, mapping: AttentionMapping) -> None:
    """Define `@name(q, kv, out, positions, row_slots, m, thread, threads, deal, scratch)`.

    `m`, `thread` and `threads` are i64, the others pointers.

    Row `r` at `positions[r]` of `row_slots[r]` attends to itself and what is before it, as far as
    the window goes; its key must have been appended. `q` is f32 `[m, heads, head_dim]`, `out` the
    same or `abf16` rows, `kv` is the layer's cache, `scratch` the calling thread's own.

    Mappings with parts take two pointers more: `shared`, of `attention_shared_bytes`, and
    `arrivals`, i32 `[max_rows, kv_heads]`, zero before the first call and after every call.
    """
    if mapping.tiles and not b.isa.amx:
        raise ValueError(f"tiles need tile registers, which {b.isa.cpu} lacks")
    split = mapping.parts > 1
    arguments = [*[b.ptr] * 5, *[b.i64] * 3, *[b.ptr] * (4 if split else 2)]
    with b.function(name, arguments) as values:
        shared = values[-2:] if split else []
        a = AttentionArguments(*values[: len(values) - len(shared)])
        if mapping.tiles:
            emit_tile_attention(b, _tile_shape(spec, mapping), a)
        else:
            _Attention(b, spec, mapping, a, *shared).emit()
        b.ret()


class _Attention:
    """Emits one attention function."""

    def __init__(
        self,
        b: Builder,
        spec: AttentionSpec,
        mapping: AttentionMapping,
        a: AttentionArguments,
        records: Value | None = None,
        arrivals: Value | None = None,
    ) -> None:
        self.b, self.spec, self.a = b, spec, a
        self.shape = _shape(spec, mapping)
        self.block = BlockEmitter(b, self.shape, a.scratch)
        self.parts = self.block.parts
        rows = _rows_a_tile(spec, mapping)
        self.units = Units(b, a, spec.kv, spec.heads, spec.window, rows)
        self.output = AttentionOutput(b, a.out, spec.out, spec.heads, spec.kv.head_dim)
        self.divided: Parts | None = None
        if records is not None and arrivals is not None:
            layout = part_layout(self.shape, mapping.parts, spec.group)
            self.divided = Parts(b, self.units, self.block, layout, records, arrivals)

    def emit(self) -> None:
        """Run the units that this thread takes."""
        if self.divided is None:
            self.units.each(self._whole)
        else:
            self.divided.each(self._sum, self._finish, self.output)

    # ---- one unit --------------------------------------------------------------------------

    def _whole(self, unit: Unit) -> None:
        self._sum(unit)
        self._finish(unit)

    def _sum(self, unit: Unit) -> None:
        """Go through the unit's blocks; the lanes' state then has their sums."""
        b, keys_a_block = self.b, self.shape.key_block
        self.units.each_lane(unit, self._begin)

        def block(index: Value) -> None:
            first = b.mul(index, keys_a_block)
            visible = b.min(b.sub(b.add(unit.highest, 1), first), keys_a_block)
            strips = b.ceil_div(visible, STRIP)
            step = b.add(b.select(b.cmp("eq", index, last), unit.skip, b.idx(0)), keys_a_block)
            start, ahead = b.div(first, STRIP), b.div(step, STRIP)
            self.block.emit(Block(unit.head, unit.lanes, start, visible, strips, ahead))

        last = b.div(unit.highest, keys_a_block)
        b.loop(b.div(unit.lowest, keys_a_block), b.add(last, 1), body=block)

    def _begin(self, lane: Value, row: Value, head: Value) -> None:
        """Scale the query and clear the lane's state."""
        b, parts, block = self.b, self.parts, self.block
        query = block.part(parts.queries, lane, self.shape.dim_bytes)
        sums = block.part(parts.sums, lane, self.shape.dim_bytes)
        # Scores are in units of log2(e); with a cap the cap needs them as they are.
        factor = self.spec.scale * (LOG2_E if self.spec.softcap is None else 1.0)
        scale, zero = b.const(factor, block.vector), b.const(0.0, block.vector)
        index = b.add(b.mul(row, self.spec.heads), head)
        source = b.at(self.a.q, b.mul(index, self.spec.kv.head_dim * F32_BYTES))

        def copy(at: Value, lanes: int) -> None:
            store_f32(b, b.fmul(load_f32(b, source, at, lanes), scale), query, at)
            store_f32(b, zero, sums, at)

        for_each_vector(b, self.spec.kv.head_dim, copy)
        store_f32(b, b.const(MASKED, block.vector), block.part(parts.maxima, lane), 0)
        store_f32(b, zero, block.part(parts.weights, lane), 0)
        position = b.trunc_i(self.units.position(row), b.i32)
        b.store(b.splat(position, LANES), block.part(parts.positions, lane), F32_BYTES)

    def _finish(self, unit: Unit) -> None:
        self.units.each_lane(unit, self._finish_lane)

    def _finish_lane(self, lane: Value, row: Value, head: Value) -> None:
        """Divide by the sum of the terms and write the lane's output."""
        b, parts = self.b, self.parts
        total = b.reduce("add", load_f32(b, self.block.part(parts.weights, lane), 0))
        inverse = b.splat(b.fdiv(b.const(1.0, b.f32), total))
        sums = self.block.part(parts.sums, lane, self.shape.dim_bytes)
        place = self.output.place(row, head)

        def divide(at: Value, lanes: int) -> None:
            self.output.store(b.fmul(load_f32(b, sums, at), inverse), place, at, lanes)

        for_each_vector(b, self.spec.kv.head_dim, divide)
        self.output.close(place, head)
