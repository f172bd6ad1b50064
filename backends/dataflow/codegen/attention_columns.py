"""Attention with a query in each column: `scores[position][query]`.

What differs from query to query (maxima, sums) is then the same for whole vectors of positions:
maxima of columns are taken position by position, so that one instruction works on all queries and
as many positions as the vector unit takes. For a tile of queries and each tile of positions

    matrix: scores = keys . queries
    vector: maxima, factors = exp(before - maxima), sums, probabilities = exp(scores - maxima)
    vector: output *= factors
    matrix: output += values^T . probabilities              [e][query]
    matrix: result = (output / sums)^T                      once for a tile of queries

Matrices are transposed by multiplying them with the identity, which is exact; the output is rounded
to f16 for it. Values are transposed once for all queries of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd

from infc.backends.dataflow.codegen.attention_masks import emit_masks, emit_needed
from infc.backends.dataflow.codegen.attention_sources import HomeTiles, OwnRows
from infc.backends.dataflow.codegen.attention_tiles import (
    NO_MAXIMUM,
    TO_MATRIX,
    TO_VECTOR,
    TileShape,
)
from infc.backends.dataflow.codegen.memory import Address, Buffer
from infc.backends.dataflow.codegen.scope import Scope
from infc.backends.dataflow.codegen.stream import Register, Stream
from infc.backends.dataflow.isa import Binary, Conversion, Float, Unary
from infc.backends.dataflow.machine import Machine

_F32, _F16 = 4, 2
MOST_POSITIONS = 32
"""Positions of a vector at most: the last one of a tile may be mostly empty."""


def most_queries(machine: Machine) -> int:
    """Queries of a tile at most."""
    unit = machine.matrix
    return min(unit.m, unit.n, unit.k, machine.vector.native)


def identity(scope: Scope) -> Buffer:
    """The identity in f16 on every core, made where it is asked for first."""
    unit = scope.machine.matrix
    size = min(unit.m, unit.k)
    if scope.identity is None:
        scope.identity = scope.group.buffer("identity", _F16 * size * size, forever=True)
        one = scope.group.buffer("identity.one", _F32)
        for core in scope.cores:
            v = core.vector
            for at, count in scope.group.pieces(size * size // 2):
                v.v_fill(scope.identity.at(_F32 * at), 0.0, count)
            v.v_fill(one, 1.0, 1)
            with v.stepping(size, _F16 * (size + 1)) as (place,):
                v.v_cvt(Conversion.F32_F16, scope.identity.at(0, place), one, 1)
    return scope.identity


@dataclass(frozen=True)
class Positions:
    """A source of keys and values, as this kernel walks through it.

    Attributes:
        source: where its tiles are.
        values: f16 `[tile][chunk][e][position of the chunk]`.
        together: positions of a vector.
        chunk: positions of a product with probabilities.
    """

    source: OwnRows | HomeTiles
    values: Buffer
    together: int
    chunk: int


class AttentionColumns:
    """Emits the attention of tiles of queries `[row][head][e]`; the same on all cores of a group.

    Args:
        shape: of a tile; `most_queries` bounds its queries.
    """

    def __init__(self, scope: Scope, shape: TileShape) -> None:
        self.scope, self.shape, self.unit = scope, shape, scope.machine.matrix
        queries, e = shape.queries, shape.head_dim
        most = min(MOST_POSITIONS, max(1, scope.machine.vector.native // queries))
        self.together = 1 << (most.bit_length() - 1)
        buffer = scope.group.buffer
        self.scores = buffer("attention.scores", _F32 * shape.keys * max(queries, e))
        self.probabilities = buffer("attention.probabilities", _F16 * shape.keys * queries)
        self.work = buffer("attention.work", _F32 * self.together * queries)
        self.maxima = buffer("attention.maxima", _F32 * queries)
        self.sums = buffer("attention.sums", _F32 * queries)
        self.factors = buffer("attention.factors", _F32 * self.together * queries)
        self.output = buffer("attention.output", _F32 * e * queries)
        self.halves = buffer("attention.output.halves", _F16 * e * queries)
        self.identity = identity(scope)
        self.identity_bytes = _F16 * min(self.unit.m, self.unit.k)

    def positions(self, source: OwnRows | HomeTiles, values: Buffer) -> Positions:
        """How to walk through a source."""
        together = gcd(source.keys, self.together)
        vectors = source.keys // together
        fitting = max(self.unit.k // together, 1)
        chunk = next(n for n in range(min(fitting, vectors), 0, -1) if vectors % n == 0)
        return Positions(source, values, together, together * chunk)

    # ---- values

    def emit_values(self, s: Stream, positions: Positions) -> None:
        """Transpose the values of all tiles that the call may need; one stream's part."""
        source, size = positions.source, positions.source.keys * self.shape.head_dim
        with s.registers(3) as (tiles, at, made):
            self._emit_tiles(s, source, tiles, at)
            s.mov(made, 0)
            with s.loop(tiles):
                if s is s.core.matrix:
                    s.wait(TO_MATRIX)
                    self._emit_transposed(s, positions, at)
                    s.post(TO_VECTOR)
                    s.add(at, at, imm=source.keys * self.shape.row_bytes)
                else:
                    s.post(TO_MATRIX)
                    s.wait(TO_VECTOR)
                    for first, count in self.scope.group.pieces(size):
                        place = positions.values.at(_F16 * first, made)
                        s.v_cvt(Conversion.F32_F16, place, self.scores.at(_F32 * first), count)
                    s.add(made, made, imm=_F16 * size)

    def _emit_tiles(
        self, s: Stream, source: OwnRows | HomeTiles, tiles: Register, at: Register
    ) -> None:
        """How many tiles there are at most, and the place of the first one."""
        if isinstance(source, OwnRows):
            space = self.scope.spaces["t"]
            s.mov(tiles, source.keys - 1, self.scope.total(s, space))
            s.div(tiles, tiles, source.keys)
            s.mov(at, 0)
            return
        s.mov(tiles, source.keys - 1, source.queries.start)
        s.div(tiles, tiles, source.keys)
        s.least(tiles, tiles, 0, 0, source.home.held // source.keys)
        s.mov(at, 0, source.base)

    def _emit_transposed(self, s: Stream, positions: Positions, at: Register) -> None:
        source, unit, e = positions.source, self.unit, self.shape.head_dim
        values = source.place(at) + self.shape.value_offset
        deep = min(unit.m, unit.k)
        for first in range(0, source.keys, positions.chunk):
            for column in range(0, positions.chunk, unit.n):
                for row in range(0, e, deep):
                    rows = min(deep, e - row)
                    s.mm_f(
                        self.scores.at(_F32 * (first * e + row * positions.chunk + column)),
                        self.identity,
                        values + ((first + column) * self.shape.row_bytes + _F16 * row),
                        m=rows, n=min(unit.n, positions.chunk - column), k=rows,
                        form=Float.F16, stride_d=_F32 * positions.chunk,
                        stride_a=self.identity_bytes, stride_b=_F16,
                        stride_c=self.shape.row_bytes, acc=False,
                    )  # fmt: skip

    # ---- matrix

    def emit_matrix(
        self,
        s: Stream,
        queries: Address,
        rows: Register,
        walks: Sequence[Positions],
        result: Address,
    ) -> None:
        """The products of one tile of queries."""
        for positions in walks:
            source = positions.source
            with s.registers(4) as (left, first, at, needed):
                source.emit_range(left, first)
                source.emit_start(at, first)
                with s.loop(left):
                    emit_needed(s, source, rows, first, needed)
                    s.wait(TO_MATRIX)
                    self._emit_scores(s, source, queries, at, needed)
                    s.post(TO_VECTOR)
                    s.wait(TO_MATRIX)
                    self._emit_output(s, positions, at, needed)
                    source.emit_advance(at)
                    s.add(first, first, imm=source.keys)
        s.post(TO_VECTOR)
        s.wait(TO_MATRIX)
        e, tile = self.shape.head_dim, self.shape.queries
        with s.registers(1) as (count,):
            s.mul(count, rows, self.shape.heads)
            for column in range(0, e, self.unit.n):
                s.mm_f(
                    result + _F32 * column, self.identity, self.halves.at(_F16 * column * tile),
                    m=count, n=min(self.unit.n, e - column), k=tile, form=Float.F16,
                    stride_d=_F32 * e, stride_a=self.identity_bytes, stride_b=_F16,
                    stride_c=_F16 * tile, acc=False,
                )  # fmt: skip

    def _emit_scores(
        self,
        s: Stream,
        source: OwnRows | HomeTiles,
        queries: Address,
        at: Register,
        needed: Register,
    ) -> None:
        shape, unit, tile = self.shape, self.unit, self.shape.queries
        with s.registers(5) as (turns, left, m, key, score):
            s.mov(left, 0, needed)
            s.mov(turns, unit.m - 1, needed)
            s.div(turns, turns, unit.m)
            s.mov(key, 0, at)
            s.mov(score, 0)
            with s.loop(turns):
                s.least(m, left, 0, 0, unit.m)
                for depth in range(0, shape.head_dim, unit.k):
                    s.mm_f(
                        self.scores.at(0, score), source.place(key) + _F16 * depth,
                        queries + _F16 * depth, m=m, n=tile, k=min(unit.k, shape.head_dim - depth),
                        form=Float.F16, stride_d=_F32 * tile, stride_a=shape.row_bytes,
                        stride_b=_F16, stride_c=_F16 * shape.head_dim, acc=depth > 0,
                    )  # fmt: skip
                s.add(left, left, imm=-unit.m)
                s.add(key, key, imm=unit.m * shape.row_bytes)
                s.add(score, score, imm=_F32 * unit.m * tile)

    def _emit_output(self, s: Stream, positions: Positions, at: Register, needed: Register) -> None:
        source, chunk = positions.source, positions.chunk
        e, tile = self.shape.head_dim, self.shape.queries
        with s.registers(3) as (turns, value, probability):
            # Bytes of rows in front of the tile are as many elements of values, twice.
            s.mov(value, 0, at)
            if isinstance(source, HomeTiles):
                with s.registers(1) as (minus,):
                    s.mul(minus, source.base, -1)
                    s.add(value, value, minus)
            s.div(value, value, self.shape.row_bytes)
            s.mul(value, value, _F16 * e)
            s.mov(probability, 0)
            s.mov(turns, chunk - 1, needed)
            s.div(turns, turns, chunk)
            with s.loop(turns):
                for row in range(0, e, self.unit.m):
                    s.mm_f(
                        self.output.at(_F32 * row * tile),
                        positions.values.at(_F16 * row * chunk, value),
                        self.probabilities.at(0, probability),
                        m=min(self.unit.m, e - row), n=tile, k=chunk, form=Float.F16,
                        stride_d=_F32 * tile, stride_a=_F16 * chunk, stride_b=_F16 * tile,
                        stride_c=_F16, acc=True,
                    )  # fmt: skip
                s.add(value, value, imm=_F16 * e * chunk)
                s.add(probability, probability, imm=_F16 * chunk * tile)

    # ---- vector

    def emit_vector(self, v: Stream, rows: Register, walks: Sequence[Positions]) -> None:
        """What belongs to `emit_matrix`; the result is there when the matrix stream says so."""
        tile, e = self.shape.queries, self.shape.head_dim
        v.v_fill(self.maxima, NO_MAXIMUM, tile)
        v.v_fill(self.sums, 0.0, tile)
        for at, count in self.scope.group.pieces(e * tile):
            v.v_fill(self.output.at(_F32 * at), 0.0, count)
        for positions in walks:
            with v.registers(4) as (left, first, needed, vectors):
                positions.source.emit_range(left, first)
                with v.loop(left):
                    v.post(TO_MATRIX)
                    emit_needed(v, positions.source, rows, first, needed)
                    v.mov(vectors, positions.together - 1, needed)
                    v.div(vectors, vectors, positions.together)
                    v.wait(TO_VECTOR)
                    emit_masks(
                        v, positions.source, self.shape, self.scores,
                        first=first, needed=needed, together=positions.together,
                    )  # fmt: skip
                    self._emit_softmax(v, positions, vectors)
                    v.post(TO_MATRIX)
                    v.add(first, first, imm=positions.source.keys)
        v.wait(TO_VECTOR)
        v.v_un(Unary.RECIP, self.factors, self.sums, tile)
        self._emit_output_times_factors(v)
        for at, count in self.scope.group.pieces(e * tile):
            place = self.halves.at(_F16 * at)
            v.v_cvt(Conversion.F32_F16, place, self.output.at(_F32 * at), count)
        v.post(TO_MATRIX)

    def _emit_softmax(self, v: Stream, positions: Positions, vectors: Register) -> None:
        together, tile = positions.together, self.shape.queries
        count = together * tile
        strides = (_F32 * count, _F16 * count)
        v.v_fill(self.work, NO_MAXIMUM, count)
        with v.stepping(vectors, strides[0]) as (score,):
            v.v_bin(Binary.MAX, self.work, self.work, self.scores.at(0, score), count)
        self._emit_tree(v, Binary.MAX, together)
        v.v_bin(Binary.MAX, self.work, self.work, self.maxima, tile)
        v.v_bin(Binary.SUB, self.factors, self.maxima, self.work, tile)
        v.v_un(Unary.EXP, self.factors, self.factors, tile)
        v.v_un(Unary.COPY, self.maxima, self.work, tile)
        self._emit_replicas(v, self.work, together)
        with v.stepping(vectors, strides[0]) as (score,):
            place = self.scores.at(0, score)
            v.v_bin(Binary.SUB, place, place, self.work, count)
            v.v_un(Unary.EXP, place, place, count)
        v.v_fill(self.work, 0.0, count)
        with v.stepping(vectors, *strides) as (score, probability):
            place = self.scores.at(0, score)
            v.v_bin(Binary.ADD, self.work, self.work, place, count)
            v.v_cvt(Conversion.F32_F16, self.probabilities.at(0, probability), place, count)
        self._emit_tree(v, Binary.ADD, together)
        v.v_bin(Binary.MUL, self.sums, self.sums, self.factors, tile)
        v.v_bin(Binary.ADD, self.sums, self.sums, self.work, tile)
        self._emit_rest(v, positions, vectors)
        self._emit_output_times_factors(v)

    def _emit_rest(self, v: Stream, positions: Positions, vectors: Register) -> None:
        """No probability for positions behind the last vector, as far as its product goes."""
        count = positions.together * self.shape.queries
        inside = positions.chunk // positions.together
        if inside == 1:
            return
        with v.registers(2) as (rest, place):
            v.mul(rest, vectors, -1)
            v.mod(rest, rest, inside)
            v.v_fill(self.work, 0.0, count)
            v.mul(place, vectors, _F16 * count)
            with v.loop(rest):
                v.v_cvt(Conversion.F32_F16, self.probabilities.at(0, place), self.work, count)
                v.add(place, place, imm=_F16 * count)

    def _emit_tree(self, v: Stream, operation: Binary, together: int) -> None:
        """The first row of `work` becomes that of all rows."""
        tile, half = self.shape.queries, together // 2
        while half:
            v.v_bin(operation, self.work, self.work, self.work.at(_F32 * half * tile), half * tile)
            half //= 2

    def _emit_replicas(self, v: Stream, rows: Buffer, together: int) -> None:
        """All rows become the first one."""
        tile, made = self.shape.queries, 1
        while made < together:
            v.v_un(Unary.COPY, rows.at(_F32 * made * tile), rows, made * tile)
            made *= 2

    def _emit_output_times_factors(self, v: Stream) -> None:
        tile, e = self.shape.queries, self.shape.head_dim
        together = gcd(self.together, e)
        self._emit_replicas(v, self.factors, together)
        with v.stepping(e // together, _F32 * together * tile) as (place,):
            row = self.output.at(0, place)
            v.v_bin(Binary.MUL, row, row, self.factors, together * tile)
