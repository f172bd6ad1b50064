"""Products of few rows with packed weights: the weights are read once, as one sequential stream.

A panel function is
    @name(x: ptr, m: i64, weights: ptr, panels: i64, multiplier: f32, bias: ptr,
          out: ptr, row_bytes: i64, columns: i64)
It multiplies all m rows with `panels` consecutive panels, the first at `weights`; `out` and `bias`
point to the first panel's first column, `columns` counts those of the matrix from there on.
The order of additions of an output is fixed: see `emit_quantised_sums` and `emit_float_sums`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from infc.backends.cpu.codegen.builder import LANES, Builder, Value
from infc.backends.cpu.kernels.activation import a8_offsets
from infc.backends.cpu.kernels.dots import (
    emit_broadcast_step,
    emit_codes,
    emit_dot,
    emit_scales,
    needs_signed,
)
from infc.backends.cpu.kernels.epilogue import (
    ROOM_BYTES_PER_ROW,
    Epilogue,
    PanelOutput,
    RowTile,
    emit_epilogue,
)
from infc.backends.cpu.kernels.layouts import PackedLayout
from infc.backends.cpu.kernels.line_sums import (
    CHUNK_BYTES,
    emit_add_lines,
    emit_panel_sums,
    emit_rows_of_chunk,
    numbers_of_line,
)
from infc.backends.cpu.kernels.scaled_panels import (
    GROUP,
    SCALES_BYTES,
    emit_eight_bit_floats,
    scaled_panel_bytes,
)
from infc.ir.mlir import ir
from infc.passes.codegen.panels import PANEL_ROWS
from infc.reference.a8 import A8_BLOCK, A8_SUM

FLOAT_ACCUMULATORS = 4
"""A float sum runs in this many parts, by k modulo it, so that it is not bound by latency."""
_LINE_BYTES = 64
_FIRST_CACHE, _SECOND_CACHE = 3, 2
"""Localities of prefetches."""
PANEL_OUT_BYTES = 4 * PANEL_ROWS


@dataclass(frozen=True)
class StreamKernel:
    """What a streaming panel function is specialised to.

    Attributes:
        layout: of the weights.
        k: numbers a row.
        rows: rows of x at a time; m is at least this.
        epilogue: what is done to the sums.
        unroll: steps of 32 (quantised) or 4 (float) along k in one turn of the loop.
        prefetch_bytes: how far ahead to prefetch; 0 for not at all.
        provided: the function that makes the sums of a panel (`provided_sums`); else they are made
            here.
    """

    layout: PackedLayout
    k: int
    rows: int
    epilogue: Epilogue
    unroll: int
    prefetch_bytes: int
    provided: str = ""

    @property
    def name(self) -> str:
        """The function's name."""
        tuning = f"r{self.rows}u{self.unroll}p{self.prefetch_bytes}"
        name = f"stream_{self.layout.name}_k{self.k}_{tuning}_{self.epilogue.name}"
        return f"{name}_{self.provided}" if self.provided else name


@dataclass(frozen=True)
class Ahead:
    """What is prefetched of a run of bytes while it is read.

    Lines go to the second cache, which has more of them under way than the first; 16 KiB ahead read
    a tenth faster on Emerald Rapids than 4 KiB ahead into the first. On Zen 3, which wants 2 KiB
    ahead, they go to the first: steps of a 1.1B shape in Q4_0 and of Gemma 3 270M took 0.94 and
    0.97 of the time on one thread, 0.96 and 0.97 on two. None behind the run's end is asked for:
    runs are short, and what lies there may be another thread's.
    """

    b: Builder
    run: Value
    size: Value
    distance: int
    before: Value

    @staticmethod
    def of(b: Builder, run: Value, size: Value, distance: int) -> Ahead:
        """Of `size` bytes at `run`, so many bytes ahead; 0 for not at all."""
        return Ahead(b, run, size, distance, b.idx(0))

    def at(self, before: Value) -> Ahead:
        """From so many bytes behind the run's beginning on."""
        return replace(self, before=before)

    def begin(self) -> None:
        """Ask for the first lines."""
        b = self.b
        stop = b.min(self.size, self.distance)
        cache = self._cache()
        b.loop(0, stop, _LINE_BYTES, body=lambda at: b.prefetch(b.at(self.run, at), cache))

    def fetch(self, offset: Value, lines: int) -> None:
        """Ask for lines while those at `offset` are read."""
        if not self.distance:
            return
        b = self.b
        target = b.add(b.add(self.before, offset), self.distance)
        last = b.sub(self.size, lines * _LINE_BYTES)
        first = b.at(self.run, b.min(target, last))
        for line in range(lines):
            b.prefetch(b.at(first, line * _LINE_BYTES), self._cache())

    def _cache(self) -> int:
        return _FIRST_CACHE if self.b.isa.dot_i8 == "avx2" else _SECOND_CACHE


