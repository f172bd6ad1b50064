"""Products of many rows in bf16: panels of weights become bf16, then tiles of rows run over them.

    for each run of panels:
        turn them into bf16 panels
        for each 32 rows (then 16, the last of them in part):
            for each two panels: 32 x 32 sums in four tile registers, along the whole of k

Where all rows of x fit the second cache a run is two panels: they stay in the first cache, past
which the rows stream. Else a run fills a part of the second cache, and the rows come from further
out once for each run. A sum runs along k in the hardware's order, the same for every block, so its
bits depend on its row and its column alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from infc.backends.cpu.codegen.amx import (
    CONFIG_BYTES,
    TILE_K,
    TILE_ROW_BYTES,
    TILE_ROWS,
    TILES,
    emit_tile_config,
    emit_tile_dot_bf16,
    emit_tile_load,
    emit_tile_release,
    emit_tile_store,
    emit_tile_zero,
)
from infc.backends.cpu.codegen.builder import LANES, Builder, Value
from infc.backends.cpu.kernels.bf16_panels import bf16_panel_bytes, emit_bf16_panel
from infc.backends.cpu.kernels.epilogue import Epilogue, emit_finished
from infc.backends.cpu.kernels.layouts import PANEL_ROWS, PackedLayout
from infc.reference.abf16 import ABF16_STEP, abf16_padded, abf16_row_bytes

_SUM_BYTES = 4
_PANEL_SUM_BYTES = _SUM_BYTES * PANEL_ROWS
_STEP_BYTES = TILE_K // 2 * TILE_ROW_BYTES
"""Bytes of a bf16 panel that one product reads."""
_PAIR = 2
"""Panels of a run that stay in the first cache."""
_LEFT, _RIGHT = 4, 6
"""The first tile registers of rows of x and of panels; the sums are in those before."""


@dataclass(frozen=True)
class BlockedKernel:
    """What a blocked panel function is specialised to.

    Attributes:
        layouts: of the weights: one matrix, or a gate and the matrix it is combined with.
        n: columns of the output.
        k: numbers a row.
        panels: panels (of each matrix) staged at a time; even.
        epilogues: of each matrix; the last one is that of the result.
        out: `f32` or `abf16`.
    """

    layouts: tuple[PackedLayout, ...]
    n: int
    k: int
    panels: int
    epilogues: tuple[Epilogue, ...]
    out: str

    @property
    def name(self) -> str:
        """The function's name."""
        layouts = "_".join(layout.name for layout in self.layouts)
        steps = "_".join(epilogue.name for epilogue in self.epilogues)
        return f"blocked_{layouts}_n{self.n}k{self.k}p{self.panels}_{steps}_{self.out}"

    @property
    def is_pair(self) -> bool:
        """Whether a gate is combined with a second matrix."""
        return len(self.layouts) == 2

    @property
    def staged_bytes(self) -> int:
        """Bytes of the staged panels."""
        return len(self.layouts) * self.panels * bf16_panel_bytes(self.k)

    @property
    def row_bytes(self) -> int:
        """From a row of the output to the next."""
        return abf16_row_bytes(self.n) if self.out == "abf16" else _SUM_BYTES * self.n

    @property
    def column_bytes(self) -> int:
        """Bytes of an element of the output."""
        return 2 if self.out == "abf16" else _SUM_BYTES

    @property
    def is_plain(self) -> bool:
        """Whether sums are stored as they are."""
        last = self.epilogues[-1]
        return self.out == "f32" and replace(last, scaled=False) == Epilogue(scaled=False)


@dataclass(frozen=True)
class BlockedArguments:
    """The arguments of a blocked panel function, in order.

    Attributes:
        x: `abf16` rows.
        m: rows.
        first: the first panel.
        stop: the panel behind the last one.
        weights: each packed matrix, behind its header.
        multipliers: `f32`, of each matrix.
        biases: of each matrix; any pointer where there is none.
        out: row 0 of the output.
    """

    x: Value
    m: Value
    first: Value
    stop: Value
    weights: tuple[Value, ...]
    multipliers: tuple[Value, ...]
    biases: tuple[Value, ...]
    out: Value

    def values(self) -> list[Value]:
        """All of them."""
        several = (*self.weights, *self.multipliers, *self.biases)
        return [self.x, self.m, self.first, self.stop, *several, self.out]


def emit_blocked(b: Builder, kernel: BlockedKernel) -> str:
    """Define the panel function, unless the module has it; returns its name."""
    if b.defined(kernel.name):
        return kernel.name
    matrices = len(kernel.layouts)
    stages = [emit_bf16_panel(b, layout, kernel.k) for layout in kernel.layouts]
    pointers = [b.ptr] * matrices
    types = [b.ptr, b.i64, b.i64, b.i64, *pointers, *[b.f32] * matrices, *pointers, b.ptr]
    with b.function(kernel.name, types, inline=False) as values:
        x, m, first, stop, *several, out = values
        parts = [tuple(several[i * matrices : (i + 1) * matrices]) for i in range(3)]
        arguments = BlockedArguments(x, m, first, stop, parts[0], parts[1], parts[2], out)
        _Blocked(b, kernel, arguments, stages).emit()
        b.ret()
    return kernel.name


