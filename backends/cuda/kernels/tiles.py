"""The tiled product: many rows at a time, weights rounded to bf16 in registers, `mma.sync`.

A block does tiles of features x tokens one after the other. Stages of 64 numbers along k are copied
ahead of their use, over the end of a tile into the next one, so that copies go on while a tile is
stored. Each of the eight warps has `warp_features` rows of weights and a part of the tokens. Sums
run along k in one order whatever the sizes of tiles and the number of blocks, so that results do
not depend on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from infc.backends.cuda.codegen.builder import GpuBuilder, Value
from infc.backends.cuda.codegen.warp_matrices import load_matrices, mma
from infc.backends.cuda.kernels.frame import THREADS, WORKER_BARRIER, Emitted
from infc.backends.cuda.kernels.product_spec import ProductArguments, ProductSpec
from infc.backends.cuda.kernels.tile_copies import PIECE, Copier, Cursor
from infc.backends.cuda.kernels.tile_dealing import Lot, alike, by_rows
from infc.backends.cuda.kernels.tile_mapping import LINE_BYTES, WARPGROUP, TileMapping, regimes
from infc.backends.cuda.kernels.tile_store import FRAGMENT_TOKENS, Sums, flat, store_tile
from infc.backends.cuda.kernels.tile_weights import WarpWeights, next_slot, stage_address
from infc.backends.cuda.kernels.warpgroup import emit_warpgroup_tiles
from infc.backends.cuda.kernels.weights import load_multiplier


def emit_tiles(b: GpuBuilder, name: str, spec: ProductSpec, mapping: TileMapping) -> Emitted:
    """Define the product as a device function:

        name(x, weights..., biases..., outputs..., rows, cta, ctas)

    x is abf16 rows [rows, k]; each weights a packed matrix; there is a bias f32[n] for each segment
    that has one; outputs are f32 [rows, n] or abf16 rows; the three numbers are i32. Rows beyond
    `rows` are neither read nor written. It is run by `Emitted.threads` threads.
    """
    if mapping.unit == WARPGROUP:
        return emit_warpgroup_tiles(b, name, spec, mapping)
    *few, (_, most) = regimes(spec, mapping, b.arch)
    if not few:
        return _emit_regime(b, name, spec, most)
    cases, work_bytes = [], 0
    for rows, regime in (*few, (spec.max_rows, most)):
        emitted = _emit_regime(b, f"{name}_rows{rows}", spec, regime)
        work_bytes = max(work_bytes, emitted.work_bytes)
        cases.append((rows, emitted.name))
    with b.function(name, ProductArguments.types(b, spec, 3)) as values:
        rows_now = ProductArguments.of(spec, values).rest[0]
        by_rows(b, rows_now, [(rows, partial(_call, b, other, values)) for rows, other in cases])
        b.ret()
    return Emitted(name, work_bytes)


def _call(b: GpuBuilder, name: str, values: Sequence[Value]) -> None:
    b.call(name, values)


def _emit_regime(b: GpuBuilder, name: str, spec: ProductSpec, mapping: TileMapping) -> Emitted:
    """The function with one mapping."""
    work_bytes = 0
    with b.function(name, ProductArguments.types(b, spec, 3)) as values:
        arguments = ProductArguments.of(spec, values)
        _, cta, ctas = arguments.rest
        first = cta
        for index, outputs in enumerate(alike(spec)):
            lot = Lot(b, spec, mapping, arguments, outputs)
            tiles = _Tiles(b, spec, mapping, lot, ctas)
            work_bytes = max(work_bytes, mapping.stages * lot.stage.size_bytes)
            if index:
                b.sync(THREADS, WORKER_BARRIER)
            tiles.run(first)
            # The next lot is dealt on from where this one ends.
            first = b.rem(b.add(first, b.sub(ctas, b.rem(lot.count, ctas))), ctas)
        b.ret()
    return Emitted(name, work_bytes)


class _Tiles:
    """The code of one lot."""

    def __init__(
        self, b: GpuBuilder, spec: ProductSpec, mapping: TileMapping, lot: Lot, ctas: Value
    ) -> None:
        self.b, self.spec, self.mapping, self.lot, self.ctas = b, spec, mapping, lot, ctas
        self.stage = lot.stage
        self.copier = Copier(b, spec, lot, THREADS, b.thread(), ctas)
        self.weights = WarpWeights(b, mapping, lot.stage, b.warp())
        fragments = mapping.warp_tokens // FRAGMENT_TOKENS
        self.sums = Sums(len(lot.stage.layouts), self.weights.panels, fragments)
        lane = b.lane()
        self.first_token = b.mul(b.div(b.warp(), self.weights.warps), mapping.warp_tokens)
        # Matrix i of `ldmatrix` is k half i & 1 of tokens 8 (i >> 1) on.
        row = b.add(b.bit_and(lane, 7), b.bit_and(b.shr(lane, 1), 8))
        self.line = b.mul(b.add(self.first_token, row), LINE_BYTES)
        half = b.bit_and(b.shr(lane, 3), 1)
        self.piece = b.mul(b.bit_xor(half, b.bit_and(lane, 7)), PIECE)

    def run(self, first: Value) -> None:
        """Do the tiles `first`, `first + ctas`, ..."""
        b, ahead, count = self.b, self.mapping.stages - 1, self.sums.count
        cursor = self.copier.start(first)
        for slot in range(ahead):
            cursor = self._copy(cursor, b.idx(slot))

        def tile(number: Value, slot: Value, *carried: Value) -> list[Value]:
            place = self.lot.place(number)
            multipliers = [load_multiplier(b, header) for header in place.headers]

            def step(_: Value, slot: Value, *carried: Value) -> list[Value]:
                cursor, sums = Cursor.of(carried[:-count]), self.sums.nested(carried[-count:])
                b.copy_wait(ahead - 1)
                b.sync(THREADS, WORKER_BARRIER)
                filled = b.select(b.cmp("eq", slot, 0), b.idx(ahead), b.sub(slot, 1))
                stage = stage_address(b, self.stage, slot)
                self._multiply(stage, 0, multipliers, sums)
                # Here rather than first, so that the tensor cores have something to do meanwhile.
                cursor = self._copy(cursor, filled)
                self._multiply(stage, 1, multipliers, sums)
                return [next_slot(b, slot, self.mapping), *cursor.values(), *flat(sums)]

            start = [slot, *carried, *[b.const(0.0, b.f32)] * count]
            slot, *rest = b.loop(0, self.copier.steps, carried=start, body=step)
            sums = self.sums.nested(rest[-count:])
            at = (self.weights.first_panel, self.first_token)
            store_tile(b, self.spec, place, *at, self.lot.rows, sums)
            return [slot, *rest[:-count]]

        start = [b.idx(0), *cursor.values()]
        b.loop(first, self.lot.count, self.ctas, carried=start, body=tile)

    def _copy(self, cursor: Cursor, slot: Value) -> Cursor:
        after = self.copier.copy(cursor, stage_address(self.b, self.stage, slot))
        self.b.copy_commit()
        return after

    def _multiply(
        self,
        stage: Value,
        block: int,
        multipliers: Sequence[Value],
        sums: list[list[list[list[Value]]]],
    ) -> None:
        """Add the products of block 0 or 1 of a stage to the sums."""
        b = self.b
        weights = self.weights.read(stage, block, multipliers)
        for step in range(2):
            piece = b.bit_xor(self.piece, 2 * PIECE * (2 * block + step))
            pieces = b.at(b.at(stage, self.line), piece)
            for pair in range(self.sums.fragments // 2):
                x = load_matrices(b, b.at(pieces, pair * 2 * FRAGMENT_TOKENS * LINE_BYTES))
                for segment, panels in enumerate(weights):
                    for panel, steps in enumerate(panels):
                        row = sums[segment][panel]
                        for i, part in ((2 * pair, x[:2]), (2 * pair + 1, x[2:])):
                            row[i] = mma(b, "bf16", steps[step], part, row[i])
