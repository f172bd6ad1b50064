"""The dataflow machines: what facts become, and the presets against what they resemble."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import pytest

from infc.backends.chips import BACKEND as CHIPS
from infc.backends.dataflow.backend import BACKEND
from infc.backends.dataflow.machine import FarMemory, Machine
from infc.target.schema import Target

PRESETS = [status.name for status in BACKEND.targets()]
DESCRIBES = {"features", "sources", "assumptions"}


def machine(spec: str) -> Machine:
    return Machine.of(BACKEND.resolve(spec))


def numbers(part: Any, path: str = "") -> Iterator[str]:
    """Paths of all numbers in a dumped target, as in `Target.sources`."""
    if isinstance(part, dict):
        for key, value in part.items():
            if key not in DESCRIBES and (key != "count" or not path):
                yield from numbers(value, f"{path}.{key}".lstrip("."))
    elif isinstance(part, list | tuple):
        named = [entry for entry in part if isinstance(entry, dict)]
        for entry in named:
            yield from numbers(entry, f"{path}.{entry['name']}")
        if part and not named and isinstance(part[0], int | float):
            yield path
    elif isinstance(part, int | float):
        yield path


def has_origin(target: Target, path: str) -> bool:
    notes = {**target.sources, **target.assumptions}
    while path:
        if path in notes:
            return True
        path = path.rpartition(".")[0]
    return "" in notes


def test_the_presets() -> None:
    assert PRESETS == [
        "dataflow:lpu-like",
        "dataflow:systolic-hbm",
        "dataflow:test",
        "dataflow:test-sram",
        "dataflow:three-tier",
        "dataflow:wafer-like",
    ]
    assert {status.kind for status in BACKEND.targets()} == {"dataflow"}


@pytest.mark.parametrize("name", PRESETS)
def test_every_number_of_a_preset_has_an_origin(name: str) -> None:
    target = BACKEND.resolve(name)
    assert (target.name, target.kind, target.backend) == (name, "dataflow", "dataflow")
    found = [path for path in numbers(target.model_dump()) if path != "count"]
    assert len(found) > 35
    assert [path for path in found if not has_origin(target, path)] == []


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_says_first_what_it_models(name: str) -> None:
    """And all but the made-up ones say what they leave out."""
    stem = name.removeprefix("dataflow:")
    text = (files("infc.backends.dataflow") / "targets" / f"{stem}.toml").read_text("utf-8")
    comment = text[: text.index("\n\n")].replace("\n# ", " ")
    assert comment.startswith("# ")
    if stem.startswith("test"):
        assert "resembles no product" in comment
    else:
        assert "Modelled: " in comment
        assert "Not modelled: " in comment


LIKE = {
    "dataflow:systolic-hbm": "google-tpu-v5e",
    "dataflow:lpu-like": "groq-lpu-v1",
    "dataflow:wafer-like": "cerebras-wse3",
    "dataflow:three-tier": "sambanova-sn40l",
}


@pytest.mark.parametrize(("name", "chip"), LIKE.items())
def test_a_preset_adds_up_to_the_chip_it_is_shaped_like(name: str, chip: str) -> None:
    """Memories, bandwidths and peaks of all cores together are those of the chip's own file."""
    target, real = BACKEND.resolve(name), CHIPS.resolve(chip)
    names = {memory.name.replace("vmem", "sram"): memory for memory in real.memories}
    assert set(names) == {memory.name for memory in target.memories}
    for memory in target.memories:
        all_bytes = memory.size_bytes * memory.count
        # 520 MB are 1040 units of 512 KiB; the others are divided without a rest.
        assert all_bytes == pytest.approx(names[memory.name].size_bytes, rel=0.05)
        all_bytes_per_s = memory.bandwidth_bytes_per_s * memory.count
        assert all_bytes_per_s == pytest.approx(names[memory.name].bandwidth_bytes_per_s, rel=0.001)
    matrix = target.unit("matrix")
    for dtype, peak in real.compute[0].operations_per_s.items():
        assert matrix.operations_per_s[dtype] * matrix.count == pytest.approx(peak)
    assert (target.power_watts, target.price_usd_per_hour) == (
        pytest.approx(real.power_watts),
        real.price_usd_per_hour,
    )


@pytest.mark.parametrize("name", PRESETS)
def test_decoding_from_far_memory_is_not_held_up_by_the_matrix_unit(name: str) -> None:
    """A row against a whole tile takes less time than the tile's way from a core's own channel."""
    found = machine(name)
    for tier in found.far:
        for form, bits in (("int8", 8), ("int4", 4), ("bf16", 16)):
            tile_bytes = found.matrix.n * found.matrix.k * bits / 8
            coming = tile_bytes / tier.channel_bytes_per_s
            assert (found.matrix.cycles(form, 1) + found.issue_cycles) / found.clock_hz < coming


