"""Products of few rows with weights that are read once: the speed is that of memory.

    name(x, weights..., biases..., outputs..., rows, cta, ctas, first, count) -> count
    name_produce(weights..., rows, cta, ctas, first, count) -> count

The rows lie in shared memory; the ninth warp brings the weights through the ring (`ring`), a panel
of 16 outputs after the other. Each of the eight warps multiplies every eighth block of a run, so
that a panel keeps all of them busy; their sums are added in the order of the warps. A warp's sums
of a block of codes are `scale * (codes . x) + min * sum(x)`, with f32 scales and products of
integers in bf16, which are exact. What a token's outputs are depends on its row alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from infc.backends.cuda.codegen.builder import GpuBuilder, Value
from infc.backends.cuda.kernels.frame import THREADS, WARPS, WORKER_BARRIER, Emitted
from infc.backends.cuda.kernels.packing import PANEL_ROWS, Layout
from infc.backends.cuda.kernels.product_spec import (
    OutputRows,
    ProductArguments,
    ProductSpec,
    finish_fragment,
    load_biases,
    store_fragment,
)
from infc.backends.cuda.kernels.ring import Ring, Runs
from infc.backends.cuda.kernels.stream_shape import (
    FRAGMENT_BYTES,
    TILE,
    TOGETHER,
    Lot,
    StreamShape,
    first_panel,
    lots_of,
)
from infc.backends.cuda.kernels.stream_stage import emit_stage
from infc.backends.cuda.kernels.weights import BlockReader, PackedBlock, load_multiplier

_X_BLOCK_BYTES = 64
"""A row's numbers of a block."""


def emit_stream(b: GpuBuilder, name: str, spec: ProductSpec, ring: Ring) -> Emitted:
    """Define `name` and `name_produce`.

    Args:
        b: the builder.
        name: of the function of the workers.
        spec: with at most 32 rows; `StreamShape(spec).work_bytes` lie in front of the ring.
        ring: through which the weights come.
    """
    shape = StreamShape(spec)
    lots = lots_of(spec)
    _emit_produce(b, f"{name}_produce", spec, ring, lots)
    with b.function(name, ProductArguments.types(b, spec, 5), [b.i32]) as values:
        arguments = ProductArguments.of(spec, values)
        rows, _, _, _, count = arguments.rest
        emit_stage(b, shape, arguments.x, rows)
        b.ret(_emit_tiles(b, shape, ring, lots, arguments, 1, count))
    return Emitted(name, shape.work_bytes, sum(lot.panels for lot in lots))


def _emit_produce(
    b: GpuBuilder, name: str, spec: ProductSpec, ring: Ring, lots: Sequence[Lot]
) -> None:
    """The ninth warp's part: all runs of all panels of this block, in the workers' order."""
    segments = len(spec.segments)
    with b.function(name, [b.ptr] * segments + [b.i32] * 5, [b.i32]) as arguments:
        weights = arguments[:segments]
        _, cta, ctas, first, count = arguments[segments:]
        before = 0
        for lot in lots:

            def bring(panel: Value, count: Value, lot: Lot = lot) -> Value:
                for segment, layout in enumerate(lot.layouts):
                    runs = Runs.of(spec.blocks, layout.block_bytes, ring.slot_bytes)
                    start = lot.weights(b, panel, weights, segment)

                    def fill(
                        run: Value,
                        count: Value,
                        runs: Runs = runs,
                        start: Value = start,
                        layout: Layout = layout,
                    ) -> Value:
                        source = b.at(start, b.mul(run, runs.size * layout.block_bytes))
                        size = b.mul(runs.blocks(b, run), layout.block_bytes)
                        ring.fill(b, count, source, size)
                        return b.add(count, 1)

                    (count,) = b.loop(0, runs.count, carried=[count], body=fill)
                return count

            start = first_panel(b, first, before, cta, ctas)
            (count,) = b.loop(start, lot.panels, ctas, carried=[count], body=bring)
            before += lot.panels
        b.ret(count)


