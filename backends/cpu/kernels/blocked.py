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

from infc.backends.cpu.codegen.builder import LANES, Builder, Value
from infc.backends.cpu.kernels.bf16_blocks import PANEL_SUM_BYTES, Block, micro_kernel
from infc.backends.cpu.kernels.bf16_panels import bf16_panel_bytes, emit_bf16_panel
from infc.backends.cpu.kernels.epilogue import Epilogue, emit_finished
from infc.backends.cpu.kernels.layouts import PackedLayout
from infc.passes.codegen.panels import PANEL_ROWS
from infc.reference.abf16 import ABF16_STEP, abf16_padded, abf16_row_bytes

_SUM_BYTES = 4
_LINE_BYTES = 64
FEW_PANELS = 2
"""Panels of a run that stay in the first cache."""


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
        unroll: steps along k in one turn of the loop.
    """

    layouts: tuple[PackedLayout, ...]
    n: int
    k: int
    panels: int
    epilogues: tuple[Epilogue, ...]
    out: str
    unroll: int = 1

    @property
    def name(self) -> str:
        """The function's name."""
        layouts = "_".join(layout.name for layout in self.layouts)
        steps = "_".join(epilogue.name for epilogue in self.epilogues)
        tuning = f"p{self.panels}u{self.unroll}"
        return f"blocked_{layouts}_n{self.n}k{self.k}{tuning}_{steps}_{self.out}"

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
        self.micro = micro_kernel(
            b, kernel.k, panels_stay=kernel.panels == FEW_PANELS, unroll=kernel.unroll
        )
        self.matrices = len(kernel.layouts)
        self.widest = max(self.micro.widths)
        self.staged = b.stack(kernel.staged_bytes, _LINE_BYTES)
        self.room = b.stack(self.micro.heights[0] * self.widest * PANEL_SUM_BYTES, _LINE_BYTES)
        self.room_stride = b.idx(self.widest * PANEL_SUM_BYTES)
        self.out_stride = b.idx(kernel.row_bytes)
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
                    # A gate and what it opens lie side by side.
                    self._staged_panel(b.add(b.mul(index, self.matrices), matrix)),
                    self.a.multipliers[matrix],
                ]
                b.call(self.stages[matrix], operands)

        b.loop(0, count, body=panel)

    def _staged_panel(self, index: Value) -> Value:
        """Where a staged panel of the run is."""
        return self.b.at(self.staged, self.b.mul(index, self.panel_bytes))

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
        """All rows with the staged panels: the largest blocks, then smaller ones."""
        b, m = self.b, self.a.m
        done = b.idx(0)
        for height in self.micro.heights:
            last = height == self.micro.heights[-1]
            stop = m if last else b.mul(b.div(m, height), height)
            if not last:
                self.micro.start(height, b.idx(height))

            def block(row: Value, height: int = height, last: bool = last) -> None:
                rows = b.min(b.sub(m, row), height) if last else b.idx(height)
                if last:
                    self.micro.start(height, rows)
                self._columns(first, count, row, rows, height)

            b.loop(done, stop, height, body=block)
            done = stop
        self.micro.stop()

    def _columns(self, first: Value, count: Value, row: Value, rows: Value, height: int) -> None:
        """All staged panels, the widest blocks first."""
        b = self.b
        total, done = b.mul(count, self.matrices), b.idx(0)
        for width in self.micro.widths:
            if width % self.matrices:
                continue
            stop = b.add(done, b.mul(b.div(b.sub(total, done), width), width))

            def block(index: Value, width: int = width) -> None:
                panels = [self._staged_panel(b.add(index, c)) for c in range(width)]
                panel = b.add(first, b.div(index, self.matrices))
                self._block(panel, row, rows, height, panels)

            b.loop(done, stop, width, body=block)
            done = stop

    def _block(
        self, panel: Value, row: Value, rows: Value, height: int, panels: list[Value]
    ) -> None:
        """The sums of a block, finished and stored."""
        b, kernel = self.b, self.kernel
        x = b.at(self.a.x, b.mul(row, abf16_row_bytes(kernel.k)))
        column = b.mul(panel, PANEL_ROWS * kernel.column_bytes)
        out = b.at(self.a.out, b.add(b.mul(row, self.out_stride), column))
        if kernel.is_plain:
            self.micro.multiply(Block(x, height, panels, out, self.out_stride))
            return
        self.micro.multiply(Block(x, height, panels, self.room, self.room_stride))
        self._finish(panel, rows, len(panels), out)

    def _finish(self, panel: Value, rows: Value, wide: int, out: Value) -> None:
        """The epilogue of a block whose sums are in the room."""
        b, a, kernel = self.b, self.a, self.kernel
        floats = b.vec(LANES, b.f32)
        columns = wide // self.matrices
        masks = [self._mask(b.add(panel, c)) for c in range(columns)]

        def bias(matrix: int, column: int) -> Value | None:
            if not kernel.epilogues[matrix].bias:
                return None
            at = b.at(a.biases[matrix], b.mul(b.add(panel, column), PANEL_SUM_BYTES))
            return self._load_masked(masks[column], at)

        biases = [[bias(m, c) for m in range(self.matrices)] for c in range(columns)]

        def row(index: Value) -> None:
            source = b.at(self.room, b.mul(index, self.room_stride))
            target = b.at(out, b.mul(index, self.out_stride))
            for c in range(columns):
                value: Value | None = None
                for m, epilogue in enumerate(kernel.epilogues):
                    at = b.at(source, (c * self.matrices + m) * PANEL_SUM_BYTES)
                    sums = b.load(at, floats, _LINE_BYTES)
                    value = emit_finished(b, epilogue, sums, biases[c][m], value)
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
