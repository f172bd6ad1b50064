"""Intel AMX: eight registers that are tiles of 16 rows of 64 bytes, and products of tiles.

A tile product adds `a[16, 32] @ b[32, 16]` of bf16 numbers to f32 sums: `b` has a row for each two
numbers along k, `[k / 2][16][2]`. Each element is summed along k in order, two numbers at a time,
so that its bits depend on its own row and column alone. Source: Intel 64 and IA-32 Architectures
Software Developer's Manual, volume 2, TDPBF16PS, TILELOADD, LDTILECFG.

Tile registers are named by numbers here, so no tile value outlives a call of a function.
"""

from __future__ import annotations

from collections.abc import Sequence

from infc.backends.cpu.codegen.builder import Builder, Value
from infc.backends.cpu.probe import ARCH_PRCTL, REQUEST_PERMISSION, TILE_DATA
from infc.ir.mlir import llvm

TILES = 8
"""Tile registers."""
TILE_ROWS = 16
"""Rows of a tile."""
TILE_ROW_BYTES = 64
"""Bytes of a row of a tile."""
TILE_K = 32
"""bf16 numbers along k in one product."""
CONFIG_BYTES = 64
"""Bytes of a tile configuration, 64-byte aligned."""

_PALETTE = 1
_COLUMN_BYTES_OFFSET = 16
_ROWS_OFFSET = 48


def emit_request_tiles(b: Builder) -> Value:
    """Ask Linux for the use of tiles, as every process must before its first; i1: whether it may.

    Asking again costs a system call and changes nothing. `emit_barrier` declares `syscall`.
    """
    nothing = b.idx(0)
    request = llvm.IntToPtrOp(b.ptr, b.idx(REQUEST_PERMISSION)).result
    operands = [b.idx(ARCH_PRCTL), request, b.idx(TILE_DATA), nothing, nothing]
    (result,) = b.call("syscall", operands, [b.i64])
    return b.cmp("eq", result, 0)


def emit_tile_config(b: Builder, config: Value, rows: Sequence[Value | int]) -> None:
    """Write a tile configuration to `config` and load it; all tiles become zero.

    Args:
        config: `CONFIG_BYTES`, 64-byte aligned.
        rows: rows of each of the tiles, 1 to 16; all have 64 bytes a row.
    """
    b.store(b.const(0, b.vec(CONFIG_BYTES, b.i8)), config, CONFIG_BYTES)
    b.store(b.const(_PALETTE, b.i8), config, 1)
    for tile, count in enumerate(rows):
        at = b.at(config, _COLUMN_BYTES_OFFSET + 2 * tile)
        b.store(b.const(TILE_ROW_BYTES, b.i16), at, 2)
        number = b.const(count, b.i8) if isinstance(count, int) else b.trunc_i(count, b.i8)
        b.store(number, b.at(config, _ROWS_OFFSET + tile), 1)
    b.intrinsic("llvm.x86.ldtilecfg", None, config)


def emit_tile_release(b: Builder) -> None:
    """Leave the tiles, so that the system need not save them."""
    b.intrinsic("llvm.x86.tilerelease", None)


def emit_tile_zero(b: Builder, tile: int) -> None:
    """Clear a tile."""
    b.intrinsic("llvm.x86.tilezero", None, b.const(tile, b.i8))


def emit_tile_load(
    b: Builder, tile: int, pointer: Value, stride: Value, *, passing: bool = False
) -> None:
    """Load a tile, a row every `stride` bytes; `passing` where it need not stay in the cache."""
    name = "llvm.x86.tileloaddt164" if passing else "llvm.x86.tileloadd64"
    b.intrinsic(name, None, b.const(tile, b.i8), pointer, stride)


def emit_tile_store(b: Builder, tile: int, pointer: Value, stride: Value) -> None:
    """Store a tile, a row every `stride` bytes."""
    b.intrinsic("llvm.x86.tilestored64", None, b.const(tile, b.i8), pointer, stride)


def emit_tile_dot_bf16(b: Builder, sums: int, left: int, right: int) -> None:
    """`sums += left @ right`: f32 `[rows, 16]`, bf16 `[rows, 32]`, bf16 `[16][16][2]`."""
    tiles = (b.const(tile, b.i8) for tile in (sums, left, right))
    b.intrinsic("llvm.x86.tdpbf16ps", None, *tiles)
