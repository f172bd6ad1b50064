"""The picture of a simulated machine: chips side by side, in each its cores where they are.

A core has the colour of its stage and a bar for its memory, filled from below with what the host
puts there; under a chip lie the channels of its far memories, filled from the left.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from infc.diagnostics.quantities import human_bytes

if TYPE_CHECKING:
    from infc.driver.explanation_rows import LayoutRow
    from infc.target.simulated import MachineLayout, PlacedChannel, PlacedCore

WIDTH = 1120.0
HEIGHT = 560.0
"""Cells are made so small that the picture is no higher, down to the smallest."""
CELLS = (136.0, 124.0, 104.0, 72.0, 48.0, 32.0, 24.0, 16.0, 12.0, 8.0, 6.0)
TITLED = 44.0
"""Chips so wide have their number above them, and the names of far memories below."""
CHANNEL = 10.0
BAR = 0.15
"""Of a cell's width."""
NAMED, WRITTEN = 64.0, 124.0
"""Cells from which on a core's number, and what it holds, is written inside."""
COLOURS = 8
LISTED_STAGES = 16
KINDS = {"weights": "weights", "kv": "KV", "table": "tables", "zero": "zeros"}
"""What is held, in the order in which bars are filled, as it is called."""


@dataclass(frozen=True)
class Cell:
    """A core or a channel: a rectangle; `colour` is None without a stage."""

    x: float
    y: float
    width: float
    height: float
    colour: int | None
    title: str
    lines: Sequence[str] = ()


@dataclass(frozen=True)
class Fill:
    """Bytes in a bar."""

    x: float
    y: float
    width: float
    height: float
    kind: str


@dataclass(frozen=True)
class Label:
    """A line of text."""

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class StageKey:
    """A colour of the legend."""

    colour: int
    text: str


@dataclass(frozen=True)
class Placement:
    """One picture.

    Attributes:
        kinds: what is held anywhere, by kind, as it is called.
        stages: for the legend; none where they are too many.
        cells: of cores and channels.
        bars: the outlines of what `fills` fill.
    """

    programs: Sequence[str]
    summary: str
    width: float
    height: float
    kinds: Mapping[str, str]
    stages: Sequence[StageKey]
    headings: Sequence[Label]
    cells: Sequence[Cell]
    bars: Sequence[Cell]
    fills: Sequence[Fill]


def draw_placement(row: LayoutRow) -> Placement:
    """The picture of one layout."""
    layout = row.layout
    memories = list(dict.fromkeys(channel.memory for channel in layout.channels))
    block = _scale(layout, len(memories))
    headings: list[Label] = []
    cells: list[Cell] = []
    bars: list[Cell] = []
    fills: list[Fill] = []
    for chip in range(layout.chips):
        x, y = block.place(chip)
        if block.heading:
            headings.append(Label(x, y + block.heading - 5.0, f"chip {chip}"))
        for core in layout.cores[chip * block.cores : (chip + 1) * block.cores]:
            at = x + core.col * block.cell, y + block.heading + core.row * block.cell
            cells.append(_core(layout, core, at, block.cell))
            bar = _bar(at, block.cell)
            bars.append(bar)
            fills += _filled(bar, core.held_bytes, layout.core_bytes, upwards=True)
        for number, memory in enumerate(memories):
            there = [c for c in layout.channels if (c.chip, c.memory) == (chip, memory)]
            row_y = y + block.channels_y(number)
            if block.heading:
                headings.append(Label(x, row_y - 4.0, memory))
            for channel, bar in zip(
                there, _channel_bars(there, x, row_y, block.width), strict=True
            ):
                bars.append(bar)
                fills += _filled(bar, channel.held_bytes, channel.size_bytes, upwards=False)
    held = {kind for core in layout.cores for kind in core.held_bytes}
    held |= {kind for channel in layout.channels for kind in channel.held_bytes}
    return Placement(
        programs=row.programs,
        summary=_summary(layout),
        width=WIDTH,
        height=block.total,
        kinds={kind: name for kind, name in KINDS.items() if kind in held},
        stages=_stage_keys(layout.stages),
        headings=headings,
        cells=cells,
        bars=bars,
        fills=fills,
    )


