"""Operations on rows, one after the other, the row staying in registers.

A row without a norm is independent columns: warps take pieces of 512 columns. A norm needs all of a
row: a warp takes one where there are several rows and they are short, else all workers of the block
share one. Sums have an order that depends on the width alone.
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
from infc.reference.abf16 import abf16_padded, abf16_row_bytes

PIECE = 512
"""Columns a warp takes of a row without norms."""
WARP_COLUMNS = 1024
"""The widest row that a warp normalises alone: 32 registers a value."""
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
    """

    d: int
    steps: tuple[Step, ...]
    stores: tuple[Store, ...]
    arguments: int
    max_rows: int

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


def emit_rows(b: GpuBuilder, name: str, spec: RowsSpec) -> Emitted:
    """Define `@name(pointers..., rows, cta, ctas: i32)`."""
    span = spec.span
    with b.function(name, [b.ptr] * spec.arguments + [b.i32] * 3) as (*pointers, rows, cta, ctas):
        by_warp = span.team == WARP
        member = b.lane() if by_warp else b.thread()
        first = b.add(b.mul(cta, WARPS), b.warp()) if by_warp else cta
        step = b.mul(ctas, WARPS) if by_warp else ctas

        def item(number: Value) -> None:
            row, start = number, None
            if span.parts > 1:
                row = b.div(number, span.parts)
                start = b.mul(b.rem(number, span.parts), span.columns)
            _RowEmitter(b, spec, pointers, row, Spread(b, span, member, start)).emit()
            if not by_warp and spec.norms == 1 and spec.max_rows > 1:
                # The next row's sum goes where slower warps may still read this one's.
                b.sync(THREADS, WORKER_BARRIER)

        b.loop(first, b.mul(rows, span.parts), step, body=item)
        b.ret()
    return Emitted(name, work_bytes=0 if by_warp else SUM_BYTES * spec.norms)


class _RowEmitter:
    """Emits what is done to one row, or to some columns of it."""

    def __init__(
        self, b: GpuBuilder, spec: RowsSpec, pointers: Sequence[Value], row: Value, spread: Spread
    ) -> None:
        self.b = b
        self.spec = spec
        self.pointers = pointers
        self.row = row
        self.spread = spread
        self.made: list[Row] = []
        self.gains: dict[int, Row] = {}
        self.sums = 0

    def emit(self) -> None:
        """All steps, then all stores."""
        spec = self.spec
        if spec.span.numbers <= _EARLY_NUMBERS:
            for step in spec.steps:
                if isinstance(step, Norm):
                    self.gain(step)
        for step in spec.steps:
            self.made.append(self.make(step))
        for store in spec.stores:
            row_bytes = abf16_row_bytes(spec.d) if store.rounded else spec.d * F32_BYTES
            target = self.row_of(store.argument, self.row, row_bytes)
            put = self.spread.store_rounded if store.rounded else self.spread.store
            put(self.made[store.step], target)

    def make(self, step: Step) -> Row:
        """What a step makes."""
        b = self.b
        if isinstance(step, Load):
            row = self.row if step.chosen is None else self.index(step.chosen)
            return self.spread.load(self.row_of(step.argument, row, self.spec.d * F32_BYTES))
        if isinstance(step, Embed):
            token, table = self.index(step.tokens), self.pointers[step.table]
            return emit_embed(b, self.spread, table, step.layout, token, step.scale)
        if isinstance(step, Norm):
            return self.normed(step)
        x = self.made[step.x]
        if isinstance(step, Pairwise):
            combine = {"add": b.fadd, "mul": b.fmul}[step.kind]
            pairs = zip(x, self.made[step.y], strict=True)
            return [[combine(u, v) for u, v in zip(*chunks, strict=True)] for chunks in pairs]
        if isinstance(step, Activation):
            return [[ACTIVATIONS[step.kind](b, u) for u in chunk] for chunk in x]
        return [[emit_softcap(b, u, step.cap) for u in chunk] for chunk in x]

    def normed(self, step: Norm) -> Row:
        b, x = self.b, self.made[step.x]
        gain = self.gain(step)
        totals = [b.fmul(u, u) for u in x[0]]
        for chunk in x[1:]:
            totals = [b.fma(u, u, total) for u, total in zip(chunk, totals, strict=True)]
        while len(totals) > 1:
            half = len(totals) // 2
            totals = [b.fadd(u, v) for u, v in zip(totals[:half], totals[half:], strict=True)]
        total = self.spread.sum(totals[0], self.sums)
        self.sums += 1
        mean = b.fma(total, b.const(1.0 / self.spec.d, b.f32), b.const(step.eps, b.f32))
        inverse = b.rsqrt(mean)
        return [
            [b.fmul(b.fmul(u, inverse), g) for u, g in zip(*chunks, strict=True)]
            for chunks in zip(x, gain, strict=True)
        ]

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

    def index(self, argument: int) -> Value:
        """The row's entry of an i32 argument."""
        pointer = self.row_of(argument, self.row, _INDEX_BYTES)
        return self.b.load(pointer, self.b.i32, _INDEX_BYTES)

    def row_of(self, argument: int, row: Value, row_bytes: int) -> Value:
        """A row of an argument."""
        return self.b.at(self.pointers[argument], self.b.mul(self.b.wide(row), row_bytes))
