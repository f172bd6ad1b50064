"""How a model is spread over a machine: stages of layers, groups of cores, tiles and rings."""

from __future__ import annotations

from collections.abc import Mapping as Named
from dataclasses import asdict, dataclass
from typing import Any, Self

from infc.backends.dataflow.codegen.builder import Area
from infc.backends.dataflow.machine import Machine
from infc.diagnostics import InternalError


@dataclass(frozen=True)
class Stage:
    """Consecutive layers and the cores that do them."""

    area: Area
    first_layer: int
    layers: int


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
    max_tokens: int
    max_logit_rows: int
    ring_slots: int
    slot_bytes: int
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


def stages_of(machine: Machine, layers: int, count: int) -> tuple[Stage, ...]:
    """`count` stages of about as many layers, on equal parts of the machine.

    Stages are some whole chips each; or several share a chip, in bands of rows. Raises
    InternalError where there are fewer rows of cores than stages.
    """
    if count <= machine.chips:
        each = machine.chips // count
        areas = [
            Area(stage * each, each, 0, 0, machine.rows, machine.cols) for stage in range(count)
        ]
    else:
        bands = -(-count // machine.chips)
        rows = machine.rows // bands
        if not rows:
            raise InternalError(
                f"expected at most {machine.chips * machine.rows} stages, got {count}"
            )
        areas = [
            Area(stage // bands, 1, stage % bands * rows, 0, rows, machine.cols)
            for stage in range(count)
        ]
    ends = [layers * (stage + 1) // count for stage in range(count)]
    starts = [0, *ends[:-1]]
    return tuple(
        Stage(area, start, end - start)
        for area, start, end in zip(areas, starts, ends, strict=True)
    )
