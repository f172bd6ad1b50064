"""Keys and values of one head in shared memory, copied by all warps of a block, twice buffered.

A stage is 64 or 32 positions: fragments of the keys, then of the values, 512 bytes each and laid
out as lanes read them, so that neither copies nor reads meet on a bank.
"""

from __future__ import annotations

from dataclasses import dataclass

from infc.backends.cuda.codegen.builder import GpuBuilder, Value
from infc.backends.cuda.kernels.attention_spec import PIECE, STEP_KEYS, AttentionSpec
from infc.backends.cuda.kernels.attention_step import FRAGMENT_BYTES, TILES_A_STEP, Step
from infc.backends.cuda.kernels.frame import WARPS
from infc.backends.cuda.kernels.kv_layout import BLOCK, ELEMENT_BYTES, VALUE_STRIDE

_WIDE_HEAD_DIM = 128
"""Beyond it a stage has 32 positions, so that two of them fit beside the queries."""


@dataclass(frozen=True)
class StageShape:
    """Sizes of a stage."""

    spec: AttentionSpec

    @property
    def positions(self) -> int:
        """Positions of a stage."""
        return BLOCK if self.spec.kv.head_dim <= _WIDE_HEAD_DIM else BLOCK // 2

    @property
    def groups(self) -> int:
        """Times 32 positions."""
        return self.positions // STEP_KEYS

    @property
    def group_key_bytes(self) -> int:
        """Keys of 32 positions."""
        return TILES_A_STEP * self.spec.pieces * FRAGMENT_BYTES

    @property
    def group_value_bytes(self) -> int:
        """Values of 32 positions."""
        return self.spec.columns * FRAGMENT_BYTES

    @property
    def values_offset(self) -> int:
        """Where values begin in a stage."""
        return self.groups * self.group_key_bytes

    @property
    def bytes(self) -> int:
        """Bytes of a stage."""
        return self.values_offset + self.groups * self.group_value_bytes


@dataclass(frozen=True)
class Staged:
    """Some keys in shared memory, from the first of a step on."""

    b: GpuBuilder
    spec: AttentionSpec
    lane: Value
    keys: Value
    values: Value

    def key_piece(self, tile: int, piece: int) -> list[Value]:
        """The i32 that this lane has of a score tile's piece."""
        return self._read(self.keys, tile * self.spec.pieces + piece, self.spec.piece_bytes(piece))

    def value_piece(self, group: int, column: int) -> list[Value]:
        """The i32 that this lane has of a column's keys."""
        return self._read(self.values, group * self.spec.columns + column, 16)

    def _read(self, base: Value, fragment: int, size: int) -> list[Value]:
        b = self.b
        place = b.at(b.at(base, b.mul(self.lane, size)), fragment * FRAGMENT_BYTES)
        words = b.load(place, b.vec(size // 4, b.i32), size)
        return [b.extract(words, i) for i in range(size // 4)]


class Stages:
    """Copies stages and says where they are.

    Args:
        room: shared memory of two stages.
    """

    def __init__(self, b: GpuBuilder, step: Step, room: Value) -> None:
        self.b, self.step, self.spec, self.room = b, step, step.spec, room
        self.shape = StageShape(step.spec)

    def staged(self, buffer: Value, step: Value) -> Staged:
        """The `step`-th step of the stage in a buffer, 0 or 1."""
        b, shape, groups = self.b, self.shape, self.step.groups
        base = b.at(self.room, b.mul(buffer, shape.bytes))
        keys = b.at(base, b.mul(step, groups * shape.group_key_bytes))
        values = b.at(base, b.mul(step, groups * shape.group_value_bytes))
        return Staged(b, self.spec, self.step.lane, keys, b.at(values, shape.values_offset))

    def copy(self, head_keys: Value, head_values: Value, number: Value, buffer: Value) -> None:
        """Begin to copy the `number`-th stage of positions, and make it a group of copies."""
        b, kv, shape = self.b, self.spec.kv, self.shape
        a_block = BLOCK // shape.positions
        block = b.rem(b.div(number, a_block), kv.padded // BLOCK)
        start = b.mul(b.wide(block), kv.block_bytes)
        inside = b.mul(b.rem(number, a_block), shape.positions)
        target = b.at(self.room, b.mul(buffer, shape.bytes))
        keys = b.at(head_keys, b.add(start, b.wide(b.mul(inside, kv.key_stride))))
        self._copy_keys(keys, target)
        values = b.at(head_values, b.add(start, b.wide(b.mul(inside, ELEMENT_BYTES))))
        self._copy_values(values, b.at(target, shape.values_offset))
        b.copy_commit()

    def _copy_keys(self, keys: Value, target: Value) -> None:
        """A warp copies the pieces of a score tile, or every second one."""
        b, kv, step, spec = self.b, self.spec.kv, self.step, self.spec
        warp = b.warp()
        tiles = self.shape.groups * TILES_A_STEP
        tile, share = b.rem(warp, tiles), b.div(warp, tiles)
        group, inside = b.div(tile, TILES_A_STEP), b.rem(tile, TILES_A_STEP)
        row = b.add(b.mul(b.shr(step.r, 1), 8), b.bit_and(step.r, 1))
        key = b.add(b.mul(group, STEP_KEYS), b.add(row, b.mul(inside, 2)))
        source = b.at(keys, b.mul(key, kv.key_stride))
        place = b.at(target, b.mul(tile, spec.pieces * FRAGMENT_BYTES))

        def copy(first: int, stride: int) -> None:
            for piece in range(first, spec.pieces, stride):
                size = spec.piece_bytes(piece)
                at = b.at(source, b.mul(step.q, size))
                slot = b.at(place, b.mul(step.lane, size))
                offset = piece * PIECE * ELEMENT_BYTES
                b.copy_async(b.at(slot, piece * FRAGMENT_BYTES), b.at(at, offset), size)

        if tiles == WARPS:
            copy(0, 1)
        else:
            b.when(b.cmp("eq", share, 0), lambda: copy(0, 2), lambda: copy(1, 2))

    def _copy_values(self, values: Value, target: Value) -> None:
        """The warps of a group of 32 positions take its columns in turns."""
        b, step, spec = self.b, self.step, self.spec
        warp = b.warp()
        warps = WARPS // self.shape.groups
        group, own = b.div(warp, warps), b.rem(warp, warps)
        inside = b.add(b.mul(group, STEP_KEYS * ELEMENT_BYTES), b.mul(step.q, 16))
        row = b.add(b.mul(own, 8), step.r)
        source = b.at(values, b.add(b.mul(row, VALUE_STRIDE), inside))
        fragment = b.add(b.mul(group, spec.columns), own)
        place = b.add(b.mul(fragment, FRAGMENT_BYTES), b.mul(step.lane, 16))
        slot = b.at(target, place)
        for first in range(0, spec.columns, warps):

            def copy(first: int = first) -> None:
                b.copy_async(
                    b.at(slot, first * FRAGMENT_BYTES), b.at(source, first * 8 * VALUE_STRIDE)
                )

            if first + warps <= spec.columns:
                copy()
            else:
                b.when(b.cmp("slt", own, spec.columns - first), copy)
