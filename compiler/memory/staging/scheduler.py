"""`schedule_transfers`, which tries policies, and the simple ones that it is compared with.

Each try is a schedule against an amount of room, then offsets by the arena planner; where these
need more than the scratchpad has, the schedule is made again with less room. Nothing here reads a
clock: the number of tries is fixed, and the same problem gives the same plan.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from infc.diagnostics import Code, UserError
from infc.diagnostics.quantities import human_bytes
from infc.memory.buffer import Buffer
from infc.memory.planner import plan_arena
from infc.memory.staging.bound import lower_bound
from infc.memory.staging.forward import Draft, Policy, play
from infc.memory.staging.pieces import Pieces, cut
from infc.memory.staging.plan import StagingPlan
from infc.memory.staging.problem import StagingProblem
from infc.memory.staging.spans import Keep

PIECES = (16, 64, 4, 256)
"""Pieces that would fill the scratchpad: fine ones overlap better, coarse ones wait less often."""
MAX_PARTS = 20_000
"""Above this many parts a finer cut is not tried."""
RESIDENT_SHARES = (1.0, 0.9, 0.75, 0.5, 0.25)
"""Of the room that is free at every part, for what stays from one time to the next."""
_CLOSE = 1.0005
"""As near to the lower bound as this, nothing else is tried."""
_SHRINKS = 8
_SEARCH_NODES = 2000

NO_PREFETCH = Policy(keep=Keep.NONE, lookahead=0, direct=False)
"""Each piece is loaded when its part is about to start, and only what is made on chip stays."""
GREEDY = Policy(keep=Keep.LEAST_RECENT, lookahead=0, direct=False)
"""As above, and what was loaded stays until the room is needed, as in a cache."""
DOUBLE_BUFFER = Policy(keep=Keep.NONE, lookahead=1, direct=False)
"""While a part runs, the pieces of the next one are loaded."""


def schedule_transfers(problem: StagingProblem, *, piece_bytes: int | None = None) -> StagingPlan:
    """The fastest schedule found, as the scheduler's own model of the queues has it.

    Args:
        piece_bytes: the largest piece; several sizes are tried where none is given.

    Raises:
        UserError: INF2101, no schedule fits the scratchpad.
    """
    goal = lower_bound(problem).seconds * _CLOSE
    best: StagingPlan | None = None
    for pieces in _cuts(problem, piece_bytes):
        best = _try_policies(pieces, goal, best)
        if best is not None and best.seconds <= goal:
            break
    if best is None:
        raise _does_not_fit(problem)
    return best


def baseline(problem: StagingProblem, policy: Policy, piece_bytes: int) -> StagingPlan:
    """One policy for one size of pieces.

    Raises:
        UserError: INF2101, no schedule fits the scratchpad.
    """
    plan = _place(cut(problem, piece_bytes), policy)
    if plan is None:
        raise _does_not_fit(problem)
    return plan


def _cuts(problem: StagingProblem, piece_bytes: int | None) -> Iterator[Pieces]:
    """The problem in pieces of several sizes, each different from those before."""
    capacity = problem.machine.capacity_bytes
    sizes = [piece_bytes] if piece_bytes else [-(-capacity // count) for count in PIECES]
    seen: set[int] = set()
    for size in sizes:
        pieces = cut(problem, size)
        if len(pieces.pieces) not in seen and (not seen or len(pieces.parts) <= MAX_PARTS):
            seen.add(len(pieces.pieces))
            yield pieces


def _try_policies(pieces: Pieces, goal: float, best: StagingPlan | None) -> StagingPlan | None:
    """The best plan of several policies and of what is known; prefetching nothing comes last."""
    queues = sorted({1, min(2, pieces.machine.queues)})
    base: StagingPlan | None = None
    for count in queues:
        base = _better(pieces, Policy(queues=count), base)
    found = base if best is None or (base and base.seconds < best.seconds) else best
    if pieces.repeats and (found is None or found.seconds > goal):
        for resident in _residents(pieces, base):
            found = _better(pieces, Policy(queues=queues[-1], resident=resident), found)
    if found is None or found.seconds > goal:
        for policy in (DOUBLE_BUFFER, GREEDY, NO_PREFETCH):
            found = _better(pieces, policy, found)
    return found


def _better(pieces: Pieces, policy: Policy, best: StagingPlan | None) -> StagingPlan | None:
    """A policy's plan where it is faster, else the best one so far."""
    return _place(pieces, policy, math.inf if best is None else best.seconds) or best


def _residents(pieces: Pieces, base: StagingPlan | None) -> Iterator[frozenset[int]]:
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
            if base is not None:
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
        if chosen:
            yield frozenset(chosen)


def _place(pieces: Pieces, policy: Policy, below: float = math.inf) -> StagingPlan | None:
    """A schedule with offsets; None where none fits that takes less than `below` seconds."""
    capacity = pieces.machine.capacity_bytes
    limit = capacity
    for _ in range(_SHRINKS):
        draft = play(pieces, policy, limit)
        if draft is None or draft.seconds >= below:
            return None
        offsets, height = _pack(pieces, draft)
        if height <= capacity:
            residences = tuple(
                replace(residence, offset=offset)
                for residence, offset in zip(draft.residences, offsets, strict=True)
            )
            return StagingPlan(
                pieces,
                residences,
                tuple(draft.transfers),
                frozenset(draft.direct),
                height,
                tuple(draft.moments),
                draft.seconds,
            )
        # What the packing lost, and at least a little.
        limit = min(limit * capacity // height, limit * 31 // 32)
    return None


def _pack(pieces: Pieces, draft: Draft) -> tuple[list[int], int]:
    """Offsets of the residences and the bytes they reach up to."""
    machine = pieces.machine
    buffers = [
        Buffer(
            str(number),
            pieces.pieces[residence.piece].size_bytes,
            machine.align_bytes,
            residence.first,
            residence.last,
        )
        for number, residence in enumerate(draft.residences)
    ]
    plan = plan_arena(buffers, node_limit=0)
    if plan.height_bytes > machine.capacity_bytes:
        plan = plan_arena(buffers, node_limit=_SEARCH_NODES)
    return [plan.offsets[buffer.name] for buffer in buffers], plan.height_bytes


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
