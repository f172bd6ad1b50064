"""Served models: memory, throughput, bounds, and how well measured rows are predicted."""

import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infc.backends.chips import BACKEND
from infc.cost.bounds import Machinery
from infc.cost.deployment import DeploymentEstimate, deployment_estimate, split_over
from infc.cost.engine import TPOT, TTFT, dump_engine, parse_engine
from infc.cost.kernels.profile import load_profile
from infc.cost.model_shape import read_shape
from infc.cost.workload import Workload
from infc.diagnostics import UserError
from infc.target.schema import Target

PROJECT = Path(__file__).resolve().parents[2]
H100 = BACKEND.resolve("nvidia-h100-sxm")
PROFILE = load_profile(files("infc.backends.chips") / "profiles" / "nvidia-h100-sxm.toml")
LLAMA = read_shape(PROJECT / "samples" / "configs" / "llama-3.1-8b.json")
QWEN = read_shape(PROJECT / "samples" / "configs" / "qwen3-32b.json")
LLAMA_70B = read_shape(PROJECT / "samples" / "configs" / "llama-3.1-70b.json")
VLLM = BACKEND.engine("vllm")
USERS = Workload(prompt=2048, new_tokens=256, concurrency=32)


def estimate(**changed: Any) -> DeploymentEstimate:
    options: dict[str, Any] = {
        "shape": QWEN,
        "target": H100,
        "devices": 4,
        "dtype": "fp8",
        "workload": USERS,
        "profile": PROFILE,
        "engine": VLLM,
    } | changed
    shape, target = options.pop("shape"), options.pop("target")
    return deployment_estimate(shape, target, **options)


def scaled(target: Target, **factors: float) -> Target:
    """The target with some figures multiplied."""
    document = target.model_dump()
    for memory in document["memories"]:
        memory["bandwidth_bytes_per_s"] *= factors.get("bandwidth", 1.0)
    for unit in document["compute"]:
        unit["operations_per_s"] = {
            dtype: peak * factors.get("compute", 1.0)
            for dtype, peak in unit["operations_per_s"].items()
        }
    for link in document["links"]:
        link["bandwidth_bytes_per_s"] *= factors.get("link", 1.0)
    document["launch_ns"] /= factors.get("launch", 1.0)
    return Target.model_validate(document)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["bandwidth", "compute", "link", "launch"]),
    st.floats(1.0, 20.0),
    st.integers(1, 200),
    st.sampled_from([64, 1000, 4096]),
    st.booleans(),
    st.sampled_from([(1, 1), (4, 1), (8, 1), (2, 4)]),
)
def test_a_better_chip_is_never_slower(
    fact: str, factor: float, users: int, prompt: int, served: bool, split: tuple[int, int]
) -> None:
    options: dict[str, Any] = {
        "shape": LLAMA,
        "devices": split[0] * split[1],
        "tensor_parallel": split[0],
        "workload": Workload(prompt=prompt, new_tokens=100, concurrency=users),
        "engine": VLLM if served else None,
    }
    before, after = (
        estimate(target=target, **options) for target in (H100, scaled(H100, **{fact: factor}))
    )
    assert after.tpot.mid <= before.tpot.mid * (1 + 1e-9)
    assert after.ttft.mid <= before.ttft.mid * (1 + 1e-9)
    assert after.tokens_per_s >= before.tokens_per_s * (1 - 1e-9)
    for result in (before, after):
        for times in (result.ttft, result.tpot):
            assert 0 < times.low <= times.mid <= times.high < math.inf
            assert sum(times.by_resource.values()) >= times.mid * (1 - 1e-9)


@pytest.mark.parametrize("devices", [1, 2, 8])
@pytest.mark.parametrize("served", [False, True])
def test_the_largest_context_fits_exactly(devices: int, served: bool) -> None:
    untrained = replace(LLAMA, context_length=2**40)

    def at(context: int) -> DeploymentEstimate:
        return estimate(
            shape=untrained,
            devices=devices,
            workload=Workload(batch=4, prompt=512, new_tokens=512, context=context - 1024),
            engine=VLLM if served else None,
        )

    largest = at(2048).fit.largest_context
    assert largest is not None
    fits, short = at(largest), at(largest + 1)
    assert fits.fits
    assert fits.fit.needed_bytes <= fits.fit.capacity_bytes
    assert fits.memory.total == fits.fit.needed_bytes
    assert not short.fits
    assert short.fit.needed_bytes > short.fit.capacity_bytes
    assert short.fit.message.startswith(
        f"fits with context {largest} at batch 4; context {largest + 1} "
    )


def test_no_context_beyond_the_trained_one_is_offered() -> None:
    fit = estimate(shape=LLAMA, devices=8, workload=Workload(1, 512, 512)).fit
    assert (fit.largest_context, fit.context_limit) == (LLAMA.context_length, "model")


