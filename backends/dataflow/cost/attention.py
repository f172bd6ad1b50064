"""Attention where every core has all rows (decode): tiles of keys, stripes and their merging."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from infc.backends.dataflow.codegen.kv_home import BLOCK_POSITIONS
from infc.backends.dataflow.codegen.kv_rows import own_keys
from infc.backends.dataflow.codegen.values import deal
from infc.backends.dataflow.cost.heads import home_of
from infc.backends.dataflow.cost.network import Network, part_of
from infc.backends.dataflow.cost.rates import (
    BINARY,
    BY_NUMBER,
    CONVERT,
    COPY,
    FILL,
    IMMEDIATE,
    REDUCE,
    SPECIAL,
)
from infc.backends.dataflow.cost.sketch import Step
from infc.backends.dataflow.cost.timeline import LATENCY, MATRIX, Timeline
from infc.backends.dataflow.isa import BLOCK

_F32, _F16 = 4, 2


@dataclass(frozen=True)
class Tiles:
    """Tiles of one source of keys, as one query sees them.

    Attributes:
        keys: positions of a tile.
        seen: of each tile.
    """

    keys: int
    seen: Sequence[int]


def cut(positions: int, keys: int) -> list[int]:
    """Positions in each tile."""
    return [min(keys, positions - at) for at in range(0, max(positions, 0), keys)]


class Attention:
    """One attention kernel.

    Attributes:
        home: of its cache.
        heads: query heads of a kv head.
        e: elements of a head.
        width: of the query heads of a kv head.
    """

    def __init__(self, time: Timeline, step: Step) -> None:
        self.time, self.rates, self.home = time, time.rates, home_of(time, step)
        self.heads = step.sizes["heads"] // self.home.kind.kv_heads
        self.e, self.window = self.home.kind.head_dim, self.home.kind.window
        self.width = self.heads * self.e
        self.softcap = bool(step.sizes["softcap"])
        self.keys = own_keys(self.rates.machine, time.spaces["t"])

    @property
    def columns(self) -> int:
        """Columns of a group that the core with most makes; 0 where the result is rows."""
        width = self.home.heads * self.width
        if self.time.spaces["t"].shared or self.time.cores == 1:
            return 0
        unit = BLOCK if width % BLOCK == 0 else 1
        return max(stop - first for first, stop in deal(width, unit, self.home.stripes))

    def queries(self, rows: int, heads: int) -> None:
        """Own rows of queries in f16, with the scale in them."""
        each = self.rates.vector(IMMEDIATE, self.width) + self.rates.vector(CONVERT, self.width)
        self.time.each_row(rows, heads * each, 2 * heads, 2)

    def move_home(self) -> None:
        """The stripe's rows of the call."""
        time, home, machine = self.time, self.home, self.rates.machine
        rows = time.rows["t"]
        first, stop = time.position // BLOCK_POSITIONS, time.position + rows
        blocks = -(-stop // BLOCK_POSITIONS) - first
        own = -(-blocks // home.stripes)
        size = min(rows, own * BLOCK_POSITIONS) * home.row_bytes * home.heads
        moving = size / min(machine.dma.bytes_per_cycle, self.rates.port / 2.0)
        if time.far_cache:
            sharing = max(1.0, machine.chip_cores / machine.far[0].channels)
            moving = max(moving, size / self.rates.channel(sharing))
        time.spend(LATENCY, machine.dma.startup_cycles + moving)

    def by_positions(self) -> None:
        """Each core its heads and its stripe; then the stripes are merged."""
        rows, home = self.time.rows["t"], self.home
        self.queries(rows, home.heads)
        for _ in range(home.heads):
            positions = self._stripe_positions()
            self._load(positions)
            earlier = Tiles(home.tile, cut(positions, home.tile))
            self.tile(rows, [earlier, Tiles(self.keys, cut(rows, self.keys))])
        self._merge(rows)
        self.move_home()

    def _stripe_positions(self) -> int:
        """Earlier positions of the stripe that has most of those that are seen."""
        position, home = self.time.position, self.home
        first = max(0, position + 1 - self.window) if self.window else 0
        period = BLOCK_POSITIONS * home.stripes
        before = [
            at // period * BLOCK_POSITIONS + min(at % period, BLOCK_POSITIONS)
            for at in (position, first)
        ]
        return before[0] - before[1]

    def _load(self, positions: int) -> None:
        """Keys and values from far memory come ahead of their use."""
        time = self.time
        if time.far_cache and time.loader is not None and positions:
            there = time.loader.load(float(positions * self.home.row_bytes), 0.0)
            time.spend(self.rates.machine.far[0].name, max(0.0, there - time.now))

    def tile(self, rows: int, sources: Sequence[Tiles]) -> None:
        """One tile of queries against all keys; the next scores are made ahead."""
        time, rates = self.time, self.rates
        queries, again = rows * self.heads, False
        time.vector(2 * rates.vector(FILL, queries) + rates.vector(FILL, queries * self.e))
        for source in sources:
            if not source.seen:
                continue
            scores = rates.attention_tiles(queries, source.keys, self.e)
            output = rates.attention_tiles(queries, self.e, source.keys)
            time.spend(MATRIX, scores)
            made = 0.0
            for number, seen in enumerate(source.seen):
                first = self._maxima(rows, source, seen, again=again)
                ahead = made + (scores if number + 1 < len(source.seen) else 0.0)
                time.vector(first)
                time.spend(MATRIX, max(0.0, ahead - first))
                time.vector(self._probabilities(rows, source, again=again))
                made, again = output, True
            time.spend(MATRIX, made)

    def _maxima(self, rows: int, source: Tiles, seen: int, *, again: bool) -> float:
        rates, queries = self.rates, rows * self.heads
        cycles = 0.0
        if again:
            cycles += rates.vector(COPY, queries) + 2 * rates.vector(BINARY, queries)
            cycles += rates.vector(SPECIAL, queries)
        each = rates.vector(FILL, source.keys - seen) + rates.vector(REDUCE, source.keys)
        if self.window:
            each += rates.vector(FILL, 0)
        if self.softcap:
            each += 2 * rates.vector(IMMEDIATE, seen) + rates.vector(SPECIAL, seen)
        return cycles + rows * self.heads * each

    def _probabilities(self, rows: int, source: Tiles, *, again: bool) -> float:
        rates, heads, keys = self.rates, self.heads, source.keys
        each = heads * (rates.vector(BY_NUMBER, keys) + rates.vector(REDUCE, keys))
        each += rates.vector(SPECIAL, heads * keys) + rates.vector(CONVERT, heads * keys)
        if again:
            each += heads * rates.vector(BY_NUMBER, self.e)
        return rates.each_row(rows, each, 2 * heads + 2, 4)

    def _merge(self, rows: int) -> None:
        """Partial results of the stripes to columns of the whole."""
        time, rates, stripes = self.time, self.rates, self.home.stripes
        queries, own = self.home.heads * rows * self.heads, self.columns
        part = min(own, self.e)
        pieces = min(-(-own // self.e) + (own % self.e > 0), self.home.heads * self.heads)
        if stripes == 1:
            time.vector(rates.vector(SPECIAL, queries))
            time.each_row(rows * pieces, rates.vector(BY_NUMBER, part), 1, 3)
            return
        network = Network(rates, part_of(time.area, stripes))
        spread = network.each_to_each(float(_F32 * own * rows))
        time.exchange(spread.plus(network.to_all(2.0 * _F32 * queries)), 1.0 + stripes)
        reduce, by_number = rates.vector(REDUCE, stripes), rates.vector(BY_NUMBER, stripes)
        time.each_row(queries, reduce + by_number, 2, 2)
        time.vector(rates.vector(SPECIAL, queries * stripes))
        time.vector(rates.vector(BINARY, queries * stripes))
        time.each_row(queries, reduce, 1, 2)
        time.vector(rates.vector(SPECIAL, queries))
        time.each_row(queries, by_number, 1, 2)
        time.each_row(rows * pieces * stripes, rates.vector(BY_NUMBER, part), 1, 2)
        left = stripes
        while left > 1:
            time.vector(rows * rates.vector(BINARY, left // 2 * own))
            left -= left // 2
