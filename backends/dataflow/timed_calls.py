"""How long calls of a program take on the machine, for who asks a runnable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from infc.backends.dataflow.image import Image
from infc.backends.dataflow.isa import Unit
from infc.backends.dataflow.machine import Machine
from infc.backends.dataflow.simulator.timing import Timing, simulate_time
from infc.backends.dataflow.simulator.trace import trace_events
from infc.backends.dataflow.simulator.utilisation import (
    CHIP_LINKS_NAME,
    MESH_NAME,
    PORT_NAME,
    OriginTime,
)
from infc.target.simulated import OpTime, ResourceKind, SimulatedCall, Timeline

UNNAMED = "between operations"
"""What is done for no operation of the model: tables are fetched, rows handed on."""
HIDDEN = "hidden"
"""What binds an operation that takes no time of the call."""
_MESH_LINKS = 4
"""Of a core; the links between chips come behind those of all cores."""
_KINDS: Final[dict[str, ResourceKind]] = {
    "matrix": "compute",
    "vector": "compute",
    "send": "network",
    MESH_NAME: "network",
    CHIP_LINKS_NAME: "network",
}
"""What is not memory, or on the way to it."""

Arguments = Sequence[NDArray[np.int32]]
"""Those of the calls that one call is cut into."""


def simulate_call(image: Image, machine: Machine, parts: Arguments) -> SimulatedCall:
    """The parts one after the other."""
    timings = [simulate_time(image, machine, args) for args in parts]
    seconds = sum(timing.seconds for timing in timings)
    busy = [_busy_seconds(timing, machine) for timing in timings]
    utilisation = {name: sum(part[name] for part in busy) / seconds for name in busy[0]}
    by_name: dict[str, list[OriginTime]] = {}
    for timing in timings:
        for origin in timing.origins:
            by_name.setdefault(origin.name, []).append(origin)
    ops = tuple(_op_time(name or UNNAMED, origins) for name, origins in by_name.items())
    kinds = {name: _KINDS.get(name, "memory") for name in utilisation}
    return SimulatedCall(seconds, kinds, utilisation, ops)


def _op_time(name: str, parts: Sequence[OriginTime]) -> OpTime:
    """One operation in all parts of a call."""
    seconds = sum(part.critical_s for part in parts)
    shares = [part.critical_s / seconds if seconds else 1 / len(parts) for part in parts]
    utilisation: dict[str, float] = {}
    for part, share in zip(parts, shares, strict=True):
        for resource, used in part.utilisation.items():
            utilisation[resource] = utilisation.get(resource, 0.0) + share * used
    longest = max(parts, key=lambda part: part.critical_s)
    return OpTime(name, seconds, longest.binding if seconds else HIDDEN, utilisation)


def _busy_seconds(timing: Timing, machine: Machine) -> dict[str, float]:
    """For how long the busiest instance of each resource is in use."""
    units = {unit.name.lower(): float(timing.busy_s[:, unit].max()) for unit in Unit}
    busy = units | {PORT_NAME: int(timing.port_bytes.max()) / machine.sram_bytes_per_s}
    channels = timing.channel_bytes.reshape(machine.chips, -1)
    first = 0
    for memory in machine.far:
        stop = first + memory.channels
        busy[memory.name] = int(channels[:, first:stop].max()) / memory.channel_bytes_per_s
        first = stop
    on_mesh = timing.link_bytes[: _MESH_LINKS * machine.cores]
    busy[MESH_NAME] = int(on_mesh.max()) / machine.mesh.link_bytes_per_s
    if machine.links is not None:
        between = timing.link_bytes[_MESH_LINKS * machine.cores :]
        busy[CHIP_LINKS_NAME] = int(between.max()) / machine.links.port_bytes_per_s
    return busy


def call_timeline(
    image: Image, machine: Machine, parts: Arguments, *, most_events: int
) -> Timeline:
    """The parts one after the other, as events."""
    names = [name or UNNAMED for name in image.origins]
    seconds, left_out = 0.0, 0
    events: dict[str, Mapping[str, Any]] = {}
    slices: list[Mapping[str, Any]] = []
    for args in parts:
        room = most_events - len(slices)
        timing = simulate_time(image, machine, args, most_spans=room)
        left_out += timing.spans.left_out
        for event in trace_events(timing, names):
            if event["ph"] == "M":
                events[repr(event)] = event
            else:
                slices.append({**event, "ts": event["ts"] + 1e6 * seconds})
        seconds += timing.seconds
    return Timeline(seconds, [*events.values(), *slices], left_out)
