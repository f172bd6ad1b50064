"""Attention where rows are shared: each core of a group takes the queries of some rows.

Queries go from the cores that own the rows to the group of each kv head: rows of core i to stripe
i modulo `span`, so that late rows, which see more, are spread. Results go back the same way.
Each core attends to the call's own rows, which it has all, and to what earlier calls left.
"""

from __future__ import annotations

from infc.backends.dataflow.codegen.attention_columns import (
    AttentionColumns,
    Positions,
    most_queries,
)
from infc.backends.dataflow.codegen.attention_shape import (
    NO_REGISTER,
    AttentionShape,
    emit_queries,
)
from infc.backends.dataflow.codegen.attention_sources import HomeTiles, OwnRows
from infc.backends.dataflow.codegen.attention_tiles import AttentionTiles, Partial, Source
from infc.backends.dataflow.codegen.builder import CoreProgram
from infc.backends.dataflow.codegen.exchange import rows_of
from infc.backends.dataflow.codegen.kv_gather import gather_earlier
from infc.backends.dataflow.codegen.kv_rows import exchange_in_part, own_keys
from infc.backends.dataflow.codegen.memory import Buffer
from infc.backends.dataflow.codegen.scope import Scope
from infc.backends.dataflow.codegen.stream import Register, Stream
from infc.backends.dataflow.codegen.values import Rows
from infc.backends.dataflow.isa import Binary, Conversion, Unary

_F32, _F16 = 4, 2


def attend_by_rows(scope: Scope, shape: AttentionShape, q: Rows) -> Rows:
    """The attention of all heads, by rows."""
    by_columns = scope.kv_ring is None and shape.heads <= most_queries(scope.machine)
    kind = _ByColumns if by_columns and scope.phase == "prefill" else _ByRows
    attention = kind(scope, shape, q)
    attention.queries()
    attention.earlier = gather_earlier(scope, shape)
    for core in scope.cores:
        for head in range(shape.home.heads):
            attention.emit(core, head)
    shape.emit_append()
    return attention.result()


