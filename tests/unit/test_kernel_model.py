"""The cost model of kernels: what it predicts of measured ones, and how it reads a chip's facts."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from infc.backends.chips import BACKEND
from infc.cost.fit import fit_class, fit_columns, folds, rows_of
from infc.cost.kernels.elementwise import ELEMENTWISE
from infc.cost.kernels.machine import HOPS, machine_of
from infc.cost.kernels.predict import kernel_estimate, kernel_estimates
from infc.cost.kernels.prefill_attention import KEY_TILE, QUERY_TILE, score_tiles
from infc.cost.kernels.profile import FittedFacts, Profile, dump_profile, parse_profile
from infc.cost.kernels.queries import (
    Collective,
    CollectiveKind,
    DecodeAttention,
    Elementwise,
    Gemm,
    PrefillAttention,
    Query,
)
from infc.cost.kernels.registry import CLASSES
from infc.cost.kernels.unfitted import ASSUMED_LATENCY, KNOWN_LATENCY
from infc.cost.roofline import Work, estimate_work
from infc.target.schema import Target

PROJECT = Path(__file__).resolve().parents[2]
CHIP, NEWER, NEWEST = "nvidia-h100-sxm", "nvidia-h200", "nvidia-b200"
ONE_OF_EACH: tuple[Query, ...] = (
    Gemm(16, 8192, 8192, "bf16"),
    Gemm(4096, 8192, 8192, "fp8"),
    PrefillAttention("bf16", "bf16", 4, 2048, 32, 8, 128),
    DecodeAttention("bf16", "fp8", 64, 4096, 32, 8, 128),
    Collective("all-reduce", 8, 2**20),
    Collective("all-gather", 4, 2**24),
    Collective("send", 2, 2**20),
    Elementwise(2**24),
)
BOUNDS = {
    "gemm-16bit": 5.6,
    "gemm-8bit": 3.6,
    "prefill-attention": 6.0,
    "decode-attention": 11.0,
    "all-reduce": 7.5,
    "exchange": 10.6,
}
"""Mean absolute error in percent of the shipped profile on the stored tables."""


@pytest.fixture(scope="module")
def chip() -> Target:
    return BACKEND.resolve(CHIP)


@pytest.fixture(scope="module")
def profile() -> Profile:
    [found] = [profile for profile in BACKEND.profiles() if profile.target == CHIP]
    return found


@pytest.fixture(scope="module")
def silicon() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(PROJECT / "benchmarks"))
        import silicon  # type: ignore[import-not-found]

        yield silicon
        del sys.modules["silicon"]


def changed(target: Target, **facts: object) -> Target:
    return Target.model_validate(target.model_dump() | facts)


def with_bandwidth(target: Target, factor: float) -> Target:
    memories = [memory.model_dump() for memory in target.memories]
    for memory in memories:
        if memory["name"] == target.holding_memory().name:
            memory["bandwidth_bytes_per_s"] *= factor
    return changed(target, memories=memories)


def with_peak(target: Target, factor: float) -> Target:
    units = [unit.model_dump() for unit in target.compute]
    for unit in units:
        unit["operations_per_s"] = {
            dtype: peak * factor for dtype, peak in unit["operations_per_s"].items()
        }
    return changed(target, compute=units)


def with_link(target: Target, factor: float) -> Target:
    links = [link.model_dump() for link in target.links]
    for link in links:
        link["bandwidth_bytes_per_s"] *= factor
    return changed(target, links=links)


# ---- measured kernels ------------------------------------------------------------------------


@pytest.mark.parametrize("name", BOUNDS)
def test_the_shipped_profile_predicts_the_tables(
    name: str, silicon: ModuleType, chip: Target, profile: Profile
) -> None:
    table = silicon.tables()[name]
    estimates = kernel_estimates(table.queries, chip, profile)
    mid = np.array([estimate.mid for estimate in estimates])
    assert 100.0 * np.abs(mid / table.seconds - 1.0).mean() < BOUNDS[name]
    inside = [
        e.low <= seconds <= e.high for e, seconds in zip(estimates, table.seconds, strict=True)
    ]
    assert 0.75 < np.mean(inside) < 0.85


@pytest.mark.parametrize(
    ("name", "bound"), [("prefill-attention", 6.4), ("decode-attention", 12.0), ("all-reduce", 9.0)]
)
def test_rows_held_out_are_predicted(
    name: str, bound: float, silicon: ModuleType, chip: Target
) -> None:
    table, machine, kernel_class = silicon.tables()[name], machine_of(chip), CLASSES[name]
    columns = kernel_class.columns(table.queries, machine)
    held_out = folds(len(table.seconds))[0]
    fitted = fit_columns(
        kernel_class, rows_of(columns, ~held_out), table.seconds[~held_out], machine, "a test"
    )
    times = kernel_class.times(rows_of(columns, held_out), machine, fitted.values)
    error = 100.0 * np.abs(times.seconds / table.seconds[held_out] - 1.0)
    assert error.mean() < bound


def test_the_shipped_constants_are_what_the_fit_finds(
    silicon: ModuleType, chip: Target, profile: Profile
) -> None:
    assert profile.facts == FittedFacts.of(machine_of(chip))
    assert profile.family == chip.family
    for name in ("all-reduce", "exchange", "prefill-attention"):
        table = silicon.tables()[name]
        found = fit_class(
            CLASSES[name], table.queries, table.seconds, machine_of(chip), table.source
        )
        shipped = profile.classes[name]
        assert found.values == pytest.approx(shipped.values, rel=0.01)
        assert (found.rows, found.source) == (shipped.rows, shipped.source)


def test_the_shipped_profile_has_every_class_and_few_constants(profile: Profile) -> None:
    assert set(profile.classes) == set(CLASSES)
    assert max(len(fitted.constants) for fitted in profile.classes.values()) <= 12


def test_a_profile_survives_its_file(profile: Profile) -> None:
    text = dump_profile(profile)
    assert parse_profile(text, location="again.toml") == profile
    assert dump_profile(parse_profile(text, location="again.toml")) == text


# ---- what the facts of a chip do -------------------------------------------------------------


@pytest.mark.parametrize("query", ONE_OF_EACH, ids=lambda query: type(query).__name__)
def test_bounds_hold_the_estimate(query: Query, chip: Target, profile: Profile) -> None:
    for known in (profile, None):
        estimate = kernel_estimate(query, chip, known)
        assert 0 < estimate.low < estimate.mid < estimate.high
        assert estimate.bound in estimate.by_resource
        assert estimate.energy_joules == pytest.approx(700.0 * estimate.mid)


@pytest.mark.parametrize("better", [with_bandwidth, with_peak, with_link])
@pytest.mark.parametrize("factor", [1.02, 1.5, 4.0])
def test_a_better_fact_makes_no_kernel_slower(
    better: Callable[[Target, float], Target],
    factor: float,
    silicon: ModuleType,
    chip: Target,
    profile: Profile,
) -> None:
    queries = [query for table in silicon.tables().values() for query in table.queries[::40]]
    before = kernel_estimates(queries, chip, profile)
    after = kernel_estimates(queries, better(chip, factor), profile)
    assert all(a.mid <= b.mid * (1 + 1e-12) for a, b in zip(after, before, strict=True))
    assert any(a.mid < b.mid / 1.01 for a, b in zip(after, before, strict=True))


def test_a_large_kernel_follows_the_resource_that_binds_it(chip: Target, profile: Profile) -> None:
    long_cache = DecodeAttention("bf16", "bf16", 64, 32768, 32, 8, 128)
    wide = Gemm(16384, 16384, 16384, "bf16")
    gathered = Collective("all-gather", 8, 2**32)
    for query, better, least in (
        (long_cache, with_bandwidth, 1.8),
        (wide, with_peak, 1.6),  # tiles must be fed and written, too
        (gathered, with_link, 1.9),
    ):
        gain = kernel_estimate(query, chip, profile).mid
        gain /= kernel_estimate(query, better(chip, 2.0), profile).mid
        assert least < gain <= 2.0


def test_bounds_widen_with_facts_that_were_not_measured(chip: Target, profile: Profile) -> None:
    query = DecodeAttention("bf16", "bf16", 64, 32768, 32, 8, 128)
    widths = []
    for target in (chip, BACKEND.resolve(NEWER), BACKEND.resolve(NEWEST)):
        assert profile.fits(target)
        estimate = kernel_estimate(query, target, profile)
        widths.append(np.log(estimate.high / estimate.low))
    assert widths[0] < widths[1] < widths[2]
    low, high = profile.classes["decode-attention"].quantiles("memory")
    assert widths[0] == pytest.approx(high - low)
    # A fact that the kernel does not use adds nothing.
    same = kernel_estimate(query, with_link(chip, 3.0), profile)
    assert np.log(same.high / same.low) == pytest.approx(widths[0])


def test_a_profile_fits_its_family_only(chip: Target, profile: Profile) -> None:
    assert profile.fits(changed(chip, name="another"))
    assert not profile.fits(changed(chip, name="another", family="other"))
    assert not profile.fits(changed(chip, name="another", family=""))
    loner = profile.model_copy(update={"family": ""})
    assert loner.fits(chip)
    assert not loner.fits(changed(chip, name="another", family=""))


def test_without_a_profile_the_roofline_answers(chip: Target) -> None:
    moved = (16 * 8192 + 8192 * 8192) * 2 + 16 * 8192 * 2
    work = Work({"hbm": moved}, {"bf16": 2.0 * 16 * 8192 * 8192}, launches=1)
    found, roofline = (
        kernel_estimate(Gemm(16, 8192, 8192, "bf16"), chip, None),
        estimate_work(work, chip),
    )
    assert (found.mid, found.by_resource) == (roofline.mid, roofline.by_resource)
    # The roofline knows its launch exactly; a kernel on a chip that was not measured does not.
    launch = chip.launch_ns * 1e-9
    assert found.low == pytest.approx(roofline.low - launch * (1 - 1 / KNOWN_LATENCY))
    assert found.high == pytest.approx(roofline.high + launch * (KNOWN_LATENCY - 1))


def test_an_assumed_latency_is_doubted_more_than_a_sourced_one(chip: Target) -> None:
    link = chip.link("chips")
    assert link is not None
    query = Collective("all-reduce", 8, 1024)
    path = f"links.{link.name}.latency_ns"
    launch, hops = chip.launch_ns * 1e-9, 14 * link.latency_ns * 1e-9
    sourced = chip.model_copy(
        update={"assumptions": {}, "sources": {**chip.sources, path: "a paper", "launch_ns": "it"}}
    )
    guessed = sourced.model_copy(update={"assumptions": {path: "a guess", "launch_ns": "it"}})
    one, other = (kernel_estimate(query, each, None) for each in (sourced, guessed))
    assert one.mid == other.mid
    assert one.by_resource["launch"] == pytest.approx(launch)
    assert one.by_resource[HOPS] == pytest.approx(hops)
    added = (ASSUMED_LATENCY - KNOWN_LATENCY) * (launch + hops)
    assert other.high - one.high == pytest.approx(added)
    assert other.low < one.low < one.mid


@pytest.mark.parametrize("kind", ["all-gather", "all-reduce", "send"])
def test_a_slower_link_makes_every_step_longer(
    chip: Target, profile: Profile, kind: CollectiveKind
) -> None:
    """The constants count latencies of the link, so another one's counts; small messages are
    little else. A single shot waits for no ring."""
    link = chip.link("chips")
    assert link is not None
    slow = link.model_copy(update={"latency_ns": 20 * link.latency_ns})
    other = chip.model_copy(update={"links": (slow, *chip.links[1:])})
    query = Collective(kind, 2 if kind == "send" else 8, 2**26)
    before, after = (kernel_estimate(query, each, profile) for each in (chip, other))
    hops = profile.classes["all-reduce" if kind == "all-reduce" else "exchange"].values["hops"]
    steps = {"all-gather": 7, "all-reduce": 14, "send": 1}[kind]
    longer = steps * hops * 19 * link.latency_ns * 1e-9
    assert after.mid - before.mid == pytest.approx(longer, rel=1e-6)
    assert after.high / after.mid > before.high / before.mid
    assert after.low / after.mid < before.low / before.mid


def test_a_class_without_constants_falls_back(chip: Target, profile: Profile) -> None:
    rest = {name: fitted for name, fitted in profile.classes.items() if name != ELEMENTWISE.name}
    partial = profile.model_copy(update={"classes": rest})
    query = Elementwise(2**20)
    assert kernel_estimate(query, chip, partial) == kernel_estimate(query, chip, None)


def test_many_together_are_what_each_is_alone(chip: Target, profile: Profile) -> None:
    together = kernel_estimates(ONE_OF_EACH, chip, profile)
    assert together == [kernel_estimate(query, chip, profile) for query in ONE_OF_EACH]
    assert kernel_estimates([], chip, profile) == []


# ---- what sizes do ---------------------------------------------------------------------------


def test_more_work_takes_no_less_time(chip: Target, profile: Profile) -> None:
    sizes = [1, 2, 3, 7, 16, 33, 64, 100, 128, 129, 500, 1024, 4000, 4096, 16384, 65536]
    lines: list[list[Query]] = []
    for dtype in ("bf16", "fp8"):
        lines += [
            [Gemm(size, 4096, 1024, dtype) for size in sizes],
            [Gemm(512, size, 1024, dtype) for size in sizes],
            [Gemm(512, 4096, size, dtype) for size in sizes],
            [PrefillAttention("bf16", dtype, size, 512, 8, 2, 128) for size in sizes],
            [PrefillAttention("bf16", dtype, 2, size, 8, 2, 128) for size in sizes],
            [PrefillAttention("bf16", dtype, 2, 512, 8, 2, 128, past=size) for size in sizes],
            [DecodeAttention("bf16", dtype, size, 100, 32, 8, 128) for size in sizes[6:]],
        ]
    lines += [[Collective(kind, 4, size) for size in sizes] for kind in ("all-reduce", "send")]
    for line in lines:
        seconds = [estimate.mid for estimate in kernel_estimates(line, chip, profile)]
        assert seconds == sorted(seconds), line[0]


@pytest.mark.parametrize("length", [1, 128, 700])
@pytest.mark.parametrize("window", [0, 1, 100, 128, 577, 1000, 5000])
@pytest.mark.parametrize("past", [0, 64, 130, 1000])
def test_tiles_of_scores_are_those_that_masks_leave(length: int, window: int, past: int) -> None:
    query = PrefillAttention("bf16", "bf16", 1, length, 1, 1, 64, window, past)
    positions = past + np.arange(length)[:, None]
    keys = np.arange(past + length)[None, :]
    seen = (keys <= positions) & ((keys > positions - window) if window else True)
    tiles = sum(
        bool(seen[row : row + QUERY_TILE, column : column + KEY_TILE].any())
        for row in range(0, length, QUERY_TILE)
        for column in range(0, past + length, KEY_TILE)
    )
    assert score_tiles(query) == tiles


def test_a_device_alone_exchanges_nothing(chip: Target, profile: Profile) -> None:
    for known in (profile, None):
        for kind in ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "send"):
            estimate = kernel_estimate(Collective(kind, 1, 2**30), chip, known)
            assert (estimate.mid, estimate.by_resource) == (0.0, {})


def test_a_window_bounds_what_decoding_reads(chip: Target, profile: Profile) -> None:
    whole = DecodeAttention("bf16", "fp8", 32, 65536, 32, 8, 128)
    within = DecodeAttention("bf16", "fp8", 32, 65536, 32, 8, 128, window=1024)
    short = DecodeAttention("bf16", "fp8", 32, 1024, 32, 8, 128)
    seconds = [e.mid for e in kernel_estimates([whole, within, short], chip, profile)]
    assert seconds[1] == pytest.approx(seconds[2])
    assert seconds[0] > 20 * seconds[1]
