"""Target files and the targets they become."""

import pytest

from infc.target.loader import parse_target
from infc.target.schema import Target
from infc.target.units import parse_bytes, parse_quantity

TEXT = """
name = "toy"
backend = "made-up"
kind = "gpu"
source = "the data sheet"
features = ["fp8", "bf16", "fp8"]
launch_ns = { value = "2.1us", source = "a stopwatch" }
barrier_ns = 300
power_watts = { unknown = "not published" }
price_usd_per_hour = "3.85$/h"

[[memories]]
name = "hbm"
size_bytes = "80GiB"
bandwidth_bytes_per_s = { value = "3.35TB/s", assumption = "as its sibling" }
managed_by = "hardware"
feeds = ["tensor"]
efficiency = { low = 0.5, mid = 0.8, high = 0.95, source = "own measurement" }

[[compute]]
name = "tensor"
source = "page 2"
operations_per_s = { bf16 = "989TFLOP/s", int8 = { value = "1978TOP/s", source = "page 3" } }
tiles = { bf16 = [64, 8, 16] }
efficiency = { low = 0.4, mid = 0.7, high = 1.0 }

[[links]]
name = "peers"
bandwidth_bytes_per_s = "450GB/s"
latency_ns = "1us"
topology = "all-to-all"

[backend_facts]
sm = 132
arch = "sm_90a"
"""


def toy() -> Target:
    return parse_target(TEXT, location="toy.toml")


def test_facts_are_in_si_units() -> None:
    target = toy()
    assert target.memory("hbm").size_bytes == 80 * 2**30
    assert target.memory("hbm").bandwidth_bytes_per_s == 3.35e12
    assert target.unit("tensor").operations_per_s == {"bf16": 9.89e14, "int8": 1.978e15}
    assert target.unit("tensor").tiles == {"bf16": (64, 8, 16)}
    assert (target.launch_ns, target.barrier_ns) == (2100.0, 300.0)
    assert (target.power_watts, target.price_usd_per_hour) == (None, 3.85)
    assert target.links[0].latency_ns == 1000.0
    assert target.backend_facts == {"arch": "sm_90a", "sm": 132}


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("launch_ns", "a stopwatch"),
        ("barrier_ns", "the data sheet"),
        ("memories.hbm.size_bytes", "the data sheet"),
        ("memories.hbm.efficiency.low", "own measurement"),
        ("compute.tensor.operations_per_s.bf16", "page 2"),
        ("compute.tensor.operations_per_s.int8", "page 3"),
    ],
)
def test_a_fact_has_its_own_source_or_that_of_its_table(path: str, source: str) -> None:
    assert toy().source_of(path) == source


def test_what_is_assumed_or_unknown_is_kept_apart() -> None:
    assert toy().assumptions == {
        "memories.hbm.bandwidth_bytes_per_s": "as its sibling",
        "power_watts": "not known: not published",
    }


def test_features_are_a_sorted_set() -> None:
    assert toy().features == ("bf16", "fp8")
    assert toy().has("fp8")
    assert not toy().has("fp4")


def test_json_is_canonical_and_complete() -> None:
    text = toy().to_json()
    assert Target.from_json(text) == toy()
    assert Target.from_json(text).to_json() == text
    shuffled = TEXT.replace('["fp8", "bf16", "fp8"]', '["bf16", "fp8"]').replace(
        'sm = 132\narch = "sm_90a"', 'arch = "sm_90a"\nsm = 132'
    )
    assert shuffled != TEXT
    assert parse_target(shuffled, location="other.toml").to_json() == text


def test_a_target_cannot_be_changed() -> None:
    target = toy()
    with pytest.raises(TypeError):
        target.backend_facts["sm"] = 1  # type: ignore[index]
    with pytest.raises(ValueError, match="frozen"):
        target.name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "dimension", "value"),
    [
        ("50GB/s", "bytes_per_s", 50e9),
        ("8 Tbit/s", "bytes_per_s", 1e12),
        ("1.0TOP/s", "operations_per_s", 1e12),
        ("2.5e-1TFLOP/s", "operations_per_s", 2.5e11),
        ("0.33us", "ns", 330.0),
        ("23kW", "watts", 23000.0),
        (7, "ns", 7.0),
    ],
)
def test_quantities(text: object, dimension: str, value: float) -> None:
    assert parse_quantity(text, dimension) == pytest.approx(value, rel=1e-15)


@pytest.mark.parametrize(
    ("text", "dimension"),
    [
        ("50", "bytes_per_s"),
        ("50GB", "bytes_per_s"),
        ("50gb/s", "bytes_per_s"),
        ("-1GB/s", "bytes_per_s"),
        ("GB/s", "bytes_per_s"),
        ("1 000GB/s", "bytes_per_s"),
        ("1GB/s ", "bytes_per_s"),
        (True, "ns"),
        (None, "ns"),
        (float("nan"), "ns"),
        (-1, "watts"),
    ],
)
def test_sloppy_quantities_are_refused(text: object, dimension: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse_quantity(text, dimension)


def test_binary_and_decimal_prefixes_differ_and_bytes_are_whole() -> None:
    assert parse_bytes("2MiB") == 2 * 2**20
    assert parse_bytes("2MB") == 2 * 10**6
    with pytest.raises(ValueError, match="whole number of bytes"):
        parse_bytes("0.3B")


def test_a_figure_of_the_whole_chip_is_shared_by_its_units() -> None:
    text = TEXT.replace(
        'name = "tensor"\nsource = "page 2"\noperations_per_s',
        'name = "tensor"\ncount = 4\nchip_operations_per_s',
    )
    target = parse_target(text, location="toy.toml")
    assert target.unit("tensor").operations_per_s == {"bf16": 9.89e14 / 4, "int8": 1.978e15 / 4}
    assert target.source_of("compute.tensor.operations_per_s.int8") == "page 3"
    assert Target.from_json(target.to_json()) == target


def test_the_model_lies_in_the_named_memory_or_the_largest() -> None:
    small = '[[memories]]\nname = "l2"\nsize_bytes = "50MiB"\nbandwidth_bytes_per_s = "5TB/s"\n'
    small += (
        'managed_by = "hardware"\nfeeds = ["tensor"]\nefficiency = { low = 1, mid = 1, high = 1 }\n'
    )
    text = TEXT.replace("[[memories]]", f"{small}[[memories]]").replace(
        'feeds = ["tensor"]\nefficiency = { low = 0.5', 'feeds = ["l2"]\nefficiency = { low = 0.5'
    )
    target = parse_target(text, location="toy.toml")
    assert target.holding_memory().name == "hbm"
    cache = target.cache()
    assert cache is not None
    assert cache.name == "l2"
    named = parse_target('model_memory = "l2"\n' + text, location="toy.toml")
    assert (named.holding_memory().name, named.cache()) == ("l2", None)


def test_the_first_link_of_a_sort_is_the_usual_one() -> None:
    target = toy()
    assert target.link("chips") == target.links[0]
    assert target.link("machines") is None