def _emit_tiles(
    b: GpuBuilder,
    shape: StreamShape,
    ring: Ring,
    lots: Sequence[Lot],
    arguments: ProductArguments,
    tiles: int,
    count: Value,
) -> Value:
    """The workers' part with as many tiles of tokens as this call's rows need, from `tiles` on."""
    if tiles == shape.tiles:
        return _Product(b, shape, ring, arguments, tiles).emit(lots, count)
    (done,) = b.when(
        b.cmp("sle", arguments.rest[0], tiles * TILE),
        lambda: [_Product(b, shape, ring, arguments, tiles).emit(lots, count)],
        lambda: [_emit_tiles(b, shape, ring, lots, arguments, tiles + 1, count)],
        [b.i32],
    )
    return done


@dataclass(frozen=True)
class _Rows:
    """Where a lane reads x.

    Attributes:
        starts: for each tile, the address that the lane gives for block 0.
        is_there: for each tile, i32: 1 where the lane's token is one of the rows.
        sums: for each size of group, where the sums of the lane's tokens start.
    """

    starts: list[Value]
    is_there: list[Value]
    sums: dict[int, Value]

    @staticmethod
    def of(b: GpuBuilder, shape: StreamShape, rows: Value, tiles: int) -> _Rows:
        """Those of the current lane: of matrix `i` and row `j` where the lane is `8 i + j`."""
        lane = b.lane()
        piece = b.mul(b.shr(lane, 3), 16)
        starts, is_there = [], []
        for tile in range(tiles):
            token = b.add(b.bit_and(lane, 7), TILE * tile)
            there = b.cmp("slt", token, rows)
            row = b.add(b.mul(token, shape.x_row_bytes), shape.x)
            offset = b.add(b.select(there, row, b.idx(shape.zeros)), piece)
            starts.append(b.shared_memory(offset))
            is_there.append(b.ext_u(there, b.i32))
        column = b.mul(b.bit_and(lane, 3), 8)
        sums = {g: b.at(b.shared_memory(shape.sums(g)), column) for g in shape.sums_groups}
        return _Rows(starts, is_there, sums)


