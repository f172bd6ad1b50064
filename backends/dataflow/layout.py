"""Where a program and its data are on the machine, for who asks a runnable."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

from infc.backends.dataflow.image import Image
from infc.backends.dataflow.machine import Machine
from infc.target.simulated import (
    LocalBuffer,
    LocalPlan,
    MachineLayout,
    PlacedChannel,
    PlacedCore,
)

_TIERS = {"far0": 0, "far1": 1}


def layout_of(
    image: Image, machine: Machine, phase: str, signature: Mapping[str, Any]
) -> MachineLayout:
    """From the image's regions, and what the signature says of stages and SRAM."""
    in_cores: defaultdict[int, Counter[str]] = defaultdict(Counter)
    in_channels: defaultdict[tuple[int, int, int], Counter[str]] = defaultdict(Counter)
    for region in image.regions:
        if region.core is not None:
            in_cores[region.core][region.kind] += region.size_bytes
        else:
            tier = _TIERS[region.space]
            channel = region.address_bytes // machine.far[tier].channel_bytes
            in_channels[region.chip, tier, channel][region.kind] += region.size_bytes
    stages: list[list[int]] = signature["stages"]
    stage_of = {core: number for number, cores in enumerate(stages) for core in cores}
    layers = Counter(stage for stage, _ in signature["cache_layers"])
    local = [_plan(plan) for plan in signature["sram"][phase]]
    heights = {stage: plan.height_bytes for plan in local for stage in plan.stages}
    cores = []
    for core in range(machine.cores):
        chip, place = divmod(core, machine.chip_cores)
        row, col = divmod(place, machine.cols)
        stage = stage_of.get(core)
        planned = 0 if stage is None else heights[stage]
        cores.append(PlacedCore(chip, row, col, stage, dict(in_cores[core]), planned))
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
        plans=local,
    )


def _plan(plan: Mapping[str, Any]) -> LocalPlan:
    return LocalPlan(
        plan["stages"],
        plan["height_bytes"],
        plan["lower_bound_bytes"],
        [LocalBuffer(*buffer) for buffer in plan["buffers"]],
    )
