"""Partial results of the stripes of a group become columns of the whole.

Each core of a group makes some columns of the group's heads: it gets these columns of all stripes'
outputs, and all their maxima and sums:

    factor[stripe] = exp(maximum[stripe] - largest maximum)
    out = sum(factor * output) / sum(factor * sum)

Statistics arrive as `[2][query][stripe]`, so that one vector operation does for all stripes.
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
from infc.backends.dataflow.isa import BLOCK, Binary, Reduction, Unary

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
        self.own_stats, self.own_output = stats, output
        # From one query to the next.
        self.query_bytes = _F32 * home.stripes
        self.stats, self.parts = stats, output
        largest = space.most * self.row_bytes
        self.merged = scope.buffer("merged", largest)
        if home.stripes > 1:
            self.stats = scope.buffer("stripes.stats", home.stripes * self.stats_bytes)
            self.parts = scope.buffer("stripes.output", home.stripes * largest)

    def columns(self) -> Columns:
        """The merged columns of all cores."""
        home = self.shape.home
        idle = [(self.width, self.width)] * (home.span - home.stripes)
        slices = tuple(
            (group * self.width + first, group * self.width + stop)
            for group in range(home.groups)
            for first, stop in [*self.slices, *idle]
        )
        whole = home.groups * self.width
        return Columns(self.space, self.merged, whole, slices, self.row_bytes)

    def _columns(self, stripe: int) -> int:
        """How many columns a core makes."""
        first, stop = self.slices[stripe]
        return stop - first

    def _part_bytes(self, stripe: int) -> int:
        """Of one stripe's part of the columns of a core."""
        return self.space.most * _F32 * self._columns(stripe)

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
            group, stripe = divmod(core.index, home.span)
            if stripe >= home.stripes:
                return 0
            for to in destinations(area, group * home.span, home.stripes):
                s.send(
                    self.stats.at(_F32 * stripe), self.own_stats, _F32, 2 * self.queries, to,
                    stride_d=self.query_bytes, stride_a=_F32, signal=arrived, sent=sent,
                )  # fmt: skip
                sends += 1
            for other in range(home.stripes):
                first = self.slices[other][0]
                for head, low, high in self._heads(other):
                    behind = self.space.most * head * self.head_width
                    at = _F32 * (behind + low - head * self.head_width)
                    s.send(
                        self.parts.at(stripe * self._part_bytes(other) + _F32 * (low - first)),
                        self.own_output.at(at),
                        _F32 * (high - low),
                        scope.total(s, self.space),
                        area.one(group * home.span + other),
                        stride_d=_F32 * self._columns(other),
                        stride_a=_F32 * self.head_width,
                        signal=arrived,
                        sent=sent,
                    )
                    sends += 1
            return sends

        def arrivals(core: CoreProgram) -> int:
            stripe = home.stripe(core.index)
            if stripe >= home.stripes:
                return 0
            columns = sum(1 for _ in self._heads(stripe))
            return home.stripes * (1 + columns)

        exchange_in_part(scope, sender, arrivals, [self.stats, self.parts])

    def emit(self, core: CoreProgram) -> None:
        """The columns of one core."""
        home = self.shape.home
        if home.stripe(core.index) >= home.stripes:
            return
        if home.stripes == 1:
            sums = self.stats.at(_F32 * self.queries)
            core.vector.v_un(Unary.RECIP, self.stats, sums, self.queries)
        else:
            self._emit_factors(core)
        self._emit_products(core)
        if home.stripes > 1:
            self._emit_sum(core)

    def _emit_factors(self, core: CoreProgram) -> None:
        """In the place of the maxima, what each stripe's output is to be multiplied by."""
        v, stripes, group = core.vector, self.shape.home.stripes, self.scope.group
        total = self.scope.buffer("stripes.total", _F32 * self.queries)
        product = self.scope.buffer("stripes.product", self.queries * self.query_bytes)
        sums = self.stats.at(self.queries * self.query_bytes)
        with v.stepping(self.queries, self.query_bytes, _F32) as (at, query):
            factors, largest = self.stats.at(0, at), total.at(0, query)
            v.v_red(Reduction.MAX, largest, factors, stripes)
            v.v_bins(Binary.SUB, factors, factors, largest, stripes)
        for first, count in group.pieces(self.queries * stripes):
            factors = self.stats.at(_F32 * first)
            v.v_un(Unary.EXP, factors, factors, count)
            v.v_bin(Binary.MUL, product.at(_F32 * first), factors, sums + _F32 * first, count)
        with v.stepping(self.queries, self.query_bytes, _F32) as (at, query):
            v.v_red(Reduction.SUM, total.at(0, query), product.at(0, at), stripes)
        v.v_un(Unary.RECIP, total, total, self.queries)
        with v.stepping(self.queries, self.query_bytes, _F32) as (at, query):
            factors = self.stats.at(0, at)
            v.v_bins(Binary.MUL, factors, factors, total.at(0, query), stripes)

    def _emit_products(self, core: CoreProgram) -> None:
        """Every stripe's part of the columns times its factor; of one stripe that is all."""
        shape, v = self.shape, core.vector
        stripes, e = shape.home.stripes, shape.home.kind.head_dim
        stripe = shape.home.stripe(core.index)
        first = self.slices[stripe][0]
        # With one stripe the part is its own output, where the heads of a row lie apart.
        row_step = _F32 * (self.head_width if stripes == 1 else self._columns(stripe))
        strides = (self.row_bytes, row_step, self.query_bytes * shape.heads)
        with v.stepping(self.scope.total(v, self.space), *strides) as (row, part_row, stat_row):
            for head, low, high in self._heads(stripe):
                behind = self.space.most * head
                for query in range(low // e, -(-high // e)):
                    begin, end = max(low, query * e), min(high, (query + 1) * e)
                    own = query - head * shape.heads
                    stat = self.query_bytes * (behind * shape.heads + own)
                    part = _F32 * (begin - first)
                    if stripes == 1:
                        at = _F32 * (behind * self.head_width + begin - head * self.head_width)
                        source = self.parts.at(at, part_row)
                        factor = self.stats.at(stat, stat_row)
                        v.v_bins(Binary.MUL, self.merged.at(part, row), source, factor, end - begin)
                        continue
                    with v.registers(2) as (other, factors):
                        v.mov(other, 0, part_row)
                        v.mov(factors, 0, stat_row)
                        with v.loop(stripes):
                            place = self.parts.at(part, other)
                            factor = self.stats.at(stat, factors)
                            v.v_bins(Binary.MUL, place, place, factor, end - begin)
                            v.add(other, other, imm=self._part_bytes(stripe))
                            v.add(factors, factors, imm=_F32)

    def _emit_sum(self, core: CoreProgram) -> None:
        """The parts of all stripes, in halves."""
        v, left = core.vector, self.shape.home.stripes
        stripe = self.shape.home.stripe(core.index)
        width, part_bytes = self._columns(stripe), self._part_bytes(stripe)
        while left > 1:
            half, last = left // 2, left == 2
            behind = (left - half) * part_bytes
            # A call of several rows may have fewer than there is room for.
            whole = self.space.most == 1
            for part in range(1 if whole else half):
                start = part * part_bytes
                strides = (_F32 * width, self.row_bytes)
                with v.stepping(self.scope.total(v, self.space), *strides) as (row, made):
                    for at, n in self.scope.group.pieces(half * width if whole else width):
                        place = self.parts.at(start + _F32 * at, row)
                        target = self.merged.at(_F32 * at, made) if last else place
                        v.v_bin(Binary.ADD, target, place, place + behind, n)
            left -= half
