"""Products of many rows with packed weights: panels are unpacked once, then used for all rows.

A few panels at a time are *staged* on the stack: codes of any width become bytes, f16 scales become
f32. Then tiles of rows run over them. The form of the bytes is that of the instruction that
multiplies them (`tile_dots`); where layouts have the same form, they share the tile's code.

A staged panel is `k / group` groups, each `f32 scale[16]`, `f32 min[16]` (with minima only), and
the codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from infc.backends.cpu.codegen.builder import LANES, Builder, Value
from infc.backends.cpu.codegen.isa import Isa
from infc.backends.cpu.kernels.activation import a8_offsets
from infc.backends.cpu.kernels.dots import emit_scales
from infc.backends.cpu.kernels.epilogue import (
    ROOM_BYTES_PER_ROW,
    Epilogue,
    PanelOutput,
    RowTile,
    emit_epilogue,
)
from infc.backends.cpu.kernels.layouts import PackedLayout
from infc.backends.cpu.kernels.stream import (
    PANEL_OUT_BYTES,
    emit_row_tiles,
    panel_function_types,
)
from infc.backends.cpu.kernels.tile_dots import TileDots, tile_dots_for
from infc.passes.codegen.panels import PANEL_ROWS
from infc.reference.a8 import A8_BLOCK, A8_SUM

_VECTOR_BYTES = 64


@dataclass(frozen=True)
class TileKernel:
    """What a tile function is specialised to.

    Attributes:
        k: numbers a row.
        dots: how codes are staged and multiplied.
        group: codes that share a scale.
        has_min: groups have a minimum.
        rows: rows of a tile; m is at least this.
        columns: panels of a tile.
        epilogue: what is done to the sums.
    """

    k: int
    dots: TileDots
    group: int
    has_min: bool
    rows: int
    columns: int
    epilogue: Epilogue

    @staticmethod
    def of(
        k: int, isa: Isa, layout: PackedLayout, rows: int, columns: int, epilogue: Epilogue
    ) -> TileKernel:
        """The tile of a layout on an instruction set."""
        dots = tile_dots_for(isa, layout)
        return TileKernel(k, dots, layout.group, layout.has_min, rows, columns, epilogue)

    @property
    def name(self) -> str:
        """The function's name."""
        minimum = ".min" if self.has_min else ""
        shape = f"r{self.rows}c{self.columns}"
        return (
            f"tile_{self.dots.name}_g{self.group}{minimum}_k{self.k}_{shape}_{self.epilogue.name}"
        )

    @property
    def groups(self) -> int:
        """Groups along k."""
        return self.k // self.group

    @property
    def codes_offset(self) -> int:
        """Bytes from the start of a staged group to its codes."""
        return _VECTOR_BYTES * (2 if self.has_min else 1)

    @property
    def group_bytes(self) -> int:
        """Bytes of a staged group."""
        return self.codes_offset + PANEL_ROWS * self.group * self.dots.code_bytes

    @property
    def panel_bytes(self) -> int:
        """Bytes of a staged panel."""
        return self.groups * self.group_bytes


def emit_staged(b: Builder, layout: PackedLayout, tile: TileKernel) -> str:
    """Define the panel function (see `stream`), unless the module has it; returns its name."""
    name = f"staged_{layout.name}_{tile.name}"
    if b.defined(name):
        return name
    stage, run_tile = _emit_stage(b, layout, tile), _emit_tile(b, tile)
    packed_bytes = layout.panel_bytes(tile.k)
    with b.function(name, panel_function_types(b), inline=False) as arguments:
        x, m, weights, panels, multiplier, bias, out, row_bytes, columns = arguments
        room = b.stack(tile.columns * tile.panel_bytes, _VECTOR_BYTES)
        last = b.sub(panels, 1)

        def few(first: Value) -> None:
            operands = []
            for column in range(tile.columns):
                # Past the end the last panel fills the tile, with no columns to store.
                panel = b.min(b.add(first, column), last)
                is_there = b.cmp("sle", b.add(first, column), last)
                left = b.sub(columns, b.mul(panel, PANEL_ROWS))
                staged = b.at(room, column * tile.panel_bytes)
                b.call(stage, [b.at(weights, b.mul(panel, packed_bytes)), staged])
                offset = b.mul(panel, PANEL_OUT_BYTES)
                operands += [
                    b.at(bias, offset) if tile.epilogue.bias else bias,
                    b.at(out, offset),
                    b.select(is_there, left, b.idx(0)),
                ]
            b.call(run_tile, [x, m, room, multiplier, row_bytes, *operands])

        b.loop(0, panels, tile.columns, body=few)
        b.ret()
    return name


