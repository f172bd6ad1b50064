"""Targets with other figures: what --set and the sensitivity table do."""

from __future__ import annotations

import pytest

from infc.target.changes import figure_names, with_figures, with_scaled
from infc.target.loader import parse_target
from infc.target.schema import Target

TEXT = """
name = "toy"
backend = "made-up"
kind = "model-only"
count = 4
source = "the data sheet"
launch_ns = "2us"
barrier_ns = "1us"
power_watts = { unknown = "not published" }

[[memories]]
name = "hbm"
size_bytes = "80GiB"
bandwidth_bytes_per_s = "3TB/s"
managed_by = "hardware"
feeds = ["cores"]
efficiency = { low = 0.5, mid = 0.8, high = 0.9 }

[[compute]]
name = "cores"
count = 4
chip_operations_per_s = { bf16 = "1000TFLOP/s" }
efficiency = { low = 0.5, mid = 0.8, high = 0.9 }

[[links]]
name = "peers"
bandwidth_bytes_per_s = "450GB/s"
latency_ns = "1us"
topology = "ring"
"""


def toy() -> Target:
    return parse_target(TEXT, location="toy.toml")


@pytest.mark.parametrize(
    "name",
    [
        "memory.hbm.bandwidth",
        "hbm.bandwidth",
        "memories.hbm.bandwidth_bytes_per_s",
        "memory.hbm.bandwidth_bytes_per_s",
        "hbm.bandwidth_bytes_per_s",
    ],
)
def test_a_figure_has_a_short_name_and_that_of_the_file(name: str) -> None:
    changed = with_figures(toy(), {name: "4.8TB/s"})
    assert changed.memory("hbm").bandwidth_bytes_per_s == 4.8e12
    assert changed.assumptions["memories.hbm.bandwidth_bytes_per_s"] == "set to 4.8TB/s"
    assert changed.model_copy(update={"memories": toy().memories, "assumptions": {}}) == (
        toy().model_copy(update={"assumptions": {}})
    )


def test_operations_are_those_of_the_whole_chip() -> None:
    changed = with_figures(toy(), {"cores.operations.bf16": "2000TFLOP/s"})
    assert changed.unit("cores").operations_per_s == {"bf16": 5e14}
    both = with_figures(toy(), {"cores.operations.bf16": "2000TFLOP/s", "cores.count": "8"})
    assert both.unit("cores").operations_per_s == {"bf16": 2.5e14}
    assert both.unit("cores").count == 8


def test_a_set_figure_has_no_longer_the_source_of_the_old_one() -> None:
    sourced = TEXT.replace('"450GB/s"', '{ value = "450GB/s", source = "page 2" }')
    target = parse_target(sourced, location="toy.toml")
    path = "links.peers.bandwidth_bytes_per_s"
    assert target.source_of(path) == "page 2"
    assert with_figures(target, {"link.peers.bandwidth": "1TB/s"}).sources.get(path) is None


def test_every_name_that_is_listed_can_be_scaled() -> None:
    target = toy()
    names = figure_names(target)
    assert "compute.cores.operations.bf16" in names
    for name in names:
        changed = with_scaled(target, name, 2.0)
        before, after = target.model_dump(), changed.model_dump()
        for notes in ("sources", "assumptions"):
            before.pop(notes), after.pop(notes)
        unknown = name in ("power", "price", "link.peers.power") or "unit_bandwidth" in name
        assert (before == after) == (unknown or name == "memory.hbm.latency")
