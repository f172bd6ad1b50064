"""A warp's own stream of keys and values: copies run ahead of what it multiplies.

The stream is, for each 32 keys that the warp attends to, the fragments of the keys and then those
of the values, in the order in which they are used: 512 bytes each, 16 of every lane. Each lane
copies what it will itself read, so nobody waits for anybody, and the room is a few fragments
whatever the size of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from infc.backends.cuda.codegen.builder import GpuBuilder, Value
from infc.backends.cuda.kernels.attention_spec import PIECE, STEP_KEYS, AttentionSpec
from infc.backends.cuda.kernels.attention_step import FRAGMENT_BYTES, Step
from infc.backends.cuda.kernels.kv_layout import BLOCK, ELEMENT_BYTES, VALUE_STRIDE

ROOM_BYTES = 64 * 1024
"""Of a multiprocessor's copies under way: twice what bandwidth times latency of an H100's memory
asks for."""
_GROUP = 4
"""Fragments that are waited for together, and replaced together."""


@dataclass(frozen=True)
class RingShape:
    """Sizes of the rings of a block.

    Attributes:
        streams: warps that have one.
    """

    spec: AttentionSpec
    streams: int

    @property
    def length(self) -> int:
        """Fragments of 32 keys, rounded up to a number that has a good divisor."""
        count = self.spec.pieces * STEP_KEYS // 8 + self.spec.columns
        return -(-count // 8) * 8

    @property
    def depth(self) -> int:
        """Fragments of a warp's room: a number of whole steps, or they divide a step, so that
        places are known when the code is made."""
        most = ROOM_BYTES // FRAGMENT_BYTES // self.streams
        if most >= self.length:
            return most // self.length * self.length
        return max(d for d in range(_GROUP, most + 1, _GROUP) if self.length % d == 0)

    @property
    def steps_ahead(self) -> int:
        """Steps that the room holds, at least 1."""
        return max(1, self.depth // self.length)

    @property
    def warp_bytes(self) -> int:
        """Shared memory of a warp's ring."""
        return self.depth * FRAGMENT_BYTES

    @property
    def bytes(self) -> int:
        """Shared memory of all of them."""
        return self.streams * self.warp_bytes


@dataclass(frozen=True)
class Source:
    """Where a lane's fragments of 32 keys begin, in global memory."""

    keys: Value
    values: Value


@dataclass(frozen=True)
class _Piece:
    """A fragment of the stream: of score tile `tile` a piece of the keys, or a column of values."""

    is_key: bool
    tile: int
    number: int


