"""Steps cut into parts and blocks into pieces, so that transfers and arithmetic overlap.

A block of `n` pieces that a step of `m` parts streams: part `i` uses the pieces that hold the bytes
from `i / m` to `(i + 1) / m` of it. What is not streamed is one piece and is there for all parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from infc.memory.staging.problem import Machine, StagingProblem


@dataclass(frozen=True)
class Piece:
    """Bytes of a block that are moved together; all of them share one place in the scratchpad.

    Attributes:
        block: whose they are.
        start_byte: of the block.
    """

    block: str
    start_byte: int
    size_bytes: int
    starts_far: bool
    ends_far: bool
    may_be_direct: bool


@dataclass(frozen=True)
class Part:
    """A stretch of a step.

    Attributes:
        step: its number.
        reads, writes: numbers of pieces.
    """

    step: int
    seconds: float
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    far_bytes: int

    @cached_property
    def uses(self) -> tuple[int, ...]:
        """All pieces it needs, each once."""
        return tuple(dict.fromkeys((*self.reads, *self.writes)))


@dataclass(frozen=True)
class Pieces:
    """A problem in parts and pieces."""

    machine: Machine
    pieces: tuple[Piece, ...]
    parts: tuple[Part, ...]
    repeats: bool


def cut(problem: StagingProblem, piece_bytes: int) -> Pieces:
    """Cut what may be cut into pieces of at most `piece_bytes` (a multiple of the alignment)."""
    align = problem.machine.align_bytes
    limit = max(align, piece_bytes // align * align)
    pieces: list[Piece] = []
    of_block: dict[str, Sequence[int]] = {}
    for block in problem.blocks:
        count = -(-block.size_bytes // limit) if block.name in problem.divisible else 1
        # Even pieces: a short last one would leave holes.
        size = problem.machine.rounded(-(-block.size_bytes // max(count, 1)))
        starts = range(0, block.size_bytes, size) if block.size_bytes and count > 1 else (0,)
        of_block[block.name] = range(len(pieces), len(pieces) + len(starts))
        direct = problem.may_be_direct(block.name)
        for start in starts:
            size_bytes = min(size, block.size_bytes - start)
            pieces.append(
                Piece(block.name, start, size_bytes, block.starts_far, block.ends_far, direct)
            )
    parts: list[Part] = []
    for number, step in enumerate(problem.steps):
        count = max((len(of_block[name]) for name in step.streamed), default=1)
        for i in range(count):
            reads = _used(step.reads, of_block, i, count)
            writes = _used(step.writes, of_block, i, count)
            far = step.far_bytes * (i + 1) // count - step.far_bytes * i // count
            parts.append(Part(number, step.seconds / count, reads, writes, far))
    return Pieces(problem.machine, tuple(pieces), tuple(parts), problem.repeats)


def _used(
    names: Sequence[str], of_block: dict[str, Sequence[int]], part: int, parts: int
) -> tuple[int, ...]:
    """The pieces of some blocks that one of several parts uses; empty pieces are left to it."""
    found: list[int] = []
    for name in dict.fromkeys(names):
        pieces = of_block[name]
        first = part * len(pieces) // parts
        stop = -(-(part + 1) * len(pieces) // parts)
        found += pieces[first:stop]
    return tuple(found)
