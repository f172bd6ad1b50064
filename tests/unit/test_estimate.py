"""`infc estimate`: what it prints, what it chooses, and in which direction figures move it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle.families import make_family
from oracle.files import write_gguf, write_huggingface

from infc.backends.chips import BACKEND
from infc.cli import main
from infc.cost.calibrations import load_calibrations
from infc.cost.workload import Workload
from infc.driver.comparison import OBJECTIVES, best, compare, deploy_phases
from infc.driver.estimation import Model, Setup, again, deploy, read_model
from infc.driver.sensitivity import sensitivity
from infc.target.changes import with_figures, with_scaled
from infc.target.discovery import find_link, find_target
from infc.target.links import with_link

CONFIGS = Path(__file__).resolve().parents[2] / "samples" / "configs"
SMALL = CONFIGS / "llama-3.1-8b.json"
LARGE = CONFIGS / "llama-3.1-70b.json"
CHIPS = [status.name for status in BACKEND.targets()]
MEASURED = load_calibrations()
KEYS = {
    "schema_version",
    "output_tokens_per_second_per_user",
    "output_tokens_per_second_total",
    "tokens_per_second_per_watt",
    "power_basis",
    "dollars_per_million_output_tokens",
    "memory_bytes",
    "fits",
    "bound",
    "assumptions",
    *(
        f"time_{what}_seconds{end}"
        for what in ("to_first_token", "per_output_token")
        for end in ("", "_low", "_high")
    ),
}
"""What programs may rely on."""


def invoke(*arguments: str | Path) -> str:
    result = CliRunner().invoke(main, ["estimate", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.stdout


def printed(*arguments: str | Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(invoke(*arguments, "--json"))
    return report


@pytest.fixture(scope="module")
def small() -> Model:
    return read_model(SMALL)


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("llama-3.1-8b", 8.03),
        ("llama-3.1-70b", 70.55),
        ("llama-3.1-405b", 405.85),
        ("qwen3-32b", 32.76),
    ],
)
def test_sample_configurations_are_those_of_the_published_models(
    name: str, billions: float
) -> None:
    shape = read_model(CONFIGS / f"{name}.json").shape
    assert shape.parameters / 1e9 == pytest.approx(billions, rel=1e-3)


def test_json_has_the_documented_keys_and_says_why_one_is_null() -> None:
    report = printed(SMALL, "--target", "google-tpu7x")
    assert set(report) > KEYS
    assert report["target"] == "google-tpu7x"
    assert report["fits"] is True
    for name in ("to_first_token", "per_output_token"):
        low, mid, high = (report[f"time_{name}_seconds{end}"] for end in ("_low", "", "_high"))
        assert 0 < low <= mid <= high
    assert (report["tokens_per_second_per_watt"], report["dollars_per_million_output_tokens"]) == (
        None,
        None,
    )
    notes = "\n".join(report["assumptions"])
    assert "google-tpu7x: power_watts: not known: " in notes
    assert "google-tpu7x: price_usd_per_hour: not known: " in notes


def test_an_estimate_names_the_assumptions_that_it_leans_on() -> None:
    report = printed(SMALL, "--target", "sambanova-sn40l", "--devices", "16")
    notes = "\n".join(report["assumptions"])
    for path in ("links.rdu-connect.bandwidth_bytes_per_s", "launch_ns", "power_watts"):
        assert f"sambanova-sn40l: {path}: " in notes
    alone = "\n".join(
        printed(SMALL, "--target", "sambanova-sn40l", "--devices", "1")["assumptions"]
    )
    assert "links.rdu-connect" not in alone


def test_text_shows_times_sensitivity_and_assumptions() -> None:
    text = invoke(LARGE, "--target", "nvidia-h100-sxm", "--devices", "8", "--dtype", "fp8")
    assert text.startswith("Llama-3.1-70B on 8 x nvidia-h100-sxm")
    assert "time to first token" in text
    assert "What 10% of each resource would buy:\nfigure " in text
    assert re.search(r"^memory\.hbm\.bandwidth +\+10\.0%", text, re.MULTILINE)
    assert "\nAssumptions:\n- nvidia-h100-sxm: links.nvlink4.latency_ns: " in text


@given(st.sampled_from(CHIPS), st.sampled_from([1, 16]), st.floats(1.0, 8.0))
@settings(max_examples=25, deadline=None)
def test_more_bandwidth_never_makes_anything_slower(name: str, batch: int, factor: float) -> None:
    model, target = read_model(SMALL), BACKEND.resolve(name)
    setup = Setup(Workload(batch, 512, 64), engine="none")
    deployment = deploy(model, target, setup, measured=MEASURED)
    memory = deployment.target.holding_memory().name
    better = with_scaled(deployment.target, f"memory.{memory}.bandwidth", factor)
    faster, before = again(deployment, better), deployment.estimate
    assert faster.tpot.mid <= before.tpot.mid * (1 + 1e-9)
    assert faster.ttft.mid <= before.ttft.mid * (1 + 1e-9)
    assert faster.tokens_per_s >= before.tokens_per_s * (1 - 1e-9)


def test_a_tenth_more_buys_at_most_a_tenth(small: Model) -> None:
    deployment = deploy(small, find_target("nvidia-h200"), Setup(Workload(1, 512, 64)))
    rows = sensitivity(deployment)
    assert [row.tokens_per_s for row in rows] == sorted(
        (r.tokens_per_s for r in rows), reverse=True
    )
    assert rows[0].figure == "memory.hbm.bandwidth"
    assert all(-1e-9 <= row.tokens_per_s <= 0.12 and row.ttft <= 1e-9 for row in rows)
    assert {row.change for row in rows if "latency" in row.figure or row.figure == "launch"} == {
        -0.1
    }


def test_a_unit_that_draws_all_of_a_memory_is_not_made_to_draw_more(small: Model) -> None:
    chip = with_figures(
        find_target("cpu:x86-64-v3"),
        {"dram.bandwidth": "50GB/s", "dram.unit_bandwidth": "50GB/s"},
    )
    figures = {row.figure for row in sensitivity(deploy(small, chip, Setup(Workload(1, 64, 8))))}
    assert "memory.dram.bandwidth" in figures
    assert "memory.dram.unit_bandwidth" not in figures


def test_figures_at_the_end_of_what_is_plausible() -> None:
    report = printed(
        *(SMALL, "--target", "nvidia-h100-sxm", "--devices", "1"),
        *("--set", "memory.hbm.bandwidth=1000PB/s"),
    )
    figures = {row["figure"] for row in report["sensitivity"]}
    assert "memory.hbm.size" in figures
    assert "memory.hbm.bandwidth" not in figures


def test_compare_shows_every_chip_or_why_not() -> None:
    report = printed(LARGE, "--compare", "--dtype", "fp8")
    shown = {row["target"] for row in report["comparison"]}
    left_out = {row["target"]: row["reason"] for row in report["left_out"]}
    assert sorted([*shown, *left_out]) == CHIPS
    assert (
        left_out["nvidia-a100"] == "target 'nvidia-a100' computes in bf16, f16, f32, int8, got fp8"
    )
    assert all(set(row) > KEYS - {"schema_version"} for row in report["comparison"])
    assert all(row["fits"] and row["dtype"] == "fp8" for row in report["comparison"])


def test_named_targets_are_compared_fastest_first() -> None:
    text = invoke(
        SMALL, "--compare", "--target", "nvidia-a100", "--target", "nvidia-b200", "--devices", "1"
    )
    assert re.findall(r"^nvidia-\w+", text, re.MULTILINE) == ["nvidia-b200", "nvidia-a100"]


def test_rates_are_written_out() -> None:
    text = invoke(SMALL, "--compare", "--target", "cerebras-wse3", "--batch", "8")
    assert re.search(r" to \d{4,} +\d{5,} ", text)
    assert "e+0" not in text


def test_the_parts_of_the_memory_add_up() -> None:
    options = (SMALL, "--target", "nvidia-h100-sxm")
    report = printed(*options)
    parts = ("weight", "kv_cache", "activation", "engine")
    held = [report[f"{part}_bytes_of_fullest_device"] for part in parts]
    assert min(held) > 0
    assert sum(held) == report["memory_bytes_of_fullest_device"]
    line = next(line for line in invoke(*options).splitlines() if line.startswith("memory of"))
    assert re.search(r"\(weights .*, KV cache .*, activations .*, engine .*\); fits", line)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_auto_is_the_best_of_the_comparison(objective: str) -> None:
    report = printed(SMALL, "--target", "auto", "--optimize", objective)
    key, sign = {
        "latency": ("time_per_output_token_seconds", -1),
        "throughput": ("output_tokens_per_second_total", 1),
        "watt": ("tokens_per_second_per_watt", 1),
        "dollar": ("dollars_per_million_output_tokens", -1),
    }[objective]
    known = [row for row in report["comparison"] if row[key] is not None]
    assert report["optimize"] == objective
    assert report["target"] == max(known, key=lambda row: sign * row[key])["target"]


def test_the_fewest_devices_that_hold_the_model_are_taken() -> None:
    model, target = read_model(LARGE), find_target("nvidia-a100")
    deployment = deploy(model, target, Setup(Workload(1, 512, 64)))
    assert deployment.devices > 1
    comparison = compare(
        model,
        [("half", target)],
        Setup(Workload(1, 512, 64), devices=deployment.devices // 2),
        curves=False,
    )
    assert comparison.rows == []
    assert "does not fit" in comparison.left_out[0][1]


def test_a_comparison_says_how_far_it_is(small: Model) -> None:
    said: list[tuple[str, float]] = []
    targets = [(name, find_target(name)) for name in ("nvidia-a100", "groq-lpu-v1", "nvidia-h200")]
    compare(
        small,
        targets,
        Setup(Workload(1, 64, 16), devices=1),
        curves=True,
        progress=lambda stage, done: said.append((stage, done)),
    )
    assert said == [("nvidia-a100", 0.0), ("groq-lpu-v1", 1 / 3), ("nvidia-h200", 2 / 3)]


def test_several_values_sweep() -> None:
    report = printed(
        *(SMALL, "--target", "nvidia-h200", "--devices", "1"),
        *("--set", "memory.hbm.bandwidth=3TB/s, 6TB/s", "--set", "power=500W"),
    )
    slow, fast = report["comparison"]
    assert [slow["target"], fast["target"]] == [
        "nvidia-h200 memory.hbm.bandwidth=3TB/s",
        "nvidia-h200 memory.hbm.bandwidth=6TB/s",
    ]
    assert slow["time_per_output_token_seconds"] > fast["time_per_output_token_seconds"]
    assert "nvidia-h200: power_watts: set to 500W" in fast["assumptions"]


def test_an_optical_link_changes_the_exchange_and_is_named() -> None:
    model, target = read_model(LARGE), find_target("google-tpu-v5e")
    setup = Setup(Workload(1, 512, 64), devices=16)
    own = deploy(model, target, setup).estimate
    lit = deploy(model, with_link(target, find_link("teraphy")), setup).estimate
    assert lit.tpot.mid < own.tpot.mid
    assert any("links.teraphy.latency_ns" in note for note in lit.assumptions)
    assert not any("links.ici" in note for note in lit.assumptions)


def test_a_target_is_one_file_of_the_users(tmp_path: Path) -> None:
    file = tmp_path / "mychip.toml"
    file.write_text(
        """
