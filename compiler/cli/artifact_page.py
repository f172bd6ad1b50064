"""The page of `infc explain --html`: one file, charts in SVG, nothing from elsewhere.

Here the rows of an explanation become coordinates; `artifact_page.html.jinja` draws them. All text
goes through jinja2's escaping: names come from a model that somebody else made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING

from infc.cli.memory_map import MemoryMap, draw_frames
from infc.cli.placement_chart import draw_placement
from infc.cli.roofline_chart import Roofline, draw_roofline
from infc.cli.units import human_bytes, human_count, human_seconds

if TYPE_CHECKING:
    from infc.driver.explanation_rows import (
        CodeRow,
        Explanation,
        KernelRow,
        OpRow,
        ProgramRow,
        StagingRow,
    )

TEMPLATE = "artifact_page.html.jinja"


@dataclass(frozen=True)
class Segment:
    """A stretch of a bar: per cent of its width, and what it says when pointed at."""

    start: float
    width: float
    kind: str
    title: str


@dataclass(frozen=True)
class KernelBars:
    """One line of the chart of kernels; widths and fractions are per cent.

    Attributes:
        share: of the program's time.
        memory_fraction, compute_fraction: achieved rate of the machine's peak.
    """

    row: KernelRow
    measured_width: float
    predicted_width: float
    share: float
    bandwidth: float
    memory_fraction: float
    rate: float
    compute_fraction: float


@dataclass(frozen=True)
class OpBars:
    """One line of the table of operations; per cent.

    Attributes:
        width: of the longest operation.
        used: of each resource of the machine; None where it is not used.
    """

    row: OpRow
    width: float
    share: float
    used: Sequence[float | None]


@dataclass(frozen=True)
class Strip:
    """Where the time of one call goes."""

    name: str
    seconds: float
    segments: Sequence[Segment]


@dataclass(frozen=True)
class ProgramPage:
    """All charts of one program."""

    row: ProgramRow
    kernels: Sequence[KernelBars]
    ops: Sequence[OpBars]
    strips: Sequence[Strip]
    roofline: Roofline | None
    maps: Sequence[MemoryMap]
    staging: StagingRow | None
    code: Sequence[CodeRow]
    bytes: float
    operations: float


def render_page(explanation: Explanation) -> str:
    """The HTML of an explanation."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "seconds": human_seconds,
        "bytes": human_bytes,
        "count": human_count,
    }
    source = files("infc.cli").joinpath(TEMPLATE).read_text(encoding="utf-8")
    return environment.from_string(source).render(
        explanation=explanation,
        programs=[_program(explanation, row) for row in explanation.programs],
        placements=[draw_placement(row) for row in explanation.layouts],
        members=_members(explanation),
    )


def _program(explanation: Explanation, program: ProgramRow) -> ProgramPage:
    rows = [row for row in explanation.kernels if row.program == program.program]
    longest = max((max(_seconds(row), row.predicted_seconds) for row in rows), default=0.0)
    whole = sum(map(_seconds, rows))
    return ProgramPage(
        row=program,
        kernels=[_bars(row, longest, whole) for row in sorted(rows, key=_seconds, reverse=True)],
        ops=_op_bars(program, [op for op in explanation.ops if op.program == program.program]),
        strips=_strips(rows),
        roofline=draw_roofline(program, rows),
        maps=draw_frames(
            [row for row in explanation.frames if row.program == program.program],
            [row for row in explanation.buffers if row.program == program.program],
            [row for row in explanation.transfers if row.program == program.program],
        ),
        staging=next((r for r in explanation.staging if r.program == program.program), None),
        code=[row for row in explanation.code if row.program == program.program],
        bytes=sum(row.bytes for row in rows),
        operations=sum(row.operations for row in rows),
    )


def _seconds(row: KernelRow) -> float:
    """Measured, or predicted where nothing was measured."""
    return row.predicted_seconds if row.measured_seconds is None else row.measured_seconds


def _bars(row: KernelRow, longest: float, whole: float) -> KernelBars:
    seconds = _seconds(row)
    return KernelBars(
        row=row,
        measured_width=_per_cent(row.measured_seconds or 0.0, longest),
        predicted_width=_per_cent(row.predicted_seconds, longest),
        share=_per_cent(seconds, whole),
        bandwidth=row.bytes / seconds if seconds else 0.0,
        memory_fraction=_per_cent(row.memory_peak_seconds, seconds),
        rate=row.operations / seconds if seconds else 0.0,
        compute_fraction=_per_cent(row.compute_peak_seconds, seconds),
    )


def _op_bars(program: ProgramRow, ops: Sequence[OpRow]) -> list[OpBars]:
    """The operations in their order: it is the one in which the time passes."""
    longest = max((op.seconds for op in ops), default=0.0)
    return [
        OpBars(
            op,
            _per_cent(op.seconds, longest),
            100.0 * op.share,
            [_per_cent_of(op.utilisation.get(name)) for name in program.utilisation],
        )
        for op in ops
    ]


def _strips(rows: Sequence[KernelRow]) -> list[Strip]:
    predicted = [(row, row.predicted_seconds) for row in rows]
    measured = [(row, row.measured_seconds) for row in rows if row.measured_seconds is not None]
    return [
        _strip(name, times)
        for name, times in (("measured", measured), ("predicted", predicted))
        if times
    ]


def _strip(name: str, times: Sequence[tuple[KernelRow, float]]) -> Strip:
    whole = sum(seconds for _, seconds in times)
    start, segments = 0.0, []
    for row, seconds in sorted(times, key=lambda item: -item[1]):
        width = _per_cent(seconds, whole)
        title = f"{row.kernel} ({row.location}): {human_seconds(seconds)}, {width:.1f} %"
        segments.append(Segment(start, width, row.bound_kind, title))
        start += width
    return Strip(name, whole, segments)


def _members(explanation: Explanation) -> list[tuple[str, int]]:
    """Files of the artifact, largest first."""
    return sorted(explanation.member_bytes.items(), key=lambda item: (-item[1], item[0]))


def _per_cent_of(fraction: float | None) -> float | None:
    return None if fraction is None else 100.0 * fraction


def _per_cent(part: float, whole: float) -> float:
    return 100.0 * part / whole if whole else 0.0
