"""Keys and values of one head in shared memory, copied by all warps of a block, twice buffered.

A stage is 64 or 32 positions: fragments of the keys, then of the values, 512 bytes each and laid
out as lanes read them, so that neither copies nor reads meet on a bank. Where warps take stages in
turns, a buffer has one for each of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from infc.backends.cuda.codegen.builder import GpuBuilder, Value
from infc.backends.cuda.kernels.attention_spec import PIECE, STEP_KEYS, AttentionSpec
from infc.backends.cuda.kernels.attention_step import FRAGMENT_BYTES, TILES_A_STEP, Step
from infc.backends.cuda.kernels.frame import WARPS
from infc.backends.cuda.kernels.kv_layout import BLOCK, ELEMENT_BYTES, VALUE_STRIDE

_LONG_BYTES = 16 * 1024
"""Stages of 64 positions have at most so many bytes of keys, and of values."""
_BUFFER_BYTES = 64 * 1024
"""The most that the stages of a buffer take, so that two buffers fit beside the queries."""


@dataclass(frozen=True)
class StageShape:
    """Sizes of a stage.

    Attributes:
        streams: stages of a buffer.
    """

    spec: AttentionSpec
    streams: int

    @property
    def positions(self) -> int:
        """Positions of a stage."""
        block_bytes = self.spec.kv.block_bytes
        fits = 2 * block_bytes * self.streams <= _BUFFER_BYTES
        return BLOCK if block_bytes <= _LONG_BYTES and fits else BLOCK // 2

    @property
    def buffer_bytes(self) -> int:
        """Bytes of the stages of a buffer."""
        return self.streams * self.bytes

    @property
    def fits(self) -> bool:
        """Whether two buffers fit beside the queries."""
        return self.buffer_bytes <= _BUFFER_BYTES

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


@dataclass(frozen=True)
class Source:
    """What is staged.

    Attributes:
        keys, values: of a head, in global memory.
        first, last: numbers of the stages that somebody sees.
    """

    keys: Value
    values: Value
    first: Value
    last: Value


class Stages:
    """Copies stages and says where they are.

    Args:
        room: shared memory of two buffers.
    """

    def __init__(self, b: GpuBuilder, step: Step, streams: int, room: Value) -> None:
        self.b, self.step, self.spec, self.room = b, step, step.spec, room
        self.shape = StageShape(step.spec, streams)

    def staged(self, buffer: Value, stream: Value, step: Value) -> Staged:
        """The `step`-th step of a stream's stage in a buffer, 0 or 1."""
        b, shape, groups = self.b, self.shape, self.step.groups
        stage = b.add(b.mul(buffer, shape.buffer_bytes), b.mul(stream, shape.bytes))
        base = b.at(self.room, stage)
        keys = b.at(base, b.mul(step, groups * shape.group_key_bytes))
        values = b.at(base, b.mul(step, groups * shape.group_value_bytes))
        return Staged(b, self.spec, self.step.lane, keys, b.at(values, shape.values_offset))

    def copy(self, source: Source, number: Value, buffer: Value) -> None:
        """Begin to copy the stages of the `number`-th round, and make them a group of copies."""
        b, shape = self.b, self.shape
        first = b.mul(number, shape.streams)
        room = b.at(self.room, b.mul(buffer, shape.buffer_bytes))

        def stage(stream: Value) -> None:
            target = b.at(room, b.mul(stream, shape.bytes))
            self._copy_stage(source, b.add(first, stream), target)

        if shape.streams == 1:
            stage(b.idx(0))
        else:
            start = b.max(b.sub(source.first, first), 0)
            stop = b.min(b.sub(b.add(source.last, 1), first), shape.streams)
            b.loop(start, stop, body=stage)
        b.copy_commit()

    def _copy_stage(self, source: Source, number: Value, target: Value) -> None:
        b, kv, shape = self.b, self.spec.kv, self.shape
        a_block = BLOCK // shape.positions
        block = b.rem(b.div(number, a_block), kv.padded // BLOCK)
        start = b.mul(b.wide(block), kv.block_bytes)
        inside = b.mul(b.rem(number, a_block), shape.positions)
        keys = b.at(source.keys, b.add(start, b.wide(b.mul(inside, kv.key_stride))))
        self._copy_keys(keys, target)
        values = b.at(source.values, b.add(start, b.wide(b.mul(inside, ELEMENT_BYTES))))
        self._copy_values(values, b.at(target, shape.values_offset))

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