class Ring:
    """Emits the stream of one warp.

    Args:
        step: of 32 keys.
        room: shared memory, `RingShape.bytes`.
    """

    def __init__(self, b: GpuBuilder, step: Step, streams: int, room: Value) -> None:
        self.b, self.step, self.spec = b, step, step.spec
        self.shape = RingShape(step.spec, streams)
        pieces: list[_Piece | None] = [_Piece(True, t, j) for t, j in step.key_order()]
        pieces += [_Piece(False, g, n) for g, n in step.value_order()]
        pieces += [None] * (self.shape.length - len(pieces))
        self.pieces = pieces
        self.own = b.at(room, b.mul(b.warp(), self.shape.warp_bytes))

    def source(self, head_keys: Value, head_values: Value, number: Value) -> Source:
        """Where this lane's fragments of the `number`-th 32 positions begin."""
        b, kv, step = self.b, self.spec.kv, self.step
        blocks = kv.padded // BLOCK
        block, half = b.rem(b.shr(number, 1), blocks), b.bit_and(number, 1)
        start = b.mul(b.wide(block), kv.block_bytes)
        row = b.add(b.mul(b.shr(step.r, 1), 8), b.bit_and(step.r, 1))
        key = b.mul(b.add(b.mul(half, STEP_KEYS), row), kv.key_stride)
        value = b.add(b.mul(half, STEP_KEYS * ELEMENT_BYTES), b.mul(step.r, VALUE_STRIDE))
        sixteens = b.mul(step.q, 16)
        return Source(
            b.at(head_keys, b.add(start, b.wide(b.add(key, sixteens)))),
            b.at(head_values, b.add(start, b.wide(b.add(value, sixteens)))),
        )

    def begin(self, steps: Sequence[tuple[Source, Value | None]]) -> None:
        """Copy the first fragments of a stream.

        Args:
            steps: the first `steps_ahead` steps, each with whether it is there, an i1: of others
                zeros are copied.
        """
        for index in range(self.shape.depth):
            number, piece = divmod(index, len(self.pieces))
            source, there = steps[number]
            self._copy(piece, source, there, self._base(self.b.idx(number)))
            if index % _GROUP == _GROUP - 1:
                self.b.copy_commit()

    def enter(self, turn: Value, source: Source, following: Source, there: Value) -> None:
        """From now on `next_piece` reads the step at `source`, and copies what is as far behind it
        as the ring is long.

        Args:
            turn: i32, steps of the stream before this one.
            following: `steps_ahead` steps on; zeros are copied where it is not `there`.
        """
        self._at = 0
        held = self.shape.steps_ahead
        self._turn = self._base(self.b.rem(turn, held) if held > 1 else self.b.idx(0))
        self._source, self._following, self._there = source, following, there

    def next_piece(self) -> Sequence[Value]:
        """The i32 of this lane's next fragment."""
        piece = self.pieces[self._at]
        if piece is None:
            raise IndexError("the stream of a step has no more fragments")
        if self._at % _GROUP == 0:
            self.b.copy_wait(self.shape.depth // _GROUP - 1)
        size = self._size(piece)
        slot = self._slot(self._turn, self._at)
        words = self.b.load(slot, self.b.vec(size // 4, self.b.i32), size)
        self._refill()
        return [self.b.extract(words, i) for i in range(size // 4)]

    def leave(self) -> None:
        """The end of a step."""
        while self._at < len(self.pieces):
            self._refill()

    def drain(self) -> None:
        """Wait for all copies; the room is free when all warps have."""
        self.b.copy_wait(0)

    def _refill(self) -> None:
        """A fragment was read; when a group was, what comes a ring later is copied there."""
        self._at += 1
        if self._at % _GROUP:
            return
        for index in range(self._at - _GROUP, self._at):
            ahead = index + self.shape.depth
            if ahead < len(self.pieces):
                self._copy(ahead, self._source, None, self._turn)
            else:
                self._copy(ahead % len(self.pieces), self._following, self._there, self._turn)
        self.b.copy_commit()

    def _base(self, turn: Value) -> Value:
        """Where a step's fragments lie, of the steps that the room holds."""
        return self.b.at(self.own, self.b.mul(turn, self.shape.length * FRAGMENT_BYTES))

    def _copy(self, index: int, source: Source, there: Value | None, base: Value) -> None:
        b, kv, piece = self.b, self.spec.kv, self.pieces[index]
        if piece is None:
            return
        size = self._size(piece)
        if piece.is_key:
            offset = 2 * piece.tile * kv.key_stride + piece.number * PIECE * ELEMENT_BYTES
            at = b.at(source.keys, offset)
            if size < 16:  # lanes of a quad are that much closer
                at = b.at(at, b.mul(self.step.q, size - 16))
        else:
            at = b.at(source.values, piece.number * 8 * VALUE_STRIDE)
        slot = self._slot(base, index)
        if there is None:
            b.copy_async(slot, at, size)
        else:
            b.copy_async_or_zero(slot, at, there, size)

    def _size(self, piece: _Piece) -> int:
        return self.spec.piece_bytes(piece.number) if piece.is_key else 16

    def _slot(self, base: Value, index: int) -> Value:
        """This lane's 16 bytes of a fragment, also where a piece has 8: no other lane's copy may
        come to where this one still reads."""
        b = self.b
        place = b.at(base, b.mul(self.step.lane, 16))
        return b.at(place, index % self.shape.depth * FRAGMENT_BYTES)