def test_every_fact_arrives() -> None:
    found = machine("dataflow:test")
    assert (found.name, found.chips, found.rows, found.cols) == ("dataflow:test", 1, 2, 2)
    assert (found.clock_hz, found.issue_cycles, found.launch_s) == (1e9, 1, pytest.approx(1e-6))
    assert (found.sram_bytes, found.sram_bytes_per_s) == (256 * 1024, 512e9)
    assert (found.matrix.m, found.matrix.n, found.matrix.k) == (32, 32, 64)
    assert dict(found.matrix.tile_cycles) == {"int8": 32, "int4": 32, "bf16": 64, "f16": 64}
    assert (found.vector.native, found.vector.lanes) == (1024, 32)
    assert (found.dma.bytes_per_cycle, found.dma.outstanding, found.dma.burst_bytes) == (
        64,
        8,
        1024,
    )
    assert found.far == (FarMemory("hbm", 4, 2**30, 64e9, pytest.approx(200e-9)),)
    assert (found.far[0].size_bytes, found.far[0].bytes_per_s) == (2**32, 256e9)
    assert (found.mesh.link_bytes_per_s, found.mesh.hop_s) == (64e9, pytest.approx(4e-9))
    assert (found.links, found.chip_watts) == (None, None)


def test_a_matrix_instruction_takes_its_rows_or_its_weights() -> None:
    """8 cycles to start; a row of int8 takes one cycle, the weights' 2048 bytes eight."""
    unit = machine("dataflow:test").matrix
    assert [unit.cycles("int8", rows) for rows in (1, 8, 9, 32)] == [16, 16, 17, 40]
    assert [unit.cycles("int4", rows) for rows in (1, 5, 32)] == [12, 13, 40]
    assert [unit.cycles("bf16", rows) for rows in (1, 9, 32)] == [24, 26, 72]


def test_a_vector_instruction_takes_its_steps() -> None:
    unit = machine("dataflow:test").vector
    assert [unit.cycles("simple", n) for n in (0, 1, 32, 33, 1024)] == [4, 5, 5, 6, 36]
    assert unit.cycles("special", 64) == 4 + 2 * 8
    assert unit.cycles("reduction", 64) == 4 + 2 * 2


def test_channels_lie_near_consecutive_cores() -> None:
    found = machine("dataflow:three-tier")
    assert [tier.name for tier in found.far] == ["hbm", "ddr"]
    assert [found.near_channel(0, core) for core in range(16)] == list(range(16))
    assert [found.near_channel(1, core) for core in range(16)] == [n // 2 for n in range(16)]
    assert [found.channel_core(1, channel) for channel in range(8)] == list(range(0, 16, 2))
    for tier, memory in enumerate(found.far):
        for channel in range(memory.channels):
            assert found.near_channel(tier, found.channel_core(tier, channel)) == channel


def test_ports_share_a_chips_bandwidth() -> None:
    ring, switch = machine("dataflow:test-sram").links, machine("dataflow:lpu-like").links
    assert ring is not None
    assert switch is not None
    assert (ring.topology, ring.port_bytes_per_s, ring.hop_s) == ("ring", 8e9, pytest.approx(1e-7))
    assert (switch.topology, switch.port_bytes_per_s) == ("all-to-all", 98e9)
    assert machine("dataflow:test").gateway == 2


@pytest.mark.parametrize(
    ("chips", "shape"), [(2, (1, 2)), (7, (1, 7)), (8, (2, 4)), (9, (3, 3)), (256, (16, 16))]
)
def test_a_mesh_of_chips_is_as_square_as_their_number_allows(
    chips: int, shape: tuple[int, int]
) -> None:
    links = machine(f"dataflow:systolic-hbm@{chips}").links
    assert links is not None
    assert (links.rows, links.cols) == shape
    assert links.port_bytes_per_s == 50e9


def test_the_number_of_chips_is_part_of_the_name() -> None:
    target = BACKEND.resolve("dataflow:lpu-like@576")
    assert (target.name, target.count) == ("dataflow:lpu-like@576", 576)
    assert target.assumptions["count"] == "set to 576 by the target's name"
    assert Target.from_json(target.to_json()) == target
    assert Machine.of(target).cores == 576 * 4
    assert BACKEND.resolve(target.name) == target
    assert BACKEND.resolve("dataflow:test@1").count == 1
