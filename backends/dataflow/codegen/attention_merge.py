"""Partial results of the stripes of a group become columns of the whole.

Each core of a group makes some columns of the group's heads: it gets these columns of all stripes'
outputs, and all their maxima and sums:

    factor[stripe] = exp(maximum[stripe] - largest maximum)
    out = sum(factor * output) / sum(factor * sum)
"""

from __future__ import annotations

from collections.abc import Iterator

from infc.backends.dataflow.codegen.attention_shape import AttentionShape
from infc.backends.dataflow.codegen.builder import CoreProgram
from infc.backends.dataflow.codegen.exchange import as_rows
from infc.backends.dataflow.codegen.kv_rows import destinations, exchange_in_part
from infc.backends.dataflow.codegen.memory import Buffer
from infc.backends.dataflow.codegen.scope import Scope
from infc.backends.dataflow.codegen.values import Columns, Rows, RowSpace, deal
from infc.backends.dataflow.isa import BLOCK, Binary, Unary

_F32 = 4


def merge_stripes(
    scope: Scope, shape: AttentionShape, space: RowSpace, stats: Buffer, output: Buffer
) -> Columns | Rows:
    """The attention of all heads, by columns; by rows where columns fall not in blocks of 32.

    Args:
        stats: `[2][head of the group][row][query head]`, maxima and sums.
        output: `[head of the group][row][query head][e]`.
    """
    merge = _Merge(scope, shape, space, stats, output)
    if shape.home.stripes > 1:
        merge.exchange()
    for core in scope.cores:
        merge.emit(core)
    columns = merge.columns()
    return columns if merge.width % BLOCK == 0 else as_rows(scope, columns)