class _ByRows:
    """
    Attributes:
        width: columns of the query heads of a kv head.
        queries_at: f16 `[head of the group][turn][row][query head][e]`; in its turn are the rows of
            one core that owns them.
        outputs_at: f32, the same.
        earlier: keys and values that earlier calls left, of all stripes; None where the core has
            them at home.
    """

    earlier: Buffer | None = None

    def __init__(self, scope: Scope, shape: AttentionShape, q: Rows) -> None:
        self.scope, self.shape, self.q = scope, shape, q
        self.home, self.space = shape.home, q.space
        self.width = shape.heads * self.home.kind.head_dim
        most = max(1, self.most_queries() // shape.heads)
        tiles = -(-self.space.owned // most)
        self.tile = shape.tile(-(-self.space.owned // tiles))
        # Rows of a turn.
        self.rows = tiles * self.tile.rows
        self.turns = self.home.groups
        self.head_rows = self.turns * self.rows
        whole = self.home.heads * self.head_rows * self.width
        self.queries_at = scope.buffer("queries", _F16 * whole)
        self.outputs_at = scope.buffer("outputs", _F32 * whole)
        self.prepare()

    def most_queries(self) -> int:
        """Of a tile."""
        return self.scope.machine.matrix.m

    def prepare(self) -> None:
        """Buffers of a tile."""
        scope = self.scope
        stats = _F32 * self.tile.queries
        self.partial = Partial(
            scope.buffer("tile.maxima", stats).at(),
            scope.buffer("tile.sums", stats).at(),
            scope.buffer("tile.output", stats * self.tile.head_dim).at(),
        )
        self.attention = AttentionTiles(scope.group, scope.machine.matrix, self.tile, self.partial)

    def queries(self) -> None:
        """To the cores that attend with them."""
        scope, home, shape = self.scope, self.home, self.shape
        if not self.space.shared:
            head_bytes = _F16 * self.rows * self.width
            for core in scope.cores:
                emit_queries(
                    scope, core, self.q, self.queries_at, shape=shape, first=0,
                    count=home.kind.kv_heads, head_bytes=head_bytes,
                )  # fmt: skip
            return
        own = scope.buffer("queries.own", _F16 * self.rows * self.q.width)
        for core in scope.cores:
            self._emit_halves(core, own)

        def sender(core: CoreProgram, arrived: str, sent: str) -> int:
            turn, place = divmod(core.index, home.span)
            for kv_head in range(home.kind.kv_heads):
                group, head = divmod(kv_head, home.heads)
                core.send.send(
                    self.queries_at.at(
                        _F16 * (head * self.head_rows + turn * self.rows) * self.width
                    ),
                    own.at(_F16 * kv_head * self.width),
                    _F16 * self.width,
                    scope.own(core.send, self.space),
                    scope.group.area.one(group * home.span + place),
                    stride_d=_F16 * self.width,
                    stride_a=_F16 * self.q.width,
                    signal=arrived,
                    sent=sent,
                )
            return home.kind.kv_heads

        exchange_in_part(scope, sender, self.turns * home.heads, [self.queries_at])

    def _emit_halves(self, core: CoreProgram, target: Buffer) -> None:
        """Own rows of the queries of all heads times the scale, in f16."""
        v, q, scope = core.vector, self.q, self.scope
        scaled = scope.buffer("queries.scaled", _F32 * min(scope.group.native, q.width))
        with v.stepping(scope.own(v, q.space), q.row_bytes, _F16 * q.width) as (row, place):
            for at, n in scope.group.pieces(q.width):
                source, made = q.buffer.at(_F32 * at, row), target.at(_F16 * at, place)
                v.v_imm(Binary.MUL, scaled, source, self.shape.scale, n)
                v.v_cvt(Conversion.F32_F16, made, scaled, n)

    def emit(self, core: CoreProgram, head: int) -> None:
        """One kv head on one core."""
        self._emit_turns(core.matrix, head)
        self._emit_turns(core.vector, head)

    def _emit_turns(self, s: Stream, head: int) -> None:
        """All queries, tile by tile of rows of one owner."""
        scope, space, home = self.scope, self.space, self.home
        total, stripe = scope.total(s, space), home.stripe(s.core.index)
        cores, step = len(scope.cores), _F16 * self.width
        with s.registers(6) as (share, first, row, left, rows, place):
            if isinstance(total, Register):
                s.mov(share, cores - 1, total)
            else:
                s.mov(share, total + cores - 1)
            s.div(share, share, cores)
            s.mul(first, share, stripe)
            s.mov(place, head * self.head_rows * step)
            with s.loop(self.turns):
                # Rows of this turn: what is left of the call, the share at most.
                s.mul(left, first, -1)
                if isinstance(total, Register):
                    s.add(left, left, total)
                else:
                    s.add(left, left, imm=total)
                s.most(left, left)
                s.least(left, left, 0, share)
                s.mov(row, 0, first)
                self._emit_tiles(s, head, (row, left, rows, place))
                with s.registers(1) as (span,):
                    s.mul(span, share, home.span)
                    s.add(first, first, span)
        # `place` went on with the rows that were there only in whole turns.

    def _emit_tiles(
        self, s: Stream, head: int, at: tuple[Register, Register, Register, Register]
    ) -> None:
        """The tiles of a turn; `place` is at the next turn's then."""
        row, left, rows, place = at
        step, most = _F16 * self.width, self.tile.rows
        with s.registers(2) as (tiles, here):
            s.mov(here, 0, place)
            s.mov(tiles, most - 1, left)
            s.div(tiles, tiles, most)
            self.emit_turn(s, left, here)
            with s.loop(tiles):
                s.least(rows, left, 0, 0, most)
                self.emit_tile(s, self.sources(s, head, row, rows), rows, here)
                s.add(here, here, imm=most * step)
                s.add(row, row, rows)
                s.add(left, left, imm=-most)
            s.add(place, place, imm=self.rows * step)

    def emit_turn(self, s: Stream, left: Register, here: Register) -> None:
        """In front of the tiles of a turn with so many rows."""

    def emit_tile(self, s: Stream, sources: list[Source], rows: Register, here: Register) -> None:
        """One tile of queries, on one stream; `here` are its bytes among all queries."""
        if s is s.core.matrix:
            self.attention.emit_matrix(s, self.queries_at.at(0, here), rows, sources)
        else:
            self.attention.emit_vector(s, rows, sources)
            self._emit_outputs(s, rows, here)

    def sources(self, s: Stream, head: int, row: Register, rows: Register) -> list[Source]:
        """What earlier calls left, and the call's own rows."""
        queries = self.shape.queries(s, row, rows)
        if self.earlier is None:
            earlier = self.shape.earlier_tiles(queries, head)
        else:
            earlier = self.shape.gathered_tiles(queries, head, self.earlier)
        return [earlier, self.shape.own_rows(queries, head)]

    def _emit_outputs(self, v: Stream, rows: Register, here: Register) -> None:
        """What the tile made, divided by its sums, to its place among all."""
        tile, partial = self.tile, self.partial
        e, heads = tile.head_dim, tile.heads
        v.v_un(Unary.RECIP, partial.sums, partial.sums, tile.queries)
        with v.registers(1) as (to,):
            # f32 rows are twice as far apart as those of the queries.
            v.mul(to, here, _F32 // _F16)
            with v.stepping(rows, _F32 * self.width, _F32 * heads) as (source, stat):
                for query in range(heads):
                    v.v_bins(
                        Binary.MUL,
                        self.outputs_at.at(_F32 * query * e, to),
                        (partial.output + _F32 * query * e).indexed(source),
                        (partial.sums + _F32 * query).indexed(stat),
                        e,
                    )
                v.add(to, to, imm=_F32 * self.width)

    def result(self) -> Rows:
        """To the cores that own the rows."""
        scope, home = self.scope, self.home
        width = home.kind.kv_heads * self.width
        result = Rows(self.space, scope.buffer("attended", _F32 * self.space.owned * width), width)
        if not self.space.shared:
            self._gather_heads(result)
            return result

        def sender(core: CoreProgram, arrived: str, sent: str) -> int:
            s = core.send
            group, place = divmod(core.index, home.span)
            with s.registers(2) as (first, rows):
                for turn in range(self.turns):
                    owner = turn * home.span + place
                    rows_of(scope, s, self.space, owner, first, rows)
                    for head in range(home.heads):
                        at = (head * self.head_rows + turn * self.rows) * self.width
                        column = (group * home.heads + head) * self.width
                        s.send(
                            result.buffer.at(_F32 * column),
                            self.outputs_at.at(_F32 * at),
                            _F32 * self.width,
                            rows,
                            scope.group.area.one(owner),
                            stride_d=result.row_bytes,
                            stride_a=_F32 * self.width,
                            signal=arrived,
                            sent=sent,
                        )
            return self.turns * home.heads

        exchange_in_part(scope, sender, home.kind.kv_heads, [result.buffer])
        return result

    def _gather_heads(self, result: Rows) -> None:
        """On a single core, from one head behind the other to rows."""
        for core in self.scope.cores:
            v = core.vector
            rows = self.scope.total(v, self.space)
            with v.stepping(rows, _F32 * self.width, result.row_bytes) as (source, target):
                for head in range(self.home.heads):
                    for at, n in self.scope.group.pieces(self.width):
                        place = result.buffer.at(_F32 * (head * self.width + at), target)
                        made = self.outputs_at.at(
                            _F32 * (head * self.head_rows * self.width + at), source
                        )
                        v.v_un(Unary.COPY, place, made, n)


class _ByColumns(_ByRows):
    """The same with a query in each column.

    Attributes:
        values: transposed, of the head at hand: what earlier calls left, and own rows.
    """

    def most_queries(self) -> int:
        """Of a tile."""
        return most_queries(self.scope.machine)

    def prepare(self) -> None:
        """Buffers of a tile, and of the values of a head."""
        scope, e = self.scope, self.home.kind.head_dim
        self.columns = AttentionColumns(scope, self.tile)
        keys = own_keys(scope.machine, self.space)
        own = -(-self.space.most // keys) * keys
        self.values = [
            scope.buffer("values.earlier", _F16 * self.home.gathered.held * e),
            scope.buffer("values.own", _F16 * own * e),
        ]

    def emit(self, core: CoreProgram, head: int) -> None:
        """One kv head on one core."""
        for place in range(len(self.values)):
            for s in (core.matrix, core.vector):
                sources = self.sources(s, head, NO_REGISTER, NO_REGISTER)
                self.columns.emit_values(s, self._walks(sources)[place])
        super().emit(core, head)
        core.hand(core.matrix, core.vector)

    def _walks(self, sources: list[Source]) -> list[Positions]:
        return [
            self.columns.positions(source, values)
            for source, values in zip(sources, self.values, strict=True)
            if isinstance(source, HomeTiles | OwnRows)
        ]

    def emit_turn(self, s: Stream, left: Register, here: Register) -> None:
        """Queries that are not there are zeros, as far as the last tile goes."""
        if s is s.core.matrix:
            return
        with s.registers(2) as (missing, place):
            s.mul(missing, left, -1)
            s.mod(missing, missing, self.tile.rows)
            s.mul(place, left, _F16 * self.width)
            s.add(place, place, here)
            with s.loop(missing):
                for at, count in self.scope.group.pieces(self.width * _F16 // _F32):
                    s.v_fill(self.queries_at.at(_F32 * at, place), 0.0, count)
                s.add(place, place, imm=_F16 * self.width)

    def emit_tile(self, s: Stream, sources: list[Source], rows: Register, here: Register) -> None:
        """One tile of queries, on one stream; `here` are its bytes among all queries."""
        walks = self._walks(sources)
        if s is not s.core.matrix:
            self.columns.emit_vector(s, rows, walks)
            return
        with s.registers(1) as (to,):
            s.mul(to, here, _F32 // _F16)
            queries = self.queries_at.at(0, here)
            self.columns.emit_matrix(s, queries, rows, walks, self.outputs_at.at(0, to))
