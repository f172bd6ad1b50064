"""What a plan takes, event by event; it shares no code with the scheduler.

Time is kept as the progress of a fluid: all that flows at a moment has the same share of the
bandwidth, so one number, the bytes that each flow has got since the start, says when the next one
ends (the *virtual time* of fair queueing: Demers, Keshav, Shenker, SIGCOMM 1989).
"""

from __future__ import annotations

import heapq
import math
from collections import defaultdict, deque
from dataclasses import dataclass, field

from infc.diagnostics import InternalError
from infc.memory.staging.plan import Kind, Moment, StagingPlan


@dataclass(frozen=True)
class Interval:
    """When a transfer was put into its queue, reached the head of it, and ended; seconds."""

    issued: float
    started: float
    ended: float


@dataclass(frozen=True)
class Timeline:
    """What happens when, in seconds since the start.

    Attributes:
        moments: of each part.
        transfers: of each transfer of the plan.
        seconds: until the last part and the last transfer have ended.
        busy_seconds: in which bytes flow.
    """

    moments: tuple[Moment, ...]
    transfers: tuple[Interval, ...]
    seconds: float
    busy_seconds: float


@dataclass
class _Channel:
    """The far memory's pins: flows that share them, and queues of those that wait."""

    rate: float
    latency: float
    now: float = 0.0
    share: float = 0.0
    busy: float = 0.0
    flowing: list[tuple[float, int]] = field(default_factory=list)
    starting: list[tuple[float, int]] = field(default_factory=list)
    size: dict[int, int] = field(default_factory=dict)
    queue: dict[int, deque[int]] = field(default_factory=lambda: defaultdict(deque))
    queue_of: dict[int, int] = field(default_factory=dict)
    started: dict[int, float] = field(default_factory=dict)
    ended: dict[int, float] = field(default_factory=dict)

    def enqueue(self, flow: int, queue: int, size: int) -> None:
        self.size[flow] = size
        self.queue_of[flow] = queue
        self.queue[queue].append(flow)
        if self.queue[queue][0] == flow:
            self._begin(flow)

    def _begin(self, flow: int) -> None:
        self.started[flow] = self.now
        heapq.heappush(self.starting, (self.now + self.latency, flow))

    def step(self, limit: float = math.inf) -> bool:
        """Move on to the next beginning or end of a flow, or to `limit` where that is sooner.

        Returns whether something began or ended.
        """
        begin = self.starting[0][0] if self.starting else math.inf
        end = math.inf
        if self.flowing:
            left = max(0.0, self.flowing[0][0] - self.share)
            end = self.now + left * len(self.flowing) / self.rate
        time = min(begin, end, limit)
        ends = end == time
        if self.flowing:
            self.busy += time - self.now
            grown = self.share + (time - self.now) * self.rate / len(self.flowing)
            # Exactly where a flow ends: a rounding error would keep it for ever.
            self.share = self.flowing[0][0] if ends else grown
        self.now = time
        if ends:
            self._end(heapq.heappop(self.flowing)[1])
        elif begin == time:
            flow = heapq.heappop(self.starting)[1]
            heapq.heappush(self.flowing, (self.share + self.size[flow], flow))
        return ends or begin == time

    def _end(self, flow: int) -> None:
        self.ended[flow] = self.now
        waiting = self.queue[self.queue_of[flow]]
        waiting.popleft()
        if waiting:
            self._begin(waiting[0])

    def until_ended(self, flow: int) -> None:
        """Move on until a flow has ended."""
        while flow not in self.ended:
            self.step()
            if self.now == math.inf:
                raise InternalError(f"transfer {flow} is waited for before it is issued")

    def until(self, time: float) -> None:
        """Move on to a time and let all happen that happens until then."""
        while self.step(time):
            pass


def evaluate(plan: StagingPlan) -> Timeline:
    """The times of a plan's parts and transfers.

    Raises:
        InternalError: a transfer is waited for before it is issued.
    """
    machine, pieces = plan.pieces.machine, plan.pieces.pieces
    channel = _Channel(machine.bandwidth_bytes_per_s, machine.latency_seconds)
    issued: dict[int, float] = {}
    by_issue: dict[tuple[Kind, int], list[int]] = defaultdict(list)
    by_wait: dict[tuple[Kind, int], list[int]] = defaultdict(list)
    for number, transfer in enumerate(plan.transfers):
        by_issue[transfer.kind, transfer.issue].append(number)
        by_wait[transfer.kind, transfer.wait].append(number)
    moments: list[Moment] = []
    for part in range(len(plan.pieces.parts) + 1):
        ready = channel.now
        for kind in (Kind.STORE, Kind.LOAD):
            for number in by_issue[kind, part]:
                transfer = plan.transfers[number]
                issued[number] = channel.now
                size = pieces[plan.residences[transfer.residence].piece].size_bytes
                channel.enqueue(number, transfer.queue, size)
            for number in by_wait[kind, part]:
                channel.until_ended(number)
        if part < len(plan.pieces.parts):
            moments.append(_run(plan, channel, part, ready))
    for number in issued:
        channel.until_ended(number)
    intervals = tuple(
        Interval(issued[number], channel.started[number], channel.ended[number])
        for number in range(len(plan.transfers))
    )
    return Timeline(tuple(moments), intervals, channel.now, channel.busy)


def _run(plan: StagingPlan, channel: _Channel, number: int, ready: float) -> Moment:
    """Let a part run, with what it moves itself beside the transfers."""
    part = plan.pieces.parts[number]
    start = channel.now
    own = part.far_bytes + sum(
        plan.pieces.pieces[piece].size_bytes
        for piece in part.uses
        if (number, piece) in plan.direct
    )
    if own:
        flow = -1 - number
        channel.enqueue(flow, flow, own)
        channel.until_ended(flow)
    channel.until(max(channel.now, start + part.seconds))
    return Moment(ready, start, channel.now)
