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
from infc.backends.cuda.kernels.frame import WARPS
from infc.backends.cuda.kernels.kv_layout import BLOCK, ELEMENT_BYTES, VALUE_STRIDE

_DEPTH = 16
"""Fragments a warp has under way: 64 KiB for a multiprocessor, twice what bandwidth times latency
of an H100's memory asks for."""
_GROUP = 2
"""Fragments that are waited for together."""


def ring_depth(spec: AttentionSpec) -> int:
    """Fragments of a warp's room: they divide the stream of a step, so that places are known when
    the code is made."""
    length = stream_length(spec)
    return max(d for d in range(_GROUP, _DEPTH + 1, _GROUP) if length % d == 0)


def stream_length(spec: AttentionSpec) -> int:
    """Fragments of 32 keys, rounded up to a number that has a good divisor."""
    count = spec.pieces * STEP_KEYS // 8 + spec.columns
    return -(-count // 8) * 8


def ring_bytes(spec: AttentionSpec) -> int:
    """Shared memory of the rings of all warps."""
    return WARPS * ring_depth(spec) * FRAGMENT_BYTES


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
        room: `ring_bytes` of shared memory, of all warps.
    """

    def __init__(self, b: GpuBuilder, step: Step, room: Value) -> None:
        self.b, self.step, self.spec = b, step, step.spec
        self.depth = ring_depth(step.spec)
        pieces: list[_Piece | None] = [_Piece(True, t, j) for t, j in step.key_order()]
        pieces += [_Piece(False, g, n) for g, n in step.value_order()]
        pieces += [None] * (stream_length(step.spec) - len(pieces))
        self.pieces = pieces
        self.own = b.at(room, b.mul(b.warp(), self.depth * FRAGMENT_BYTES))
        self._at = 0

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

    def begin(self, source: Source, there: Value) -> None:
        """Copy the first fragments of a stream, or zeros where it is not `there`."""
        for index in range(self.depth):
            self._copy(index, source, there)
            self._commit(index)

    def enter(self, source: Source, following: Source, there: Value) -> None:
        """From now on `next_piece` reads the step at `source`, and copies what comes behind it:
        the step at `following` where it is `there`, else zeros."""
        self._at = 0
        self._source, self._following, self._there = source, following, there

    def next_piece(self) -> Sequence[Value]:
        """The i32 of this lane's next fragment."""
        piece = self.pieces[self._at]
        if piece is None:
            raise IndexError("the stream of a step has no more fragments")
        if self._at % _GROUP == 0:
            self.b.copy_wait(self.depth // _GROUP - 1)
        size = self._size(piece)
        slot = self._slot(self._at, size)
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
        ahead = self._at + self.depth
        if ahead < len(self.pieces):
            self._copy(ahead, self._source, None)
        else:
            self._copy(ahead - len(self.pieces), self._following, self._there)
        self._commit(self._at)
        self._at += 1

    def _commit(self, index: int) -> None:
        if index % _GROUP == _GROUP - 1:
            self.b.copy_commit()

    def _copy(self, index: int, source: Source, there: Value | None) -> None:
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
        slot = self._slot(index, size)
        if there is None:
            b.copy_async(slot, at, size)
        else:
            b.copy_async_or_zero(slot, at, there, size)

    def _size(self, piece: _Piece) -> int:
        return self.spec.piece_bytes(piece.number) if piece.is_key else 16

    def _slot(self, index: int, size: int) -> Value:
        b = self.b
        place = b.at(self.own, b.mul(self.step.lane, size))
        return b.at(place, index % self.depth * FRAGMENT_BYTES)
