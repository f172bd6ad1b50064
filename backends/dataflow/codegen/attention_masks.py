"""Which positions the queries of a tile see, where each query has a column.

Row r of a tile sees the positions below `until`, and where there is a window those from
`since + r` on; among the call's own rows `until` grows with r, too. Both count from the tile's
first position here.
"""

from __future__ import annotations

from infc.backends.dataflow.codegen.attention_sources import HomeTiles, OwnRows
from infc.backends.dataflow.codegen.attention_tiles import HIDDEN, TileShape
from infc.backends.dataflow.codegen.local_positions import emit_clamp
from infc.backends.dataflow.codegen.memory import Buffer
from infc.backends.dataflow.codegen.stream import Register, Stream
from infc.backends.dataflow.isa import Binary, Unary

_F32 = 4


def emit_needed(
    s: Stream, source: OwnRows | HomeTiles, rows: Register, first: Register, needed: Register
) -> None:
    """needed = the positions of the tile from `first` on that any row sees."""
    with s.registers(1) as (last,):
        s.add(last, rows, imm=-1)
        source.emit_seen(last, needed, None)
    _emit_minus(s, needed, first)
    emit_clamp(s, needed, 0, source.keys)


def emit_masks(
    v: Stream,
    source: OwnRows | HomeTiles,
    shape: TileShape,
    scores: Buffer,
    *,
    first: Register,
    needed: Register,
    together: int,
) -> None:
    """Soft caps, and scores that do not count; whole vectors of `together` positions are filled."""
    _emit_behind(v, shape, scores, needed, together)
    if shape.softcap:
        _emit_softcap(v, shape, scores, needed, together)
        _emit_behind(v, shape, scores, needed, together)
    if isinstance(source, OwnRows):
        _emit_later(v, source, shape, scores, first, needed)
    if shape.window:
        with v.registers(1) as (since,):
            source.queries.emit_since(since)
            if isinstance(source, HomeTiles):
                v.add(since, since, source.queries.start)
            _emit_minus(v, since, first)
            _emit_before(v, shape, scores, since, needed, together)
            _emit_leaving(v, shape, scores, since, needed)


def _emit_minus(s: Stream, target: Register, other: Register) -> None:
    with s.registers(1) as (minus,):
        s.mul(minus, other, -1)
        s.add(target, target, minus)


def _emit_behind(
    v: Stream, shape: TileShape, scores: Buffer, needed: Register, together: int
) -> None:
    """Positions behind the last one that is needed, up to a whole vector."""
    with v.registers(2) as (count, place):
        v.mul(count, needed, -1)
        v.mod(count, count, together)
        v.mul(count, count, shape.queries)
        v.mul(place, needed, _F32 * shape.queries)
        v.v_fill(scores.at(0, place), HIDDEN, count)


def _emit_softcap(
    v: Stream, shape: TileShape, scores: Buffer, needed: Register, together: int
) -> None:
    elements = together * shape.queries
    with v.registers(1) as (vectors,):
        v.mov(vectors, together - 1, needed)
        v.div(vectors, vectors, together)
        with v.stepping(vectors, _F32 * elements) as (at,):
            place = scores.at(0, at)
            v.v_imm(Binary.MUL, place, place, 1 / shape.softcap, elements)
            v.v_un(Unary.TANH, place, place, elements)
            v.v_imm(Binary.MUL, place, place, shape.softcap, elements)


def _emit_later(
    v: Stream, source: OwnRows, shape: TileShape, scores: Buffer, first: Register, needed: Register
) -> None:
    """Positions behind a row's own: of position `until + i`, rows 0 to i."""
    with v.registers(4) as (until, turns, place, count):
        source.emit_seen(Register(0), until, None)
        _emit_minus(v, until, first)
        v.mov(place, 0, until)
        emit_clamp(v, place, 0, source.keys)
        v.least(place, place, 0, needed)
        v.mov(turns, 0, needed)
        _emit_minus(v, turns, place)
        v.mov(count, 1, place)
        _emit_minus(v, count, until)
        v.mul(count, count, shape.heads)
        v.mul(place, place, _F32 * shape.queries)
        with v.loop(turns):
            v.v_fill(scores.at(0, place), HIDDEN, count)
            v.add(place, place, imm=_F32 * shape.queries)
            v.add(count, count, imm=shape.heads)


def _emit_before(
    v: Stream, shape: TileShape, scores: Buffer, since: Register, needed: Register, together: int
) -> None:
    """Positions that no row of the tile sees any more."""
    with v.registers(3) as (hidden, turns, place):
        v.most(hidden, since)
        v.least(hidden, hidden, 0, needed)
        v.div(turns, hidden, together)
        v.mod(hidden, hidden, together)
        v.mul(hidden, hidden, shape.queries)
        v.mov(place, 0)
        with v.loop(turns):
            v.v_fill(scores.at(0, place), HIDDEN, together * shape.queries)
            v.add(place, place, imm=_F32 * together * shape.queries)
        v.v_fill(scores.at(0, place), HIDDEN, hidden)


def _emit_leaving(
    v: Stream, shape: TileShape, scores: Buffer, since: Register, needed: Register
) -> None:
    """Positions that only the first rows see: position `since + i` by rows 0 to i."""
    with v.registers(4) as (turns, place, count, at):
        v.most(place, since)
        v.least(place, place, 0, needed)
        v.mov(turns, shape.rows - 1, since)
        v.most(turns, turns)
        v.least(turns, turns, 0, needed)
        _emit_minus(v, turns, place)
        # Queries that see the position at `place`, and those that do not.
        v.mov(count, 1, place)
        _emit_minus(v, count, since)
        v.mul(count, count, shape.heads)
        v.mul(place, place, _F32 * shape.queries)
        v.mul(at, count, _F32)
        v.add(place, place, at)
        v.mul(count, count, -1)
        v.add(count, count, imm=shape.queries)
        with v.loop(turns):
            v.v_fill(scores.at(0, place), HIDDEN, count)
            v.add(place, place, imm=_F32 * (shape.queries + shape.heads))
            v.add(count, count, imm=-shape.heads)
