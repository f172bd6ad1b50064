"""The micro-kernels of products in bf16: some rows of x with some staged panels, along all of k.

A micro-kernel is its block heights and widths, and how it emits one block. `TileBlocks` multiplies
with AMX tiles, `DotBlocks` with dot products of pairs in vector registers. Sums run along k in an
order that does not depend on the block, so that any block gives an element the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from infc.backends.cpu.codegen.amx import (
    CONFIG_BYTES,
    TILE_K,
    TILE_ROW_BYTES,
    TILE_ROWS,
    TILES,
    emit_tile_config,
    emit_tile_dot_bf16,
    emit_tile_load,
    emit_tile_release,
    emit_tile_store,
    emit_tile_zero,
)
from infc.backends.cpu.codegen.builder import LANES, Builder, Value
from infc.backends.cpu.codegen.isa import Isa
from infc.backends.cpu.kernels.bf16_panels import PAIRS_BYTES
from infc.backends.cpu.kernels.stream import emit_unrolled
from infc.passes.codegen.panels import PANEL_ROWS
from infc.reference.abf16 import abf16_padded, abf16_row_bytes

PANEL_SUM_BYTES = 4 * PANEL_ROWS
"""Bytes of a row of sums of one panel."""

_STEP_BYTES = TILE_K // 2 * TILE_ROW_BYTES
_LEFT, _RIGHT = 4, 6
"""The first tile registers of rows of x and of panels; the sums are in those before."""
_PAIR_BYTES = 4


@dataclass(frozen=True)
class Block:
    """One block.

    Attributes:
        x: its first row, `abf16`.
        height: rows that the code is for; of the last height there may be fewer.
        panels: its staged panels.
        out: the first element of its sums, f32.
        stride: `i64`, bytes from a row of sums to the next.
    """

    x: Value
    height: int
    panels: Sequence[Value]
    out: Value
    stride: Value


class MicroKernel(Protocol):
    """How blocks are multiplied."""

    @property
    def heights(self) -> tuple[int, ...]:
        """Rows of a block, largest first; blocks of the last one may have fewer."""

    @property
    def widths(self) -> tuple[int, ...]:
        """Panels of a block, largest first."""

    def start(self, height: int, rows: Value) -> None:
        """Make ready for blocks of `height`, of which `rows` rows are there."""

    def multiply(self, block: Block) -> None:
        """Store the sums of a block."""

    def stop(self) -> None:
        """Leave."""


def micro_kernel(b: Builder, k: int, *, panels_stay: bool, unroll: int = 1) -> MicroKernel:
    """The best one of the instruction set; stack room is taken here, so in the first block.

    Args:
        k: numbers a row.
        panels_stay: whether panels should stay in the first cache while rows stream past.
        unroll: steps along k in one turn of the loop.
    """
    return TileBlocks(b, k, panels_stay, unroll) if b.isa.amx else DotBlocks(b, k, unroll)


def block_height(isa: Isa) -> int:
    """Rows of the largest block."""
    return TileBlocks.heights[0] if isa.amx else _dot_heights(isa)[0]


def _dot_heights(isa: Isa) -> tuple[int, ...]:
    """Rows of blocks that leave room for the operands in the vector registers."""
    return (6, 1) if isa.vector_bytes >= 64 else (2, 1)


class TileBlocks:
    """Up to two by two tiles of sums, beside two of rows and two of panels."""

    heights = (2 * TILE_ROWS, TILE_ROWS)
    widths = (2, 1)

    def __init__(self, b: Builder, k: int, panels_stay: bool, unroll: int) -> None:
        self.b, self.k, self.panels_stay, self.unroll = b, k, panels_stay, unroll
        self.config = b.stack(CONFIG_BYTES, CONFIG_BYTES)
        self.line = b.idx(TILE_ROW_BYTES)
        self.x_stride = b.idx(abf16_row_bytes(k))

    def start(self, height: int, rows: Value) -> None:
        """Configure the tiles: those of rows and of sums may have fewer than 16 rows."""
        few: Value | int = TILE_ROWS if height > TILE_ROWS else rows
        emit_tile_config(self.b, self.config, [few] * _RIGHT + [TILE_ROWS] * (TILES - _RIGHT))

    def multiply(self, block: Block) -> None:
        """Sum in tiles, then store them."""
        b, tall, wide = self.b, block.height // TILE_ROWS, len(block.panels)
        rows_bytes = TILE_ROWS * abf16_row_bytes(self.k)
        for tile in range(tall * wide):
            emit_tile_zero(b, tile)

        def step(turn: Value, number: int, _carried: list[Value]) -> list[Value]:
            index = b.add(b.mul(turn, self.unroll), number)
            left = b.at(block.x, b.mul(index, TILE_ROW_BYTES))
            for r in range(tall):
                at = b.at(left, r * rows_bytes)
                emit_tile_load(b, _LEFT + r, at, self.x_stride, passing=self.panels_stay)
            for c, staged in enumerate(block.panels):
                emit_tile_load(b, _RIGHT + c, b.at(staged, b.mul(index, _STEP_BYTES)), self.line)
            for r in range(tall):
                for c in range(wide):
                    emit_tile_dot_bf16(b, r * wide + c, _LEFT + r, _RIGHT + c)
            return []

        emit_unrolled(b, abf16_padded(self.k) // TILE_K, self.unroll, [], step)
        for r in range(tall):
            at = b.at(block.out, b.mul(block.stride, r * TILE_ROWS))
            for c in range(wide):
                emit_tile_store(b, r * wide + c, b.at(at, c * PANEL_SUM_BYTES), block.stride)

    def stop(self) -> None:
        """Give the tiles back."""
        emit_tile_release(self.b)


class DotBlocks:
    """Six rows by four panels of sums in vector registers; two by two in narrow ones."""

    def __init__(self, b: Builder, k: int, unroll: int) -> None:
        self.b, self.k, self.unroll = b, k, unroll
        self.heights: tuple[int, ...] = _dot_heights(b.isa)
        self.widths: tuple[int, ...] = (4, 2, 1) if self.heights[0] > 2 else (2, 1)

    def start(self, height: int, rows: Value) -> None:
        """Nothing to do."""

    def multiply(self, block: Block) -> None:
        """Sum pair after pair of k, then store."""
        b, wide = self.b, len(block.panels)
        floats, pairs = b.vec(LANES, b.f32), b.vec(2 * LANES, b.bf16)
        rows = [b.at(block.x, r * abf16_row_bytes(self.k)) for r in range(block.height)]

        def step(turn: Value, number: int, sums: list[Value]) -> list[Value]:
            index = b.add(b.mul(turn, self.unroll), number)
            at = b.mul(index, PAIRS_BYTES)
            right = [b.load(b.at(panel, at), pairs, PAIRS_BYTES) for panel in block.panels]
            out = []
            for r, row in enumerate(rows):
                pair = b.load(b.at(row, b.mul(index, _PAIR_BYTES)), b.i32, _PAIR_BYTES)
                left = b.bitcast(b.splat(pair), pairs)
                out += [b.dot_bf16(sums[r * wide + c], left, right[c]) for c in range(wide)]
            return out

        zeros = [b.const(0.0, floats)] * (block.height * wide)
        sums = emit_unrolled(b, abf16_padded(self.k) // 2, self.unroll, zeros, step)
        for i, value in enumerate(sums):
            r, c = divmod(i, wide)
            at = b.at(block.out, b.mul(block.stride, r))
            b.store(value, b.at(at, c * PANEL_SUM_BYTES), 4)

    def stop(self) -> None:
        """Nothing to do."""
