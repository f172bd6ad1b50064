"""`schedule_transfers`, which tries policies, and the simple ones that it is compared with.

Each try is a schedule against an amount of room, then offsets; where these need more than the
scratchpad has, the schedule is made again with less room. Nothing here reads a
clock: the number of tries is fixed, and the same problem gives the same plan.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from infc.diagnostics import Code, UserError
from infc.diagnostics.quantities import human_bytes
from infc.memory.staging.bound import lower_bound
from infc.memory.staging.forward import Draft, Policy, play
from infc.memory.staging.packing import pack
from infc.memory.staging.pieces import Pieces, cut
from infc.memory.staging.plan import StagingPlan
from infc.memory.staging.problem import StagingProblem
from infc.memory.staging.spans import Keep

PIECES = (32, 16, 64, 8, 128)
"""Pieces that would fill the scratchpad: fine ones overlap better, coarse ones wait less often."""
QUEUES = (1, 2, 4)
"""One queue brings first what is needed first; several hide the latency of small pieces."""
MAX_PARTS = 20_000
"""Above this many parts a finer cut is not tried."""
RESIDENT_SHARES = (1.0, 0.95, 0.9, 0.8, 0.5)
"""Of the room that is free at every part, for what stays from one time to the next."""
RESIDENT_CUTS = 2
"""Sizes of pieces with which that is tried: those that are best without."""
_CLOSE = 1.001
"""As near to the lower bound as this, nothing else is tried."""
_LATENCIES = 4.0
"""Latencies that the transfer of a piece takes at least, where a coarser cut can be had."""
_BUDGET_PARTS = 40_000
"""Parts played, over all tries; about half a millisecond each."""
_ROOMS = (1.0, 31 / 32, 15 / 16, 7 / 8, 3 / 4, 1 / 2, 1 / 4)
"""Shares of the scratchpad to schedule against: what is left over makes packing easy."""

NO_PREFETCH = Policy(keep=Keep.NONE, lookahead=0, direct=False)
"""Each piece is loaded when its part is about to start, and only what is made on chip stays."""
GREEDY = Policy(keep=Keep.LEAST_RECENT, lookahead=0, direct=False)
"""As above, and what was loaded stays until the room is needed, as in a cache."""
DOUBLE_BUFFER = Policy(keep=Keep.NONE, lookahead=1, direct=False)
"""While a part runs, the pieces of the next one are loaded."""
DIRECT = Policy(lookahead=0)
"""Nothing is loaded ahead: what does not stay is read in far memory while the step computes."""


def schedule_transfers(problem: StagingProblem, *, piece_bytes: int | None = None) -> StagingPlan:
    """The fastest schedule found, as the scheduler's own model of the queues has it.

    Args:
        piece_bytes: the largest piece; several sizes are tried where none is given.

    Raises:
        UserError: INF2101, no schedule fits the scratchpad.
    """
    best = _Search(lower_bound(problem).seconds * _CLOSE).run(
        list(_cuts(problem, piece_bytes)), problem.repeats
    )
    if best is None:
        raise _does_not_fit(problem)
    return best


def baseline(problem: StagingProblem, policy: Policy, piece_bytes: int) -> StagingPlan:
    """One policy for one size of pieces.

    Raises:
        UserError: INF2101, no schedule fits the scratchpad.
    """
    plan = _Search(0.0).place(cut(problem, piece_bytes), policy, math.inf)
    if plan is None:
        raise _does_not_fit(problem)
    return plan


class _Search:
    """Tries of one problem; stops when `goal` seconds are reached or the budget is used up."""

    def __init__(self, goal: float) -> None:
        self.goal = goal
        self.budget = _BUDGET_PARTS
        self.best: StagingPlan | None = None
        # Which of `_ROOMS` could be packed last, by the number of parts: a good guess for the next.
        self.room: dict[int, int] = {}

    def run(self, cuts: list[Pieces], repeats: bool) -> StagingPlan | None:
        """The best plan of all."""
        found: list[tuple[float, int, StagingPlan]] = []
        for number, pieces in enumerate(cuts):
            plan = self.try_queues(pieces, Policy())
            found += [(plan.seconds, number, plan)] if plan is not None else []
        found.sort(key=lambda entry: entry[:2])
        for _seconds, number, base in found[:RESIDENT_CUTS] if repeats else ():
            for resident in _residents(cuts[number], base):
                self.try_queues(cuts[number], Policy(resident=resident))
        for rank, pieces in enumerate([cuts[number] for _, number, _ in found] or cuts):
            for policy in (DIRECT, DOUBLE_BUFFER, GREEDY, NO_PREFETCH):
                # No worse than these: they are tried whatever was used up.
                if not self.done or (rank == 0 and self.limit > self.goal):
                    self.accept(self.place(pieces, policy, self.limit))
        return self.best

    @property
    def done(self) -> bool:
        """Whether nothing else is worth trying."""
        return self.best is not None and (self.best.seconds <= self.goal or self.budget <= 0)

    @property
    def limit(self) -> float:
        """Seconds that a plan must take less than."""
        return math.inf if self.best is None else self.best.seconds

    def accept(self, plan: StagingPlan | None) -> None:
        """Keep a plan where it is the fastest."""
        if plan is not None and plan.seconds < self.limit:
            self.best = plan

    def try_queues(self, pieces: Pieces, policy: Policy) -> StagingPlan | None:
        """A policy's best plan, with more and more queues as long as that helps."""
        best: StagingPlan | None = None
        for count in QUEUES:
            if count > pieces.machine.queues or self.done:
                break
            below = math.inf if best is None else best.seconds
            plan = self.place(pieces, replace(policy, queues=count), below)
            if plan is None:
                break
            self.accept(plan)
            best = plan
        return best

    def place(self, pieces: Pieces, policy: Policy, below: float) -> StagingPlan | None:
        """A schedule with offsets; None where none fits that takes less than `below` seconds."""
        tightest: Draft | None = None
        first = max(0, self.room.get(len(pieces.parts), 0) - 1)
        for room, share in enumerate(_ROOMS[first:], first):
            self.budget -= len(pieces.parts)
            draft = play(pieces, policy, int(pieces.machine.capacity_bytes * share))
            if draft is None:
                break
            if draft.seconds >= below:
                return None
            offsets = pack(pieces, draft.residences)
            if offsets is not None:
                self.room[len(pieces.parts)] = room
                return _plan(pieces, draft, offsets)
            tightest = draft
        # A search takes long: only where the simplest policy has no place.
        if tightest is not None and policy == NO_PREFETCH and below == math.inf:
            offsets = pack(pieces, tightest.residences, thorough=True)
            if offsets is not None:
                return _plan(pieces, tightest, offsets)
        return None


