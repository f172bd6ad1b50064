"""What each place in the model took, and which resource bound it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from infc.backends.dataflow.isa import Unit
from infc.backends.dataflow.machine import Machine
from infc.backends.dataflow.simulator.critical_path import Piece
from infc.backends.dataflow.simulator.resources import TICKS_PER_S, Ints, Rates
from infc.backends.dataflow.simulator.timing_state import (
    BUSY,
    CHANNEL,
    ELAPSED,
    LINK,
    PORT,
    WAIT_CHANNEL,
    WAIT_LINK,
    WAIT_PORT,
    WAIT_SEMAPHORE,
    State,
)
from infc.backends.dataflow.simulator.walk import UNITS

LATENCY: Final = "latency"
"""What binds where nothing is in use for half of the time."""
PORT_NAME: Final = "sram"
MESH_NAME: Final = "mesh"
CHIP_LINKS_NAME: Final = "chip links"


@dataclass(frozen=True)
class OriginTime:
    """One operation of the model; seconds.

    Attributes:
        name: the origin.
        critical_s: its part of the critical path; those of all origins add up to the program's.
        critical_by: that by what was waited for: `matrix`, `vector`, and `load` and `send`, with
            the ways of what they move.
        loads_s: in which it uses a resource, of the instance of the resource that it uses most:
            `load` and `send` (DMA engines), `matrix`, `vector`, `sram` (port of a core), each far
            memory by name (channel), `mesh` and `chip links` (link).
        bytes: that it moves, over all instances of `sram`, far memories, `mesh`, `chip links`.
        elapsed_s: the most that one stream is at it, waiting included.
        waits_s: the most that one stream waits in it, by cause.
    """

    name: str
    critical_s: float
    critical_by: Mapping[str, float]
    loads_s: Mapping[str, float]
    bytes: Mapping[str, float]
    elapsed_s: float
    waits_s: Mapping[str, float]

    @property
    def utilisation(self) -> dict[str, float]:
        """Of each resource while the origin is on the critical path, or for as long as the most
        used resource is in use where that is longer."""
        span = max(self.critical_s, max(self.loads_s.values(), default=0.0))
        return {name: load / span for name, load in self.loads_s.items() if span > 0}

    @property
    def binding(self) -> str:
        """The most used resource, or `latency` where that is idle for more than half of the time.

        Of an origin that is on the critical path only those resources count that what it waits
        for there can be due to.
        """
        loads, span = dict(self.loads_s), self.critical_s
        if self.critical_by:
            wait = max(self.critical_by, key=self.critical_by.__getitem__)
            span = self.critical_by[wait]
            loads = {name: load for name, load in loads.items() if _may_bind(wait, name)}
        if not loads:
            return LATENCY
        most = max(loads, key=loads.__getitem__)
        return most if 2 * loads[most] >= span else LATENCY


def _may_bind(wait: str, resource: str) -> bool:
    """Whether waiting for a unit may be due to a resource."""
    if wait in ("matrix", "vector"):
        return resource in (wait, PORT_NAME)
    others = {"load": ("send", CHIP_LINKS_NAME), "send": ("load",)}
    return resource not in ("matrix", "vector", *others[wait])


@dataclass(frozen=True)
class Tallies:
    """The hash table of a state, laid out.

    Attributes:
        first: as `TallyTable.first`.
        origin, what, index, ticks: `[entries]`.
    """

    first: Ints
    origin: Ints
    what: Ints
    index: Ints
    ticks: Ints

    @classmethod
    def of(cls, state: State) -> Tallies:
        """Of a state, in order of origin, what and index."""
        first, table = state.books.tallies.first, state.books.tallies.table
        rows = table[table[:, 0] >= 0]
        rows = rows[np.argsort(rows[:, 0])]
        origin, number = np.divmod(rows[:, 0], first[-1])
        what = np.searchsorted(first, number, side="right") - 1
        return cls(first, origin, what, number - first[what], rows[:, 1])

    def total(self, what: int) -> Ints:
        """Ticks of each instance, over all origins."""
        totals = np.zeros(self.first[what + 1] - self.first[what], np.int64)
        rows = self.what == what
        np.add.at(totals, self.index[rows], self.ticks[rows])
        return totals


def origin_times(
    names: list[str],
    machine: Machine,
    rates: Rates,
    tallies: Tallies,
    path: Mapping[Piece, int],
) -> tuple[OriginTime, ...]:
    """All origins that take any time, in order."""
    resources = _resources(machine, rates, tallies)
    most = np.zeros((len(names), len(resources)), np.int64)
    moved = np.zeros((len(names), len(resources)))
    for column, (rows, per_byte) in enumerate(resources.values()):
        np.maximum.at(most[:, column], tallies.origin[rows], tallies.ticks[rows])
        if per_byte:
            np.add.at(moved[:, column], tallies.origin[rows], tallies.ticks[rows] / per_byte)
    streams = {
        "elapsed": ELAPSED,
        "semaphore": WAIT_SEMAPHORE,
        "port": WAIT_PORT,
        "channel": WAIT_CHANNEL,
        "link": WAIT_LINK,
    }
    spent = np.zeros((len(names), len(streams)), np.int64)
    for column, what in enumerate(streams.values()):
        rows = tallies.what == what
        np.maximum.at(spent[:, column], tallies.origin[rows], tallies.ticks[rows])
    pieces: list[dict[str, int]] = [{} for _ in names]
    for (origin, wait), ticks in sorted(path.items()):
        pieces[origin][wait] = ticks
    labels, causes = list(resources), list(streams)[1:]
    return tuple(
        OriginTime(
            name=name,
            critical_s=sum(pieces[i].values()) / TICKS_PER_S,
            critical_by={wait: ticks / TICKS_PER_S for wait, ticks in pieces[i].items()},
            loads_s=_seconds(labels, most[i]),
            bytes={label: n for label, n in zip(labels, moved[i].tolist(), strict=True) if n},
            elapsed_s=int(spent[i, 0]) / TICKS_PER_S,
            waits_s=_seconds(causes, spent[i, 1:]),
        )
        for i, name in enumerate(names)
        if pieces[i] or spent[i, 0] or most[i].any()
    )


def _seconds(labels: list[str], ticks: Ints) -> dict[str, float]:
    return {label: n / TICKS_PER_S for label, n in zip(labels, ticks.tolist(), strict=True) if n}


def _resources(machine: Machine, rates: Rates, tallies: Tallies) -> dict[str, tuple[Ints, float]]:
    """Entries of the tallies by name of a resource, and ticks a byte where it moves bytes."""
    what, index = tallies.what, tallies.index
    on_mesh = index < rates.cores * 4
    units = {unit: (what == BUSY) & (index % UNITS == unit) for unit in Unit}
    found = {
        "matrix": (units[Unit.MATRIX], 0.0),
        "vector": (units[Unit.VECTOR], 0.0),
    }
    for tier, memory in enumerate(machine.far):
        inside = index % rates.channel_total - rates.channel_first[tier]
        rows = (what == CHANNEL) & (inside >= 0) & (inside < rates.channels[tier])
        found[memory.name] = rows, float(rates.far_per_byte[tier])
    found[MESH_NAME] = (what == LINK) & on_mesh, rates.mesh_per_byte
    found[CHIP_LINKS_NAME] = (what == LINK) & ~on_mesh, rates.chip_per_byte
    found[PORT_NAME] = what == PORT, rates.port_per_byte
    # Last, for of equals the first one binds: an engine is as busy as what it moves bytes from.
    found["load"] = units[Unit.LOAD], 0.0
    found["send"] = units[Unit.SEND], 0.0
    return {name: (np.flatnonzero(rows), per_byte) for name, (rows, per_byte) in found.items()}
