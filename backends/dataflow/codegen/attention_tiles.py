"""Attention of some queries to keys and values that lie in SRAM, tile by tile of positions.

The queries of a tile are `rows` tokens times the query `heads` of one kv head: `[row][head][e]` in
f16, with the scale in them. For each tile of positions

    matrix: scores = queries . keys         (of the next tile while the vector unit is at this one)
    vector: maxima, factors = exp(before - maxima), sums, probabilities = exp(scores - maxima)
    vector: output *= factors
    matrix: output += probabilities . values

Scores of positions that a row does not see are put far below all others. What a `Source` knows is
where tiles are and what a row sees.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from infc.backends.dataflow.codegen.builder import Group
from infc.backends.dataflow.codegen.local_positions import emit_clamp
from infc.backends.dataflow.codegen.memory import Address
from infc.backends.dataflow.codegen.stream import Count, Register, Stream
from infc.backends.dataflow.isa import Binary, Conversion, Float, Reduction, Unary
from infc.backends.dataflow.machine import MatrixUnit

TO_MATRIX, TO_VECTOR = "vector>matrix", "matrix>vector"
NO_MAXIMUM = -1e30
"""The maximum of no scores: far below every score, and no infinity, whose differences are NaN."""
HIDDEN = -2e30
"""A score that does not count: its exponential is 0 also where no score counts."""
_F32, _F16 = 4, 2


@dataclass(frozen=True)
class TileShape:
    """What attention takes at a time.

    Attributes:
        rows: the most tokens.
        heads: query heads of a kv head.
        head_dim: elements of a head, e.
        keys: positions, of the source with the largest tiles.
        row_bytes, value_offset: of a position's row of keys and values.
        softcap: of scores, 0 for none.
        window: 0 for none.
    """

    rows: int
    heads: int
    head_dim: int
    keys: int
    row_bytes: int
    value_offset: int
    softcap: float
    window: int

    @property
    def queries(self) -> int:
        """Rows of the products."""
        return self.rows * self.heads


class Source(Protocol):
    """Tiles of keys and values of one kv head, as one stream sees them.

    Positions are counted as the source likes. Its registers belong to the stream.
    """

    @property
    def keys(self) -> int:
        """Positions of a tile."""

    def emit_range(self, count: Register, first: Register) -> None:
        """How many tiles the queries at hand need, and the first position of the first one."""

    def emit_seen(self, row: Register, until: Register, since: Register | None) -> None:
        """The row sees `[since, until)`; `since` is given where there is a window."""

    def emit_start(self, at: Register, first: Register) -> None:
        """at = the place of the first tile, whose first position is `first`."""

    def emit_advance(self, at: Register) -> None:
        """at = the place of the next tile."""

    def place(self, at: Register) -> Address:
        """The first row of the tile at a place."""

    def emit_acquire(self) -> None:
        """Wait until the next tile is there."""

    def emit_release(self) -> None:
        """The oldest tile may be overwritten."""


class _Query(NamedTuple):
    """One query and what it sees of a tile: registers of the vector stream.

    Attributes:
        scores: of the tile.
        stat: the offset of its statistics.
        seen, visible: the scores that count, and how many.
        tail, hidden: those behind them.
        before: how many are in front of them, where there is a window.
    """

    scores: Address
    stat: Register
    seen: Address
    visible: Register
    tail: Address
    hidden: Register
    before: Register | None


class Partial(NamedTuple):
    """What attention to some of the positions makes.

    Attributes:
        maxima: of the scores, f32 `[row][head]`.
        sums: of the exponentials, f32 `[row][head]`.
        output: their mix of values, not divided by the sums, f32 `[row][head][e]`.
    """

    maxima: Address
    sums: Address
    output: Address


class AttentionTiles:
    """Emits the attention of one tile of queries; the same on all cores of a group."""

    def __init__(
        self, group: Group, matrix: MatrixUnit, shape: TileShape, partial: Partial
    ) -> None:
        self.group, self.matrix_unit, self.shape = group, matrix, shape
        self.maxima, self.sums, self.output = partial
        stats, scores = _F32 * shape.queries, shape.queries * shape.keys
        self.scores = group.buffer("attention.scores", 2 * _F32 * scores)
        self.probabilities = group.buffer("attention.probabilities", _F16 * scores)
        self.factors = group.buffer("attention.factors", stats)

    # ---- matrix

    def emit_matrix(
        self, stream: Stream, queries: Address, rows: Count, sources: Sequence[Source]
    ) -> None:
        """The products; they begin when the vector stream posts for the first time."""
        stream.wait(TO_MATRIX)
        if isinstance(rows, Register):
            with stream.registers(1) as (count,):
                stream.mul(count, rows, self.shape.heads)
                for source in sources:
                    self._emit_products(stream, queries, count, source)
        else:
            for source in sources:
                self._emit_products(stream, queries, rows * self.shape.heads, source)
        stream.post(TO_VECTOR)

    def _emit_products(
        self, stream: Stream, queries: Address, count: Count, source: Source
    ) -> None:
        step = self._scores_bytes(source)
        with stream.registers(5) as (left, at, following, parity, more):
            # `following` holds the first position until the first place is known.
            source.emit_range(left, following)
            source.emit_start(at, following)
            stream.mov(parity, 0)
            stream.least(more, left, 0, 0, 1)
            with stream.loop(more):
                source.emit_acquire()
                self._emit_scores(stream, queries, source, at, count, parity)
                stream.post(TO_VECTOR)
            with stream.loop(left):
                stream.add(left, left, imm=-1)
                stream.least(more, left, 0, 0, 1)
                stream.add(parity, parity, imm=step)
                stream.wrap(parity, 2 * step, 2 * step)
                stream.mov(following, 0, at)
                source.emit_advance(following)
                with stream.loop(more):
                    source.emit_acquire()
                    self._emit_scores(stream, queries, source, following, count, parity)
                # Said in every turn: the products before these have ended too.
                stream.post(TO_VECTOR)
                stream.wait(TO_MATRIX)
                self._emit_output(stream, source, at, count)
                source.emit_release()
                stream.mov(at, 0, following)

    def _scores_bytes(self, source: Source) -> int:
        return _F32 * self.shape.queries * source.keys

    def _emit_scores(
        self,
        stream: Stream,
        queries: Address,
        source: Source,
        at: Register,
        count: Count,
        parity: Register,
    ) -> None:
        shape, unit, keys = self.shape, self.matrix_unit, source.place(at)
        for first in range(0, source.keys, unit.n):
            for depth in range(0, shape.head_dim, unit.k):
                stream.mm_f(
                    self.scores.at(_F32 * first, parity),
                    queries + _F16 * depth,
                    keys + (first * shape.row_bytes + _F16 * depth),
                    m=count,
                    n=min(unit.n, source.keys - first),
                    k=min(unit.k, shape.head_dim - depth),
                    form=Float.F16,
                    stride_d=_F32 * source.keys,
                    stride_a=_F16 * shape.head_dim,
                    stride_b=_F16,
                    stride_c=shape.row_bytes,
                    acc=depth > 0,
                )

    def _emit_output(self, stream: Stream, source: Source, at: Register, count: Count) -> None:
        shape, unit = self.shape, self.matrix_unit
        values = source.place(at) + shape.value_offset
        for first in range(0, shape.head_dim, unit.n):
            for depth in range(0, source.keys, unit.k):
                stream.mm_f(
                    self.output + _F32 * first,
                    self.probabilities.at(_F16 * depth),
                    values + (_F16 * first + depth * shape.row_bytes),
                    m=count,
                    n=min(unit.n, shape.head_dim - first),
                    k=min(unit.k, source.keys - depth),
                    form=Float.F16,
                    stride_d=_F32 * shape.head_dim,
                    stride_a=_F16 * source.keys,
                    stride_b=shape.row_bytes,
                    stride_c=_F16,
                    acc=True,
                )

    # ---- vector

    def emit_vector(self, stream: Stream, rows: Count, sources: Sequence[Source]) -> None:
        """The queries are there; behind this the results are."""
        shape = self.shape
        stream.v_fill(self.maxima, NO_MAXIMUM, shape.queries)
        stream.v_fill(self.sums, 0.0, shape.queries)
        for at, count in self.group.pieces(shape.queries * shape.head_dim):
            stream.v_fill(self.output + _F32 * at, 0.0, count)
        stream.post(TO_MATRIX)
        with stream.registers(1) as (again,):
            stream.mov(again, 0)
            for source in sources:
                self._emit_source(stream, rows, source, again)
        stream.wait(TO_VECTOR)

    def _emit_source(self, stream: Stream, rows: Count, source: Source, again: Register) -> None:
        """All tiles of a source; `again` is 1 behind the first tile of all."""
        step = self._scores_bytes(source)
        with stream.registers(3) as (left, base, parity):
            source.emit_range(left, base)
            # Added to a position it gives the place in the tile.
            stream.mul(base, base, -1)
            with stream.registers(1) as (any_tile,):
                stream.least(any_tile, left, 0, 0, 1)
                stream.wait(TO_VECTOR, any_tile)
            stream.mov(parity, 0)
            with stream.loop(left):
                self._emit_softmax(stream, rows, source, (base, parity, again))
                stream.post(TO_MATRIX)
                stream.mov(again, 1)
                stream.add(base, base, imm=-source.keys)
                stream.add(parity, parity, imm=step)
                stream.wrap(parity, 2 * step, 2 * step)

    def _emit_softmax(
        self,
        stream: Stream,
        rows: Count,
        source: Source,
        at: tuple[Register, Register, Register],
    ) -> None:
        softcap, queries, keys = self.shape.softcap, self.shape.queries, source.keys
        base, parity, again = at
        with stream.loop(again):
            stream.v_un(Unary.COPY, self.factors, self.maxima, queries)
        with self._each_query(stream, rows, source, base, parity) as query:
            if softcap:
                stream.v_imm(Binary.MUL, query.seen, query.seen, 1 / softcap, query.visible)
                stream.v_un(Unary.TANH, query.seen, query.seen, query.visible)
                stream.v_imm(Binary.MUL, query.seen, query.seen, softcap, query.visible)
            stream.v_fill(query.tail, HIDDEN, query.hidden)
            if query.before is not None:
                stream.v_fill(query.scores, HIDDEN, query.before)
            largest = self.maxima.indexed(query.stat)
            stream.v_red(Reduction.MAX, largest, query.scores, keys, acc=True)
        with stream.loop(again):
            stream.v_bin(Binary.SUB, self.factors, self.factors, self.maxima, queries)
            stream.v_un(Unary.EXP, self.factors, self.factors, queries)
            stream.v_bin(Binary.MUL, self.sums, self.sums, self.factors, queries)
        # The products that read the probabilities and wrote the output before have ended.
        stream.wait(TO_VECTOR)
        self._emit_probabilities(stream, rows, source, parity, again)

    def _emit_probabilities(
        self, stream: Stream, rows: Count, source: Source, parity: Register, again: Register
    ) -> None:
        """Exponentials, their sums, and the output so far brought to the new maxima."""
        heads, head_dim, keys = self.shape.heads, self.shape.head_dim, source.keys
        width = heads * keys
        with stream.registers(1) as (scores,):
            stream.mov(scores, 0, parity)
            strides = (_F16 * width, _F32 * heads, _F32 * heads * head_dim)
            with stream.stepping(rows, *strides) as (probabilities, stat, output):
                for head in range(heads):
                    place = self.scores.at(_F32 * head * keys, scores)
                    largest = (self.maxima + _F32 * head).indexed(stat)
                    stream.v_bins(Binary.SUB, place, place, largest, keys)
                for at, count in self.group.pieces(width):
                    place = self.scores.at(_F32 * at, scores)
                    stream.v_un(Unary.EXP, place, place, count)
                    made = self.probabilities.at(_F16 * at, probabilities)
                    stream.v_cvt(Conversion.F32_F16, made, place, count)
                for head in range(heads):
                    place = self.scores.at(_F32 * head * keys, scores)
                    total = (self.sums + _F32 * head).indexed(stat)
                    stream.v_red(Reduction.SUM, total, place, keys, acc=True)
                with stream.loop(again):
                    for head in range(heads):
                        place = (self.output + _F32 * head * head_dim).indexed(output)
                        factor = self.factors.at(_F32 * head, stat)
                        stream.v_bins(Binary.MUL, place, place, factor, head_dim)
                stream.add(scores, scores, imm=_F32 * width)

    @contextmanager
    def _each_query(
        self, stream: Stream, rows: Count, source: Source, base: Register, parity: Register
    ) -> Iterator[_Query]:
        """The body once for each query, with what it sees of the tile."""
        shape, window = self.shape, self.shape.window > 0
        with stream.registers(9) as (
            row, scores, stat, until, since, hidden, count, first, behind,
        ):  # fmt: skip
            stream.mov(row, 0)
            stream.mov(scores, 0, parity)
            stream.mov(stat, 0)
            with stream.loop(rows):
                source.emit_seen(row, until, since if window else None)
                stream.add(until, until, base)
                emit_clamp(stream, until, 0, source.keys)
                stream.mul(hidden, until, -1)
                if window:
                    stream.add(since, since, base)
                    emit_clamp(stream, since, 0, source.keys)
                    stream.mul(count, since, -1)
                    stream.add(count, count, until)
                else:
                    stream.mov(count, 0, until)
                stream.add(hidden, hidden, imm=source.keys)
                stream.mul(until, until, _F32)
                with stream.loop(shape.heads):
                    if window:
                        stream.mul(first, since, _F32)
                        stream.add(first, first, scores)
                    stream.add(behind, until, scores)
                    yield _Query(
                        self.scores.at(0, scores),
                        stat,
                        self.scores.at(0, first if window else scores),
                        count,
                        self.scores.at(0, behind),
                        hidden,
                        since if window else None,
                    )
                    stream.add(scores, scores, imm=_F32 * source.keys)
                    stream.add(stat, stat, imm=_F32)
                stream.add(row, row, imm=1)
