"""Stages of a dataflow machine: layers and cores for each."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infc.backends.dataflow.machine import Machine
from infc.backends.dataflow.partition import Stage, stages_of
from infc.backends.dataflow.presets import resolve_dataflow
from infc.diagnostics import InternalError

WAFER = Machine.of(resolve_dataflow("dataflow:wafer-like@2"))
LPU = Machine.of(resolve_dataflow("dataflow:lpu-like@16"))


def cores_of(machine: Machine, stage: Stage) -> list[int]:
    grid = machine.rows, machine.cols
    return [stage.area.core(index, grid) for index in range(stage.area.size)]


@given(
    machine=st.sampled_from((WAFER, LPU)),
    layers=st.integers(1, 90),
    count=st.integers(1, 64),
    before=st.floats(0, 3),
    behind=st.floats(0, 3),
    heads=st.sampled_from((1, 3, 8)),
)
def test_stages_share_all_layers_and_no_core(
    machine: Machine, layers: int, count: int, before: float, behind: float, heads: int
) -> None:
    count = min(count, layers)
    stages = stages_of(machine, layers, count, before=before, behind=behind, heads=heads)
    assert len(stages) == count
    at = 0
    for stage in stages:
        assert stage.first_layer == at
        assert stage.layers >= 1
        at += stage.layers
    assert at == layers
    assert len({stage.area.size for stage in stages}) == 1
    cores = [core for stage in stages for core in cores_of(machine, stage)]
    assert len(cores) == len(set(cores))
    assert min(cores) >= 0
    assert max(cores) < machine.cores


def test_what_the_first_and_the_last_stage_hold_beside_layers_counts() -> None:
    stages = stages_of(LPU, 80, 8, before=2.0, behind=4.0)
    assert [stage.layers for stage in stages] == [9, 11, 10, 11, 11, 10, 11, 7]


def test_areas_have_as_many_cores_as_heads_can_share() -> None:
    # Two wafers with three by three rectangles of ten by ten each: 8 divides 80 of their 100 cores.
    (first, *_) = stages_of(WAFER, 32, 18, heads=8)
    assert first.area.size == 80
    (first, *_) = stages_of(WAFER, 32, 18)
    assert first.area.size == 100


def test_neighbours_of_the_pipeline_lie_side_by_side() -> None:
    stages = stages_of(WAFER, 32, 18)
    places = [(stage.area.row // 10, stage.area.col // 10) for stage in stages[:9]]
    assert places == [(0, 0), (0, 1), (0, 2), (1, 2), (1, 1), (1, 0), (2, 0), (2, 1), (2, 2)]


def test_more_stages_than_layers_or_cores_are_refused() -> None:
    with pytest.raises(InternalError, match="expected at most 4 stages, got 5"):
        stages_of(LPU, 4, 5)
    with pytest.raises(InternalError, match="expected at most 64 stages, got 65"):
        stages_of(LPU, 80, 65)
