"""An independent check of a plan: it shares no code and no data structure with the scheduler.

It replays the program with a list of what lies in the scratchpad and another of what far memory
holds the newest bytes of, and judges the times of a timeline: parts wait for what they use, and
transfers that are under way together move no more than the far memory can.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from infc.diagnostics import InternalError
from infc.memory.staging.plan import Kind, Residence, StagingPlan, Transfer
from infc.memory.staging.timeline import Timeline

_ROUNDING = 1e-9
"""Of times, relative to the length of the program."""


def check_staging(plan: StagingPlan, timeline: Timeline) -> None:
    """Refuse a plan, or a timeline of it, that is wrong.

    Raises:
        InternalError: a residence leaves the scratchpad, is misaligned or overlaps another; a part
            uses a piece that is not there, whose transfer has not ended, or whose newest bytes are
            elsewhere; bytes are lost that somebody needs; transfers outrun the bandwidth.
    """
    _check_places(plan)
    _check_overlaps(plan)
    _Replay(plan).run()
    _check_times(plan, timeline)


def _check_places(plan: StagingPlan) -> None:
    parts = len(plan.pieces.parts)
    machine = plan.pieces.machine
    for number, residence in enumerate(plan.residences):
        size = plan.pieces.pieces[residence.piece].size_bytes
        name = _name(plan, residence.piece)
        if not 0 <= residence.first <= residence.last < parts:
            raise InternalError(
                f"residence {number} of {name} must lie in parts 0 to {parts - 1}, first before "
                f"last, got {residence.first} to {residence.last}"
            )
        if residence.offset % machine.align_bytes:
            raise InternalError(
                f"residence {number} of {name} needs a multiple of {machine.align_bytes}, "
                f"got {residence.offset}"
            )
        if residence.offset < 0 or residence.offset + size > machine.capacity_bytes:
            raise InternalError(
                f"residence {number} of {name} must lie in {machine.capacity_bytes} bytes, "
                f"got [{residence.offset}, {residence.offset + size})"
            )


def _check_overlaps(plan: StagingPlan) -> None:
    """Part by part: what is there, by address, must not reach into its neighbour."""
    arriving, leaving = defaultdict(list), defaultdict(list)
    for number, residence in enumerate(plan.residences):
        if plan.pieces.pieces[residence.piece].size_bytes:
            arriving[residence.first].append(number)
            leaving[residence.last + 1].append(number)
    there: set[int] = set()
    for part in range(len(plan.pieces.parts)):
        there.difference_update(leaving[part])
        there.update(arriving[part])
        if not arriving[part]:
            continue
        end, owner = 0, -1
        for number in sorted(there, key=lambda n: (plan.residences[n].offset, n)):
            residence = plan.residences[number]
            if residence.offset < end:
                pair = [_name(plan, plan.residences[n].piece) for n in (owner, number)]
                raise InternalError(f"{pair[0]} and {pair[1]} overlap at part {part}")
            end = residence.offset + plan.pieces.pieces[residence.piece].size_bytes
            owner = number


class _Replay:
    """The program once more, in the order in which the plan's parts and transfers take effect."""

    def __init__(self, plan: StagingPlan) -> None:
        self.plan = plan
        self.written = {piece for part in plan.pieces.parts for piece in part.writes}
        # The newest bytes of a piece: in far memory, and in which residences.
        self.far = {n for n, piece in enumerate(plan.pieces.pieces) if piece.starts_far}
        self.holds: dict[int, int] = {}  # piece: the residence whose bytes are the newest
        self.pending: dict[int, Transfer] = {}  # transfers under way, by number
        self.moving: dict[int, list[Kind]] = defaultdict(list)  # and by residence
        self.stays: dict[int, list[int]] = defaultdict(list)  # residences by piece
        for number, residence in enumerate(plan.residences):
            self.stays[residence.piece].append(number)

    def run(self) -> None:
        plan = self.plan
        for number, transfer in enumerate(plan.transfers):
            self._check_order(number, transfer)
        for number, residence in enumerate(plan.residences):
            if residence.resident:
                self._check_resident(number, residence)
                self.holds[residence.piece] = number
        issues: dict[tuple[int, Kind], list[int]] = defaultdict(list)
        waits: dict[tuple[int, Kind], list[int]] = defaultdict(list)
        for number, transfer in enumerate(plan.transfers):
            issues[transfer.issue, transfer.kind].append(number)
            waits[transfer.wait, transfer.kind].append(number)
        for part in range(len(plan.pieces.parts) + 1):
            for kind in (Kind.STORE, Kind.LOAD):
                if kind is Kind.LOAD:
                    self._leave(part)
                for number in issues[part, kind]:
                    self._issue(number)
                for number in waits[part, kind]:
                    self._finish(number)
            if part < len(plan.pieces.parts):
                self._run(part)
        for number, piece in enumerate(plan.pieces.pieces):
            if piece.ends_far and piece.size_bytes and number not in self.far:
                raise InternalError(f"{_name(plan, number)} never gets back to far memory")

    def _check_order(self, number: int, transfer: Transfer) -> None:
        residence = self.plan.residences[transfer.residence]
        name = f"transfer {number} of {_name(self.plan, residence.piece)}"
        if not 0 <= transfer.queue < self.plan.pieces.machine.queues:
            raise InternalError(f"{name} is in queue {transfer.queue}, which there is not")
        if not 0 <= transfer.issue <= transfer.wait:
            raise InternalError(f"{name} is waited for at {transfer.wait}, before its issue")
        if transfer.kind is Kind.LOAD and residence.first > transfer.issue:
            raise InternalError(f"{name} starts before its room is there")
        if transfer.kind is Kind.STORE and residence.last < transfer.wait - 1:
            raise InternalError(f"{name} has not ended when its room is given away")

    def _check_resident(self, number: int, residence: Residence) -> None:
        piece = self.plan.pieces.pieces[residence.piece]
        whole = (residence.first, residence.last) == (0, len(self.plan.pieces.parts) - 1)
        allowed = self.plan.pieces.repeats and piece.starts_far
        if not allowed or not whole or residence.piece in self.written:
            raise InternalError(
                f"residence {number} of {_name(self.plan, residence.piece)} cannot be there always"
            )

    def _leave(self, part: int) -> None:
        """Forget residences that end before this part."""
        for piece, number in list(self.holds.items()):
            if self.plan.residences[number].last < part:
                del self.holds[piece]

    def _issue(self, number: int) -> None:
        transfer = self.plan.transfers[number]
        piece = self.plan.residences[transfer.residence].piece
        source = self.far if transfer.kind is Kind.LOAD else self.holds
        if piece not in source:
            raise InternalError(f"a {transfer.kind} of {_name(self.plan, piece)} moves old bytes")
        if transfer.kind is Kind.STORE and self.holds[piece] != transfer.residence:
            raise InternalError(f"a store of {_name(self.plan, piece)} moves another stay's bytes")
        self.pending[number] = transfer
        self.moving[transfer.residence].append(transfer.kind)

    def _finish(self, number: int) -> None:
        transfer = self.pending.pop(number, None)
        if transfer is None:
            raise InternalError(f"transfer {number} is waited for before it is issued")
        self.moving[transfer.residence].remove(transfer.kind)
        piece = self.plan.residences[transfer.residence].piece
        if transfer.kind is Kind.LOAD:
            self.holds[piece] = transfer.residence
        else:
            self.far.add(piece)

    def _run(self, number: int) -> None:
        plan, part = self.plan, self.plan.pieces.parts[number]
        for piece in part.reads:
            if (number, piece) in plan.direct:
                if not plan.pieces.pieces[piece].may_be_direct or piece not in self.far:
                    raise InternalError(f"{_name(plan, piece)} cannot be read directly")
            elif plan.pieces.pieces[piece].size_bytes:
                held = self.holds.get(piece)
                if held is None or Kind.LOAD in self.moving[held]:
                    raise InternalError(f"part {number} reads {_name(plan, piece)}, not there yet")
        for piece in part.writes:
            if plan.pieces.pieces[piece].size_bytes:
                self.holds[piece] = self._room(piece, number)
                self.far.discard(piece)

    def _room(self, piece: int, part: int) -> int:
        """The residence that a part writes a piece into: the one that came last."""
        stays = self.plan.residences
        found = [n for n in self.stays[piece] if stays[n].first <= part <= stays[n].last]
        if not found:
            raise InternalError(f"part {part} writes {_name(self.plan, piece)}, no room for it")
        held = max(found, key=lambda number: stays[number].first)
        if self.moving[held]:
            raise InternalError(f"part {part} writes {_name(self.plan, piece)} while it moves")
        return held


