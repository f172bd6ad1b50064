"""Products with float weights in lines: four rows of the matrix at a time, any four.

A vector holds, for each of four rows, the sums over k = 0, 1, 2 and 3 modulo 4: the four parts in
which `stream.emit_float_sums` adds, in the same order, so that a product has the same bits in
either layout. Weights of 16 bytes of a row are a *piece*: one or two such steps along k.
"""

from __future__ import annotations

from collections.abc import Sequence

from infc.backends.cpu.codegen.builder import LANES, Builder, Type, Value
from infc.backends.cpu.kernels.layouts import LINE_BYTES, PackedLayout
from infc.ir.mlir import ir
from infc.passes.codegen.panels import PANEL_ROWS

ROWS = 4
"""Rows of the matrix in a vector."""
CHUNK_BYTES = LINE_BYTES * PANEL_ROWS
"""From a line of a row to its next one."""
STEP = 4
"""Numbers of a row that are added at a time."""
_PIECE_BYTES = 16
_UPPER_HALF = -(1 << 16)


def numbers_of_line(layout: PackedLayout) -> int:
    """Numbers of a row in a line."""
    return LINE_BYTES // layout.number_bytes


def emit_rows_of_chunk(b: Builder, chunk: Value) -> list[list[Value]]:
    """Pointers to the lines of the 16 rows of a panel, in groups of four."""
    lines = [b.at(chunk, LINE_BYTES * row) for row in range(PANEL_ROWS)]
    return [lines[first : first + ROWS] for first in range(0, PANEL_ROWS, ROWS)]


def emit_add_lines(
    b: Builder,
    layout: PackedLayout,
    lines: Sequence[Sequence[Value]],
    xs: Sequence[Value],
    sums: Sequence[Value],
) -> list[Value]:
    """Add the products of one line of each row.

    Args:
        layout: in lines.
        lines: pointers to the lines of four rows, for each group of four.
        xs: for each row of x a pointer to its numbers that go with the lines, 4-byte aligned.
        sums: `vector<16xf32>` for each row of x and each group, groups innermost.
    """
    sums, groups = list(sums), len(lines)
    steps = _PIECE_BYTES // layout.number_bytes // STEP
    for piece in range(LINE_BYTES // _PIECE_BYTES):
        weights = [_weights(b, layout, group, _PIECE_BYTES * piece) for group in lines]
        for step in range(steps):
            at = 4 * STEP * (steps * piece + step)
            for row, x in enumerate(xs):
                four = b.load(b.at(x, at), b.vec(STEP, b.f32), 4)
                numbers = b.shuffle(four, four, list(range(STEP)) * ROWS)
                for group in range(groups):
                    part = groups * row + group
                    sums[part] = b.fma(weights[group][step], numbers, sums[part])
    return sums


def emit_row_sums(b: Builder, sums: Value) -> Value:
    """`(s0 + s1) + (s2 + s3)` of each of four rows, in all four of its lanes."""
    pairs = b.fadd(sums, b.shuffle(sums, sums, [lane ^ 1 for lane in range(LANES)]))
    return b.fadd(pairs, b.shuffle(pairs, pairs, [lane ^ 2 for lane in range(LANES)]))


def emit_panel_sums(b: Builder, groups: Sequence[Value]) -> Value:
    """The sums of 16 rows, `vector<16xf32>`, from those of four groups."""
    first, second, third, last = (emit_row_sums(b, sums) for sums in groups)
    ends = [STEP * row for row in range(2 * ROWS)]
    halves = [b.shuffle(first, second, ends), b.shuffle(third, last, ends)]
    return b.shuffle(halves[0], halves[1], range(LANES))


def emit_columns(
    b: Builder, layout: PackedLayout, lines: Sequence[Sequence[Value]]
) -> list[list[Value]]:
    """The numbers of 16 lines by columns: for each step along k `vector<16xf32>` of each of its
    four numbers."""
    columns = []
    for piece in range(0, LINE_BYTES, _PIECE_BYTES):
        groups = [_weights(b, layout, group, piece) for group in lines]
        columns += [_transposed(b, list(step)) for step in zip(*groups, strict=True)]
    return columns


def _transposed(b: Builder, groups: list[Value]) -> list[Value]:
    """[group][row, number] -> [number][group, row]."""
    columns = []
    for number in range(STEP):
        lanes = [STEP * row + number for row in range(2 * ROWS)]
        halves = [b.shuffle(groups[i], groups[i + 1], lanes) for i in (0, 2)]
        columns.append(b.shuffle(halves[0], halves[1], range(LANES)))
    return columns


def emit_line(b: Builder, layout: PackedLayout, line: Value) -> list[Value]:
    """The numbers of a line, `vector<4xf32>` for each step along k."""
    pieces = range(0, LINE_BYTES, _PIECE_BYTES)
    return [step for piece in pieces for step in _weights(b, layout, [line], piece)]


def _weights(b: Builder, layout: PackedLayout, lines: Sequence[Value], offset: int) -> list[Value]:
    """A piece of some rows, four lanes a row, for each step along k; widening is exact."""
    floats = b.vec(STEP * len(lines), b.f32)
    if layout.kind == "f32":
        return [_joined(b, lines, offset, b.vec(STEP, b.f32))]
    if layout.kind == "bf16":
        words = _joined(b, lines, offset, b.vec(STEP, b.i32))
        both = (b.shl(words, 16), b.bit_and(words, _UPPER_HALF))
        return [b.bitcast(half, floats) for half in both]
    halves = _joined(b, lines, offset, b.vec(2 * STEP, b.f16))
    steps = []
    for step in range(2):
        first = [2 * STEP * row + STEP * step for row in range(len(lines))]
        lanes = [start + part for start in first for part in range(STEP)]
        steps.append(b.ext_f(b.shuffle(halves, halves, lanes), floats))
    return steps


def _joined(b: Builder, lines: Sequence[Value], offset: int, piece: Type) -> Value:
    """The pieces of some rows, one behind the other."""
    pieces = [b.load(b.at(line, offset), piece, _PIECE_BYTES) for line in lines]
    while len(pieces) > 1:
        lanes = ir.VectorType(pieces[0].type).shape[0]
        pairs = zip(pieces[::2], pieces[1::2], strict=True)
        pieces = [b.shuffle(*pair, range(2 * lanes)) for pair in pairs]
    return pieces[0]
