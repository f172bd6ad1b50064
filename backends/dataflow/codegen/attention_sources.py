"""Where attention finds keys and values: what earlier calls left at home, the call's own rows.

Each implements `attention_tiles.Source` for one stream, whose registers it holds.
"""

from __future__ import annotations

from dataclasses import dataclass

from infc.backends.dataflow.codegen.kv_home import KVHome
from infc.backends.dataflow.codegen.local_positions import emit_local
from infc.backends.dataflow.codegen.memory import Address, Buffer
from infc.backends.dataflow.codegen.stream import Count, Register, Stream


@dataclass(frozen=True)
class Queries:
    """The rows of a tile of queries, as one stream sees them.

    Attributes:
        start: the position of the call's first row.
        row: number in the call of the tile's first row; register 0 for the first.
        count: of the rows.
        window: of the layer, 0 for none.
    """

    stream: Stream
    start: Register
    row: Register
    count: Count
    window: int

    def emit_since(self, target: Register, row: int = 0) -> None:
        """target = the first position that a row sees, counted from the call's first row.

        `row` is a register, 0 for the first row of the tile.
        """
        self.stream.add(target, self.row, row, imm=1 - self.window)


def emit_tiles(stream: Stream, count: Register, first: Register, keys: int) -> None:
    """From the position behind the last one in `count` and the first one in `first`: how many tiles
    hold them, and where the first tile begins."""
    stream.div(first, first, keys)
    stream.mul(first, first, keys)
    with stream.registers(1) as (minus,):
        stream.mul(minus, first, -1)
        stream.add(count, count, minus, imm=keys - 1)
    stream.div(count, count, keys)
    stream.most(count, count)


@dataclass(frozen=True)
class EarlierTiles:
    """What earlier calls left of one stripe, by local positions, wherever it is.

    Attributes:
        base: bytes of the cache in front of the layer; register 0 for none.
        head: of the group.
        keys: the home's tile.
    """

    queries: Queries
    home: KVHome
    stripe: int
    base: Register
    head: int
    keys: int

    def emit_stop(self, target: Register) -> None:
        """target = the positions that there are."""
        emit_local(self.queries.stream, self.home, self.stripe, target, self.queries.start)

    def emit_range(self, count: Register, first: Register) -> None:
        """See `Source`."""
        self.emit_stop(count)
        if self.queries.window:
            self._emit_since(first, 0)
        else:
            self.queries.stream.mov(first, 0)
        emit_tiles(self.queries.stream, count, first, self.keys)

    def emit_seen(self, row: Register, until: Register, since: Register | None) -> None:
        """See `Source`."""
        self.emit_stop(until)
        if since is not None:
            self._emit_since(since, row)
            self.queries.stream.least(since, since, 0, until)

    def _emit_since(self, since: Register, row: int) -> None:
        stream = self.queries.stream
        self.queries.emit_since(since, row)
        stream.add(since, since, self.queries.start)
        stream.most(since, since)
        emit_local(stream, self.home, self.stripe, since, since)


@dataclass(frozen=True)
class HomeTiles(EarlierTiles):
    """What earlier calls left of one stripe, in the core's own SRAM.

    Attributes:
        buffer: that holds the cache.
    """

    buffer: Buffer

    def emit_start(self, at: Register, first: Register) -> None:
        """See `Source`."""
        stream = self.queries.stream
        stream.mod(at, first, self.home.held)
        stream.mul(at, at, self.home.row_bytes)
        stream.add(at, at, self.base)

    def emit_advance(self, at: Register) -> None:
        """See `Source`."""
        stream, step = self.queries.stream, self.keys * self.home.row_bytes
        if not self.queries.window:
            stream.add(at, at, imm=step)
            return
        with stream.registers(1) as (minus,):
            stream.mul(minus, self.base, -1)
            stream.add(at, at, minus, imm=step)
        stream.wrap(at, self.home.head_bytes, self.home.head_bytes)
        stream.add(at, at, self.base)

    def place(self, at: Register) -> Address:
        """See `Source`."""
        return self.buffer.at(self.head * self.home.head_bytes, at)

    def emit_acquire(self) -> None:
        """It is all there."""

    def emit_release(self) -> None:
        """It stays."""


@dataclass(frozen=True)
class OwnRows:
    """The call's own rows, in their order; positions are counted from the call's first row.

    Attributes:
        rows: f16 `[head][row]`; whole tiles of them hold finite numbers.
        head_bytes: from one head to the next.
        row_bytes: from one row to the next.
    """

    queries: Queries
    rows: Buffer
    head: int
    head_bytes: int
    row_bytes: int
    keys: int

    def emit_range(self, count: Register, first: Register) -> None:
        """See `Source`."""
        queries, stream = self.queries, self.queries.stream
        if isinstance(queries.count, Register):
            stream.add(count, queries.row, queries.count)
        else:
            stream.mov(count, queries.count, queries.row)
        if queries.window:
            queries.emit_since(first)
            stream.most(first, first)
        else:
            stream.mov(first, 0)
        emit_tiles(stream, count, first, self.keys)

    def emit_seen(self, row: Register, until: Register, since: Register | None) -> None:
        """See `Source`."""
        stream = self.queries.stream
        stream.add(until, self.queries.row, row, imm=1)
        if since is not None:
            self.queries.emit_since(since, row)
            stream.most(since, since)

    def emit_start(self, at: Register, first: Register) -> None:
        """See `Source`."""
        self.queries.stream.mul(at, first, self.row_bytes)

    def emit_advance(self, at: Register) -> None:
        """See `Source`."""
        self.queries.stream.add(at, at, imm=self.keys * self.row_bytes)

    def place(self, at: Register) -> Address:
        """See `Source`."""
        return self.rows.at(self.head * self.head_bytes, at)

    def emit_acquire(self) -> None:
        """They have all come."""

    def emit_release(self) -> None:
        """They stay."""