def _check_times(plan: StagingPlan, timeline: Timeline) -> None:
    """Parts run one after the other, behind what they wait for; nothing is faster than possible."""
    machine, pieces, moments = plan.pieces.machine, plan.pieces.pieces, timeline.moments
    margin = _ROUNDING * max(timeline.seconds, machine.latency_seconds)
    flows: list[tuple[float, float, int]] = []
    end = 0.0
    for number, (part, moment) in enumerate(zip(plan.pieces.parts, moments, strict=True)):
        own = part.far_bytes
        own += sum(pieces[piece].size_bytes for at, piece in plan.direct if at == number)
        if moment.start < end - margin or moment.end < moment.start + part.seconds - margin:
            raise InternalError(f"part {number} runs before the one in front of it, or too fast")
        if own:
            flows.append((moment.start, moment.end, own))
        end = moment.end
    free: dict[int, float] = defaultdict(float)
    for number, (transfer, interval) in enumerate(
        zip(plan.transfers, timeline.transfers, strict=True)
    ):
        issued = moments[transfer.issue - 1].end if transfer.issue else 0.0
        if interval.started < max(issued, free[transfer.queue]) - margin:
            raise InternalError(f"transfer {number} starts before its issue, or beside its queue's")
        needed = moments[transfer.wait].start if transfer.wait < len(moments) else timeline.seconds
        if interval.ended > needed + margin:
            raise InternalError(f"part {transfer.wait} starts before transfer {number} has ended")
        free[transfer.queue] = interval.ended
        size = pieces[plan.residences[transfer.residence].piece].size_bytes
        flows.append((interval.started, interval.ended, size))
    _check_bandwidth(flows, machine.bandwidth_bytes_per_s, machine.latency_seconds, margin)


def _check_bandwidth(
    flows: list[tuple[float, float, int]], rate: float, latency: float, margin: float
) -> None:
    """What starts and ends within a stretch of time must fit into it, for every stretch."""
    flows = sorted(flows, key=lambda flow: flow[1])
    starts = np.array([flow[0] + latency for flow in flows])
    ends = np.array([flow[1] for flow in flows])
    sizes = np.array([flow[2] for flow in flows], np.float64)
    for start in np.unique(starts):
        moved = np.cumsum(np.where(starts >= start, sizes, 0.0))
        late = np.flatnonzero(moved > rate * (ends - start + margin) * (1 + _ROUNDING))
        late = late[starts[late] >= start]
        if late.size:
            raise InternalError(
                f"between {start:.9g} and {ends[late[0]]:.9g} seconds {moved[late[0]]:.0f} bytes "
                f"move, at {rate:.6g} bytes a second"
            )


def _name(plan: StagingPlan, piece: int) -> str:
    of = plan.pieces.pieces[piece]
    return f"{of.block!r}" if not of.start_byte else f"{of.block!r} from byte {of.start_byte}"