def panel_function_types(b: Builder) -> list[ir.Type]:
    """The argument types of a panel function."""
    return [b.ptr, b.i64, b.ptr, b.i64, b.f32, b.ptr, b.ptr, b.i64, b.i64]


def emit_row_tiles(b: Builder, m: Value, rows: int, body: Callable[[RowTile], None]) -> None:
    """`body(tile)` for tiles of `rows` rows that cover the m >= rows rows.

    The last tile ends at the last row, so it may do rows again: they get the same sums.
    """
    last = b.sub(m, rows)

    def tile(index: Value) -> None:
        start = b.mul(index, rows)
        body(RowTile(b.min(start, last), start))

    b.loop(0, b.ceil_div(m, rows), body=tile)


def emit_stream(b: Builder, kernel: StreamKernel) -> str:
    """Define the panel function, unless the module has it; returns its name."""
    if b.defined(kernel.name):
        return kernel.name
    sums_of = emit_float_sums if kernel.layout.is_float else emit_quantised_sums
    panel_bytes = kernel.layout.panel_bytes(kernel.k)
    with b.function(kernel.name, panel_function_types(b), inline=False) as arguments:
        x, m, weights, panels, multiplier, bias, out, row_bytes, columns = arguments
        room = b.stack(ROOM_BYTES_PER_ROW * kernel.rows, ROOM_BYTES_PER_ROW)
        ahead = Ahead.of(b, weights, b.mul(panels, panel_bytes), kernel.prefetch_bytes)
        ahead.begin()

        def panel(index: Value) -> None:
            target = PanelOutput(
                multiplier,
                b.at(bias, b.mul(index, PANEL_OUT_BYTES)) if kernel.epilogue.bias else bias,
                b.at(out, b.mul(index, PANEL_OUT_BYTES)),
                row_bytes,
                b.sub(columns, b.mul(index, PANEL_ROWS)),
            )
            start = b.mul(index, panel_bytes)
            source = b.at(weights, start)

            def tile(rows: RowTile) -> None:
                if kernel.provided:
                    sums = emit_provided_sums(b, kernel, x, rows.first, source, room)
                else:
                    sums = sums_of(b, kernel, x, rows.first, source, ahead.at(start))
                emit_epilogue(b, kernel.epilogue, target, rows, sums, room)

            emit_row_tiles(b, m, kernel.rows, tile)

        b.loop(0, panels, body=panel)
        b.ret()
    return kernel.name


def emit_unrolled(
    b: Builder,
    count: int,
    unroll: int,
    carried: list[Value],
    body: Callable[[Value, int, list[Value]], list[Value]],
) -> list[Value]:
    """`carried = body(turn, step, carried)` for `count` steps; step counts within a turn."""

    def turn(index: Value, *values: Value) -> list[Value]:
        current = list(values)
        for step in range(unroll):
            current = body(index, step, current)
        return current

    turns = count // unroll
    if turns:
        carried = b.loop(0, turns, 1, carried, body=turn)
    for step in range(count - turns * unroll):
        carried = body(b.idx(turns), step, carried)
    return carried