class _Blocked:
    """Emits one panel function."""

    def __init__(
        self, b: Builder, kernel: BlockedKernel, a: BlockedArguments, stages: list[str]
    ) -> None:
        self.b, self.kernel, self.a, self.stages = b, kernel, a, stages
        self.staged = b.stack(kernel.staged_bytes, TILE_ROW_BYTES)
        self.config = b.stack(CONFIG_BYTES, CONFIG_BYTES)
        self.room = b.stack(4 * TILE_ROWS * TILE_ROW_BYTES, TILE_ROW_BYTES)
        self.line = b.idx(TILE_ROW_BYTES)
        self.x_stride = b.idx(abf16_row_bytes(kernel.k))
        self.out_stride = b.idx(kernel.row_bytes)
        self.room_stride = b.idx(2 * TILE_ROW_BYTES)
        self.panel_bytes = bf16_panel_bytes(kernel.k)

    def emit(self) -> None:
        """Runs of panels, one after the other."""
        b, a, kernel = self.b, self.a, self.kernel

        def run(first: Value) -> None:
            count = b.min(b.sub(a.stop, first), kernel.panels)
            self._stage(first, count)
            self._rows(first, count)

        b.loop(a.first, a.stop, kernel.panels, body=run)
        if kernel.out == "abf16" and 0 < kernel.n % ABF16_STEP <= PANEL_ROWS:
            last = b.cmp("eq", a.stop, -(-kernel.n // PANEL_ROWS))
            b.when(b.bit_and(last, b.cmp("slt", a.first, a.stop)), self._clear_end)

    def _stage(self, first: Value, count: Value) -> None:
        b, kernel = self.b, self.kernel

        def panel(index: Value) -> None:
            for matrix, layout in enumerate(kernel.layouts):
                packed = b.mul(b.add(first, index), layout.panel_bytes(kernel.k))
                operands = [
                    b.at(self.a.weights[matrix], packed),
                    self._staged_panel(index, matrix),
                    self.a.multipliers[matrix],
                ]
                b.call(self.stages[matrix], operands)

        b.loop(0, count, body=panel)

    def _staged_panel(self, index: Value, matrix: int = 0) -> Value:
        """Where a panel of the run is; those of a gated pair alternate."""
        b = self.b
        if self.kernel.is_pair:
            index = b.add(b.mul(index, 2), matrix)
        return b.at(self.staged, b.mul(index, self.panel_bytes))

    def _clear_end(self) -> None:
        """Zeros behind the last panel, up to a whole step of the product that reads them."""
        b, kernel = self.b, self.kernel
        columns = -(-kernel.n // PANEL_ROWS) * PANEL_ROWS
        zero = b.const(0.0, b.vec(PANEL_ROWS, b.bf16))
        assert columns + PANEL_ROWS == abf16_padded(kernel.n)

        def row(index: Value) -> None:
            b.store(zero, b.at(self.a.out, b.add(b.mul(index, kernel.row_bytes), 2 * columns)), 32)

        b.loop(0, self.a.m, body=row)

    # ---- rows ------------------------------------------------------------------------------

    def _rows(self, first: Value, count: Value) -> None:
        """All rows with the staged panels: pairs of row tiles, then what is left."""
        b, m = self.b, self.a.m
        whole = b.mul(b.div(m, 2 * TILE_ROWS), 2 * TILE_ROWS)
        emit_tile_config(b, self.config, [TILE_ROWS] * TILES)

        def pair(row: Value) -> None:
            self._columns(first, count, row, b.idx(2 * TILE_ROWS), 2)

        b.loop(0, whole, 2 * TILE_ROWS, body=pair)

        def single(row: Value) -> None:
            rows = b.min(b.sub(m, row), TILE_ROWS)
            few = [rows] * _RIGHT + [TILE_ROWS] * (TILES - _RIGHT)
            emit_tile_config(b, self.config, few)
            self._columns(first, count, row, rows, 1)

        b.loop(whole, m, TILE_ROWS, body=single)
        emit_tile_release(b)

    def _columns(self, first: Value, count: Value, row: Value, rows: Value, tall: int) -> None:
        """All staged panels, two at a time, for `tall` tiles of rows (of `rows` rows in all)."""
        b = self.b
        if self.kernel.is_pair:

            def gated(index: Value) -> None:
                panels = [self._staged_panel(index, matrix) for matrix in range(2)]
                self._block(b.add(first, index), row, rows, tall, panels)

            b.loop(0, count, body=gated)
            return

        def pair(index: Value) -> None:
            panels = [self._staged_panel(index), self._staged_panel(b.add(index, 1))]
            self._block(b.add(first, index), row, rows, tall, panels)

        even = b.mul(b.div(count, 2), 2)
        b.loop(0, even, 2, body=pair)

        def odd(index: Value) -> None:
            self._block(b.add(first, index), row, rows, tall, [self._staged_panel(index)])

        b.loop(even, count, body=odd)

    def _block(self, panel: Value, row: Value, rows: Value, tall: int, panels: list[Value]) -> None:
        """The sums of `tall` row tiles with one or two panels, stored."""
        b, wide = self.b, len(panels)
        x = b.at(self.a.x, b.mul(row, self.x_stride))
        rows_bytes = TILE_ROWS * abf16_row_bytes(self.kernel.k)
        for tile in range(tall * wide):
            emit_tile_zero(b, tile)

        def step(index: Value) -> None:
            left = b.at(x, b.mul(index, TILE_ROW_BYTES))
            for r in range(tall):
                at = b.at(left, r * rows_bytes)
                passing = self.kernel.panels == _PAIR
                emit_tile_load(b, _LEFT + r, at, self.x_stride, passing=passing)
            for c, staged in enumerate(panels):
                right = b.at(staged, b.mul(index, _STEP_BYTES))
                emit_tile_load(b, _RIGHT + c, right, self.line)
            for r in range(tall):
                for c in range(wide):
                    emit_tile_dot_bf16(b, r * wide + c, _LEFT + r, _RIGHT + c)

        b.loop(0, abf16_padded(self.kernel.k) // TILE_K, body=step)
        out = b.at(
            self.a.out,
            b.add(b.mul(row, self.out_stride), b.mul(panel, PANEL_ROWS * self.kernel.column_bytes)),
        )
        if self.kernel.is_plain:
            self._each_tile(tall, wide, out, self.out_stride)
        else:
            self._each_tile(tall, wide, self.room, self.room_stride)
            self._finish(panel, rows, wide, out)

    def _each_tile(self, tall: int, wide: int, pointer: Value, stride: Value) -> None:
        """Store the tiles of sums as a matrix."""
        b = self.b
        for r in range(tall):
            at = b.at(pointer, b.mul(stride, r * TILE_ROWS))
            for c in range(wide):
                emit_tile_store(b, r * wide + c, b.at(at, c * _PANEL_SUM_BYTES), stride)

    def _finish(self, panel: Value, rows: Value, wide: int, out: Value) -> None:
        """The epilogue of a block whose sums are in the room."""
        b, a, kernel = self.b, self.a, self.kernel
        floats = b.vec(LANES, b.f32)
        columns = 1 if kernel.is_pair else wide
        masks = [self._mask(b.add(panel, c)) for c in range(columns)]

        def bias(matrix: int, column: int) -> Value | None:
            if not kernel.epilogues[matrix].bias:
                return None
            at = b.at(a.biases[matrix], b.mul(b.add(panel, column), _PANEL_SUM_BYTES))
            return self._load_masked(masks[column], at)

        last = len(kernel.epilogues) - 1
        biases = [bias(last, c) for c in range(columns)]
        gate_bias = bias(0, 0) if kernel.is_pair else None

        def row(index: Value) -> None:
            at = b.at(self.room, b.mul(index, self.room_stride))
            sums = [b.load(b.at(at, c * _PANEL_SUM_BYTES), floats, 64) for c in range(wide)]
            gate = None
            if kernel.is_pair:
                gate = emit_finished(b, kernel.epilogues[0], sums.pop(0), gate_bias, None)
            target = b.at(out, b.mul(index, self.out_stride))
            for c, value in enumerate(sums):
                value = emit_finished(b, kernel.epilogues[last], value, biases[c], gate)
                self._store(masks[c], value, b.at(target, c * PANEL_ROWS * kernel.column_bytes))

        b.loop(0, rows, body=row)

    def _mask(self, panel: Value) -> Value | None:
        """Which columns of a panel the matrix has; None where it has them all."""
        b = self.b
        if not self.kernel.epilogues[-1].partial:
            return None
        left = b.sub(b.idx(self.kernel.n), b.mul(panel, PANEL_ROWS))
        ids = b.lanes(range(PANEL_ROWS), b.i32)
        return b.cmp("slt", ids, b.splat(b.trunc_i(b.min(left, PANEL_ROWS), b.i32)))

    def _load_masked(self, mask: Value | None, pointer: Value) -> Value:
        b, floats = self.b, self.b.vec(LANES, self.b.f32)
        if mask is None:
            return b.load(pointer, floats, 4)
        return b.load_where(mask, pointer, floats, 4)

    def _store(self, mask: Value | None, value: Value, pointer: Value) -> None:
        b = self.b
        if self.kernel.out == "abf16":
            if mask is not None:  # the row goes on with zeros
                value = b.select(mask, value, b.const(0.0, value.type))
            b.store(b.trunc_f(value, b.vec(LANES, b.bf16)), pointer, 32)
        elif mask is None:
            b.store(value, pointer, 4)
        else:
            b.store_where(mask, value, pointer, 4)