name = "mychip"
backend = "mine"
kind = "model-only"
assumption = "a hypothetical chip"
launch_ns = "1us"
barrier_ns = "1us"
power_watts = "300W"
price_usd_per_hour = "1$/h"

[[memories]]
name = "hbm"
size_bytes = "64GiB"
bandwidth_bytes_per_s = "4TB/s"
managed_by = "software"
feeds = ["cores"]
efficiency = { low = 0.5, mid = 1.0, high = 1.0 }

[[compute]]
name = "cores"
chip_operations_per_s = { bf16 = "1000TFLOP/s" }
efficiency = { low = 0.5, mid = 1.0, high = 1.0 }
"""
    )
    report = printed(SMALL, "--target", file, "--prompt", "16", "--new-tokens", "16")
    assert report["target"] == "mychip"
    weights = 2 * read_model(SMALL).shape.parameters - 2 * 128256 * 4096
    assert report["time_per_output_token_seconds"] > weights / 4e12
    assert report["tokens_per_second_per_watt"] == pytest.approx(
        report["output_tokens_per_second_total"] / 300
    )
    assert "mychip: a hypothetical chip" in report["assumptions"]


def test_phases_on_two_targets_hand_the_cache_over(small: Model) -> None:
    prefill, decode = find_target("nvidia-b200"), find_target("nvidia-h200")
    setup = Setup(Workload(1, 2048, 64, 0, 8), devices=1)
    both = deploy_phases(small, prefill, decode, setup)
    assert both.handover is not None
    assert both.prefill is not None
    shape = small.shape
    cache = 2 * shape.layers * shape.kv_width * 2 * 2048
    assert both.handover.bytes == cache
    assert both.handover.seconds == pytest.approx(cache / 50e9 + 10e-6)
    assert both.estimate.ttft.mid >= both.prefill.estimate.ttft.mid + both.handover.seconds
    slow = with_figures(decode, {"link.infiniband-ndr.bandwidth": "1GB/s"})
    late = deploy_phases(small, prefill, slow, setup)
    assert late.estimate.ttft.mid > both.estimate.ttft.mid
    assert late.estimate.tpot == both.estimate.tpot
    assert late.estimate.tokens_per_s < both.estimate.tokens_per_s
    report = printed(
        SMALL, "--prefill-target", "nvidia-b200", "--decode-target", "nvidia-h200", "--devices", "1"
    )
    assert set(report) > KEYS | {"kv_transfer_seconds", "prefill_target", "limited_by"}


def test_auto_also_chooses_which_phase_runs_where() -> None:
    options = ("--devices", "1", "--concurrency", "8", "--dtype", "bf16", "--optimize", "dollar")
    report = printed(SMALL, "--prefill-target", "auto", "--decode-target", "nvidia-a100", *options)
    key = "dollars_per_million_output_tokens"
    rows = [row for row in report["comparison"] if row[key] is not None]
    assert {row["target"].split(" to ")[1] for row in rows} == {"nvidia-a100"}
    assert len(rows) > 2
    assert report["target"] == min(rows, key=lambda row: row[key])["target"]
    assert report["prefill_target"] == report["target"].split(" to ")[0]
    assert "groq-lpu-v1 (prefill)" in {row["target"] for row in report["left_out"]}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config, tensors = make_family("llama2", num_hidden_layers=1)
    folder = tmp_path_factory.mktemp("estimate")
    write_gguf(folder / "tiny.gguf", config, tensors)
    (folder / "tiny").mkdir()
    write_huggingface(folder / "tiny", config, tensors)
    return folder


@pytest.mark.parametrize("model", ["tiny.gguf", "tiny"])
@pytest.mark.parametrize("target", ["cpu:x86-64-v3", "cpu:x86-64-v4", "nvidia-h100-sxm"])
def test_model_files_are_estimated_on_processors_too(tiny: Path, model: str, target: str) -> None:
    report = printed(tiny / model, "--target", target, "--prompt", "8", "--new-tokens", "8")
    assert report["devices"] == 1
    assert (report["dtype"], report["weight_types"]) == ("f32", ["f32"])
    notes = "\n".join(report["assumptions"])
    if target == "nvidia-h100-sxm":
        assert "weights take the bytes of the file, in f32" in notes
    else:
        assert f"the programs are those that infc compile makes of this file for {target}" in notes


def test_programs_are_planned_for_the_requests_that_find_room(tiny: Path) -> None:
    target = with_figures(find_target("cpu:x86-64-v3"), {"dram.size": "64MiB"})
    model = read_model(tiny / "tiny")
    crowd, more = (
        deploy(model, target, Setup(Workload(1, 64, 64, concurrency=users))).estimate
        for users in (5_000, 1_000_000_000)
    )
    capacity = target.memory("dram").size_bytes
    for found in (crowd, more):
        assert not found.fit.fits
        assert 0.97 * capacity < found.memory.total <= 1.03 * capacity
    assert more.running == pytest.approx(crowd.running, rel=0.03)
    assert more.tokens_per_s == pytest.approx(crowd.tokens_per_s, rel=0.03)


def test_a_processor_converts_what_it_cannot_compute_in(small: Model) -> None:
    target = with_figures(find_target("cpu:x86-64-v3"), {"dram.size": "64GiB"})
    estimate = deploy(small, target, Setup(Workload(1, 64, 16))).estimate
    assert any("operations_per_s.bf16: converted to f32" in note for note in estimate.assumptions)
    assert estimate.tpot.bound == "dram"


@pytest.mark.parametrize("suffix", [".svg", ".html"])
def test_a_plot_names_the_targets_and_is_the_same_each_time(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("matplotlib")
    pages = []
    targets = ["nvidia-h200", "google-tpu7x", "cerebras-wse3"]
    for name in ("one", "two"):
        path = tmp_path / f"{name}{suffix}"
        shown = [option for target in targets for option in ("--target", target)]
        invoke(SMALL, "--compare", *shown, "--plot", path)
        pages.append(path.read_text(encoding="utf-8"))
    assert pages[0] == pages[1]
    picture = pages[0][pages[0].index("<svg") : pages[0].index("</svg>") + len("</svg>")]
    drawn = " ".join(ElementTree.fromstring(picture).itertext())
    assert "nvidia-h200 x1" in drawn
    assert "cerebras-wse3 x1" in drawn
    assert "power unknown: google-tpu7x" in drawn
    assert "price unknown: google-tpu7x, cerebras-wse3" in drawn


def test_a_plot_writes_dollars_as_they_are(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "prices.svg"
    invoke(SMALL, "--target", "nvidia-h200", "--set", "price=1$/h,2$/h", "--plot", path)
    drawn = " ".join(ElementTree.fromstring(path.read_text(encoding="utf-8")).itertext())
    assert "price=1$/h x1" in drawn
    assert "price=2$/h x1" in drawn


def test_best_needs_a_row_that_has_the_figure(small: Model) -> None:
    targets = [(name, find_target(name)) for name in ("google-tpu-v5e", "nvidia-h200")]
    comparison = compare(small, targets, Setup(Workload(1, 64, 16)), curves=False)
    assert best(comparison, "watt").name == "nvidia-h200"
