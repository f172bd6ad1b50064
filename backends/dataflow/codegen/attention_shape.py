"""What all forms of attention share: sizes, where keys and values come from, queries in f16."""

from __future__ import annotations

from dataclasses import dataclass

from infc.backends.dataflow.codegen.attention_sources import (
    EarlierTiles,
    HomeTiles,
    OwnRows,
    Queries,
)
from infc.backends.dataflow.codegen.attention_tiles import Source, TileShape
from infc.backends.dataflow.codegen.builder import CoreProgram
from infc.backends.dataflow.codegen.kv_home import KVHome
from infc.backends.dataflow.codegen.kv_ring import RingTiles
from infc.backends.dataflow.codegen.kv_rows import emit_home, own_keys
from infc.backends.dataflow.codegen.memory import Buffer
from infc.backends.dataflow.codegen.scope import Scope
from infc.backends.dataflow.codegen.stream import Count, Register, Stream
from infc.backends.dataflow.codegen.values import Appended, Rows
from infc.backends.dataflow.isa import Binary, Conversion
from infc.diagnostics import InternalError

_F32, _F16 = 4, 2
NO_REGISTER = Register(0)


@dataclass(frozen=True)
class AttentionShape:
    """One attention kernel.

    Attributes:
        home: of its cache.
        own: the call's own rows.
        heads: query heads of a kv head.
        scale: of the scores; the queries have it.
        softcap: of the scores, 0 for none.
    """

    scope: Scope
    home: KVHome
    own: Appended
    heads: int
    scale: float
    softcap: float

    @classmethod
    def of(
        cls, scope: Scope, own: Appended, heads: int, scale: float, softcap: float
    ) -> AttentionShape:
        """For so many query heads in all."""
        kind = own.cache.kind
        home = KVHome.of(kind, len(scope.cores), scope.machine)
        return cls(scope, home, own, heads // kind.kv_heads, scale, softcap)

    def tile(self, rows: int) -> TileShape:
        """Tiles of so many rows of queries."""
        home, kind = self.home, self.home.kind
        return TileShape(
            rows,
            self.heads,
            kind.head_dim,
            max(home.tile, own_keys(self.scope.machine, self.own.space)),
            home.row_bytes,
            home.value_offset,
            self.softcap,
            kind.window,
        )

    def queries(self, stream: Stream, row: Register, rows: Count) -> Queries:
        """The rows `[row, row + rows)` of a call."""
        position = self.scope.position[stream.core.index, stream.unit]
        return Queries(stream, position, row, rows, self.home.kind.window)

    def earlier_tiles(self, queries: Queries, head: int) -> Source:
        """What earlier calls left of the core's own stripe; from far memory it comes by itself."""
        scope, home, core = self.scope, self.home, queries.stream.core
        base, stripe = scope.cache_base[core.index, queries.stream.unit], home.stripe(core.index)
        if scope.kv is not None:
            return HomeTiles(queries, home, stripe, base, head, home.tile, scope.kv)
        if scope.kv_ring is None:
            raise InternalError("a cache in far memory without a ring")
        return RingTiles(queries, home, stripe, base, head, home.tile, scope.kv_ring)

    def emit_loads(self, core: CoreProgram, head: int) -> None:
        """What earlier calls left, for the tile of all rows; nothing where it is in SRAM."""
        scope, home, space = self.scope, self.home, self.own.space
        if scope.kv_ring is None:
            return
        queries = self.queries(core.load, NO_REGISTER, scope.total(core.load, space))
        base, stripe = scope.cache_base[core.index, core.load.unit], home.stripe(core.index)
        source = EarlierTiles(queries, home, stripe, base, head, home.tile)
        scope.kv_ring.emit_loads(core, source)

    def gathered_tiles(self, queries: Queries, head: int, rows: Buffer) -> Source:
        """What earlier calls left of all stripes; see `kv_gather`."""
        home = self.home.gathered
        return HomeTiles(queries, home, 0, NO_REGISTER, head, home.tile, rows)

    def own_rows(self, queries: Queries, head: int) -> Source:
        """The call's own rows of a head of the core's group."""
        keys = own_keys(self.scope.machine, self.own.space)
        return OwnRows(queries, self.own.rows, head, self.own.head_bytes, self.home.row_bytes, keys)

    def emit_append(self) -> None:
        """Move the call's own rows home: behind all attention, which may need what they replace."""
        own = self.own
        for core in self.scope.cores:
            if self.home.stripe(core.index) >= self.home.stripes:
                continue
            core.hand(core.vector, core.send)
            emit_home(self.scope, core, self.home, own.space, own.rows, own.head_bytes)
            core.vector.wait("homed")


def emit_queries(
    scope: Scope,
    core: CoreProgram,
    q: Rows,
    target: Buffer,
    *,
    shape: AttentionShape,
    first: int,
    count: int,
    head_bytes: int,
) -> None:
    """Own rows of queries times the scale in f16: target is `[kv head][row][head][e]`.

    Args:
        first, count: kv heads of the model.
        head_bytes: of the target, from one kv head to the next.
    """
    v, width = core.vector, shape.heads * shape.home.kind.head_dim
    scaled = scope.buffer("queries.scaled", _F32 * width)
    with v.stepping(scope.own(v, q.space), q.row_bytes, _F16 * width) as (row, place):
        for head in range(count):
            for at, n in scope.group.pieces(width):
                source = q.buffer.at(_F32 * ((first + head) * width + at), row)
                v.v_imm(Binary.MUL, scaled, source, shape.scale, n)
                made = target.at(head * head_bytes + _F16 * at, place)
                v.v_cvt(Conversion.F32_F16, made, scaled, n)
