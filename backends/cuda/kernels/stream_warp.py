"""A warp's part of a streamed product: every eighth block of each run, its sums in registers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from infc.backends.cuda.codegen.builder import GpuBuilder, Value
from infc.backends.cuda.codegen.warp_matrices import load_matrices, mma
from infc.backends.cuda.kernels.frame import WARPS
from infc.backends.cuda.kernels.packing import Layout
from infc.backends.cuda.kernels.ring import Ring, Runs
from infc.backends.cuda.kernels.stream_shape import TILE, TOGETHER, StreamShape
from infc.backends.cuda.kernels.weights import BlockReader, PackedBlock

_X_BLOCK_BYTES = 64
"""A row's numbers of a block."""


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


@dataclass(frozen=True)
class _Where:
    """Addresses in shared memory: of x for each tile, of a block, of sums of x."""

    xs: list[Value]
    data: Value
    sums: Value | None


class WarpSums:
    """Emits a warp's sums, for one number of tiles.

    Attributes:
        warp: its number, i32.
    """

    def __init__(
        self, b: GpuBuilder, shape: StreamShape, ring: Ring, rows: Value, tiles: int
    ) -> None:
        self.b, self.shape, self.ring, self.tiles = b, shape, ring, tiles
        self.warp = b.warp()
        self._x = _Rows.of(b, shape, rows, tiles)

    def add_part(
        self, reader: BlockReader, part: Value, sums: Sequence[Value], count: Value
    ) -> tuple[list[Value], Value]:
        """Add a part of a panel of a segment.

        Args:
            reader: of the segment's layout.
            part: i32, of the rows, which lies in shared memory.
            sums: four f32 for each tile, as `GpuBuilder.mma` has them.
            count: slots of the ring used before.

        Returns:
            The sums, and the slots used then.
        """
        b, shape, size = self.b, self.shape, reader.layout.block_bytes
        runs = Runs.of(shape.spec.blocks, size, self.ring.slot_bytes, shape.part_blocks)

        def run(number: Value, count: Value, *sums: Value) -> list[Value]:
            blocks = runs.blocks(b, part, number)
            mine = b.shr(b.sub(b.add(blocks, WARPS - 1), self.warp), 3)
            first = b.add(b.mul(number, runs.size), self.warp)
            xs = [
                b.at(start, b.mul(b.mul(first, _X_BLOCK_BYTES), there))
                for start, there in zip(self._x.starts, self._x.is_there, strict=True)
            ]
            totals = None
            if reader.layout.has_min:
                each = reader.layout.groups * 4 * shape.tokens
                totals = b.at(self._x.sums[reader.layout.group], b.mul(first, each))
            data = b.at(self.ring.wait_full(b, count), b.mul(self.warp, size))
            done = self._blocks_of_run(reader, _Where(xs, data, totals), mine, list(sums))
            self.ring.release(b, count)
            return [b.add(count, 1), *done]

        carried = [count, *sums]
        count, *done = b.loop(0, runs.counted(b, part), carried=carried, body=run)
        return done, count

    def _blocks_of_run(
        self, reader: BlockReader, where: _Where, mine: Value, sums: list[Value]
    ) -> list[Value]:
        """Add `mine` (i32) blocks, every eighth, from `where` on: by fours, then two, then one."""
        b = self.b

        def some(together: int, number: Value, *sums: Value) -> list[Value]:
            return self._blocks(reader, self._moved(reader, where, number), list(sums), together)

        number = b.bit_and(mine, -TOGETHER)
        sums = b.loop(0, number, TOGETHER, carried=sums, body=partial(some, TOGETHER))
        together = TOGETHER // 2
        while together:
            has = b.bit_and(mine, together)
            types = [b.f32] * len(sums)
            add, keep = partial(some, together, number, *sums), partial(_same, sums)
            sums = b.when(b.cmp("ne", has, 0), add, keep, types)
            number, together = b.bit_or(number, has), together // 2
        return sums

    def _moved(self, reader: BlockReader, where: _Where, number: Value) -> _Where:
        """`where`, so many of the warp's blocks on."""
        b, layout = self.b, reader.layout
        on = b.mul(number, WARPS * _X_BLOCK_BYTES)
        each = WARPS * layout.groups * 4 * self.shape.tokens
        return _Where(
            [
                b.at(x, b.mul(on, there))
                for x, there in zip(where.xs, self._x.is_there, strict=True)
            ],
            b.at(where.data, b.mul(number, WARPS * layout.block_bytes)),
            None if where.sums is None else b.at(where.sums, b.mul(number, each)),
        )

    def _blocks(
        self, reader: BlockReader, where: _Where, sums: list[Value], together: int
    ) -> list[Value]:
        """Add some blocks, every eighth; all are loaded before the first is multiplied."""
        b, layout = self.b, reader.layout
        apart = WARPS * layout.block_bytes
        blocks = [reader.read(where.data, i * apart) for i in range(together)]
        xs = [
            [load_matrices(b, b.at(x, i * WARPS * _X_BLOCK_BYTES)) for x in where.xs]
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
                        mine = mma(b, "bf16", plane[step], x[2 * step : 2 * step + 2], mine)
                made += mine
                continue
            for group in range(layout.groups):
                part = [b.const(0.0, b.f32)] * 4
                for step in (0, 1) if layout.groups == 1 else (group,):
                    part = mma(b, "bf16", planes[0][step], x[2 * step : 2 * step + 2], part)
                mine = [b.fma(scales[group][i // 2], part[i], mine[i]) for i in range(4)]
                if layout.has_min:
                    total = totals[tile][group]
                    mine = [b.fma(mins[group][i // 2], total[i % 2], mine[i]) for i in range(4)]
            made += mine
        return made


def _same(values: list[Value]) -> list[Value]:
    return values
