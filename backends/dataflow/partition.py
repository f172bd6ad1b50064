"""How a model is spread over a machine: stages of layers, groups of cores, tiles and rings."""

from __future__ import annotations

from collections.abc import Mapping as Named
from dataclasses import asdict, dataclass
from math import gcd
from typing import Any, Self

from infc.backends.dataflow.codegen.builder import Area
from infc.backends.dataflow.machine import Machine
from infc.diagnostics import InternalError
from infc.target.signature import Count, Size


@dataclass(frozen=True)
class Stage:
    """Consecutive layers and the cores that do them."""

    area: Area
    first_layer: Size
    layers: Size


@dataclass(frozen=True)
class Mapping:
    """What the code generator is told to do.

    Attributes:
        stages: in the order of the layers; all areas have the same number of cores.
        max_tokens: rows that a program takes at once; longer calls are cut.
        max_logit_rows: rows of logits at once.
        ring_slots: slots of the ring of weights; 0 where weights stay in SRAM.
        slot_bytes: of a slot.
        prefetch: pieces are loaded ahead, as far as the ring allows; else when they are needed.
        near: weights lie in the channel next to their core; else wherever there is room.
    """

    stages: tuple[Stage, ...]
    max_tokens: Count
    max_logit_rows: Count
    ring_slots: Size
    slot_bytes: Size
    prefetch: bool = True
    near: bool = True

    def record(self) -> dict[str, Any]:
        """As JSON values."""
        return {**asdict(self), "stages": [asdict(stage) for stage in self.stages]}

    @classmethod
    def read(cls, record: Named[str, Any]) -> Self:
        """What `record` made."""
        stages = tuple(
            Stage(Area(**stage["area"]), stage["first_layer"], stage["layers"])
            for stage in record["stages"]
        )
        return cls(**{**record, "stages": stages})


def stages_of(
    machine: Machine,
    layers: int,
    count: int,
    *,
    before: float = 0.0,
    behind: float = 0.0,
    heads: int = 1,
) -> tuple[Stage, ...]:
    """`count` stages of about as much to hold, on equal parts of the machine.

    Stages are some whole chips each; or several share a chip, in equal rectangles.

    Args:
        before, behind: what the first and the last stage hold beside their layers, in layers.
        heads: of keys and values. Where several stages share a chip they leave out cores at the
            edge, as far as heads then spread over more groups of cores.

    Raises:
        InternalError: there are fewer cores, or fewer layers, than stages.
    """
    if count > layers:
        raise InternalError(f"expected at most {layers} stages, got {count}")
    if count <= machine.chips:
        each = machine.chips // count
        areas = [
            Area(stage * each, each, 0, 0, machine.rows, machine.cols) for stage in range(count)
        ]
    else:
        each = -(-count // machine.chips)
        if each > machine.rows * machine.cols:
            raise InternalError(f"expected at most {machine.cores} stages, got {count}")
        down, across = _rectangles(machine, each)
        rows, cols = machine.rows // down, machine.cols // across
        used = _for_heads(rows, cols, heads)
        areas = [
            Area(
                stage // each, 1, stage % each // across * rows, _turn(stage % each, across) * cols,
                *used,
            )
            for stage in range(count)
        ]  # fmt: skip
    share = (before + layers + behind) / count
    ends = [
        # Every stage has a layer.
        min(max(round(share * (stage + 1) - before), stage + 1), layers - count + stage + 1)
        for stage in range(count)
    ]
    starts = [0, *ends[:-1]]
    return tuple(
        Stage(area, start, end - start)
        for area, start, end in zip(areas, starts, ends, strict=True)
    )


def _rectangles(machine: Machine, count: int) -> tuple[int, int]:
    """How often a chip's rows and columns are cut for at least `count` rectangles.

    They have as many cores as can be; of equals the ones of the shortest way between two corners.
    """

    def preference(down: int) -> tuple[int, int, int]:
        rows, cols = machine.rows // down, machine.cols // -(-count // down)
        return -rows * cols, rows + cols, down

    down = min(range(-(-count // machine.cols), min(count, machine.rows) + 1), key=preference)
    return down, -(-count // down)


def _for_heads(rows: int, cols: int, heads: int) -> tuple[int, int]:
    """The largest part of a rectangle of those that spread heads over most groups of cores."""
    parts = [(r, c) for r in range(1, rows + 1) for c in range(1, cols + 1)]
    return max(parts, key=lambda part: (gcd(heads, part[0] * part[1]), part[0] * part[1]))


def _turn(place: int, across: int) -> int:
    """The column of a place on a way to and fro, on which neighbours follow one another."""
    row, col = divmod(place, across)
    return across - 1 - col if row % 2 else col
