"""Exchanges between the cores of a group: hops, the busiest link, the gateways between chips."""

from __future__ import annotations

from dataclasses import dataclass

from infc.backends.dataflow.codegen.builder import Area
from infc.backends.dataflow.cost.rates import Rates
from infc.backends.dataflow.machine import MESSAGE_BYTES

MESH, CHIP_LINKS = "mesh", "chip links"


@dataclass(frozen=True)
class Transport:
    """What one exchange takes from the first SEND to the last arrival, in cycles.

    Attributes:
        latency: hops of the longest way.
        resource: that is busiest.
        busy: for how long it is.
    """

    latency: float
    resource: str
    busy: float

    def plus(self, other: Transport) -> Transport:
        """Both, one behind the other."""
        longer = self if self.busy >= other.busy else other
        return Transport(max(self.latency, other.latency), longer.resource, self.busy + other.busy)


@dataclass(frozen=True)
class Network:
    """The ways between the cores of an area."""

    rates: Rates
    area: Area

    def to_all(self, size: float, groups: int = 1) -> Transport:
        """Every core sends bytes to all cores, or others to all cores of each group."""
        rows, cols, chips = self.area.rows, self.area.cols, self.area.chip_count
        own = rows * cols
        # Along the row first: a column's links carry what came along all rows above.
        line = max(cols - 1, (rows - 1) * cols) * size
        if chips > 1:
            # What the other chips send comes in at the gateway, and along its row to all columns.
            line = max(cols > 1, rows > 1) * ((chips - 1) * own * size + line)
        return self._transport(groups * size, own * chips * size, line, (chips - 1) * own * size)

    def each_to_each(self, size: float) -> Transport:
        """Every core sends other bytes to every core, so many to each."""
        rows, cols, chips = self.area.rows, self.area.cols, self.area.chip_count
        own = rows * cols
        line = max(_crossing(cols) * rows, _crossing(rows) * cols) * size
        between = (chips - 1) * own * own * size
        total = own * chips * size
        # The gateway is at the end of its row: all that goes to other columns is on one link.
        return self._transport(total, total, line + between * (cols - 1) / cols, between)

    def each_to_some(self, size: float, groups: int) -> Transport:
        """Every core sends bytes to the core of its place in each group: its own one to itself."""
        cols, on_chip = self.area.cols, self.area.rows * self.area.cols
        here = max(1, on_chip * groups // self.area.size)
        between = (groups - here) * on_chip * size
        line = _crossing(here) * on_chip / here / cols * size
        received = groups * size
        return self._transport(received, received, line + between * (cols - 1) / cols, between)

    def to_one(self, size: float, senders: int, *, spread: bool = False) -> Transport:
        """Some cores send to one of them, or each to one of its own."""
        load = size if spread else senders * size
        return self._transport(size, load, load, load if self.area.chip_count > 1 else 0.0)

    def to_next(self, size: float, *, spread: bool) -> Transport:
        """Rows to the stage behind: of each core to one there, or of the first to all."""
        area, machine = self.area, self.rates.machine
        load = size * area.size if spread else size
        hops = (area.rows + area.cols) * self.rates.cycles(machine.mesh.hop_s)
        busy, resource = load / self.rates.link / (area.cols if spread else 1), MESH
        whole = area.rows == machine.rows and area.cols == machine.cols
        if whole and machine.links is not None:
            hops += self.rates.cycles(machine.links.hop_s)
            busy, resource = load / (machine.links.port_bytes_per_s / machine.clock_hz), CHIP_LINKS
        return Transport(hops, resource, busy)

    def _transport(self, sent: float, received: float, line: float, between: float) -> Transport:
        """The busiest of engine, port, links inside a chip and between chips.

        Args:
            sent, received: bytes of a core.
            line: of the busiest link inside a chip.
            between: that come into a chip.
        """
        rates, machine, area = self.rates, self.rates.machine, self.area
        hops = (area.rows - 1 + area.cols - 1) * rates.cycles(machine.mesh.hop_s)
        packet = min(sent, machine.dma.burst_bytes)
        times = {
            "send": sent / min(machine.dma.bytes_per_cycle, rates.port),
            "sram": (sent + received) / rates.port,
            MESH: max(line, packet) / rates.link,
        }
        if area.size == 1:
            return Transport(0.0, "sram", max(times["send"], times["sram"]))
        if area.chip_count > 1 and machine.links is not None:
            row = machine.gateway // machine.cols
            away = max(row, area.rows - 1 - row) + area.cols - 1
            hops = 2 * away * rates.cycles(machine.mesh.hop_s)
            hops += self._chip_hops() * rates.cycles(machine.links.hop_s)
            port = machine.links.port_bytes_per_s / machine.clock_hz
            times[CHIP_LINKS] = between * self._share() / port
        busiest = max(times, key=lambda name: times[name])
        return Transport(hops, busiest, times[busiest])

    def _chip_hops(self) -> int:
        """Between the farthest chips of the area."""
        links, count = self.rates.machine.links, self.area.chip_count
        if links is None or links.topology == "all-to-all":
            return 1
        if links.topology == "ring":
            return min(count - 1, self.rates.machine.chips // 2)
        return min(count, links.cols) - 1 + (count - 1) // links.cols

    def _share(self) -> float:
        """Of what comes into a chip, the part of its busiest port: what passes by is counted."""
        links = self.rates.machine.links
        if links is None or links.topology == "all-to-all":
            return 1.0
        if links.topology == "ring":
            return 0.5 if self.area.chip_count > 2 else 1.0
        return 0.5 if min(self.area.chip_count, links.cols) > 1 else 1.0

    def message(self) -> float:
        """A remote post or an empty SEND over the longest way."""
        return self._transport(MESSAGE_BYTES, MESSAGE_BYTES, MESSAGE_BYTES, MESSAGE_BYTES).latency


def _crossing(count: int) -> int:
    """Pairs of places in a line on both sides of its middle."""
    return count // 2 * (count - count // 2)


def part_of(area: Area, cores: int) -> Area:
    """The shape of the first cores of an area."""
    on_chip = area.rows * area.cols
    if cores >= on_chip:
        return Area(area.chip, cores // on_chip, area.row, area.col, area.rows, area.cols)
    if cores >= area.cols:
        return Area(area.chip, 1, area.row, area.col, -(-cores // area.cols), area.cols)
    return Area(area.chip, 1, area.row, area.col, 1, cores)