def test_the_largest_batch_fits_exactly() -> None:
    def at(users: int) -> DeploymentEstimate:
        return estimate(workload=Workload(prompt=4096, new_tokens=512, concurrency=users))

    # Activations are those of one prompt whatever the number of users.
    largest = at(100).fit.largest_batch
    assert largest is not None
    assert at(largest).fit.fits
    assert not at(largest + 1).fit.fits
    assert at(largest + 1).fits  # the others wait


def test_weights_that_fit_no_device() -> None:
    for workload in (Workload(prompt=512, new_tokens=512), USERS):
        result = estimate(shape=LLAMA_70B, devices=1, dtype="bf16", workload=workload)
        assert not result.fits
        assert (result.fit.largest_context, result.fit.largest_batch) == (0, 0)
    assert result.fit.message == (
        "does not fit: context 2304 and batch 32 take 158 GiB of 72 GiB, 135 GiB of it whatever "
        "the context"
    )


def test_a_batch_caps_the_users_served_at_a_time() -> None:
    capped = estimate(workload=Workload(batch=8, prompt=2048, new_tokens=256, concurrency=32))
    eight = estimate(workload=Workload(prompt=2048, new_tokens=256, concurrency=8))
    assert capped.running == 8
    assert capped.tpot.mid == eight.tpot.mid
    assert capped.tokens_per_s == pytest.approx(eight.tokens_per_s)
    assert capped.memory == eight.memory
    assert capped.wait_seconds > 0 == eight.wait_seconds
    assert (
        estimate(workload=Workload(batch=64, prompt=2048, new_tokens=256, concurrency=32))
        == estimate()
    )


def test_the_cache_is_in_the_dtype_that_the_engine_takes() -> None:
    kept = {
        name: estimate(engine=None if name is None else BACKEND.engine(name)).split.kv_dtype
        for name in ("trtllm", "vllm", None)
    }
    assert kept == {"trtllm": "fp8", "vllm": "bf16", None: "bf16"}
    assert estimate(engine=BACKEND.engine("trtllm"), kv_dtype="bf16").split.kv_dtype == "bf16"
    assert estimate(engine=BACKEND.engine("trtllm"), dtype="bf16").split.kv_dtype == "bf16"


def test_who_does_not_fit_waits_by_littles_law() -> None:
    result = estimate(
        devices=2,
        dtype="bf16",
        workload=Workload(prompt=4096, new_tokens=1024, concurrency=200),
    )
    assert 0 < result.running < 200
    assert 0 < result.wait_seconds < result.ttft.mid
    requests_per_s = result.tokens_per_s / 1024
    in_service = result.ttft.mid - result.wait_seconds + 1023 * result.tpot.mid
    assert requests_per_s * in_service == pytest.approx(result.running)
    assert requests_per_s * (in_service + result.wait_seconds) == pytest.approx(200)
    more = estimate(
        devices=2,
        dtype="bf16",
        workload=Workload(prompt=4096, new_tokens=1024, concurrency=400),
    )
    assert more.running == result.running
    assert more.tokens_per_s == pytest.approx(result.tokens_per_s)
    assert more.wait_seconds > 2 * result.wait_seconds


@pytest.mark.parametrize("served", [True, False])
def test_who_waits_takes_no_memory(served: bool) -> None:
    """Not even where the logits of all users together would fill it."""

    def at(users: int) -> DeploymentEstimate:
        return estimate(
            devices=2,
            engine=VLLM if served else None,
            workload=Workload(prompt=512, new_tokens=1024, concurrency=users),
        )

    crowd, more = at(10_000), at(1_000_000)
    assert 100 < crowd.running == more.running
    assert crowd.memory == more.memory
    assert crowd.tpot == more.tpot
    assert crowd.tokens_per_s == pytest.approx(more.tokens_per_s)
    capacity = H100.holding_memory().size_bytes * (VLLM.values["memory_share"] if served else 1)
    assert crowd.memory.total <= capacity
    assert at(crowd.running + 1).running == crowd.running
    assert not crowd.fit.fits
    assert crowd.fits


def test_one_user_waits_for_nobody() -> None:
    one = estimate(workload=Workload(prompt=2048, new_tokens=256))
    assert (one.running, one.wait_seconds) == (1, 0.0)
    assert one.tokens_per_s == pytest.approx(256 / (one.ttft.mid + 255 * one.tpot.mid))
    crowd = estimate()
    assert crowd.tpot.mid > one.tpot.mid
    assert crowd.ttft.mid > one.ttft.mid
    assert crowd.tokens_per_s > 5 * one.tokens_per_s


