"""The roofline of a program: how far each kernel is from what the machine can do.

Operations per byte from left to right, operations per second upwards, both logarithmic. (Williams,
Waterman, Patterson: Roofline, doi 10.1145/1498765.1498785.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from infc.cli.units import human_count, human_seconds

if TYPE_CHECKING:
    from infc.driver.explanation_rows import KernelRow, ProgramRow

WIDTH, HEIGHT = 1120.0, 340.0
LEFT, RIGHT, TOP, BOTTOM = 52.0, 1096.0, 14.0, 298.0
LABELLED = 6
"""Kernels with the most time, which get their names where there is room."""
LABEL_WIDTH, LABEL_HEIGHT = 100.0, 14.0


@dataclass(frozen=True)
class Point:
    """A kernel."""

    x: float
    y: float
    radius: float
    kind: str
    title: str
    label: str


@dataclass(frozen=True)
class Line:
    """A roof or a grid line."""

    x1: float
    y1: float
    x2: float
    y2: float
    label: str


@dataclass(frozen=True)
class Roofline:
    """One chart; `left_out` counts the kernels that move no bytes or take no time."""

    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float
    points: Sequence[Point]
    roofs: Sequence[Line]
    columns: Sequence[Line]
    lines: Sequence[Line]
    left_out: int


@dataclass(frozen=True)
class _Axis:
    """Powers of ten between two ends of the drawing."""

    low: int
    high: int
    start: float
    end: float

    def at(self, value: float) -> float:
        part = (math.log10(value) - self.low) / (self.high - self.low)
        return self.start + (self.end - self.start) * part

    def powers(self) -> list[float]:
        return [10.0**power for power in range(self.low, self.high + 1)]


def draw_roofline(program: ProgramRow, rows: Sequence[KernelRow]) -> Roofline | None:
    """The chart; None where no kernel was measured or no machine limits are known."""
    shown = [row for row in rows if row.measured_seconds and row.bytes > 0 and row.operations > 0]
    if not shown or not program.bandwidth_bytes_per_s or not program.operations_per_s:
        return None
    bandwidth = max(program.bandwidth_bytes_per_s.values())
    intensity = {row.kernel: row.operations / row.bytes for row in shown}
    rates = {row.kernel: row.operations / (row.measured_seconds or 1.0) for row in shown}
    ridges = [rate / bandwidth for rate in program.operations_per_s.values()]
    x = _axis([*intensity.values(), *ridges], LEFT, RIGHT)
    y = _axis([*rates.values(), *program.operations_per_s.values()], BOTTOM, TOP)
    by_time = sorted(shown, key=lambda row: row.measured_seconds or 0.0, reverse=True)
    longest = by_time[0].measured_seconds or 1.0
    named: list[tuple[float, float]] = []
    points = []
    for index, row in enumerate(by_time):
        place = x.at(intensity[row.kernel]), y.at(rates[row.kernel])
        label = row.kernel if index < LABELLED and _is_free(place, named) else ""
        if label:
            named.append(place)
        points.append(_point(row, place, longest, label))

    return Roofline(
        WIDTH,
        HEIGHT,
        LEFT,
        RIGHT,
        TOP,
        BOTTOM,
        points,
        _roofs(x, y, bandwidth, program.operations_per_s),
        [Line(x.at(v), TOP, x.at(v), BOTTOM, f"{v:g}") for v in x.powers()],
        [Line(LEFT, y.at(v), RIGHT, y.at(v), human_count(v)) for v in y.powers()],
        len(rows) - len(shown),
    )


def _point(row: KernelRow, place: tuple[float, float], longest: float, label: str) -> Point:
    seconds = row.measured_seconds or 0.0
    title = (
        f"{row.kernel} ({row.location})\n{row.operations / row.bytes:.3g} operations a byte\n"
        f"{human_count(row.operations / seconds)}OP/s\n{human_seconds(seconds)}"
    )
    return Point(*place, 3.0 + 9.0 * math.sqrt(seconds / longest), row.bound_kind, title, label)


def _is_free(place: tuple[float, float], named: Sequence[tuple[float, float]]) -> bool:
    """Whether a label at a place overlaps none of those that are there."""
    return all(
        abs(place[0] - x) > LABEL_WIDTH or abs(place[1] - y) > LABEL_HEIGHT for x, y in named
    )


def _axis(values: Sequence[float], start: float, end: float) -> _Axis:
    low = math.floor(math.log10(min(values)))
    return _Axis(low, max(low + 1, math.ceil(math.log10(max(values)))), start, end)


def _roofs(x: _Axis, y: _Axis, bandwidth: float, rates: Mapping[str, float]) -> list[Line]:
    """The slope of the bandwidth up to the highest ceiling, and a ceiling for each dtype."""
    # The slope enters at the left edge or, where it is lower there than the chart, at the bottom.
    first = max(10.0**x.low, 10.0**y.low / bandwidth)
    ridge = max(rates.values()) / bandwidth
    roofs = [
        Line(
            x.at(first),
            y.at(bandwidth * first),
            x.at(ridge),
            y.at(max(rates.values())),
            f"{human_count(bandwidth)}B/s",
        )
    ]
    for dtype, rate in sorted(rates.items()):
        height = y.at(rate)
        start = max(first, rate / bandwidth)
        roofs.append(Line(x.at(start), height, RIGHT, height, f"{dtype} {human_count(rate)}OP/s"))
    return roofs