def _emit_stage(b: Builder, layout: PackedLayout, tile: TileKernel) -> str:
    """Define `@stage(packed: ptr, staged: ptr)`, which stages one panel."""
    name = f"stage_{layout.name}_k{tile.k}"
    if b.defined(name):
        return name
    with b.function(name, [b.ptr, b.ptr], inline=False) as (packed, staged):

        def group(index: Value) -> None:
            source = b.at(packed, b.mul(index, layout.chunk_bytes))
            target = b.at(staged, b.mul(index, tile.group_bytes))
            for part in range(2 if layout.has_min else 1):
                scales = emit_scales(b, b.at(source, 2 * PANEL_ROWS * part))
                b.store(scales, b.at(target, _VECTOR_BYTES * part), _VECTOR_BYTES)
            for index, codes in enumerate(tile.dots.stage(b, layout, source)):
                at = b.at(target, tile.codes_offset + _VECTOR_BYTES * index)
                b.store(codes, at, _VECTOR_BYTES)

        b.loop(0, tile.groups, body=group)
        b.ret()
    return name


def _emit_tile(b: Builder, tile: TileKernel) -> str:
    """Define the tile function, unless the module has it; returns its name.

    `@tile(x, m, staged, multiplier, row_bytes, (bias, out, columns) for each panel)` multiplies all
    m rows with the staged panels.
    """
    if b.defined(tile.name):
        return tile.name
    per_panel = [b.ptr, b.ptr, b.i64]
    types = [b.ptr, b.i64, b.ptr, b.f32, b.i64, *per_panel * tile.columns]
    with b.function(tile.name, types, inline=False) as arguments:
        x, m, staged, multiplier, row_bytes = arguments[:5]
        targets = [
            PanelOutput(multiplier, bias, out, row_bytes, columns)
            for bias, out, columns in zip(*(arguments[5 + i :: 3] for i in range(3)), strict=True)
        ]
        room_bytes = -(-4 * tile.groups // _VECTOR_BYTES) * _VECTOR_BYTES
        corrections = _RowTerms(b.stack(tile.rows * room_bytes, _VECTOR_BYTES), room_bytes)
        weighted = _RowTerms(b.stack(tile.rows * room_bytes, _VECTOR_BYTES), room_bytes)

        room = b.stack(ROOM_BYTES_PER_ROW * tile.rows, ROOM_BYTES_PER_ROW)

        def rows(done: RowTile) -> None:
            _emit_row_terms(b, tile, x, done.first, corrections, weighted)
            sums = _emit_sums(b, tile, x, done.first, staged, corrections, weighted)
            for column, target in enumerate(targets):
                store = partial(
                    emit_epilogue,
                    b,
                    tile.epilogue,
                    target,
                    done,
                    sums[column :: tile.columns],
                    room,
                )
                if column == 0:  # the first panel is always there
                    store()
                else:
                    b.when(b.cmp("sgt", target.columns, 0), store)

        emit_row_tiles(b, m, tile.rows, rows)
        b.ret()
    return tile.name


@dataclass(frozen=True)
class _RowTerms:
    """Four bytes for every row of a tile and group along k."""

    pointer: Value
    row_bytes: int

    def at(self, b: Builder, row: int, group: Value) -> Value:
        """Where the term of a row and a group is."""
        return b.at(b.at(self.pointer, self.row_bytes * row), b.mul(group, 4))


def _emit_row_terms(
    b: Builder,
    tile: TileKernel,
    x: Value,
    first_row: Value,
    corrections: _RowTerms,
    weighted: _RowTerms,
) -> None:
    """What the zero point and the minima need of each row and group, computed in vectors.

    Writes `-zero_point * sum` as i32 (where there is one) and `scale * sum` as f32 (with minima).
    """
    offsets = a8_offsets(tile.k)
    if not (tile.dots.zero_point or tile.has_min):
        return
    for row in range(tile.rows):
        start = b.at(x, b.mul(b.add(first_row, row), offsets.row_bytes))

        def piece(first: Value, lanes: int, start: Value = start, row: int = row) -> None:
            """Terms of the `lanes` groups from group `first` on."""
            sums = _group_sums(b, tile, b.at(start, offsets.sums), first, lanes)
            if tile.dots.zero_point:
                terms = b.mul(sums, -tile.dots.zero_point)
                b.store(terms, corrections.at(b, row, first), 4)
            if tile.has_min:
                scales = _group_scales(b, tile, b.at(start, offsets.scales), first, lanes)
                terms = b.fmul(scales, b.si_to_f(sums, b.vec(lanes, b.f32)))
                b.store(terms, weighted.at(b, row, first), 4)

        whole = tile.groups // LANES
        if whole:
            b.loop(0, whole, body=lambda i, piece=piece: piece(b.mul(i, LANES), LANES))
        done, lanes = whole * LANES, LANES // 2
        while done < tile.groups:  # the rest in powers of two: nothing is read past the row
            if tile.groups - done >= lanes:
                piece(b.idx(done), lanes)
                done += lanes
            lanes //= 2


def _group_sums(b: Builder, tile: TileKernel, sums: Value, first: Value, lanes: int) -> Value:
    """`vector<lanes x i32>`: the sums of activations of groups from `first` on."""
    if tile.group == A8_SUM:
        return b.load(b.at(sums, b.mul(first, 4)), b.vec(lanes, b.i32), 4)
    both = b.load(b.at(sums, b.mul(first, 8)), b.vec(2 * lanes, b.i32), 4)
    even, odd = (b.shuffle(both, both, range(part, 2 * lanes, 2)) for part in range(2))
    return b.add(even, odd)


def _group_scales(b: Builder, tile: TileKernel, scales: Value, first: Value, lanes: int) -> Value:
    """`vector<lanes x f32>`: the scales of activations of groups from `first` on."""
    if tile.group == A8_BLOCK:
        return b.load(b.at(scales, b.mul(first, 4)), b.vec(lanes, b.f32), 4)
    single = b.load(b.at(scales, b.mul(first, 2)), b.vec(lanes // 2, b.f32), 4)
    return b.shuffle(single, single, [lane // 2 for lane in range(lanes)])


def _emit_sums(
    b: Builder,
    tile: TileKernel,
    x: Value,
    first_row: Value,
    staged: Value,
    corrections: _RowTerms,
    weighted: _RowTerms,
) -> list[Value]:
    """The sums of a tile, row by row; the same operations per output as in `stream`."""
    offsets = a8_offsets(tile.k)
    chunks = A8_BLOCK // tile.group
    starts = [b.at(x, b.mul(b.add(first_row, row), offsets.row_bytes)) for row in range(tile.rows)]

    def block(index: Value, *carried: Value) -> list[Value]:
        sums = list(carried)
        at = b.at(staged, b.mul(index, chunks * tile.group_bytes))
        rows = [
            (
                b.at(start, b.mul(index, A8_BLOCK)),
                b.at(b.at(start, offsets.scales), b.mul(index, 4)),
            )
            for start in starts
        ]
        for chunk in range(chunks):
            group = b.add(b.mul(index, chunks), chunk)
            terms = [
                (corrections.at(b, row, group), weighted.at(b, row, group))
                for row in range(tile.rows)
            ]
            codes = [(b.at(row, tile.group * chunk), scale) for row, scale in rows]
            _add_group(b, tile, b.at(at, tile.group_bytes * chunk), codes, terms, sums)
        return sums

    zeros = [b.const(0.0, b.vec(LANES, b.f32))] * (tile.rows * tile.columns)
    return b.loop(0, tile.k // A8_BLOCK, 1, zeros, body=block)


def _add_group(
    b: Builder,
    tile: TileKernel,
    staged: Value,
    rows: list[tuple[Value, Value]],
    terms: list[tuple[Value, Value]],
    sums: list[Value],
) -> None:
    """Add one group along k to the sums, in place.

    Args:
        staged: the group in the first panel.
        rows: of each row, pointers to its codes and its scale.
        terms: of each row, pointers to its correction and its weighted sum.
        sums: row by row, panel by panel.
    """
    floats = b.vec(LANES, b.f32)
    panels = [b.at(staged, column * tile.panel_bytes) for column in range(tile.columns)]

    def start(row: int) -> Value:
        if not tile.dots.zero_point:
            return b.const(0, b.vec(LANES, b.i32))
        return b.splat(b.load(terms[row][0], b.i32, 4))

    staged_codes = [b.at(panel, tile.codes_offset) for panel in panels]
    dots = tile.dots.emit(b, staged_codes, [codes for codes, _ in rows], start, tile.group)
    scales = [b.load(p, floats, _VECTOR_BYTES) for p in panels]
    for row, (_, scale_at) in enumerate(rows):
        scale = b.splat(b.load(scale_at, b.f32, 4))
        for column, weight_scale in enumerate(scales):
            cell = row * tile.columns + column
            product = b.fmul(weight_scale, scale)
            sums[cell] = b.fma(b.si_to_f(dots[cell], floats), product, sums[cell])
            if tile.has_min:
                minima = b.load(b.at(panels[column], _VECTOR_BYTES), floats, _VECTOR_BYTES)
                weighted = b.splat(b.load(terms[row][1], b.f32, 4))
                sums[cell] = b.fma(minima, weighted, sums[cell])
        own = slice(row * tile.columns, (row + 1) * tile.columns)
        sums[own] = tile.dots.settled(b, sums[own])
