"""What `emit` writes into a program's signature and its readers read: `DataflowSignature`.

Beside what the signature of every backend has.
"""

from __future__ import annotations

from typing_extensions import TypedDict

from infc.backends.dataflow.cost.sketch import Sketch
from infc.backends.dataflow.partition import Mapping
from infc.target.signature import Count, Phases, Size


class Timed(TypedDict):
    """What a program's time depends on."""

    sketch: Sketch
    mapping: Mapping


class LocalPlanRecord(TypedDict):
    """What was planned for the SRAM of some stages' cores.

    Attributes:
        stages: that have this plan.
        buffers: name, offset and size in bytes, first and last step of each.
    """

    stages: list[Size]
    height_bytes: Size
    lower_bound_bytes: Size
    buffers: list[tuple[str, Size, Size, int, int]]


class DataflowSignature(TypedDict):
    """The signature's own fields.

    Attributes:
        stages: absolute numbers of the cores of each stage.
        cache_bytes: of all caches, as the host keeps them.
        cache_starts: of each core of each stage, where its part of them begins.
        cache_layers: of each layer, its stage and where it begins in a core's part.
        planned_bytes: of SRAM, of the core that needs most.
        timed: what predictions need.
        sram: the plans.
    """

    stages: list[list[Size]]
    cache_bytes: Size
    cache_starts: list[list[Size]]
    cache_layers: list[tuple[Size, Size]]
    planned_bytes: Count
    timed: Phases[Timed]
    sram: Phases[list[LocalPlanRecord]]
