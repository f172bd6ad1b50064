"""Attention where rows are shared (prefill): a query in each column, tile by tile of keys."""

from __future__ import annotations

from math import gcd

from infc.backends.dataflow.codegen.attention_columns import MOST_POSITIONS, most_queries
from infc.backends.dataflow.codegen.kv_home import BLOCK_POSITIONS
from infc.backends.dataflow.cost.attention import Attention, cut
from infc.backends.dataflow.cost.network import Network, part_of
from infc.backends.dataflow.cost.rates import (
    BINARY,
    CONVERT,
    COPY,
    FILL,
    IMMEDIATE,
    SPECIAL,
    Rates,
    Vector,
)
from infc.backends.dataflow.cost.sketch import Step
from infc.backends.dataflow.cost.timeline import MATRIX, Timeline

_F32, _F16 = 4, 2


def identity(time: Timeline) -> None:
    """The identity that matrices are transposed with, once a call."""
    rates, unit = time.rates, time.rates.machine.matrix
    size = min(unit.m, unit.k)
    time.vector(rates.vector(FILL, size * size // 2) + rates.vector(FILL, 1))
    time.each_row(size, rates.vector(CONVERT, 1), 1, 1)


class PrefillAttention(Attention):
    """One attention kernel.

    Attributes:
        rows: of a tile of queries; `tile` are its queries, also those that are not there.
        together: positions of a vector.
    """

    def __init__(self, time: Timeline, step: Step) -> None:
        super().__init__(time, step)
        machine, owned = self.rates.machine, time.spaces["t"].owned
        most = max(1, most_queries(machine) // self.heads)
        self.rows = -(-owned // -(-owned // most))
        self.tile_queries = self.rows * self.heads
        positions = min(MOST_POSITIONS, max(1, machine.vector.native // self.tile_queries))
        self.together = 1 << (positions.bit_length() - 1)

    def by_rows(self) -> None:
        """Each core of a group some rows, in turns of the rows that one core owns."""
        time, home, space = self.time, self.home, self.time.spaces["t"]
        share = time.own("t")
        if space.shared:
            every = home.kind.kv_heads * self.width
            both = self.rates.vector(IMMEDIATE, every) + self.rates.vector(CONVERT, every)
            time.each_row(share, both, 2, 2)
        else:
            self.queries(share, home.kind.kv_heads)
        part = float(_F16 * share * self.width)
        if space.shared:
            between = time.network.each_to_some(part, home.groups)
            time.exchange(between, home.kind.kv_heads)
        self._gather()
        for _ in range(home.heads):
            self._values(min(time.position, home.gathered.held), home.tile)
            self._values(time.rows["t"], self.keys)
            for turn in range(home.groups):
                self._turn(turn, share)
        self.move_home()
        if space.shared:
            between = time.network.each_to_some(2.0 * part, home.groups)
            time.exchange(between, home.groups * home.heads, 6.0)
        else:
            body = home.heads * self.rates.vector(COPY, self.width)
            time.each_row(time.rows["t"], body, home.heads, 2)

    def _gather(self) -> None:
        """What earlier calls left, to all cores of a group."""
        time, home = self.time, self.home
        if not time.far_cache and home.stripes == 1 and home.span == 1:
            return
        held = min(-(-time.position // home.tile) * home.tile, home.kind.capacity)
        blocks = -(-held // (BLOCK_POSITIONS * home.stripes))
        size = float(blocks * BLOCK_POSITIONS * home.row_bytes * home.heads)
        if time.far_cache and time.loader is not None:
            there = time.loader.load(size, time.now)
            time.spend(self.rates.machine.far[0].name, there - time.now)
        if home.span > 1:
            network = Network(self.rates, part_of(time.area, home.span))
            time.exchange(network.to_all(size * home.stripes / home.span), home.heads)

    def _values(self, positions: int, keys: int) -> None:
        """Values are transposed, tile by tile."""
        rates, unit = self.rates, self.rates.machine.matrix
        deep = min(unit.m, unit.k)
        chunk = self._chunk(keys)
        count = keys // chunk * -(-chunk // unit.n) * -(-self.e // deep)
        products = count * rates.product(min(deep, self.e))
        for _ in cut(positions, keys):
            self.time.spend(MATRIX, products)
            self.time.vector(rates.vector(CONVERT, keys * self.e))

    def _chunk(self, keys: int) -> int:
        """Positions of a product with probabilities."""
        together = gcd(keys, self.together)
        vectors = keys // together
        fitting = min(max(self.rates.machine.matrix.k // together, 1), vectors)
        return together * next(n for n in range(fitting, 0, -1) if vectors % n == 0)

    def _turn(self, turn: int, share: int) -> None:
        """The rows of one owner; of the core whose rows see most."""
        total, home = self.time.rows["t"], self.home
        # Of those with most turns the last one.
        place = (-(-total // share) - 1) % home.span
        first = share * (turn * home.span + place)
        left = max(0, min(share, total - first))
        missing = -left % self.rows
        fill = self.rates.vector(FILL, self.width // 2)
        self.time.each_row(missing, fill, 1, 1)
        for at in range(0, left, self.rows):
            self._tile(first + at, min(self.rows, left - at))

    def _tile(self, row: int, rows: int) -> None:
        """One tile of queries against all keys."""
        time, rates, queries = self.time, self.rates, self.tile_queries
        whole = self.e * queries
        time.vector(2 * rates.vector(FILL, queries) + rates.vector(FILL, whole))
        since = max(0, time.position + row + 1 - self.window) if self.window else 0
        self._source(self.home.tile, since, time.position, rows, own=False)
        since = max(0, row + 1 - self.window) if self.window else 0
        self._source(self.keys, since, row + rows, rows, own=True)
        unit = rates.machine.matrix
        time.vector(rates.vector(SPECIAL, queries) + self._scale_output())
        time.vector(rates.vector(CONVERT, whole))
        time.spend(MATRIX, -(-self.e // unit.n) * rates.product(rows * self.heads))

    def _source(self, keys: int, since: int, stop: int, rows: int, *, own: bool) -> None:
        """Tiles of positions that the rows see."""
        time, rates, unit = self.time, self.rates, self.rates.machine.matrix
        chunk = self._chunk(keys)
        for at in range(since // keys * keys, stop, keys):
            needed = min(keys, stop - at)
            scores = sum(
                -(-self.e // unit.k) * rates.product(rows_of) for rows_of in cut(needed, unit.m)
            )
            output = -(-needed // chunk) * -(-self.e // unit.m)
            time.spend(MATRIX, scores + output * rates.product(min(unit.m, self.e)))
            together = gcd(keys, self.together)
            self._masks(together, needed, max(0, since - at), rows, own=own)
            self._softmax(together, -(-needed // together), chunk // together)

    def _masks(self, together: int, needed: int, before: int, rows: int, *, own: bool) -> None:
        time, rates, queries = self.time, self.rates, self.tile_queries
        vectors = -(-needed // together)
        cycles = rates.vector(FILL, -needed % together * queries)
        if self.softcap:
            each = 2 * rates.vector(IMMEDIATE, together * queries)
            each += rates.vector(SPECIAL, together * queries)
            cycles += rates.each_row(vectors, each, 3, 1) + cycles
        half = rates.vector(FILL, rows * self.heads // 2)
        if own:
            cycles += rates.each_row(min(rows - 1, needed), half, 1, 2)
        if self.window:
            hidden = min(before, needed)
            whole = rates.vector(FILL, together * queries)
            cycles += rates.each_row(hidden // together, whole, 1, 1)
            cycles += rates.vector(FILL, hidden % together * queries)
            if before:
                cycles += rates.each_row(min(rows - 1, needed), half, 1, 2)
        time.vector(cycles)

    def _softmax(self, together: int, vectors: int, inside: int) -> None:
        rates, queries = self.rates, self.tile_queries
        count = together * queries
        binary = rates.vector(BINARY, count)
        cycles = 2 * rates.vector(FILL, count) + rates.each_row(vectors, binary, 1, 1)
        cycles += 2 * _doubling(rates, BINARY, together, queries)
        cycles += 4 * rates.vector(BINARY, queries) + rates.vector(SPECIAL, queries)
        cycles += rates.vector(COPY, queries) + _doubling(rates, COPY, together, queries)
        cycles += rates.each_row(vectors, binary + rates.vector(SPECIAL, count), 2, 1)
        cycles += rates.each_row(vectors, binary + rates.vector(CONVERT, count), 2, 2)
        if inside > 1:
            rest = -vectors % inside
            cycles += rates.vector(FILL, count) + rest * rates.vector(CONVERT, count)
        self.time.vector(cycles + self._scale_output())

    def _scale_output(self) -> float:
        """The output so far times a factor for each query."""
        rates, queries = self.rates, self.tile_queries
        together = gcd(self.together, self.e)
        each = rates.vector(BINARY, together * queries)
        return _doubling(rates, COPY, together, queries) + rates.each_row(
            self.e // together, each, 1, 1
        )


def _doubling(rates: Rates, instruction: Vector, together: int, n: int) -> float:
    """Rows of `n` in halves, or twice as many each time."""
    cycles, made = 0.0, 1
    while made < together:
        cycles += rates.vector(instruction, made * n)
        made *= 2
    return cycles