@dataclass(frozen=True)
class _Block:
    """What a chip takes in the picture, in units of the chart.

    Attributes:
        cell: side of a core.
        heading: room above the cores and above each row of channels, 0 where there is none.
    """

    chips: int
    rows: int
    cols: int
    memories: int
    cell: float

    @property
    def cores(self) -> int:
        return self.rows * self.cols

    @property
    def width(self) -> float:
        return self.cell * self.cols

    @property
    def heading(self) -> float:
        return 16.0 if self.width >= TITLED else 0.0

    @property
    def gap(self) -> float:
        return 14.0 if self.heading else max(4.0, self.cell / 2)

    def channels_y(self, row: int) -> float:
        """Top of a row of channels, from that of the chip."""
        above = self.heading + 2.0
        return self.heading + self.cell * self.rows + above + row * (CHANNEL + above)

    @property
    def height(self) -> float:
        return self.channels_y(self.memories) - self.heading - 2.0

    @property
    def across(self) -> int:
        """Chips side by side."""
        return min(self.chips, max(1, int((WIDTH + self.gap) / (self.width + self.gap))))

    @property
    def total(self) -> float:
        """Height of all chips."""
        return -(-self.chips // self.across) * (self.height + self.gap) - self.gap

    def place(self, chip: int) -> tuple[float, float]:
        """Left and top of a chip."""
        row, col = divmod(chip, self.across)
        return col * (self.width + self.gap), row * (self.height + self.gap)


def _scale(layout: MachineLayout, memories: int) -> _Block:
    """The largest cells with which the picture is not too high."""
    for size in CELLS:
        cell = min(size, WIDTH / layout.cols)
        block = _Block(layout.chips, layout.rows, layout.cols, memories, cell)
        if block.total <= HEIGHT:
            break
    return block


def _core(layout: MachineLayout, core: PlacedCore, at: tuple[float, float], cell: float) -> Cell:
    number = (core.chip * layout.rows + core.row) * layout.cols + core.col
    stage = "no part in the model"
    if core.stage is not None:
        stage = f"stage {core.stage}: {_layers(layout.stages, core.stage)}"
    held = _held(core.held_bytes)
    title = "\n".join(
        [
            f"core {number}: chip {core.chip}, row {core.row}, column {core.col}",
            stage,
            f"{human_bytes(sum(core.held_bytes.values()))} of {human_bytes(layout.core_bytes)} "
            "filled before the first call",
            *held,
        ]
    )
    lines = [f"core {number}"] if cell >= NAMED else []
    if cell >= WRITTEN:
        lines += held
    colour = None if core.stage is None else core.stage % COLOURS
    return Cell(*at, cell - 1.0, cell - 1.0, colour, title, lines)


def _bar(at: tuple[float, float], cell: float) -> Cell:
    width = BAR * cell
    return Cell(at[0] + cell - 1.0 - width, at[1], width, cell - 1.0, None, "")


def _channel_bars(
    channels: Sequence[PlacedChannel], x: float, y: float, width: float
) -> Iterator[Cell]:
    """Channels of one memory of a chip, side by side."""
    each = width / max(1, len(channels))
    for number, channel in enumerate(channels):
        title = "\n".join(
            [
                f"{channel.memory} of chip {channel.chip}, channel {channel.channel}",
                f"{human_bytes(sum(channel.held_bytes.values()))} of "
                f"{human_bytes(channel.size_bytes)} filled before the first call",
                *_held(channel.held_bytes),
            ]
        )
        yield Cell(x + number * each, y, each - 1.0, CHANNEL, None, title)


def _filled(bar: Cell, held: Mapping[str, int], size: int, *, upwards: bool) -> Iterator[Fill]:
    """The parts of a bar, at least so large that they can be seen."""
    length = bar.height if upwards else bar.width
    start = 0.0
    for kind in KINDS:
        if kind in held:
            part = max(length * held[kind] / size, 1.0)
            if upwards:
                y = bar.y + bar.height - start - part
                yield Fill(bar.x, y, bar.width, part, kind)
            else:
                yield Fill(bar.x + start, bar.y, part, bar.height, kind)
            start += part


def _held(held: Mapping[str, int]) -> list[str]:
    return [f"{name} {human_bytes(held[kind])}" for kind, name in KINDS.items() if kind in held]


def _layers(stages: Sequence[int], stage: int) -> str:
    first = sum(stages[:stage])
    last = first + stages[stage] - 1
    return f"layer {first}" if first == last else f"layers {first} to {last}"


def _stage_keys(stages: Sequence[int]) -> list[StageKey]:
    if len(stages) > LISTED_STAGES:
        return []
    return [
        StageKey(number % COLOURS, f"stage {number}: {_layers(stages, number)}")
        for number in range(len(stages))
    ]


def _summary(layout: MachineLayout) -> str:
    """Where the bytes are, in words."""
    parts = [("SRAM", core.held_bytes) for core in layout.cores]
    parts += [(channel.memory, channel.held_bytes) for channel in layout.channels]
    sums: dict[tuple[str, str], int] = {}
    for memory, held in parts:
        for kind, size in held.items():
            sums[kind, memory] = sums.get((kind, memory), 0) + size
    found = [
        f"{name}: {human_bytes(size)} in {memory}"
        for kind, name in KINDS.items()
        for (held_kind, memory), size in sums.items()
        if held_kind == kind
    ]
    return "; ".join(found)
