"""When each transfer starts: the program played forward, part by part.

In front of a part, loads are put into the queues in the order in which their pieces are needed, as
far ahead as there is room until the piece is needed. For pieces of one size that are used once this
is the *aggressive* strategy of Cao, Felten, Karlin and Li (A study of integrated prefetching and
caching strategies, SIGMETRICS 1995): fetch next what is needed next, at the first opportunity, and
never displace what is needed before it. A piece that nobody asked for until its part is about to
start is read directly where the machine and the policy allow it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field, replace
from itertools import pairwise

from infc.memory.staging.dma import Dma
from infc.memory.staging.pieces import Pieces
from infc.memory.staging.plan import Kind, Moment, Residence, Transfer
from infc.memory.staging.spans import Keep, Span, Stays, plan_spans


@dataclass(frozen=True)
class Policy:
    """How to schedule.

    Attributes:
        keep: which pieces stay between uses.
        lookahead: how many parts ahead of its use a load may start; None for any number.
        queues: how many of the machine's DMA queues are used.
        direct: what would make a part wait is read directly, where the machine can.
        resident: numbers of pieces that never leave.
    """

    keep: Keep = Keep.SHORTEST
    lookahead: int | None = None
    queues: int = 1
    direct: bool = True
    resident: frozenset[int] = frozenset()


@dataclass
class Draft:
    """A schedule without offsets (those of its residences are 0)."""

    residences: list[Residence] = field(default_factory=list)
    transfers: list[Transfer] = field(default_factory=list)
    direct: set[tuple[int, int]] = field(default_factory=set)
    moments: list[Moment] = field(default_factory=list)
    seconds: float = 0.0


def play(pieces: Pieces, policy: Policy, limit: int) -> Draft | None:
    """A schedule that takes at most `limit` bytes at any part; None where there is none."""
    stays = plan_spans(pieces, policy.resident, policy.keep, limit)
    return None if stays is None else _Player(pieces, policy, stays).play()


@dataclass
class _Underway:
    """A transfer that is not yet waited for: its number in the plan, and that of the queues."""

    transfer: int
    flow: int
    span: Span


class _Player:
    """One run through the program."""

    def __init__(self, pieces: Pieces, policy: Policy, stays: Stays) -> None:
        self.pieces = pieces
        self.policy = policy
        self.room, spans = stays.room, stays.spans
        self.dma = Dma(pieces.machine, policy.queues)
        self.draft = Draft(direct=set(stays.direct))
        self.loads = sorted((s for s in spans if s.load), key=lambda span: span.first)
        self.next_load = 0
        self.made: dict[int, list[Span]] = defaultdict(list)
        self.stored: dict[int, list[Span]] = defaultdict(list)
        for span in spans:
            if not span.load:
                self.made[span.first].append(span)
            if span.store:
                self.stored[span.last + 1].append(span)
        self.residence: dict[Span, int] = {}
        # A load waits for the store of what was written in the stay before.
        self.stored_before = {
            span: before
            for before, span in pairwise(spans)
            if before.piece == span.piece and before.store and span.load
        }
        self.stored_spans: set[Span] = set()
        self.arriving: dict[int, list[_Underway]] = defaultdict(list)
        self.leaving: list[_Underway] = []

    def play(self) -> Draft:
        last = len(self.pieces.parts) - 1
        for piece in sorted(self.policy.resident):
            self.draft.residences.append(Residence(piece, 0, 0, last, resident=True))
        for part in range(last + 1):
            self._run(part)
        self._store(last + 1)
        for store in self.leaving:
            self._end_store(store, last + 1)
        self.draft.seconds = self.dma.time
        return self.draft

    def _run(self, number: int) -> None:
        part = self.pieces.parts[number]
        ready = self.dma.time
        self._store(number)
        self._release(number)
        for span in self.made[number]:
            self._reside(span, number)
        own = part.far_bytes + self._demand(number)
        self._prefetch(number)
        for load in self.arriving.pop(number, []):
            self.dma.wait(load.flow)
        start = self.dma.time
        self.dma.run(part.seconds, own)
        self.draft.moments.append(Moment(ready, start, self.dma.time))

    # ---- loads ----

    def _demand(self, number: int) -> int:
        """Load what this part needs and nobody asked for yet; returns the bytes read directly."""
        direct = sum(
            self.pieces.pieces[piece].size_bytes
            for piece in self.pieces.parts[number].uses
            if (number, piece) in self.draft.direct
        )
        while self.next_load < len(self.loads) and self.loads[self.next_load].first == number:
            span = self.loads[self.next_load]
            piece = self.pieces.pieces[span.piece]
            if self.policy.direct and piece.may_be_direct and span.last == number:
                self.draft.direct.add((number, span.piece))
                self.room.take(number, number + 1, -self._size(span))
                direct += piece.size_bytes
            else:
                for store in [s for s in self.leaving if s.span == self.stored_before.get(span)]:
                    self.leaving.remove(store)
                    self.room.take(number, number + 1, -self._size(span))
                    self._end_store(store, number)
                self._load(span, number)
            self.next_load += 1
        return direct

    def _prefetch(self, number: int) -> None:
        """Ask for what is needed next, as far ahead as there is room."""
        reach = math.inf if self.policy.lookahead is None else number + self.policy.lookahead
        while self.next_load < len(self.loads):
            span = self.loads[self.next_load]
            size = self._size(span)
            stored = self.stored_before.get(span)
            if stored is not None and stored not in self.stored_spans:
                return
            if span.first > reach or not self.room.fits(number, span.first, size):
                return
            self.room.take(number, span.first, size)
            self._load(span, number)
            self.next_load += 1

    def _load(self, span: Span, number: int) -> None:
        residence = self._reside(span, number)
        load = self._transfer(Kind.LOAD, span, residence, number)
        self.arriving[span.first].append(load)

    # ---- stores ----

    def _store(self, number: int) -> None:
        """Send off what was used for the last time in the part before."""
        for span in self.stored.pop(number, []):
            residence = self.residence[span]
            self.leaving.append(self._transfer(Kind.STORE, span, residence, number))

    def _release(self, number: int) -> None:
        """Give back the room of stores that have ended, or that others need now."""
        waiting = []
        for store in self.leaving:
            size = self._size(store.span)
            if self.dma.done(store.flow) or not self.room.fits(number, number + 1, size):
                self._end_store(store, number)
            else:
                self.room.take(number, number + 1, size)
                waiting.append(store)
        self.leaving = waiting

    def _end_store(self, store: _Underway, number: int) -> None:
        self.dma.wait(store.flow)
        self.stored_spans.add(store.span)
        transfer = replace(self.draft.transfers[store.transfer], wait=number)
        self.draft.transfers[store.transfer] = transfer
        residence = self.draft.residences[transfer.residence]
        self.draft.residences[transfer.residence] = replace(residence, last=number - 1)

    # ---- both ----

    def _size(self, span: Span) -> int:
        return self.pieces.machine.rounded(self.pieces.pieces[span.piece].size_bytes)

    def _reside(self, span: Span, first: int) -> int:
        number = len(self.draft.residences)
        self.draft.residences.append(Residence(span.piece, 0, first, span.last))
        self.residence[span] = number
        return number

    def _transfer(self, kind: Kind, span: Span, residence: int, number: int) -> _Underway:
        """Put a transfer into a queue; a store is waited for when its room is wanted."""
        flow, queue = self.dma.put(self.pieces.pieces[span.piece].size_bytes)
        wait = span.first if kind is Kind.LOAD else number
        self.draft.transfers.append(Transfer(kind, residence, queue, number, wait))
        return _Underway(len(self.draft.transfers) - 1, flow, span)
