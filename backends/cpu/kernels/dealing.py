"""Sharing a kernel's work among threads whose cores are not equally fast at the moment.

A core shared with another tenant, or a slower kind of core, falls behind for a while; with equal
parts everybody would wait for it at the next barrier. So only a first part of the work is split
evenly, where long runs of memory want one reader; the rest is taken piece by piece by whoever is
free. Which thread computes a piece never shows in its result.

Pieces are counted in a *deal*: an int32 that is zero before and after the kernel. A barrier lies
between two kernels that count in the same one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from infc.backends.cpu.codegen.builder import Builder, Value
from infc.ir.mlir import llvm

DEAL_BYTES = 64
"""A deal has a line of the cache for itself."""
_COUNT_BYTES = 4
MOSTLY = 75
"""Percent of a stream that are split evenly."""
_FEW_ITEMS = 64
_PIECE_ITEMS = 8
"""Items are about a row of a model's width: some microseconds together."""


@dataclass(frozen=True)
class Team:
    """The threads of a call, as a kernel sees them.

    Attributes:
        thread, threads: i64.
        deal: where this kernel's pieces are counted.
    """

    thread: Value
    threads: Value
    deal: Value

    def share(self, b: Builder, total: Value) -> tuple[Value, Value]:
        """This thread's part `[start, stop)` of `[0, total)`, split evenly."""
        start, stop = (
            b.div(b.mul(t, total), self.threads) for t in (self.thread, b.add(self.thread, 1))
        )
        return start, stop


def emit_mostly_even(b: Builder, team: Team, total: int, percent: int = MOSTLY) -> Value:
    """The part of a stream to split evenly; all of it where nobody else reads."""
    alone = b.cmp("eq", team.threads, 1)
    return b.select(alone, b.idx(total), b.idx(total * percent // 100))


def emit_dealt(
    b: Builder,
    team: Team,
    total: Value,
    even: Value,
    piece: Value,
    carried: Sequence[Value],
    body: Callable[..., Sequence[Value]],
) -> list[Value]:
    """`carried = body(start, stop, *carried)` for parts that cover `[0, total)` over all threads.

    Args:
        total: i64, at least 0.
        even: i64 up to `total`: so much is split evenly, and comes first. Where it is all, nothing
            is counted.
        piece: i64 above 0: the size of the pieces the rest is taken in.
        carried: values of this thread.
        body: is given parts that may be empty.
    """

    def left(start: Value, _stop: Value, *_carried: Value) -> Value:
        return b.cmp("slt", start, total)

    def next_piece() -> list[Value]:
        turn = _take(b, team.deal)
        pieces = b.div(b.add(b.sub(total, even), b.sub(piece, 1)), piece)
        _clear_behind_last(b, team, turn, pieces)
        start = b.add(even, b.mul(turn, piece))
        return [start, b.min(b.add(start, piece), total)]

    def part(start: Value, stop: Value, *values: Value) -> list[Value]:
        made = body(start, stop, *values)
        some = b.cmp("slt", even, total)
        return [*b.when(some, next_piece, lambda: [total, total], [b.i64] * 2), *made]

    begin = team.share(b, even)
    return b.loop_while([*begin, *carried], left, part)[2:]


def emit_dealt_items(b: Builder, team: Team, count: Value, body: Callable[[Value], None]) -> None:
    """`body(index)` for short items: most are split evenly; of few, all are."""
    rest = b.select(b.cmp("slt", count, _FEW_ITEMS), b.idx(0), b.div(count, 4))

    def part(start: Value, stop: Value) -> list[Value]:
        b.loop(start, stop, body=body)
        return []

    emit_dealt(b, team, count, b.sub(count, rest), b.idx(_PIECE_ITEMS), [], part)


class Turns:
    """Takes units whose number is only known as a loop comes by them, in that order."""

    def __init__(self, b: Builder, team: Team) -> None:
        self.b, self.team = b, team
        self._own = b.stack(8, 8)
        self._next()

    def _next(self) -> None:
        self.b.store(_take(self.b, self.team.deal), self._own, 8)

    def when_own(self, index: Value, body: Callable[[], None]) -> None:
        """Run `body` where the unit `index` is this thread's; every thread asks for each unit."""
        b = self.b

        def run() -> None:
            body()
            self._next()

        b.when(b.cmp("eq", b.load(self._own, b.i64, 8), index), run)

    def end(self, units: Value) -> None:
        """Leave the deal as it was: there were so many units."""
        _clear_behind_last(self.b, self.team, self.b.load(self._own, self.b.i64, 8), units)


def _take(b: Builder, deal: Value) -> Value:
    """Count a piece; what was counted before, i64. The barrier behind the kernel orders writes."""
    before = llvm.AtomicRMWOp(
        llvm.AtomicBinOp.add,
        deal,
        b.const(1, b.i32),
        llvm.AtomicOrdering.monotonic,
        alignment=_COUNT_BYTES,
    ).result
    return b.as_i64(before)


def _clear_behind_last(b: Builder, team: Team, turn: Value, pieces: Value) -> None:
    """Each thread takes one turn too many; who takes the last of those is alone, and clears."""
    last = b.add(pieces, b.sub(team.threads, 1))
    b.when(b.cmp("eq", turn, last), lambda: b.store(b.const(0, b.i32), team.deal, _COUNT_BYTES))
