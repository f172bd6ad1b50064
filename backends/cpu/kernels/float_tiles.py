"""Products of many rows with float weights where registers are few: a part of each sum at a time.

A float sum is four parts by k modulo 4 (`stream.emit_float_sums`). Small register files hold all
four for a row or two only, and then every multiply-add waits for a load. Here a tile of rows makes
one part after the other, in the same order of k: a vector a row is all that registers must hold, so
that more rows share a loaded weight. The other parts' sums wait on the stack.

    for a few panels, for a block of rows, for a block along k, for each of the panels:
        the block of the panel is *staged*: as f32 `[number][16]` on the stack
        for tiles of rows, for part in 0 .. 3:
            sums[part] += x[rows, part :: 4] @ staged[part :: 4]

So weights are widened once for a block of rows, staged weights stay in the first cache, and rows of
x in the second one for all of the panels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from infc.backends.cpu.codegen.builder import LANES, Builder, Value
from infc.backends.cpu.codegen.isa import Isa
from infc.backends.cpu.kernels.epilogue import Epilogue, PanelOutput, RowTile, emit_epilogue
from infc.backends.cpu.kernels.layouts import PackedLayout
from infc.backends.cpu.kernels.line_sums import (
    CHUNK_BYTES,
    STEP,
    emit_columns,
    emit_rows_of_chunk,
    numbers_of_line,
)
from infc.backends.cpu.kernels.scaled_panels import (
    GROUP,
    SCALES_BYTES,
    emit_eight_bit_floats,
    scaled_panel_bytes,
)
from infc.backends.cpu.kernels.stream import (
    FLOAT_ACCUMULATORS,
    PANEL_OUT_BYTES,
    emit_floats,
    panel_function_types,
)
from infc.passes.codegen.panels import PANEL_ROWS

BLOCK_ROWS = 96
"""Rows that share staged weights: enough that staging is a small part of the work."""
BLOCK_NUMBERS = 256
"""Numbers along k that are staged: 16 KiB, which leave half of a first cache to the rows."""
_ENOUGH_BYTES = 2048
"""Registers that hold all parts of the sums of rows enough: 32 of AVX-512."""
_SUM_BYTES = 4 * LANES
_NUMBER_BYTES = 4 * PANEL_ROWS
"""Sixteen staged weights."""
_STAGED_BYTES = BLOCK_NUMBERS * _NUMBER_BYTES


@dataclass(frozen=True)
class FloatTile:
    """What a function is specialised to.

    Attributes:
        layout: of the weights.
        k: numbers a row.
        rows: most rows of a tile; m is at least this.
        columns: panels for which a block of rows stays where it is.
        unroll: numbers along k in one turn of the loop.
        epilogue: what is done to the sums.
    """

    layout: PackedLayout
    k: int
    rows: int
    columns: int
    unroll: int
    epilogue: Epilogue

    @property
    def name(self) -> str:
        """The function's name."""
        shape = f"r{self.rows}c{self.columns}u{self.unroll}"
        return f"parts_{self.layout.name}_k{self.k}_{shape}_{self.epilogue.name}"

    @property
    def numbers(self) -> int:
        """Of a block along k: 8-bit floats have scales, which multiply the sums of one."""
        return GROUP if self.layout.is_scaled else BLOCK_NUMBERS

    @property
    def row_bytes(self) -> int:
        """Of the sums of a row: its parts, and their total so far where there are scales."""
        return _SUM_BYTES * (FLOAT_ACCUMULATORS + self.layout.is_scaled)

    @property
    def heights(self) -> range:
        """Rows of tiles: a block is cut into the fewest, as equal as can be."""
        return range((self.rows + 1) // 2, self.rows + 1)


def takes_parts(isa: Isa, rows: int) -> bool:
    """Whether tiles of so many rows are made part by part."""
    return rows > 1 and isa.vector_bytes * isa.vector_registers < _ENOUGH_BYTES


def float_tile_bytes(columns: int) -> int:
    """Bytes of the stack that a function takes, at most."""
    return columns * BLOCK_ROWS * _SUM_BYTES * (FLOAT_ACCUMULATORS + 1) + _STAGED_BYTES


def emit_float_tiles(b: Builder, tile: FloatTile) -> str:
    """Define the panel function (see `stream`), unless the module has it; returns its name."""
    if b.defined(tile.name):
        return tile.name
    parts = _Parts.of(b, tile)
    panel_bytes = tile.layout.panel_bytes(tile.k)
    with b.function(tile.name, panel_function_types(b), inline=False) as arguments:
        x, m, weights, panels, multiplier, bias, out, row_bytes, columns = arguments
        room = b.stack(tile.columns * BLOCK_ROWS * tile.row_bytes, _SUM_BYTES)
        staged = b.stack(_STAGED_BYTES, _NUMBER_BYTES)

        def few_panels(first_panel: Value) -> None:
            count = b.min(b.sub(panels, first_panel), tile.columns)
            packed = b.at(weights, b.mul(first_panel, panel_bytes))

            def target(panel: Value) -> PanelOutput:
                number = b.add(first_panel, panel)
                offset = b.mul(number, PANEL_OUT_BYTES)
                return PanelOutput(
                    multiplier,
                    b.at(bias, offset) if tile.epilogue.bias else bias,
                    b.at(out, offset),
                    row_bytes,
                    b.sub(columns, b.mul(number, PANEL_ROWS)),
                )

            def rows(first: Value, last: Value) -> None:
                inputs = b.at(x, b.mul(first, 4 * tile.k))
                block = _Block(b, tile, inputs, first, b.sub(last, first), room)
                b.loop(0, count, body=block.begin)
                block.add(parts, packed, count, staged)
                b.loop(0, count, body=lambda panel: block.finish(panel, target(panel)))

            _emit_equal(b, m, BLOCK_ROWS, rows)

        b.loop(0, panels, tile.columns, body=few_panels)
        b.ret()
    return tile.name


@dataclass(frozen=True)
class _Block:
    """Rows by a few panels, which are counted from 0 on.

    Attributes:
        inputs: the first row of x.
        first: its number.
        rows: of the block.
        room: for the sums, `[panel][row]` of `tile.row_bytes`.
    """

    b: Builder
    tile: FloatTile
    inputs: Value
    first: Value
    rows: Value
    room: Value

    def sums(self, panel: Value) -> Value:
        """Where those of a panel are."""
        return self.b.at(self.room, self.b.mul(panel, BLOCK_ROWS * self.tile.row_bytes))

    def begin(self, panel: Value) -> None:
        """Set the sums of a panel to zero."""
        b, at = self.b, self.sums(panel)
        zero = b.const(0.0, b.vec(LANES, b.f32))

        def clear(offset: Value) -> None:
            b.store(zero, b.at(at, offset), _SUM_BYTES)

        b.loop(0, b.mul(self.rows, self.tile.row_bytes), _SUM_BYTES, body=clear)

    def add(self, parts: _Parts, packed: Value, panels: Value, staged: Value) -> None:
        """All products, in order of k."""
        b, tile = self.b, self.tile
        panel_bytes = tile.layout.panel_bytes(tile.k)

        def numbers(start: Value) -> None:
            count = b.min(b.sub(tile.k, start), tile.numbers)
            inputs = b.at(self.inputs, b.mul(start, 4))
            at = b.at(packed, _block_offset(b, tile, start))

            def panel(index: Value) -> None:
                source, sums = b.at(at, b.mul(index, panel_bytes)), self.sums(index)
                _emit_stage(b, tile, source, count, staged)
                parts.emit(b, inputs, staged, count, sums, self.rows)
                if tile.layout.is_scaled:
                    _emit_totals(b, tile, source, sums, self.rows)

            b.loop(0, panels, body=panel)

        b.loop(0, tile.k, tile.numbers, body=numbers)

    def finish(self, panel: Value, target: PanelOutput) -> None:
        """Store the results of a panel."""
        b, tile, sums = self.b, self.tile, self.sums(panel)

        def row(index: Value) -> None:
            at = b.at(sums, b.mul(index, tile.row_bytes))
            value = _finished(b, tile, at)
            number = b.add(self.first, index)
            done = RowTile(number, number)
            emit_epilogue(b, tile.epilogue, target, done, [value], at)

        b.loop(0, self.rows, body=row)


def _emit_equal(b: Builder, count: Value, most: int, body: Callable[[Value, Value], None]) -> None:
    """`body(first, last)` for the fewest ranges of up to `most` that are as equal as can be."""
    ranges = b.ceil_div(count, most)

    def one(index: Value) -> None:
        first, last = (b.div(b.mul(b.add(index, end), count), ranges) for end in range(2))
        body(first, last)

    b.loop(0, ranges, body=one)


def _block_offset(b: Builder, tile: FloatTile, start: Value) -> Value:
    """Bytes from the start of a packed panel to a block along k."""
    if tile.layout.is_scaled:
        return b.mul(b.div(start, GROUP), scaled_panel_bytes(GROUP))
    return b.mul(start, PANEL_ROWS * tile.layout.number_bytes)


def _emit_stage(b: Builder, tile: FloatTile, source: Value, count: Value, staged: Value) -> None:
    """Widen `count` numbers of a panel; exact."""
    layout = tile.layout
    if layout.lines:
        numbers = numbers_of_line(layout)

        def lines(index: Value) -> None:
            groups = emit_rows_of_chunk(b, b.at(source, b.mul(index, CHUNK_BYTES)))
            target = b.at(staged, b.mul(index, numbers * _NUMBER_BYTES))
            for step, columns in enumerate(emit_columns(b, layout, groups)):
                for number, column in enumerate(columns):
                    at = (STEP * step + number) * _NUMBER_BYTES
                    b.store(column, b.at(target, at), _NUMBER_BYTES)

        b.loop(0, b.div(count, numbers), body=lines)
        return

    def number(index: Value) -> None:
        if layout.is_scaled:
            codes = b.at(source, b.add(b.mul(index, PANEL_ROWS), SCALES_BYTES))
            value = emit_eight_bit_floats(b, codes)
        else:
            value = emit_floats(b, layout, b.at(source, b.mul(index, layout.panel_bytes(1))))
        b.store(value, b.at(staged, b.mul(index, _NUMBER_BYTES)), _NUMBER_BYTES)

    b.loop(0, count, body=number)


def _emit_totals(b: Builder, tile: FloatTile, source: Value, sums: Value, rows: Value) -> None:
    """`total = fma(scale, sum, total)` for all rows, with the scales of a block."""
    floats = b.vec(LANES, b.f32)
    scale = b.load(source, floats, SCALES_BYTES)

    def row(index: Value) -> None:
        at = b.at(sums, b.mul(index, tile.row_bytes))
        total = b.at(at, _SUM_BYTES * FLOAT_ACCUMULATORS)
        value = b.fma(scale, _sum_of_parts(b, at), b.load(total, floats, _SUM_BYTES))
        b.store(value, total, _SUM_BYTES)

    b.loop(0, rows, body=row)


def _finished(b: Builder, tile: FloatTile, sums: Value) -> Value:
    """The sum of a row, `vector<16xf32>`."""
    if not tile.layout.is_scaled:
        return _sum_of_parts(b, sums)
    total = b.at(sums, _SUM_BYTES * FLOAT_ACCUMULATORS)
    return b.load(total, b.vec(LANES, b.f32), _SUM_BYTES)


def _sum_of_parts(b: Builder, sums: Value) -> Value:
    floats = b.vec(LANES, b.f32)
    first, second, third, fourth = (
        b.load(b.at(sums, _SUM_BYTES * part), floats, _SUM_BYTES)
        for part in range(FLOAT_ACCUMULATORS)
    )
    return b.fadd(b.fadd(first, second), b.fadd(third, fourth))


@dataclass(frozen=True)
class _Parts:
    """Adds a block along k to the parts of all rows of a block."""

    tile: FloatTile
    functions: dict[int, str]
    """For each height of a tile `@part(x, staged, steps, sums)`, which adds to one part."""

    @staticmethod
    def of(b: Builder, tile: FloatTile) -> _Parts:
        """Define the functions."""
        return _Parts(tile, {rows: _emit_part(b, tile, rows) for rows in tile.heights})

    def emit(
        self, b: Builder, x: Value, staged: Value, count: Value, sums: Value, rows: Value
    ) -> None:
        """Of `count` numbers, the first at x and staged, for `rows` rows from x and sums on."""

        def tile(first: Value, last: Value) -> None:
            inputs = b.at(x, b.mul(first, 4 * self.tile.k))
            target = b.at(sums, b.mul(first, self.tile.row_bytes))

            def part(index: Value) -> None:
                steps = b.div(
                    b.sub(b.add(count, FLOAT_ACCUMULATORS - 1), index), FLOAT_ACCUMULATORS
                )
                operands = [
                    b.at(inputs, b.mul(index, 4)),
                    b.at(staged, b.mul(index, _NUMBER_BYTES)),
                    steps,
                    b.at(target, b.mul(index, _SUM_BYTES)),
                ]
                self._call(b, b.sub(last, first), operands, self.tile.heights)

            b.loop(0, FLOAT_ACCUMULATORS, body=part)

        _emit_equal(b, rows, self.tile.rows, tile)

    def _call(self, b: Builder, rows: Value, operands: list[Value], heights: range) -> None:
        """The function of so many rows."""
        call = partial(b.call, self.functions[heights[-1]], operands)
        if len(heights) == 1:
            call()
            return
        others = partial(self._call, b, rows, operands, heights[:-1])
        b.when(b.cmp("eq", rows, heights[-1]), call, others)


def _emit_part(b: Builder, tile: FloatTile, rows: int) -> str:
    """Define `@part(x: ptr, staged: ptr, steps: i64, sums: ptr)`, unless the module has it."""
    fresh = tile.layout.is_scaled
    name = f"part_k{tile.k}_r{rows}u{tile.unroll}" + (".fresh" if fresh else "")
    if b.defined(name):
        return name
    floats = b.vec(LANES, b.f32)
    with b.function(name, [b.ptr, b.ptr, b.i64, b.ptr], inline=False) as (x, staged, steps, sums):
        at = [b.at(sums, tile.row_bytes * row) for row in range(rows)]

        def step(index: Value, *values: Value) -> list[Value]:
            weights = b.load(
                b.at(staged, b.mul(index, FLOAT_ACCUMULATORS * _NUMBER_BYTES)), floats, 32
            )
            start = b.at(x, b.mul(index, 4 * FLOAT_ACCUMULATORS))
            return [
                b.fma(weights, b.splat(b.load(b.at(start, 4 * tile.k * row), b.f32, 4)), value)
                for row, value in enumerate(values)
            ]

        def turn(index: Value, *values: Value) -> list[Value]:
            current = list(values)
            for number in range(tile.unroll):
                current = step(b.add(index, number), *current)
            return current

        zero = b.const(0.0, floats)
        carried = [zero if fresh else b.load(p, floats, _SUM_BYTES) for p in at]
        whole = b.mul(b.div(steps, tile.unroll), tile.unroll)
        carried = b.loop(0, whole, tile.unroll, carried, body=turn)
        if tile.unroll > 1:
            carried = b.loop(whole, steps, 1, carried, body=step)
        for value, pointer in zip(carried, at, strict=True):
            b.store(value, pointer, _SUM_BYTES)
        b.ret()
    return name
