"""The time of one stage of a call, as its vector stream sees it.

The vector stream leads: it works, hands work to the send and matrix streams and waits for them, so
times of operations add up. Only the load stream runs ahead: `Loader`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from infc.backends.dataflow.codegen.builder import Area
from infc.backends.dataflow.codegen.values import RowSpace
from infc.backends.dataflow.cost.network import Network, Transport
from infc.backends.dataflow.cost.rates import Rates

VECTOR, MATRIX, LATENCY = "vector", "matrix", "latency"


class Loader:
    """The load stream of a core: pieces of weights through the ring, as far ahead as it holds.

    Attributes:
        at: when its channel is free for the next request.
    """

    def __init__(self, rates: Rates, cores: int, slots: int, *, prefetch: bool) -> None:
        machine = rates.machine
        memory = machine.far[0]
        self.prefetch = prefetch
        self.at = 0.0
        # A channel serves its cores burst by burst in turns.
        sharing = max(1.0, min(cores, machine.chip_cores) / memory.channels)
        self._bytes_per_cycle = rates.channel(sharing)
        self._delay = rates.cycles(memory.latency_s) + machine.dma.startup_cycles
        self._free: deque[float] = deque([0.0] * slots)

    def piece(self, size: float, needed: float) -> float:
        """When the next piece is there.

        Args:
            needed: when the matrix stream comes to it; it is asked for then where there is no
                prefetch.
        """
        begin = max(self.at, self._free.popleft())
        if not self.prefetch:
            begin = max(begin, needed)
        return self.load(size, begin)

    def load(self, size: float, begin: float) -> float:
        """When a request that may begin then is there."""
        self.at = max(self.at, begin) + size / self._bytes_per_cycle
        return self.at + self._delay

    def skip(self, cycles: float) -> None:
        """Everything goes on so much later as it is now."""
        self.at += cycles
        self._free = deque(at + cycles for at in self._free)

    def release(self, at: float) -> None:
        """The oldest piece has been read."""
        self._free.append(at)


@dataclass
class Timeline:
    """One stage.

    Attributes:
        now: cycles since the call began.
        busy: cycles that each resource binds.
        spaces: rows by symbol.
        rows: of the call, by symbol.
        position: of the call's first token.
        loader: where weights come from far memory.
        groups: of kv heads.
        far_cache: whether keys and values do.
    """

    rates: Rates
    area: Area
    phase: str
    spaces: dict[str, RowSpace]
    rows: dict[str, int]
    position: int
    loader: Loader | None
    groups: int = 1
    far_cache: bool = False
    now: float = 0.0
    busy: dict[str, float] = field(default_factory=dict)

    @property
    def cores(self) -> int:
        """Of the stage."""
        return self.area.size

    @property
    def network(self) -> Network:
        """Between its cores."""
        return Network(self.rates, self.area)

    def own(self, symbol: str) -> int:
        """Rows of the core that owns most."""
        shared = self.spaces[symbol].shared
        return -(-self.rows[symbol] // self.cores) if shared else self.rows[symbol]

    def spend(self, resource: str, cycles: float) -> None:
        """Nothing else happens meanwhile."""
        self.now += cycles
        self.busy[resource] = self.busy.get(resource, 0.0) + cycles

    def repeat(self, times: int, since: float, busy: Mapping[str, float]) -> None:
        """What happened since then happens some times more.

        Args:
            times: how often.
            since: the time then.
            busy: as it was then.
        """
        later = times * (self.now - since)
        self.now += later
        for name, cycles in self.busy.items():
            self.busy[name] = cycles + times * (cycles - busy.get(name, 0.0))
        if self.loader is not None:
            self.loader.skip(later)

    def vector(self, cycles: float) -> None:
        """The vector unit is at work."""
        self.spend(VECTOR, cycles)

    def each_row(self, rows: float, body: float, instructions: int, strides: int) -> None:
        """A loop of the vector stream; see `Rates.each_row`."""
        self.vector(self.rates.each_row(rows, body, instructions, strides))

    def exchange(self, transport: Transport, sends: float = 1.0, scalars: float = 0.0) -> None:
        """All cores send and wait for what comes.

        Args:
            sends: of a core.
            scalars: instructions of a core in front of each SEND, besides the usual ones.
        """
        machine, constants = self.rates.machine, self.rates.constants
        first = constants.send + scalars + machine.issue_cycles
        # Later SENDs are issued while earlier ones move.
        moving = max(transport.busy, sends * first)
        power = constants.overlap
        whole = (transport.latency**power + moving**power) ** (1.0 / power)
        self.spend(LATENCY, machine.dma.startup_cycles + first + whole - min(whole, moving))
        self.spend(transport.resource if moving > sends * first else LATENCY, min(whole, moving))
