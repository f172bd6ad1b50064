"""How a tile's operands come into shared memory: stages of 64 numbers along k, copied ahead.

A stage holds, at an address that is a multiple of 1024, a line of 128 bytes for each token, whose
piece of 16 bytes number i lies at place `i ^ token % 8`: threads that read the same piece of eight
tokens then touch all banks, and it is what `wgmma` calls the swizzle of 128 bytes. Behind the lines
lie the panels of each segment, two blocks each, as in the packed matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from infc.backends.cuda.codegen.builder import GpuBuilder, Value
from infc.backends.cuda.kernels.packing import Layout
from infc.backends.cuda.kernels.product_spec import ProductSpec
from infc.backends.cuda.kernels.tile_dealing import Lot
from infc.backends.cuda.kernels.tile_mapping import LINE_BYTES, STEP_BLOCKS
from infc.reference.abf16 import abf16_row_bytes

PIECE = 16
"""Bytes that a thread copies at once."""
_LINE_PIECES = LINE_BYTES // PIECE


@dataclass(frozen=True)
class Cursor:
    """The next stage that is copied; of a tile beyond the last there is none.

    Attributes:
        tile: i32.
        step: of the tile, i32.
        x, rows_left, panels_left, weights: as in `Place`.
    """

    tile: Value
    step: Value
    x: Value
    rows_left: Value
    panels_left: Value
    weights: tuple[Value, ...]

    def values(self) -> list[Value]:
        """What a loop carries."""
        return [self.tile, self.step, self.x, self.rows_left, self.panels_left, *self.weights]

    @staticmethod
    def of(values: Sequence[Value]) -> Cursor:
        """The inverse of `values`."""
        tile, step, x, rows_left, panels_left, *weights = values
        return Cursor(tile, step, x, rows_left, panels_left, tuple(weights))


class Copier:
    """Copies stages in order, tile after tile of those that a block has.

    Args:
        threads: how many threads copy: 128 or 256.
        thread: the number among them, i32.
        stride: from one tile of the block to its next, i32.
    """

    def __init__(
        self,
        b: GpuBuilder,
        spec: ProductSpec,
        lot: Lot,
        threads: int,
        thread: Value,
        stride: Value,
    ) -> None:
        self._b, self._k, self._lot, self._stage = b, spec.k, lot, lot.stage
        self._threads, self._thread, self._stride = threads, thread, stride
        self._blocks = spec.blocks
        self.steps = -(-spec.blocks // STEP_BLOCKS)
        pointers = [b.ptr] * len(lot.stage.layouts)
        self._kinds = [b.i32, b.i32, b.ptr, b.i32, b.i32, *pointers]

    def start(self, tile: Value) -> Cursor:
        """The first stage of a tile; beyond the last tile it is never copied."""
        b = self._b
        place = self._lot.place(b.min(tile, b.sub(self._lot.count, 1)))
        left = (place.x, place.rows_left, place.panels_left)
        return Cursor(tile, b.idx(0), *left, tuple(place.weights))

    def copy(self, cursor: Cursor, target: Value) -> Cursor:
        """Begin the copies of a stage to `target`, if there is such a stage; returns the next."""
        b = self._b
        b.when(b.cmp("slt", cursor.tile, self._lot.count), lambda: self._stage_of(cursor, target))
        step = b.add(cursor.step, 1)

        def further() -> list[Value]:
            return self.start(b.add(cursor.tile, self._stride)).values()

        def on() -> list[Value]:
            return [cursor.tile, step, *cursor.values()[2:]]

        return Cursor.of(b.when(b.cmp("eq", step, self.steps), further, on, self._kinds))

    def _stage_of(self, cursor: Cursor, target: Value) -> None:
        self._lines(cursor, target)
        for layout, source, offset in zip(
            self._stage.layouts, cursor.weights, self._stage.weights, strict=True
        ):
            self._panels(cursor, layout, source, self._b.at(target, offset))

    def _lines(self, cursor: Cursor, target: Value) -> None:
        b, thread = self._b, self._thread
        row_bytes = abf16_row_bytes(self._k)
        token, piece = b.shr(thread, 3), b.bit_and(thread, _LINE_PIECES - 1)
        place = b.bit_xor(piece, b.bit_and(token, _LINE_PIECES - 1))
        source = b.add(b.mul(token, row_bytes), b.mul(piece, PIECE))
        source = b.at(cursor.x, b.add(source, b.mul(cursor.step, LINE_BYTES)))
        target = b.at(target, b.add(b.mul(token, LINE_BYTES), b.mul(place, PIECE)))
        within = self._within(cursor, b.shr(piece, 2))

        def line(first: int) -> None:
            there = [b.cmp("slt", b.add(token, first), cursor.rows_left), *within]
            to, at = b.at(target, first * LINE_BYTES), b.at(source, first * row_bytes)
            self._piece(to, at, there)

        for first in range(0, self._stage.tokens, self._threads // _LINE_PIECES):
            line(first)

    def _panels(self, cursor: Cursor, layout: Layout, source: Value, target: Value) -> None:
        """Two blocks of each panel; they are one piece of the packed matrix for each panel."""
        b = self._b
        part_bytes = STEP_BLOCKS * layout.block_bytes
        pieces = part_bytes // PIECE
        source = b.at(source, b.mul(cursor.step, part_bytes))

        def piece(number: Value) -> None:
            panel, place = b.div(number, pieces), b.rem(number, pieces)
            offset = b.add(b.mul(panel, layout.panel_bytes(self._k)), b.mul(place, PIECE))
            there = [] if self._lot.whole else [b.cmp("slt", panel, cursor.panels_left)]
            there += self._within(cursor, b.div(place, pieces // STEP_BLOCKS))
            self._piece(b.at(target, b.mul(number, PIECE)), b.at(source, offset), there)

        total = self._stage.panels * pieces
        for first in range(0, total, self._threads):
            number = b.add(self._thread, first)
            if total - first >= self._threads:
                piece(number)
            else:
                b.when(b.cmp("slt", number, total), partial(piece, number))

    def _within(self, cursor: Cursor, block: Value) -> list[Value]:
        """Whether there is the block of a stage; of the last stage it may be missing."""
        if self._blocks % STEP_BLOCKS == 0:
            return []
        number = self._b.add(self._b.mul(cursor.step, STEP_BLOCKS), block)
        return [self._b.cmp("slt", number, self._blocks)]

    def _piece(self, target: Value, source: Value, there: Sequence[Value]) -> None:
        if not there:
            self._b.copy_async(target, source)
            return
        condition = there[0]
        for other in there[1:]:
            condition = self._b.bit_and(condition, other)
        self._b.copy_async_or_zero(target, source, condition)