class _Merge:
    """
    Attributes:
        width: columns of a group.
        slices: the columns of a group that each of its cores makes.
    """

    def __init__(
        self,
        scope: Scope,
        shape: AttentionShape,
        space: RowSpace,
        stats: Buffer,
        output: Buffer,
    ) -> None:
        self.scope, self.shape, self.space = scope, shape, space
        home = shape.home
        self.head_width = shape.heads * home.kind.head_dim
        self.width = home.heads * self.head_width
        self.slices = deal(self.width, BLOCK if self.width % BLOCK == 0 else 1, home.stripes)
        self.row_bytes = _F32 * max(stop - first for first, stop in self.slices)
        self.queries = home.heads * space.most * shape.heads
        self.stats_bytes = 2 * _F32 * self.queries
        self.part_bytes = space.most * self.row_bytes
        self.own_stats, self.own_output = stats, output
        self.stats, self.parts = stats, output
        self.merged = scope.buffer("merged", self.part_bytes)
        if home.stripes > 1:
            self.stats = scope.buffer("stripes.stats", home.stripes * self.stats_bytes)
            self.parts = scope.buffer("stripes.output", home.stripes * self.part_bytes)

    def columns(self) -> Columns:
        """The merged columns of all cores."""
        home = self.shape.home
        slices = tuple(
            (group * self.width + first, group * self.width + stop)
            for group in range(home.groups)
            for first, stop in self.slices
        )
        whole = home.groups * self.width
        return Columns(self.space, self.merged, whole, slices, self.row_bytes)

    def _heads(self, stripe: int) -> Iterator[tuple[int, int, int]]:
        """The kv heads of a core's slice: number in the group, and the range of columns."""
        first, stop = self.slices[stripe]
        for head in range(self.shape.home.heads):
            low = max(first, head * self.head_width)
            high = min(stop, (head + 1) * self.head_width)
            if low < high:
                yield head, low, high

    def exchange(self) -> None:
        """Statistics to all cores of the group, columns to those that make them."""
        scope, home = self.scope, self.shape.home
        area = scope.group.area

        def sender(core: CoreProgram, arrived: str, sent: str) -> int:
            s, sends = core.send, 0
            group, stripe = divmod(core.index, home.stripes)
            for to in destinations(area, group * home.stripes, home.stripes):
                s.send(
                    self.stats.at(stripe * self.stats_bytes), self.own_stats,
                    self.stats_bytes, 1, to, signal=arrived, sent=sent,
                )  # fmt: skip
                sends += 1
            for other in range(home.stripes):
                first = self.slices[other][0]
                for head, low, high in self._heads(other):
                    behind = self.space.most * head * self.head_width
                    at = _F32 * (behind + low - head * self.head_width)
                    s.send(
                        self.parts.at(stripe * self.part_bytes + _F32 * (low - first)),
                        self.own_output.at(at),
                        _F32 * (high - low),
                        scope.total(s, self.space),
                        area.one(group * home.stripes + other),
                        stride_d=self.row_bytes,
                        stride_a=_F32 * self.head_width,
                        signal=arrived,
                        sent=sent,
                    )
                    sends += 1
            return sends

        def arrivals(core: CoreProgram) -> int:
            columns = sum(1 for _ in self._heads(core.index % home.stripes))
            return home.stripes * (1 + columns)

        exchange_in_part(scope, sender, arrivals, [self.stats, self.parts])

    def emit(self, core: CoreProgram) -> None:
        """The columns of one core."""
        if self.shape.home.stripes == 1:
            sums = self.stats.at(_F32 * self.queries)
            core.vector.v_un(Unary.RECIP, self.stats, sums, self.queries)
        else:
            self._emit_factors(core)
        self._emit_columns(core)

    def _emit_factors(self, core: CoreProgram) -> None:
        """In the place of each stripe's maxima, what its output is to be multiplied by."""
        v, n, others = core.vector, self.queries, self.shape.home.stripes - 1
        step = self.stats_bytes
        largest = self.scope.buffer("stripes.largest", _F32 * n)
        total = self.scope.buffer("stripes.total", _F32 * n)
        product = self.scope.buffer("stripes.product", _F32 * n)
        v.v_un(Unary.COPY, largest, self.stats, n)
        with v.stepping(others, step) as (at,):
            v.v_bin(Binary.MAX, largest, largest, self.stats.at(step, at), n)
        v.v_fill(total, 0.0, n)
        with v.stepping(others + 1, step) as (at,):
            factor = self.stats.at(0, at)
            v.v_bin(Binary.SUB, factor, factor, largest, n)
            v.v_un(Unary.EXP, factor, factor, n)
            v.v_bin(Binary.MUL, product, factor, self.stats.at(_F32 * n, at), n)
            v.v_bin(Binary.ADD, total, total, product, n)
        v.v_un(Unary.RECIP, total, total, n)
        with v.stepping(others + 1, step) as (at,):
            factor = self.stats.at(0, at)
            v.v_bin(Binary.MUL, factor, factor, total, n)

    def _emit_columns(self, core: CoreProgram) -> None:
        shape, v = self.shape, core.vector
        stripes, e = shape.home.stripes, shape.home.kind.head_dim
        stripe = core.index % stripes
        first = self.slices[stripe][0]
        product = self.scope.buffer("stripes.product", _F32 * max(e, self.queries))
        # With one stripe the parts are its own output, where the heads of a row lie apart.
        row_step = _F32 * self.head_width if stripes == 1 else self.row_bytes
        strides = (self.row_bytes, row_step, _F32 * shape.heads)
        with v.stepping(self.scope.total(v, self.space), *strides) as (row, part_row, stat_row):
            for head, low, high in self._heads(stripe):
                for query in range(low // e, -(-high // e)):
                    begin, end = max(low, query * e), min(high, (query + 1) * e)
                    place = self.merged.at(_F32 * (begin - first), row)
                    own = query - head * shape.heads
                    stat = _F32 * (head * self.space.most * shape.heads + own)
                    part = _F32 * (begin - first)
                    if stripes == 1:
                        behind = self.space.most * head * self.head_width
                        part = _F32 * (behind + begin - head * self.head_width)
                    source = self.parts.at(part, part_row)
                    factor = self.stats.at(stat, stat_row)
                    v.v_bins(Binary.MUL, place, source, factor, end - begin)
                    if stripes == 1:
                        continue
                    with v.registers(2) as (other, factors):
                        v.mov(other, 0, part_row)
                        v.mov(factors, 0, stat_row)
                        with v.loop(stripes - 1):
                            v.add(other, other, imm=self.part_bytes)
                            v.add(factors, factors, imm=self.stats_bytes)
                            source = self.parts.at(part, other)
                            factor = self.stats.at(stat, factors)
                            v.v_bins(Binary.MUL, product, source, factor, end - begin)
                            v.v_bin(Binary.ADD, place, place, product, end - begin)
