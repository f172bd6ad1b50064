"""What a backend's programs may offer besides `Runnable` where their machine is simulated.

A simulator takes its own time to run them, which says nothing; what the machine itself would take,
and where everything lies on it, is asked for here. Nothing of it depends on what memories hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from infc.target.runnable import Call, Phase

ResourceKind = Literal["memory", "compute", "network"]


@dataclass(frozen=True)
class OpTime:
    """One operation of the model in a simulated call.

    Attributes:
        name: as in the model; layers that share their code share an operation.
        seconds: for how long nothing but it could make the call faster: those of all operations add
            up to the program's time.
        bound: the resource that binds; `latency` where none is busy, `hidden` where the operation
            takes none of the call's time.
        utilisation: of each resource that it uses, 0 to 1, of the instance that it uses most, over
            those seconds, or for as long as its busiest resource works where that is longer.
    """

    name: str
    seconds: float
    bound: str
    utilisation: Mapping[str, float]


@dataclass(frozen=True)
class SimulatedCall:
    """What one call takes.

    Attributes:
        seconds: from the host's call to its return.
        resources: the names of all that may bind, in the machine's order, and what they are.
        utilisation: of each over the whole call, 0 to 1, of its busiest instance.
        ops: in the order of the program.
    """

    seconds: float
    resources: Mapping[str, ResourceKind]
    utilisation: Mapping[str, float]
    ops: Sequence[OpTime]


@dataclass(frozen=True)
class Timeline:
    """One call as events of the trace event format, which Perfetto opens.

    Attributes:
        seconds: of the call; the events' times, in microseconds, start at 0.
        events: JSON objects: complete events (`X`) and the names of their tracks (`M`).
        left_out: events beyond those asked for, in pieces that may have become one event.
    """

    seconds: float
    events: Sequence[Mapping[str, Any]]
    left_out: int


@dataclass(frozen=True)
class PlacedCore:
    """One core and what the host puts into its memory before the first call.

    Attributes:
        chip, row, col: where it is.
        stage: the first layers are done by stage 0; None: it has no part in the model.
        held_bytes: by kind (`weights`, `kv`, `table`, `zero`), those that there are.
    """

    chip: int
    row: int
    col: int
    stage: int | None
    held_bytes: Mapping[str, int]


@dataclass(frozen=True)
class PlacedChannel:
    """One channel of a chip's far memory.

    Attributes:
        memory: its name.
        size_bytes: of the channel.
        held_bytes: by kind, as of a core.
    """

    chip: int
    memory: str
    channel: int
    size_bytes: int
    held_bytes: Mapping[str, int]


@dataclass(frozen=True)
class LocalBuffer:
    """Bytes `[offset, offset + size)` of a core's memory, live from one step to another."""

    name: str
    offset_bytes: int
    size_bytes: int
    first: int
    last: int


@dataclass(frozen=True)
class LocalPlan:
    """A core's memory over the steps of its program; the same on all cores of a stage.

    Attributes:
        stages: that have this plan.
        height_bytes: of the plan.
        lower_bound_bytes: no plan can need less.
    """

    stages: Sequence[int]
    height_bytes: int
    lower_bound_bytes: int
    buffers: Sequence[LocalBuffer]


@dataclass(frozen=True)
class MachineLayout:
    """Where a program and its data are.

    Attributes:
        chips, rows, cols: the grid of cores of each chip.
        core_bytes: memory of a core.
        stages: of each the number of layers.
        cores: by chip, row, column.
        channels: of all chips, those that hold something.
    """

    chips: int
    rows: int
    cols: int
    core_bytes: int
    stages: Sequence[int]
    cores: Sequence[PlacedCore]
    channels: Sequence[PlacedChannel]


@runtime_checkable
class SimulatedRunnable(Protocol):
    """What is to be asked of programs that also are a `Runnable`."""

    def simulate(self, phase: Phase, call: Call) -> SimulatedCall:
        """How long a call takes, and what of it binds; touches no KV cache."""

    def timeline(self, phase: Phase, call: Call, *, most_events: int) -> Timeline:
        """What every unit does during a call, the first `most_events` of it."""

    def layout(self, phase: Phase) -> MachineLayout:
        """Where a program and its data are."""

    def local_plans(self, phase: Phase) -> Sequence[LocalPlan]:
        """The memory of the cores over a program's steps; each stage is in one plan."""
