"""The chart of one arena: steps from left to right, bytes upwards, a rectangle for each buffer.

A transfer into or out of a scratchpad is a ramp over the buffer's rectangle: the bytes that are
there grow from the step at which it begins to the one that waits for it, or shrink.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from infc.diagnostics.quantities import human_bytes

if TYPE_CHECKING:
    from infc.driver.explanation_rows import BufferRow, FrameRow, TransferRow

LEFT, TOP, BOTTOM = 64.0, 18.0, 26.0
"""Room around the plot, in the units of the chart: pixels at its natural size."""
WIDE = (1120.0, 330.0)
NARROW = (552.0, 240.0)
LETTER = 6.2
"""Width of a letter of a label."""
COLOURS = 8
MAX_TICKS = 5


@dataclass(frozen=True)
class Box:
    """A buffer's rectangle."""

    x: float
    y: float
    width: float
    height: float
    colour: int
    title: str
    label: str


@dataclass(frozen=True)
class Ramp:
    """A transfer: the corners of a triangle, as SVG writes them."""

    points: str
    title: str


@dataclass(frozen=True)
class Tick:
    """A mark on an axis."""

    at: float
    label: str


@dataclass(frozen=True)
class MemoryMap:
    """One chart.

    Attributes:
        functions: whose frames look like this one.
        width, height: of the drawing.
        left, right, top, bottom: of the plot in it.
        plan_y, bound_y: where the plan's height and its lower bound are drawn.
    """

    frame: FrameRow
    functions: Sequence[str]
    wide: bool
    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float
    plan_y: float
    bound_y: float
    buffers: Sequence[Box]
    ramps: Sequence[Ramp]
    steps: Sequence[Tick]
    sizes: Sequence[Tick]


def draw_frames(
    frames: Sequence[FrameRow],
    buffers: Sequence[BufferRow],
    transfers: Sequence[TransferRow] = (),
) -> list[MemoryMap]:
    """The charts of a program's frames, those with most buffers first.

    Functions that differ in nothing but names (the layers of a model) share a chart.
    """
    alike: dict[object, list[tuple[FrameRow, list[BufferRow]]]] = {}
    for frame in frames:
        rows = [b for b in buffers if (b.function, b.space) == (frame.function, frame.space)]
        shape = [(b.offset_bytes, b.size_bytes, b.first_launch, b.last_launch) for b in rows]
        key = (frame.space, frame.height_bytes, frame.lower_bound_bytes, tuple(shape))
        if rows:
            alike.setdefault(key, []).append((frame, rows))
    maps = []
    for group in alike.values():
        frame, rows = group[0]
        moves = [t for t in transfers if (t.function, t.space) == (frame.function, frame.space)]
        maps.append(_draw(frame, rows, moves, [frame.function for frame, _ in group]))
    return sorted(maps, key=lambda chart: -len(chart.buffers))


def _draw(
    frame: FrameRow,
    buffers: Sequence[BufferRow],
    transfers: Sequence[TransferRow],
    functions: Sequence[str],
) -> MemoryMap:
    """The chart of a frame.

    Steps between which no buffer begins or ends are drawn as one column: a program has hundreds.
    """
    rows: list[BufferRow | TransferRow] = [*buffers, *transfers]
    edges = sorted({row.first_launch for row in rows} | {row.last_launch + 1 for row in rows})
    wide = len(edges) > 24
    width, height = WIDE if wide else NARROW
    plot_width, plot_height = width - LEFT - 8.0, height - TOP - BOTTOM
    bottom = TOP + plot_height
    top_bytes = max(
        [frame.height_bytes, frame.lower_bound_bytes, 1]
        + [row.offset_bytes + row.size_bytes for row in buffers]
    )
    x_of = {step: LEFT + plot_width * i / max(1, len(edges) - 1) for i, step in enumerate(edges)}

    def y_of(count: int) -> float:
        return bottom - plot_height * count / top_bytes

    boxes = []
    for index, row in enumerate(buffers):
        x, end = x_of[row.first_launch], x_of[row.last_launch + 1]
        y, base = y_of(row.offset_bytes + row.size_bytes), y_of(row.offset_bytes)
        label = _label(row.buffer, end - x) if base - y >= 13.0 else ""
        boxes.append(Box(x, y, end - x, base - y, index % COLOURS, _title(row), label))
    return MemoryMap(
        frame=frame,
        functions=functions,
        wide=wide,
        width=width,
        height=height,
        left=LEFT,
        right=LEFT + plot_width,
        top=TOP,
        bottom=bottom,
        plan_y=y_of(frame.height_bytes),
        bound_y=y_of(frame.lower_bound_bytes),
        buffers=boxes,
        ramps=[_ramp(row, x_of, y_of) for row in transfers],
        steps=_step_ticks(edges, x_of, plot_width),
        sizes=[Tick(y_of(count), human_bytes(count)) for count in _round_sizes(top_bytes)],
    )


def _ramp(row: TransferRow, x_of: dict[int, float], y_of: Callable[[int], float]) -> Ramp:
    x, end = x_of[row.first_launch], x_of[row.last_launch + 1]
    base, top = y_of(row.offset_bytes), y_of(row.offset_bytes + row.size_bytes)
    full = end if row.load else x
    points = f"{x:.2f},{base:.2f} {full:.2f},{top:.2f} {end:.2f},{base:.2f}"
    verb = "arrives" if row.load else "leaves"
    return Ramp(
        points,
        f"{row.buffer} {verb}\n{human_bytes(row.size_bytes)}\n"
        f"under way in steps {row.first_launch} to {row.last_launch}",
    )


def _title(row: BufferRow) -> str:
    kind = f"{row.type}\n" if row.type else ""
    return (
        f"{row.buffer}\n{kind}"
        f"{human_bytes(row.size_bytes)} ({row.size_bytes} bytes at {row.offset_bytes})\n"
        f"live in steps {row.first_launch} to {row.last_launch}"
    )


def _label(name: str, width: float) -> str:
    """As much of the end of a name as fits: the end tells buffers of one layer apart."""
    letters = int((width - 6.0) / LETTER)
    if len(name) <= letters:
        return name
    return "…" + name[1 - letters :].lstrip(".") if letters >= 5 else ""


def _step_ticks(edges: Sequence[int], x_of: dict[int, float], width: float) -> list[Tick]:
    stride = max(1, -(-len(edges) * 36 // max(1, int(width))))
    return [Tick(x_of[step], str(step)) for step in edges[:-1:stride]]


def _round_sizes(top: int) -> list[int]:
    """Multiples of a power of two up to `top`, about five."""
    step = 1
    while top // step > MAX_TICKS:
        step *= 2
    return list(range(0, top + 1, step))