@dataclass(frozen=True)
class _Activations:
    """One a8 row at one turn of the loop: pointers to its codes, scales and sums."""

    codes: Value
    scales: Value
    sums: Value

    def at_block(self, b: Builder, block: int) -> _Activations:
        """The same some blocks of 32 on."""
        return _Activations(
            b.at(self.codes, A8_BLOCK * block),
            b.at(self.scales, 4 * block),
            b.at(self.sums, 4 * block * (A8_BLOCK // A8_SUM)),
        )


def emit_quantised_sums(
    b: Builder, kernel: StreamKernel, x: Value, first_row: Value, panel: Value, ahead: Ahead
) -> list[Value]:
    """The sums of 16 outputs of `kernel.rows` rows, `vector<16xf32>` each.

    Group after group along k: `sum = fma(dot, weight_scale * activation_scale, sum)`, then with
    minima `sum = fma(min, activation_scale * activation_sum, sum)`; the dot is exact.
    """
    layout, offsets = kernel.layout, a8_offsets(kernel.k)
    chunks = A8_BLOCK // layout.group
    block_bytes = chunks * layout.chunk_bytes
    starts = [
        b.at(x, b.mul(b.add(first_row, row), offsets.row_bytes)) for row in range(kernel.rows)
    ]

    def block(turn: Value, step: int, sums: list[Value]) -> list[Value]:
        offset = b.add(b.mul(turn, block_bytes * kernel.unroll), block_bytes * step)
        chunk_at = b.at(panel, offset)
        ahead.fetch(offset, -(-block_bytes // _LINE_BYTES))
        rows = []
        for start in starts:
            row = _Activations(
                b.at(start, b.mul(turn, A8_BLOCK * kernel.unroll)),
                b.at(b.at(start, offsets.scales), b.mul(turn, 4 * kernel.unroll)),
                b.at(b.at(start, offsets.sums), b.mul(turn, 8 * kernel.unroll)),
            )
            rows.append(row.at_block(b, step))
        for chunk in range(chunks):
            sums = _add_chunk(b, layout, b.at(chunk_at, layout.chunk_bytes * chunk), rows, sums)
            rows = [
                replace(row, codes=b.at(row.codes, layout.group), sums=b.at(row.sums, 4))
                for row in rows
            ]
        return sums

    zeros = [b.const(0.0, b.vec(LANES, b.f32))] * kernel.rows
    return emit_unrolled(b, kernel.k // A8_BLOCK, kernel.unroll, zeros, block)


def _add_chunk(
    b: Builder, layout: PackedLayout, chunk: Value, rows: list[_Activations], sums: list[Value]
) -> list[Value]:
    """One group along k: adds its products to the sums of all rows."""
    floats = b.vec(LANES, b.f32)
    signed = needs_signed(b, layout)
    codes = emit_codes(b, layout, chunk)
    if signed:
        codes = [b.bit_xor(code, -128) for code in codes]
    scales = emit_scales(b, chunk)
    out = []
    for row, total in zip(rows, sums, strict=True):
        activation_sum = b.load(row.sums, b.i32, 4)
        if layout.group == A8_BLOCK:
            activation_sum = b.add(activation_sum, b.load(b.at(row.sums, 4), b.i32, 4))
        correction = b.const(0, b.i32) if signed else b.mul(activation_sum, -layout.zero_point)
        dot = b.splat(correction)
        for step, code in enumerate(codes):
            activations = emit_broadcast_step(b, row.codes, step)
            dot = emit_dot(b, dot, code, activations, signed)
        scale = b.load(row.scales, b.f32, 4)
        total = b.fma(b.si_to_f(dot, floats), b.fmul(scales, b.splat(scale)), total)
        if layout.has_min:
            minima = emit_scales(b, b.at(chunk, 2 * PANEL_ROWS))
            weighted = b.fmul(scale, b.si_to_f(activation_sum, b.f32))
            total = b.fma(minima, b.splat(weighted), total)
        out.append(total)
    return out


def emit_float_sums(
    b: Builder, kernel: StreamKernel, x: Value, first_row: Value, panel: Value, ahead: Ahead
) -> list[Value]:
    """The sums of 16 outputs of `kernel.rows` rows of f32, `vector<16xf32>` each.

    Four sums by k modulo 4, each in order of k, then `(s0 + s1) + (s2 + s3)`. Weights with scales
    are summed so for each scale; then `sum = fma(scale, that, sum)` in order of k.
    """
    if kernel.layout.lines:
        return _emit_line_sums(b, kernel, x, first_row, panel, ahead)
    if kernel.layout.is_scaled:
        return _emit_scaled_sums(b, kernel, x, first_row, panel, ahead)
    step_bytes = kernel.layout.panel_bytes(1)
    x_bytes = 4 * kernel.k
    starts = [b.at(x, b.mul(b.add(first_row, row), x_bytes)) for row in range(kernel.rows)]

    def step(turn: Value, index: int, sums: list[Value]) -> list[Value]:
        numbers = FLOAT_ACCUMULATORS * kernel.unroll
        offset = b.add(b.mul(turn, step_bytes * numbers), step_bytes * index)
        at = b.at(panel, offset)
        if index * step_bytes % _LINE_BYTES == 0:
            ahead.fetch(offset, 1)
        weights = emit_floats(b, kernel.layout, at)
        sums = list(sums)
        for row, start in enumerate(starts):
            value = b.load(b.at(b.at(start, b.mul(turn, 4 * numbers)), 4 * index), b.f32, 4)
            part = FLOAT_ACCUMULATORS * row + index % FLOAT_ACCUMULATORS
            sums[part] = b.fma(weights, b.splat(value), sums[part])
        return sums

    parts = [b.const(0.0, b.vec(LANES, b.f32))] * (FLOAT_ACCUMULATORS * kernel.rows)
    parts = emit_unrolled(b, kernel.k, FLOAT_ACCUMULATORS * kernel.unroll, parts, step)
    return [_sum_of_parts(b, parts, row) for row in range(kernel.rows)]


def emit_provided_sums(
    b: Builder, kernel: StreamKernel, x: Value, first_row: Value, panel: Value, room: Value
) -> list[Value]:
    """The sums of 16 outputs of `kernel.rows` rows, by a function of another object file."""
    start = b.at(x, b.mul(first_row, 4 * kernel.k))
    b.call_declared(kernel.provided, [start, panel, room])
    floats = b.vec(LANES, b.f32)
    return [
        b.load(b.at(room, ROOM_BYTES_PER_ROW * row), floats, ROOM_BYTES_PER_ROW)
        for row in range(kernel.rows)
    ]


def _emit_line_sums(
    b: Builder, kernel: StreamKernel, x: Value, first_row: Value, panel: Value, ahead: Ahead
) -> list[Value]:
    """`emit_float_sums` where the rows lie in lines."""
    numbers = numbers_of_line(kernel.layout)
    starts = [b.at(x, b.mul(b.add(first_row, row), 4 * kernel.k)) for row in range(kernel.rows)]

    def chunk(turn: Value, index: int, sums: list[Value]) -> list[Value]:
        number = b.add(b.mul(turn, kernel.unroll), index)
        offset = b.mul(number, CHUNK_BYTES)
        ahead.fetch(offset, CHUNK_BYTES // _LINE_BYTES)
        at = [b.at(start, b.mul(number, 4 * numbers)) for start in starts]
        lines = emit_rows_of_chunk(b, b.at(panel, offset))
        return emit_add_lines(b, kernel.layout, lines, at, sums)

    parts = [b.const(0.0, b.vec(LANES, b.f32))] * (FLOAT_ACCUMULATORS * kernel.rows)
    parts = emit_unrolled(b, kernel.k // numbers, kernel.unroll, parts, chunk)
    return [
        emit_panel_sums(b, parts[i : i + FLOAT_ACCUMULATORS])
        for i in range(0, len(parts), FLOAT_ACCUMULATORS)
    ]


def _emit_scaled_sums(
    b: Builder, kernel: StreamKernel, x: Value, first_row: Value, panel: Value, ahead: Ahead
) -> list[Value]:
    """`emit_float_sums` of 8-bit floats."""
    floats = b.vec(LANES, b.f32)
    starts = [b.at(x, b.mul(b.add(first_row, row), 4 * kernel.k)) for row in range(kernel.rows)]

    def chunk(index: Value, count: int, totals: list[Value]) -> list[Value]:
        offset = b.mul(index, scaled_panel_bytes(GROUP))
        rows = [b.at(start, b.mul(index, 4 * GROUP)) for start in starts]
        ahead.fetch(offset, 1)
        scale = b.load(b.at(panel, offset), floats, SCALES_BYTES)
        codes = b.add(offset, SCALES_BYTES)

        def step(turn: Value, number: int, sums: list[Value]) -> list[Value]:
            numbers = FLOAT_ACCUMULATORS * kernel.unroll
            at = b.add(b.add(codes, b.mul(turn, PANEL_ROWS * numbers)), PANEL_ROWS * number)
            if PANEL_ROWS * number % _LINE_BYTES == 0:
                ahead.fetch(at, 1)
            weights = emit_eight_bit_floats(b, b.at(panel, at))
            sums = list(sums)
            for row, start in enumerate(rows):
                value = b.load(b.at(b.at(start, b.mul(turn, 4 * numbers)), 4 * number), b.f32, 4)
                part = FLOAT_ACCUMULATORS * row + number % FLOAT_ACCUMULATORS
                sums[part] = b.fma(weights, b.splat(value), sums[part])
            return sums

        parts = [b.const(0.0, floats)] * (FLOAT_ACCUMULATORS * kernel.rows)
        parts = emit_unrolled(b, count, FLOAT_ACCUMULATORS * kernel.unroll, parts, step)
        return [
            b.fma(scale, _sum_of_parts(b, parts, row), total) for row, total in enumerate(totals)
        ]

    whole, rest = divmod(kernel.k, GROUP)
    totals = [b.const(0.0, floats)] * kernel.rows
    if whole:
        totals = b.loop(0, whole, 1, totals, body=lambda i, *sums: chunk(i, GROUP, list(sums)))
    return chunk(b.idx(whole), rest, totals) if rest else totals


def _sum_of_parts(b: Builder, parts: list[Value], row: int) -> Value:
    """The four parts of a row's sum in one."""
    first, second, third, fourth = parts[FLOAT_ACCUMULATORS * row :][:FLOAT_ACCUMULATORS]
    return b.fadd(b.fadd(first, second), b.fadd(third, fourth))


def emit_floats(b: Builder, layout: PackedLayout, pointer: Value) -> Value:
    """Sixteen weights as `vector<16xf32>`; widening is exact."""
    floats = b.vec(LANES, b.f32)
    if layout.kind == "f32":
        return b.load(pointer, floats, 32)
    if layout.kind == "f16":
        return b.ext_f(b.load(pointer, b.vec(LANES, b.f16), 32), floats)
    ints = b.vec(LANES, b.i32)
    halves = b.ext_u(b.load(pointer, b.vec(LANES, b.i16), 32), ints)
    return b.bitcast(b.shl(halves, 16), floats)