def test_requests_of_varied_length_do_not_start_together() -> None:
    together, apart = estimate(), estimate(equal_lengths=False)
    assert apart.ttft.mid < together.ttft.mid
    # What is not waited for before the first token is waited for between the others.
    assert apart.tpot.mid > together.tpot.mid


def test_money_and_power_follow_from_the_rate() -> None:
    result = estimate()
    assert H100.power_watts is not None
    assert H100.price_usd_per_hour is not None
    assert result.tokens_per_s_per_watt == pytest.approx(
        result.tokens_per_s / (4 * H100.power_watts)
    )
    assert result.dollars_per_million_tokens == pytest.approx(
        4 * H100.price_usd_per_hour / 3600 / result.tokens_per_s * 1e6
    )
    assert result.tpot.energy_joules == pytest.approx(4 * H100.power_watts * result.tpot.mid)
    assert result.power_basis == "chips at full load, without host, cooling and network"
    unknown = H100.model_copy(update={"power_watts": None, "price_usd_per_hour": None})
    nothing = estimate(target=unknown)
    assert nothing.tokens_per_s_per_watt is None
    assert nothing.dollars_per_million_tokens is None
    assert nothing.ttft.energy_joules is None


def test_a_link_replaces_the_targets_own() -> None:
    slow = H100.links[0].model_copy(
        update={"name": "slow", "bandwidth_bytes_per_s": 1e10, "power_watts": 100.0}
    )
    before, after = estimate(), estimate(link=slow)
    assert after.ttft.bound == "slow"
    assert after.tpot.mid > before.tpot.mid
    assert before.tokens_per_s_per_watt is not None
    assert after.tokens_per_s_per_watt is not None
    assert after.tokens_per_s / after.tokens_per_s_per_watt == pytest.approx(4 * (700 + 100))


def test_bounds_widen_on_a_chip_that_was_not_measured() -> None:
    def width(name: str, phase: str) -> float:
        times = getattr(estimate(target=BACKEND.resolve(name)), phase)
        return math.log(times.high / times.low)

    for phase in ("ttft", "tpot"):
        assert width("nvidia-h100-sxm", phase) < width("nvidia-h200", phase)
        assert width("nvidia-h200", phase) < width("nvidia-b200", phase)


def test_assumptions_name_the_figures_that_are_none() -> None:
    b200 = BACKEND.resolve("nvidia-b200")
    found = estimate(target=b200, engine=VLLM).assumptions
    assert f"nvidia-b200: launch_ns: {b200.assumptions['launch_ns']}" in found
    assert (
        "kernels reach the same shares of nvidia-b200's figures as were measured on "
        "nvidia-h100-sxm" in found
    )
    assert "the engine's own time is that of vllm (0.12.0) on nvidia-h100-sxm" in found
    assert "embedding, head, norms and activations stay in bf16" in found
    alone = estimate(devices=1, dtype="bf16", engine=None, workload=Workload()).assumptions
    assert "no serving engine: the kernels' times alone, each launched by itself" in alone
    assert not any("links." in one or "stay in bf16" in one for one in alone)


def test_splits_that_follow_from_the_devices() -> None:
    split = split_over(QWEN, H100, 16, dtype="bf16", kv_dtype="fp8")
    assert (split.tensor, split.pipeline, split.kv_dtype) == (8, 2, "fp8")
    assert split_over(QWEN, H100, 6, dtype="bf16", kv_dtype="bf16").tensor == 2
    with pytest.raises(UserError) as caught:
        split_over(LLAMA, H100, 37, dtype="bf16", kv_dtype="bf16")
    assert str(caught.value) == (
        "error[INF5001]: expected a number of devices that Llama-3.1-8B can be spread over (its "
        "32 heads within 8 devices, its 32 layers over groups of them), got 37"
    )
    with pytest.raises(UserError) as caught:
        estimate(devices=8, tensor_parallel=2, pipeline_parallel=2)
    assert str(caught.value) == (
        "error[INF5001]: expected tensor times pipeline parallelism to be the 8 devices, "
        "got 2 times 2"
    )


def test_stages_beyond_a_machine_use_the_link_between_machines() -> None:
    slow = H100.model_copy(
        update={
            "links": tuple(
                link.model_copy(update={"bandwidth_bytes_per_s": 1e6})
                if link.joins == "machines"
                else link
                for link in H100.links
            )
        }
    )
    within = {"devices": 8, "tensor_parallel": 2, "workload": Workload()}
    beyond = {"devices": 16, "tensor_parallel": 8, "workload": Workload()}
    assert estimate(target=slow, **within).tpot.mid == estimate(**within).tpot.mid
    assert estimate(target=slow, **beyond).tpot.mid > estimate(**beyond).tpot.mid + 0.5e-3


