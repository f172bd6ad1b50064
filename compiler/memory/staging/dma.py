"""DMA queues as the scheduler expects them to behave, moved forward in time as it goes.

The transfers at the heads of the queues, and what a step moves itself, share the bandwidth evenly;
each has waited for the latency first.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from infc.memory.staging.problem import Machine


@dataclass
class _Flow:
    """Something on its way: seconds until its first byte, bytes left."""

    latency: float
    bytes: float


@dataclass
class Dma:
    """The queues at a moment.

    Attributes:
        queues: how many of the machine's queues are used.
        time: seconds since the start of the program.
    """

    machine: Machine
    queues: int
    time: float = 0.0
    _waiting: list[deque[int]] = field(default_factory=list)
    _queued_bytes: list[int] = field(default_factory=list)
    _sizes: list[int] = field(default_factory=list)
    _flows: list[_Flow] = field(default_factory=list)
    _ends: list[float | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._waiting = [deque() for _ in range(self.queues)]
        self._queued_bytes = [0] * self.queues

    def put(self, size_bytes: int) -> tuple[int, int]:
        """Put a transfer into the queue with the fewest bytes; returns its number and the queue."""
        number = len(self._flows)
        queue = min(range(self.queues), key=lambda q: (self._queued_bytes[q], q))
        self._queued_bytes[queue] += size_bytes
        self._sizes.append(size_bytes)
        self._flows.append(_Flow(self.machine.latency_seconds, size_bytes))
        self._ends.append(None)
        self._waiting[queue].append(number)
        return number, queue

    def done(self, number: int) -> bool:
        """Whether a transfer has ended."""
        return self._ends[number] is not None

    def wait(self, number: int) -> None:
        """Move on to the end of a transfer."""
        while not self.done(number):
            self._advance(None, math.inf)

    def run(self, seconds: float, size_bytes: int) -> None:
        """Move on by the time of a step that computes and moves bytes of its own."""
        end = self.time + seconds
        own = _Flow(self.machine.latency_seconds, size_bytes) if size_bytes else None
        while own is not None and own.bytes > 0:
            self._advance(own, math.inf)
        while self.time < end:
            self._advance(None, end)

    def _advance(self, own: _Flow | None, end: float) -> None:
        """Move on to the next moment at which a flow begins or ends, at most to `end`."""
        heads = [self._flows[queue[0]] for queue in self._waiting if queue]
        flows = [*heads, own] if own is not None else heads
        moving = [flow for flow in flows if flow.latency <= 0]
        rate = self.machine.bandwidth_bytes_per_s / max(1, len(moving))
        events = [flow.bytes / rate if flow.latency <= 0 else flow.latency for flow in flows]
        step = min(events, default=math.inf)
        if self.time + step >= end:
            step = end - self.time
            self.time = end
        else:
            self.time += step
        for flow, event in zip(flows, events, strict=True):
            if flow.latency > 0:
                flow.latency = 0.0 if event <= step else flow.latency - step
            else:
                flow.bytes = 0.0 if event <= step else flow.bytes - step * rate
        for number, queue in enumerate(self._waiting):
            if queue and self._flows[queue[0]].latency <= 0 and self._flows[queue[0]].bytes <= 0:
                ended = queue.popleft()
                self._ends[ended] = self.time
                self._queued_bytes[number] -= self._sizes[ended]
