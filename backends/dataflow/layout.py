"""Where a program and its data are on the machine, for who asks a runnable."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from infc.backends.dataflow.image import Image
from infc.backends.dataflow.machine import Machine
from infc.backends.dataflow.signature import DataflowSignature, LocalPlanRecord
from infc.target.simulated import (
    LocalBuffer,
    LocalPlan,
    MachineLayout,
    PlacedChannel,
    PlacedCore,
)

_TIERS = {"far0": 0, "far1": 1}


def layout_of(image: Image, machine: Machine, signature: DataflowSignature) -> MachineLayout:
    """From the image's regions, and what the signature says of stages."""
    in_cores: defaultdict[int, Counter[str]] = defaultdict(Counter)
    in_channels: defaultdict[tuple[int, int, int], Counter[str]] = defaultdict(Counter)
    for region in image.regions:
        if region.core is not None:
            in_cores[region.core][region.kind] += region.size_bytes
        else:
            tier = _TIERS[region.space]
            channel = region.address_bytes // machine.far[tier].channel_bytes
            in_channels[region.chip, tier, channel][region.kind] += region.size_bytes
    stages = signature["stages"]
    stage_of = {core: number for number, cores in enumerate(stages) for core in cores}
    layers = Counter(stage for stage, _ in signature["cache_layers"])
    cores = []
    for core in range(machine.cores):
        chip, place = divmod(core, machine.chip_cores)
        row, col = divmod(place, machine.cols)
        cores.append(PlacedCore(chip, row, col, stage_of.get(core), dict(in_cores[core])))
    return MachineLayout(
        chips=machine.chips,
        rows=machine.rows,
        cols=machine.cols,
        core_bytes=machine.sram_bytes,
        stages=[layers[number] for number in range(len(stages))],
        cores=cores,
        channels=[
            PlacedChannel(
                chip, machine.far[tier].name, channel, machine.far[tier].channel_bytes, dict(held)
            )
            for (chip, tier, channel), held in sorted(in_channels.items())
        ],
    )


def local_plans(plans: Sequence[LocalPlanRecord]) -> list[LocalPlan]:
    """What was planned for the stages' SRAM."""
    return [
        LocalPlan(
            plan["stages"],
            plan["height_bytes"],
            plan["lower_bound_bytes"],
            [LocalBuffer(*buffer) for buffer in plan["buffers"]],
        )
        for plan in plans
    ]