class TestEngineProfiles:
    @pytest.mark.parametrize("name", BACKEND.engines())
    def test_a_profile_is_read_as_it_was_written(self, name: str) -> None:
        engine = BACKEND.engine(name)
        assert engine.name == name
        assert parse_engine(dump_engine(engine), location="x") == engine

    def test_everything_that_is_wrong_is_reported(self) -> None:
        text = dump_engine(VLLM)
        text = text.replace("[constants.queue_share]", "[constants.queue_shares]")
        text = text.replace("value = 0.9\n", "value = 1.5\n")
        text = text.replace(f"[residuals.{TTFT}]", "[residuals.later]")
        text = text.replace("[cache_dtypes]", '[cache_dtypes]\nf16 = "fp9"')
        with pytest.raises(UserError) as caught:
            parse_engine(text, location="vllm.toml")
        assert str(caught.value) == (
            "error[INF3006]: the engine profile has 5 problems\n"
            "  --> vllm.toml\n"
            "   - missing constant 'queue_share'\n"
            "   - expected the constants layer_seconds, launch_share, collective_share, "
            "request_seconds, first_token_seconds, prompts_ahead, queue_share, "
            "memory_share, reserved_bytes, got "
            "'queue_shares'\n"
            "   - memory_share must be between 0.3 and 1 1, got 1.5\n"
            "   - expected cache_dtypes of f32, bf16, f16, fp8, int8, fp4, got 'fp9'\n"
            f"   - expected residuals of {TTFT} and {TPOT}, got later, {TPOT}"
        )

    def test_a_wrong_unit(self) -> None:
        text = dump_engine(VLLM).replace('unit = "B"', 'unit = "GB"')
        with pytest.raises(UserError, match="reserved_bytes is in 'B', got 'GB'"):
            parse_engine(text, location="vllm.toml")

    def test_no_toml(self) -> None:
        with pytest.raises(UserError, match="the engine profile is no valid TOML"):
            parse_engine("[", location="vllm.toml")


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The script that reads and fits the measured rows."""
    monkeypatch.syspath_prepend(str(PROJECT / "benchmarks"))
    import serving_fit  # type: ignore[import-not-found]

    yield serving_fit
    del sys.modules["serving_fit"]


class TestMeasuredRows:
    def test_the_shipped_profiles_predict_them(self, rows: Any) -> None:
        judged = [row for row in rows.read_rows()[0] if "8B" not in row.model][::5]
        assert len(judged) == 79
        errors = {TTFT: [], TPOT: []}
        inside = 0
        for row in judged:
            result = estimate(
                shape=row.shape,
                devices=row.tensor,
                dtype=row.dtype,
                kv_dtype=row.split.kv_dtype,
                workload=row.workload,
                engine=BACKEND.engine(row.engine),
                equal_lengths=row.equal_lengths,
            )
            errors[TTFT].append(abs(result.ttft.mid / row.ttft - 1))
            errors[TPOT].append(abs(result.tpot.mid / row.tpot - 1))
            inside += result.tpot.low <= row.tpot <= result.tpot.high
        assert np.mean(errors[TPOT]) < 0.06
        assert np.median(errors[TPOT]) < 0.05
        assert np.mean(errors[TTFT]) < 0.2
        assert np.median(errors[TTFT]) < 0.15
        assert 0.7 < inside / len(judged) < 0.95

    def test_a_fit_sees_what_the_model_computes(self, rows: Any) -> None:
        chosen = [row for row in rows.read_rows()[0] if row.engine == "sglang"][::9]
        columns = rows.columns_of(chosen, Machinery(H100, PROFILE))
        engine = BACKEND.engine("sglang")
        first, token = rows.predict(engine.values, columns)
        for index, row in enumerate(chosen):
            result = estimate(
                shape=row.shape,
                devices=row.tensor,
                dtype=row.dtype,
                workload=row.workload,
                engine=engine,
                equal_lengths=row.equal_lengths,
            )
            assert result.ttft.mid == pytest.approx(first[index])
            assert result.tpot.mid == pytest.approx(token[index])

    def test_a_fit_finds_the_constants_that_made_the_rows(self, rows: Any) -> None:
        chosen = [row for row in rows.read_rows()[0] if row.engine == "trtllm"][::7]
        columns = rows.columns_of(chosen, Machinery(H100, PROFILE))
        made = {
            "layer_seconds": 3e-5,
            "launch_share": 0.5,
            "collective_share": 0.7,
            "request_seconds": 2e-5,
            "first_token_seconds": 0.03,
            "prompts_ahead": 2.0,
            "queue_share": 0.2,
        }
        first, token = rows.predict(made, columns)
        document = vars(columns) | {"ttft": first, "tpot": token}
        found = rows.fit(type(columns)(**document), {"launch_share": 0.5})
        assert found == pytest.approx(made, rel=1e-2)