class _Product:
    """Emits the workers' part for one number of tiles."""

    def __init__(
        self,
        b: GpuBuilder,
        shape: StreamShape,
        ring: Ring,
        arguments: ProductArguments,
        tiles: int,
    ) -> None:
        self.b, self.shape, self.ring, self.tiles = b, shape, ring, tiles
        self.spec = shape.spec
        self.arguments = arguments
        self.rows = arguments.rest[0]
        self.warp = b.warp()
        self.x = _Rows.of(b, shape, self.rows, tiles)

    def emit(self, lots: Sequence[Lot], count: Value) -> Value:
        """All panels of this block; how many slots have been used then."""
        b = self.b
        _, cta, ctas, first, _ = self.arguments.rest
        turn, before = b.idx(0), 0
        for lot in lots:
            multipliers = [
                [load_multiplier(b, self.arguments.weights[segment]) for segment in group]
                for group in lot.segments
            ]
            readers = [BlockReader(b, layout) for layout in lot.layouts]

            def panel(
                panel: Value,
                count: Value,
                turn: Value,
                lot: Lot = lot,
                readers: list[BlockReader] = readers,
                multipliers: list[list[Value]] = multipliers,
            ) -> list[Value]:
                copy = self._copy(turn)
                for segment, reader in enumerate(readers):
                    sums, count = self._sums(reader, count)
                    self._leave(copy, segment, sums)
                b.sync(THREADS, WORKER_BARRIER)
                self._finish(lot, panel, turn, copy, multipliers)
                if self.shape.copies(self.tiles) == 1:
                    b.sync(THREADS, WORKER_BARRIER)
                return [count, b.add(turn, 1)]

            start = first_panel(b, first, before, cta, ctas)
            count, turn = b.loop(start, lot.panels, ctas, carried=[count, turn], body=panel)
            before += lot.panels
        return count

    # ---- a warp's blocks ----------------------------------------------------------------------

    def _sums(self, reader: BlockReader, count: Value) -> tuple[list[Value], Value]:
        """This warp's part of a panel of a segment: four sums for each tile."""
        b, blocks, size = self.b, self.spec.blocks, reader.layout.block_bytes
        runs = Runs.of(blocks, size, self.ring.slot_bytes)
        zero = b.const(0.0, b.f32)

        def run(number: Value, count: Value, *sums: Value) -> list[Value]:
            mine = b.shr(b.sub(b.add(runs.blocks(b, number), WARPS - 1), self.warp), 3)
            first = b.add(b.mul(number, runs.size), self.warp)
            xs = [
                b.at(start, b.mul(b.mul(first, _X_BLOCK_BYTES), there))
                for start, there in zip(self.x.starts, self.x.is_there, strict=True)
            ]
            where = _Where(xs, None, None)
            if reader.layout.has_min:
                each = reader.layout.groups * 4 * self.shape.tokens
                where.sums = b.at(self.x.sums[reader.layout.group], b.mul(first, each))
            data = self.ring.wait_full(b, count)
            where.data = b.at(data, b.mul(self.warp, size))
            done = self._blocks_of_run(reader, where, mine, list(sums))
            self.ring.release(b, count)
            return [b.add(count, 1), *done]

        carried = [count, *[zero] * (4 * self.tiles)]
        count, *sums = b.loop(0, runs.count, carried=carried, body=run)
        return sums, count

    def _blocks_of_run(
        self, reader: BlockReader, where: _Where, mine: Value, sums: list[Value]
    ) -> list[Value]:
        """Add `mine` (i32) blocks, every eighth, from `where` on: by fours, then two, then one."""
        b = self.b
        together = TOGETHER
        number = b.idx(0)

        def some(number: Value, sums: Sequence[Value], together: int) -> list[Value]:
            return self._blocks(reader, self._moved(reader, where, number), list(sums), together)

        fours = b.bit_and(mine, -together)
        sums = b.loop(
            0, fours, together, carried=sums, body=lambda n, *sums: some(n, sums, TOGETHER)
        )
        number = fours
        types = [b.f32] * len(sums)
        while together > 1:
            together //= 2
            has = b.cmp("ne", b.bit_and(mine, together), 0)
            before = sums
            sums = b.when(
                has,
                lambda n=number, s=before, t=together: some(n, s, t),
                lambda s=before: s,
                types,
            )
            number = b.bit_or(number, b.bit_and(mine, together))
        return sums

    def _moved(self, reader: BlockReader, where: _Where, number: Value) -> _Where:
        """`where`, so many of the warp's blocks on."""
        b, layout = self.b, reader.layout
        on = b.mul(number, WARPS * _X_BLOCK_BYTES)
        moved = _Where(
            [b.at(x, b.mul(on, there)) for x, there in zip(where.xs, self.x.is_there, strict=True)],
            b.at(where.data, b.mul(number, WARPS * layout.block_bytes)),
            where.sums,
        )
        if where.sums is not None:
            each = WARPS * layout.groups * 4 * self.shape.tokens
            moved.sums = b.at(where.sums, b.mul(number, each))
        return moved

    def _blocks(
        self, reader: BlockReader, where: _Where, sums: list[Value], together: int
    ) -> list[Value]:
        """Add some blocks, every eighth; all are loaded before the first is multiplied."""
        b, layout = self.b, reader.layout
        apart = WARPS * layout.block_bytes
        blocks = [reader.read(where.data, i * apart) for i in range(together)]
        xs = [
            [b.load_matrices(b.at(x, i * WARPS * _X_BLOCK_BYTES)) for x in where.xs]
            for i in range(together)
        ]
        totals = [self._totals(layout, where, i) for i in range(together)]
        for block, x, total in zip(blocks, xs, totals, strict=True):
            sums = self._block(block, x, total, sums)
        return sums

    def _totals(self, layout: Layout, where: _Where, number: int) -> list[list[list[Value]]]:
        """Sums of x over the groups of a block: [tile][group][2 tokens]; none without minima."""
        b = self.b
        if where.sums is None:
            return [[] for _ in range(self.tiles)]
        step = 4 * self.shape.tokens
        made = []
        for tile in range(self.tiles):
            offsets = [
                (number * WARPS * layout.groups + group) * step + 4 * TILE * tile
                for group in range(layout.groups)
            ]
            pairs = [b.load(b.at(where.sums, o), b.vec(2, b.f32), 8) for o in offsets]
            made.append([[b.extract(pair, i) for i in (0, 1)] for pair in pairs])
        return made

    def _block(
        self,
        block: PackedBlock,
        xs: Sequence[Sequence[Value]],
        totals: Sequence[Sequence[Sequence[Value]]],
        sums: Sequence[Value],
    ) -> list[Value]:
        """Add one block to the sums of all tiles."""
        b, layout = self.b, block.layout
        planes = block.fragments()
        scales, mins = block.scales(), block.mins()
        made: list[Value] = []
        for tile, x in enumerate(xs):
            mine = list(sums[4 * tile : 4 * tile + 4])
            if layout.is_float:
                for plane in planes:
                    for step in (0, 1):
                        mine = b.mma("bf16", plane[step], x[2 * step : 2 * step + 2], mine)
                made += mine
                continue
            for group in range(layout.groups):
                part = [b.const(0.0, b.f32)] * 4
                for step in (0, 1) if layout.groups == 1 else (group,):
                    part = b.mma("bf16", planes[0][step], x[2 * step : 2 * step + 2], part)
                mine = [b.fma(scales[group][i // 2], part[i], mine[i]) for i in range(4)]
                if layout.has_min:
                    total = totals[tile][group]
                    mine = [b.fma(mins[group][i // 2], total[i % 2], mine[i]) for i in range(4)]
            made += mine
        return made

    # ---- all warps' sums ------------------------------------------------------------------------

    def _copy(self, turn: Value) -> Value:
        """Where the fragments of this turn's panel lie."""
        b = self.b
        start = b.shared_memory(self.shape.partials)
        if self.shape.copies(self.tiles) == 1:
            return start
        return b.at(start, b.mul(b.bit_and(turn, 1), self.shape.copy_bytes(self.tiles)))

    def _leave(self, copy: Value, segment: int, sums: Sequence[Value]) -> None:
        """Store this warp's fragments of a segment."""
        b, tiles = self.b, self.tiles
        own = b.add(b.mul(self.warp, tiles * FRAGMENT_BYTES), b.mul(b.lane(), 16))
        for tile in range(tiles):
            place = (segment * WARPS * tiles + tile) * FRAGMENT_BYTES
            fragment = b.vector_of(sums[4 * tile : 4 * tile + 4])
            b.store(fragment, b.at(b.at(copy, own), place), 16)

    def _finish(
        self,
        lot: Lot,
        panel: Value,
        turn: Value,
        copy: Value,
        multipliers: Sequence[Sequence[Value]],
    ) -> None:
        """Add the fragments and store what they make: a warp a tile, in turns other ones."""
        b, spec = self.b, self.spec
        tile = b.bit_and(b.sub(self.warp, b.mul(turn, self.tiles)), WARPS - 1)

        def finish() -> None:
            outputs = range(len(spec.outputs))
            targets = [OutputRows.of(spec, self.arguments, output) for output in outputs]
            target = lot.target(b, panel, targets)
            feature = b.mul(lot.local(b, panel), PANEL_ROWS)
            token = b.mul(tile, TILE)
            biases = load_biases(b, target, feature)
            fragments = []
            for segment, layout in enumerate(lot.layouts):
                fragment = self._added(copy, segment, tile)
                if not layout.is_float:
                    factor = lot.chosen(b, panel, lambda i, s=segment: multipliers[i][s])
                    fragment = [b.fmul(value, factor) for value in fragment]
                fragments.append(fragment)
            values = finish_fragment(b, spec, fragments, biases)
            store_fragment(b, spec, target, feature, token, values, self.rows)
            if spec.out == "abf16":
                # The zeros behind a row may need half a block more than there are panels.
                beyond = b.add(feature, PANEL_ROWS)
                zeros = [b.const(0.0, b.f32)] * 4
                b.when(
                    b.cmp("sge", beyond, target.n),
                    lambda: store_fragment(b, spec, target, beyond, token, zeros, self.rows),
                )

        b.when(b.cmp("slt", tile, self.tiles), finish)

    def _added(self, copy: Value, segment: int, tile: Value) -> list[Value]:
        """The sum of all warps' fragments of a tile, in a fixed order."""
        b, tiles = self.b, self.tiles
        own = b.add(b.mul(tile, FRAGMENT_BYTES), b.mul(b.lane(), 16))
        start = b.at(copy, own)
        parts = [
            b.load(
                b.at(start, (segment * WARPS + warp) * tiles * FRAGMENT_BYTES),
                b.vec(4, b.f32),
                16,
            )
            for warp in range(WARPS)
        ]
        while len(parts) > 1:
            parts = [b.fadd(parts[i], parts[i + 1]) for i in range(0, len(parts), 2)]
        return [b.extract(parts[0], i) for i in range(4)]


@dataclass
class _Where:
    """Addresses in shared memory: of x for each tile, of a block, of sums of x."""

    xs: list[Value]
    data: Value
    sums: Value | None
