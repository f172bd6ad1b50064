"""Operations on rows, one after the other, the row staying in registers.

A row without a norm is independent columns: warps take pieces of 512 columns. A norm needs all of a
row: a warp takes one where there are several rows and they are short, else all workers of the block
share one, or some at once, so that they wait for memory and for one another once for all of them.
The order of a sum depends on the program alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from infc.backends.cuda.codegen.builder import WARP, GpuBuilder, Value
from infc.backends.cuda.kernels.embed import emit_embed
from infc.backends.cuda.kernels.frame import THREADS, WARPS, WORKER_BARRIER, Emitted
from infc.backends.cuda.kernels.spread import F32_BYTES, SUM_BYTES, Row, Span, Spread
from infc.backends.cuda.kernels.vmath import ACTIVATIONS, emit_softcap
from infc.diagnostics import InternalError
from infc.reference.abf16 import abf16_padded, abf16_row_bytes

PIECE = 512
"""Columns a warp takes of a row without norms."""
WARP_COLUMNS = 1024
"""The widest row that a warp normalises alone: 32 registers a value."""
_HELD_NUMBERS = 48
"""Rows that a block takes at once are so many registers a value: a persistent kernel has 168."""
_EARLY_NUMBERS = 16
"""Weights of norms are loaded before anything is computed where they take so few registers."""
_INDEX_BYTES = 4


@dataclass(frozen=True)
class Load:
    """A row of an f32 argument: row r, or row `chosen[r]` where `chosen` is an i32 argument."""

    argument: int
    chosen: int | None = None


@dataclass(frozen=True)
class Embed:
    """`scale * table[tokens[r]]` of a packed table of that layout."""

    table: int
    tokens: int
    layout: str
    scale: float


@dataclass(frozen=True)
class Norm:
    """`x / sqrt(mean(x**2) + eps) * (gain + offset)`; gain is f32[d]."""

    x: int
    gain: int
    eps: float
    offset: float


@dataclass(frozen=True)
class Pairwise:
    """`x + y` (`add`) or `x * y` (`mul`)."""

    kind: str
    x: int
    y: int


@dataclass(frozen=True)
class Activation:
    """`silu` or `gelu_tanh` of x."""

    kind: str
    x: int


@dataclass(frozen=True)
class Softcap:
    """`cap * tanh(x / cap)`."""

    x: int
    cap: float


Step: TypeAlias = Load | Embed | Norm | Pairwise | Activation | Softcap
"""Makes a row of d numbers; x and y are numbers of earlier steps, the rest arguments."""


@dataclass(frozen=True)
class Store:
    """Writes what a step made to an argument: f32 rows, or abf16 rows where `rounded`."""

    step: int
    argument: int
    rounded: bool = False


@dataclass(frozen=True)
class RowsSpec:
    """What a kernel does to each row.

    Attributes:
        d: numbers of a row, of every step.
        steps: in an order in which they can be done.
        stores: what is kept.
        arguments: pointers that the function takes.
        max_rows: the kernel is called with 1 .. max_rows rows.
        replicated: whether each block does all rows: then a block shall not do one after the other.
    """

    d: int
    steps: tuple[Step, ...]
    stores: tuple[Store, ...]
    arguments: int
    max_rows: int
    replicated: bool = False

    @property
    def norms(self) -> int:
        """How many sums over a row there are."""
        return sum(isinstance(step, Norm) for step in self.steps)

    @property
    def span(self) -> Span:
        """The columns that a team holds at once."""
        rounded = any(store.rounded for store in self.stores)
        stored = abf16_padded(self.d) if rounded else self.d
        pieces = any(isinstance(step, Embed) for step in self.steps)
        if not self.norms:
            return Span(self.d, stored, min(stored, PIECE), WARP, pieces)
        alone = self.max_rows > 1 and self.d <= WARP_COLUMNS
        return Span(self.d, stored, stored, WARP if alone else THREADS, pieces)

    @property
    def rows_at_once(self) -> int:
        """Rows that a team holds at once."""
        span = self.span
        if not self.replicated or span.team == WARP:
            return 1
        return max(1, min(self.max_rows, _HELD_NUMBERS // span.numbers))


def emit_rows(b: GpuBuilder, name: str, spec: RowsSpec) -> Emitted:
    """Define `@name(pointers..., rows, cta, ctas: i32)`."""
    span, at_once = spec.span, spec.rows_at_once
    with b.function(name, [b.ptr] * spec.arguments + [b.i32] * 3) as (*pointers, rows, cta, ctas):
        by_warp = span.team == WARP
        member = b.lane() if by_warp else b.thread()
        # Few items go to warps of different blocks.
        first = b.add(b.mul(b.warp(), ctas), cta) if by_warp else cta
        step = b.mul(ctas, WARPS) if by_warp else ctas

        def item(number: Value) -> None:
            held, start = [number], None
            if span.parts > 1:
                held = [b.div(number, span.parts)]
                start = b.mul(b.rem(number, span.parts), span.columns)
            elif at_once > 1:
                # Where rows are missing the last one is done again.
                row = b.mul(number, at_once)
                held = [b.min(b.add(row, i), b.sub(rows, 1)) for i in range(at_once)]
            _RowEmitter(b, spec, pointers, held, Spread(b, span, member, start)).emit()
            if not by_warp and spec.norms == 1 and spec.max_rows > at_once:
                # The next sums go where slower warps may still read these.
                b.sync(THREADS, WORKER_BARRIER)

        groups = rows if at_once == 1 else b.ceil_div(rows, at_once)
        b.loop(first, b.mul(groups, span.parts), step, body=item)
        b.ret()
    return Emitted(name, work_bytes=0 if by_warp else SUM_BYTES * spec.norms * at_once)


class _RowEmitter:
    """Emits what is done to some rows, or to some columns of one."""

    def __init__(
        self,
        b: GpuBuilder,
        spec: RowsSpec,
        pointers: Sequence[Value],
        rows: Sequence[Value],
        spread: Spread,
    ) -> None:
        self.b = b
        self.spec = spec
        self.pointers = pointers
        self.rows = rows
        self.spread = spread
        self.made: list[list[Row]] = []  # of each step, of each of the rows
        self.gains: dict[int, Row] = {}
        self.norms = 0

    def emit(self) -> None:
        """All steps, then all stores."""
        spec = self.spec
        if spec.span.numbers <= _EARLY_NUMBERS:
            for step in spec.steps:
                if isinstance(step, Norm):
                    self.gain(step)
        for step in spec.steps:
            if isinstance(step, Norm):
                self.made.append(self.normed(step))
            else:
                self.made.append([self.make(step, i) for i in range(len(self.rows))])
        for store in spec.stores:
            row_bytes = abf16_row_bytes(spec.d) if store.rounded else spec.d * F32_BYTES
            put = self.spread.store_rounded if store.rounded else self.spread.store
            for row, values in zip(self.rows, self.made[store.step], strict=True):
                put(values, self.row_of(store.argument, row, row_bytes))

    def make(self, step: Step, number: int) -> Row:
        """What a step other than a norm makes of one of the rows."""
        b = self.b
        if isinstance(step, Load):
            row = self.rows[number] if step.chosen is None else self.index(step.chosen, number)
            return self.spread.load(self.row_of(step.argument, row, self.spec.d * F32_BYTES))
        if isinstance(step, Embed):
            token, table = self.index(step.tokens, number), self.pointers[step.table]
            return emit_embed(b, self.spread, table, step.layout, token, step.scale)
        x = self.made[step.x][number]
        if isinstance(step, Pairwise):
            combine = {"add": b.fadd, "mul": b.fmul}[step.kind]
            pairs = zip(x, self.made[step.y][number], strict=True)
            return [[combine(u, v) for u, v in zip(*chunks, strict=True)] for chunks in pairs]
        if isinstance(step, Activation):
            return [[ACTIVATIONS[step.kind](b, u) for u in chunk] for chunk in x]
        if isinstance(step, Softcap):
            return [[emit_softcap(b, u, step.cap) for u in chunk] for chunk in x]
        raise InternalError(f"no step of one row: {step}")

    def normed(self, step: Norm) -> list[Row]:
        """What a norm makes of all the rows."""
        b, rows = self.b, self.made[step.x]
        gain = self.gain(step)
        sums = self.spread.sums([self.squares(row) for row in rows], self.norms)
        self.norms += 1
        share, eps = b.const(1.0 / self.spec.d, b.f32), b.const(step.eps, b.f32)
        made: list[Row] = []
        for row, total in zip(rows, sums, strict=True):
            inverse = b.rsqrt(b.fma(total, share, eps))
            pairs = zip(row, gain, strict=True)
            made.append(
                [
                    [b.fmul(b.fmul(u, inverse), g) for u, g in zip(*chunks, strict=True)]
                    for chunks in pairs
                ]
            )
        return made

    def squares(self, row: Row) -> Value:
        """The sum of the squares of what a thread holds of a row."""
        b = self.b
        totals = [b.fmul(u, u) for u in row[0]]
        for chunk in row[1:]:
            totals = [b.fma(u, u, total) for u, total in zip(chunk, totals, strict=True)]
        while len(totals) > 1:
            half = len(totals) // 2
            totals = [b.fadd(u, v) for u, v in zip(totals[:half], totals[half:], strict=True)]
        return totals[0]

    def gain(self, step: Norm) -> Row:
        """What a norm multiplies by; its weights are loaded once."""
        b = self.b
        if step.gain not in self.gains:
            self.gains[step.gain] = self.spread.load(self.pointers[step.gain])
        gain = self.gains[step.gain]
        if not step.offset:
            return gain
        offset = b.const(step.offset, b.f32)
        return [[b.fadd(g, offset) for g in chunk] for chunk in gain]

    def index(self, argument: int, number: int) -> Value:
        """The entry of an i32 argument for one of the rows."""
        pointer = self.row_of(argument, self.rows[number], _INDEX_BYTES)
        return self.b.load(pointer, self.b.i32, _INDEX_BYTES)

    def row_of(self, argument: int, row: Value, row_bytes: int) -> Value:
        """A row of an argument."""
        return self.b.at(self.pointers[argument], self.b.mul(self.b.wide(row), row_bytes))
