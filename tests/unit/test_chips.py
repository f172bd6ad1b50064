"""The chips that only have a cost model: every file is complete and names its origins."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from infc.backends.chips import BACKEND
from infc.diagnostics import UserError
from infc.target.discovery import find_link, find_target
from infc.target.links import LinkOption, with_link
from infc.target.schema import Target

NAMES = [status.name for status in BACKEND.targets()]
DESCRIBES = {"backend_facts", "features", "sources", "assumptions"}


def figures(part: Any, path: str = "") -> Iterator[str]:
    """Paths of all numbers in a dumped target, as in `Target.sources`."""
    if isinstance(part, dict):
        for key, value in part.items():
            if key not in DESCRIBES and key != "count":
                yield from figures(value, f"{path}.{key}".lstrip("."))
    elif isinstance(part, (list, tuple)):
        named = [entry for entry in part if isinstance(entry, dict)]
        for entry in named:
            yield from figures(entry, f"{path}.{entry['name']}")
        if part and not named and isinstance(part[0], int | float):
            yield path
    elif isinstance(part, int | float):
        yield path


def origin(target: Target, path: str) -> str | None:
    """What a target says of a fact: of itself, or of the nearest table around it."""
    while path:
        for notes in (target.sources, target.assumptions):
            if path in notes:
                return notes[path]
        path = path.rpartition(".")[0]
    return target.sources.get("") or target.assumptions.get("")


def test_the_list_is_that_of_the_documentation() -> None:
    assert NAMES == [
        "cerebras-wse3",
        "google-tpu-v5e",
        "google-tpu-v6e",
        "google-tpu7x",
        "groq-lpu-v1",
        "nvidia-a100",
        "nvidia-b200",
        "nvidia-h100-sxm",
        "nvidia-h200",
        "sambanova-sn40l",
    ]
    assert {(s.kind, s.available, s.reason) for s in BACKEND.targets()} == {
        ("model-only", False, "cost model only: infc estimate")
    }


@pytest.mark.parametrize("name", NAMES)
def test_every_number_of_a_chip_has_an_origin(name: str) -> None:
    target = find_target(name)
    assert (target.name, target.kind, target.backend) == (name, "model-only", "chips")
    numbers = list(figures(target.model_dump()))
    assert len(numbers) > 15
    assert [path for path in numbers if not origin(target, path)] == []
    missing = [key for key in ("power_watts", "price_usd_per_hour") if getattr(target, key) is None]
    assert all(target.assumptions[key].startswith("not known: ") for key in missing)


@pytest.mark.parametrize("name", NAMES)
def test_every_chip_can_be_estimated(name: str) -> None:
    """What estimates need: a memory that feeds the units, 16 bits, and a way between machines."""
    target = find_target(name)
    assert target.family
    assert any("bf16" in unit.operations_per_s for unit in target.compute)
    fed, units = {target.holding_memory().name}, {unit.name for unit in target.compute}
    for memory in target.memories * len(target.memories):
        fed |= set(memory.feeds) if memory.name in fed else set()
    assert units <= fed
    assert target.link("machines") is not None
    assert (target.link("chips") is not None) == (target.count > 1)


def test_published_figures_arrive() -> None:
    """One chip against its data sheet; the others differ in their files alone."""
    target = find_target("nvidia-h100-sxm")
    unit = target.unit("sm")
    assert unit.count * unit.operations_per_s["bf16"] == pytest.approx(989.4e12)
    assert (target.holding_memory().name, target.holding_memory().size_bytes) == ("hbm", 80 * 2**30)
    cache = target.cache()
    assert cache is not None
    assert cache.size_bytes == 50 * 2**20
    assert target.link("chips") == target.links[0]
    assert target.links[0].bandwidth_bytes_per_s == 450e9
    assert find_target("chips:nvidia-h100-sxm") == target


def test_a_memory_that_is_not_the_largest_may_hold_the_model() -> None:
    target = find_target("sambanova-sn40l")
    assert target.holding_memory().name == "hbm"
    assert target.memory("ddr").size_bytes > target.memory("hbm").size_bytes


def optical() -> LinkOption:
    return find_link("teraphy")


def test_an_optical_link_with_the_name_of_another() -> None:
    target = find_target("nvidia-h100-sxm")
    between = target.link("machines")
    assert between is not None
    option = optical()
    named = replace(option, link=option.link.model_copy(update={"name": between.name}))
    with pytest.raises(UserError) as caught:
        with_link(target, named)
    assert str(caught.value) == (
        f"error[INF3002]: target 'nvidia-h100-sxm' has a link {between.name!r} already, which "
        "joins other things\n"
        f"  --> {option.location}\n"
        "   = hint: give the link in the file another name"
    )


@pytest.mark.parametrize("name", [name for name in NAMES if find_target(name).count > 1])
def test_an_optical_link_takes_the_place_of_a_chips_own(name: str) -> None:
    target = find_target(name)
    own, lit = target.link("chips"), with_link(target, optical())
    assert own is not None
    assert lit.link("chips") == optical().link
    assert lit.link("machines") == target.link("machines")
    assert not any(f"links.{own.name}" in path for path in lit.sources)
    for path in ("bandwidth_bytes_per_s", "latency_ns", "power_watts"):
        assert origin(lit, f"links.teraphy.{path}")
    assert Target.from_json(lit.to_json()) == lit