def _cuts(problem: StagingProblem, piece_bytes: int | None) -> Iterator[Pieces]:
    """The problem in pieces of several sizes, each different from those before."""
    capacity = problem.machine.capacity_bytes
    sizes = [piece_bytes] if piece_bytes else [-(-capacity // count) for count in PIECES]
    # Pieces that take less time than their latency, over all queues, are too small.
    machine = problem.machine
    lost = machine.latency_seconds * machine.bandwidth_bytes_per_s / machine.queues
    sizes = [size for size in sizes if size >= _LATENCIES * lost] or [max(sizes)]
    seen: set[int] = set()
    for size in sizes:
        pieces = cut(problem, size)
        if len(pieces.pieces) not in seen and (not seen or len(pieces.parts) <= MAX_PARTS):
            seen.add(len(pieces.pieces))
            yield pieces


def _residents(pieces: Pieces, base: StagingPlan) -> Iterator[frozenset[int]]:
    """Sets of pieces that never leave: those first whose parts wait longest for their size."""
    written = {piece for part in pieces.parts for piece in part.writes}
    waits = [0.0] * len(pieces.pieces)
    uses = [0] * len(pieces.pieces)
    free = pieces.machine.capacity_bytes
    for number, part in enumerate(pieces.parts):
        made = sum(
            pieces.machine.rounded(pieces.pieces[piece].size_bytes)
            for piece in part.uses
            if piece in written
        )
        free = min(free, pieces.machine.capacity_bytes - made)
        for piece in part.reads:
            uses[piece] += 1
            waits[piece] += base.moments[number].start - base.moments[number].ready
    candidates = [
        number
        for number, piece in enumerate(pieces.pieces)
        if piece.starts_far and number not in written and uses[number] and piece.size_bytes
    ]
    candidates.sort(key=lambda n: (-waits[n] / pieces.pieces[n].size_bytes, -uses[n], n))
    for share in RESIDENT_SHARES:
        left, chosen = int(free * share), set()
        for number in candidates:
            size = pieces.machine.rounded(pieces.pieces[number].size_bytes)
            if size <= left:
                chosen.add(number)
                left -= size
        # All of the room only where it is enough: else nothing is left to stream through.
        if chosen and (share < 1.0 or len(chosen) == len(candidates)):
            yield frozenset(chosen)


def _plan(pieces: Pieces, draft: Draft, offsets: list[int]) -> StagingPlan:
    residences = tuple(
        replace(residence, offset=offset)
        for residence, offset in zip(draft.residences, offsets, strict=True)
    )
    ends = (r.offset + pieces.pieces[r.piece].size_bytes for r in residences)
    return StagingPlan(
        pieces,
        residences,
        tuple(draft.transfers),
        frozenset(draft.direct),
        max(ends, default=0),
        tuple(draft.moments),
        draft.seconds,
    )


def _does_not_fit(problem: StagingProblem) -> UserError:
    machine = problem.machine
    busiest = max(
        problem.steps,
        key=lambda step: sum(
            machine.rounded(problem.block[name].size_bytes)
            for name in dict.fromkeys((*step.reads, *step.writes))
            if name not in step.streamed
        ),
    )
    return UserError(
        Code.PLAN,
        f"no schedule fits a scratchpad of {human_bytes(machine.capacity_bytes)}",
        notes=[f"the step that needs most at once is {busiest.name!r}"],
        hint="cut its blocks into smaller ones, or let steps stream them",
    )
