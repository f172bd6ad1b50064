"""Calibrating a machine: what the fit finds, what is kept, and what predictions make of it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from planted_machine import (
    PLANTED,
    SPEEDS,
    PlantedBackend,
    Timed,
    planted_profile,
    planted_rows,
)

from infc.backends.cpu.calibration import read_profile, write_profile
from infc.backends.cpu.target import resolve_cpu
from infc.cli import main
from infc.cost.calibrated import call_columns
from infc.cost.kernels.machine import machine_of
from infc.cost.kernels.threaded import SIZES, THREADED, seen_keys
from infc.cost.machine_profile import (
    MachineProfile,
    calibrated_target,
    dump_machine_profile,
    parse_machine_profile,
)
from infc.cost.roofline import Work, estimate_work
from infc.diagnostics import UserError
from infc.driver import calibration
from infc.driver.calibration import (
    Calibration,
    Measured,
    calibrate,
    fit_machine,
    quiet_seconds_of,
    speeds_of,
    thread_counts,
)
from infc.driver.calibration_model import Traced
from infc.driver.calibration_text import HeadTimes
from infc.target.backend import KernelSummary
from infc.target.schema import Target

ON_TILES = set(PLANTED) - {"staged-product", "float-product"}
"""Classes that kernels have on a machine with AMX."""


@pytest.fixture(scope="module")
def machine() -> Target:
    return resolve_cpu("cpu:x86-64-amx")


@pytest.fixture(scope="module")
def profile(machine: Target) -> MachineProfile:
    return planted_profile(machine)


# ---- the fit ---------------------------------------------------------------------------------


def test_the_fit_finds_what_was_planted(machine: Target, profile: MachineProfile) -> None:
    assert set(profile.kernels.classes) == ON_TILES
    for row in planted_rows(machine):
        if row.work.kernel not in ON_TILES:  # a few matrices in float32
            continue
        fitted = profile.kernels.classes[row.work.kernel]
        columns = call_columns([(row.work, row.threads)], machine)
        times = THREADED[row.work.kernel].times(columns, machine_of(machine), fitted.values)
        assert float(times.seconds[0]) == pytest.approx(row.seconds, rel=0.03), row
    stream = profile.kernels.classes["stream-product"].values
    assert stream["memory_share"] == pytest.approx(0.85, rel=0.02)
    assert profile.kernels.classes["blocked-product"].values["stage_5bit"] == pytest.approx(20, 0.1)


def test_short_codes_are_multiplied_at_a_rate_of_their_own() -> None:
    machine = resolve_cpu("cpu:x86-64-v3")
    fitted = fit_machine(machine, planted_rows(machine), SPEEDS).classes["staged-product"].values
    for name in ("share_8bit", "share_6bit", "share_5bit", "share_4bit", "gate_operations"):
        assert fitted[name] == pytest.approx(PLANTED["staged-product"][name], rel=0.05), name


@pytest.mark.parametrize("target", ["cpu:x86-64-v3", "cpu:aarch64"])
def test_products_of_floats_have_constants_where_bf16_is_none(target: str) -> None:
    machine = resolve_cpu(target)
    fitted = fit_machine(machine, planted_rows(machine), SPEEDS).classes["float-product"].values
    for name in ("dot_share", "stage_float"):
        assert fitted[name] == pytest.approx(PLANTED["float-product"][name], rel=0.05), name


def test_a_class_that_was_hardly_measured_is_left_out(machine: Target) -> None:
    few = [row for row in planted_rows(machine) if row.work.kernel == "rows"][:9]
    assert fit_machine(machine, few, SPEEDS).classes == {}


def test_a_program_takes_the_mean_of_its_calls(machine: Target) -> None:
    """Constants are those of undisturbed calls; how much longer calls take on average is in the
    upper bound."""
    rows = planted_rows(machine)
    calm = fit_machine(machine, rows, SPEEDS)
    often = [Measured(r.work, r.threads, r.seconds, 1.25 * r.seconds) for r in rows]
    busy = fit_machine(machine, often, SPEEDS)
    for name, part in calm.classes.items():
        assert busy.classes[name].values == part.values
        (low, high), (also, higher) = part.quantiles("any"), busy.classes[name].quantiles("any")
        assert also == low
        assert higher == pytest.approx(high + np.log(1.25))


def test_residuals_are_no_narrower_than_the_machine_wanders(profile: MachineProfile) -> None:
    assert SPEEDS.low < 0 < SPEEDS.high or SPEEDS.low == 0
    for part in profile.kernels.classes.values():
        low, high = part.quantiles("any")
        assert low <= SPEEDS.low
        assert high >= SPEEDS.high


def test_speeds_are_those_of_the_undisturbed_machine() -> None:
    found = speeds_of({1: [10e9] * 19 + [2e9], 2: [6e9] * 20, 4: [30e9] * 20}, [100e9] * 5 + [1e9])
    assert found.bytes_per_s == {1: 10e9, 2: 10e9, 4: 30e9}
    assert found.operations_per_s == 100e9
    assert [thread_counts(n) for n in (1, 2, 6)] == [[1], [1, 2], [1, 2, 4, 6]]


@pytest.mark.parametrize("name", THREADED)
def test_formulas_ask_for_the_sizes_they_say(machine: Target, name: str) -> None:
    of_a_call = {"threads", "bytes", "bytes_per_s", "peak", "vector_peak", "barrier_seconds"}
    columns = {column: np.ones(1) for column in (*SIZES[name], *of_a_call)}
    constants = {spec.name: spec.high for spec in THREADED[name].constants}
    THREADED[name].times(columns, machine_of(machine), constants)
    for size in SIZES[name]:
        fewer = {column: ones for column, ones in columns.items() if column != size}
        with pytest.raises(KeyError, match=size):
            THREADED[name].times(fewer, machine_of(machine), constants)


@given(st.integers(1, 40), st.integers(0, 60), st.integers(0, 50))
def test_seen_keys_counts_pairs(rows: int, past: int, window: int) -> None:
    seen = [past + row + 1 for row in range(rows)]
    expected = sum(min(keys, window) if window else keys for keys in seen)
    arrays = (np.array([float(n)]) for n in (rows, past + rows, window))
    assert seen_keys(*arrays)[0] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("spec", "name"),
    [("cpu:x86-64-amx", "blocked-product"), ("cpu:x86-64-v3", "staged-product")],
)
def test_measurements_tell_each_constant_of_products_of_many_rows(spec: str, name: str) -> None:
    """Of relative changes of the constants none, and no mixture, leaves all times as they are: at
    5% of noise in each measurement the least known one is known to a half."""
    machine = resolve_cpu(spec)
    rows = [row for row in planted_rows(machine) if row.work.kernel == name]
    columns = call_columns([(row.work, row.threads) for row in rows], machine)
    kernel_class, facts = THREADED[name], machine_of(machine)
    base = np.log(kernel_class.times(columns, facts, PLANTED[name]).seconds)
    step = 1e-4
    jacobian = np.array(
        [
            np.log(
                kernel_class.times(
                    columns, facts, {**PLANTED[name], constant: value * (1 + step)}
                ).seconds
            )
            - base
            for constant, value in PLANTED[name].items()
        ]
    ).T
    jacobian /= step
    assert len(rows) >= 3 * len(PLANTED[name])
    singular = np.linalg.svd(jacobian, compute_uv=False)
    assert singular[-1] > 0.1
    known = 0.05 * np.sqrt(np.diag(np.linalg.inv(jacobian.T @ jacobian)))
    assert known.max() < 0.5


# ---- the profile -----------------------------------------------------------------------------


def test_a_profile_is_read_as_it_was_written(profile: MachineProfile, tmp_path: Path) -> None:
    path = tmp_path / "machines" / "here.toml"
    assert read_profile(path) is None
    write_profile(path, profile)
    assert read_profile(path) == profile
    assert [file.name for file in path.parent.iterdir()] == ["here.toml"]
    assert dump_machine_profile(profile) == path.read_text()


def test_what_is_wrong_with_a_profile_is_said_in_full(profile: MachineProfile) -> None:
    text = dump_machine_profile(profile)
    start = text.index("memory_share")
    value = profile.kernels.classes["stream-product"].values["memory_share"]
    broken = text.replace(f"value = {value}", "value = 9.0", 1)
    assert broken != text
    assert start > 0
    with pytest.raises(UserError) as caught:
        parse_machine_profile(
            broken.replace("operations_per_s = 1.5", "operations_per_s = -1.5"),
            location="here.toml",
        )
    diagnostic = caught.value.diagnostic
    assert (diagnostic.code.value, diagnostic.location) == ("INF3006", "here.toml")
    assert diagnostic.message.startswith("the profile has ")
    assert diagnostic.hint is not None
    assert diagnostic.hint.startswith("`infc calibrate` writes it")
    found = "\n".join(str(problem) for problem in diagnostic.problems)
    assert "stream-product.memory_share must be between 0.2 and 1.2 (unit 1), got 9" in found


def test_a_profile_cut_short_is_no_toml(profile: MachineProfile) -> None:
    text = dump_machine_profile(profile)
    with pytest.raises(UserError, match="the profile is no valid TOML"):
        parse_machine_profile(text[: text.rindex("=")], location="here.toml")


# ---- predictions -----------------------------------------------------------------------------


def test_a_calibrated_target_has_measured_figures(machine: Target, profile: MachineProfile) -> None:
    target = calibrated_target(machine, profile)
    memory = target.holding_memory()
    assert (memory.bandwidth_bytes_per_s, memory.unit_bandwidth_bytes_per_s) == (2e10, 1e10)
    before, after = machine.unit("cores"), target.unit("cores")
    assert after.operations_per_s["f32"] == pytest.approx(151e9, rel=0.01)
    ratio = after.operations_per_s["int8"] / before.operations_per_s["int8"]
    assert ratio == pytest.approx(after.operations_per_s["f32"] / before.operations_per_s["f32"])
    path = "memories.dram.bandwidth_bytes_per_s"
    assert target.source_of(path) == "infc calibrate, 2026-11-22"
    assert path not in target.assumptions
    assert Target.from_json(target.to_json()) == target


def test_constants_answer_for_their_classes_only(machine: Target, profile: MachineProfile) -> None:
    target = calibrated_target(machine, profile)
    for row in planted_rows(machine)[::7]:
        estimate = estimate_work(row.work, target, row.threads)
        assert estimate.low <= estimate.mid <= estimate.high
        assert sum(estimate.by_resource.values()) >= estimate.mid * 0.99
        plain = Work(row.work.bytes, row.work.operations, 0, row.work.barriers)
        assert estimate_work(plain, target) == estimate_work(
            Work(plain.bytes, plain.operations, 0, plain.barriers, "unheard-of"), target
        )


def test_more_work_takes_no_less_time(machine: Target, profile: MachineProfile) -> None:
    target = calibrated_target(machine, profile)
    for row in planted_rows(machine):
        sizes = dict(row.work.sizes)
        for grown in {"rows", "context"} & set(sizes):
            more = sizes | {grown: 2 * sizes[grown]}
            if "context" in sizes:
                more["context"] = max(more["context"], more["rows"])
            work = replace(row.work, barriers=1, sizes=more)
            before = estimate_work(row.work, target, row.threads).mid
            assert estimate_work(work, target, row.threads).mid >= before * 0.999


# ---- the command -----------------------------------------------------------------------------


class FakeBackend(PlantedBackend):
    """Keeps the profile in a list."""

    def __init__(self, target: Target) -> None:
        super().__init__()
        self.target, self.kept = target, list[MachineProfile]()

    def machine(self) -> Target:
        return self.target

    def speed_passes(
        self, target: Target, threads: Sequence[int], passes: int
    ) -> tuple[Mapping[int, Sequence[float]], Sequence[float]]:
        return {count: [1e10 * count] * passes for count in threads}, [150e9] * passes

    def measurable(self, kernel: KernelSummary) -> bool:
        return True

    def keep_profile(self, profile: MachineProfile) -> Path:
        self.kept.append(profile)
        return Path("somewhere.toml")

    def resolve(self, spec: str) -> Target:
        return calibrated_target(self.target, self.kept[-1]) if self.kept else self.target


@pytest.fixture
def fake(machine: Target, monkeypatch: pytest.MonkeyPatch) -> FakeBackend:
    few_cores = machine.unit("cores").model_dump() | {"count": 2}
    target = Target.model_validate(machine.model_dump() | {"compute": [few_cores]})
    backend = FakeBackend(target)

    def rows(spec: str, counts: Sequence[int]) -> list[Traced]:
        found = [row for row in planted_rows(target) if row.work.kernel in ("rows", "rotary")]
        return [Traced(row.work, row.threads, [row.seconds] * 3) for row in found]

    monkeypatch.setattr(calibration, "resolve_target", lambda spec: (backend, backend.target))
    monkeypatch.setattr(calibration, "trace_rows", rows)
    return backend


def test_calibrate_keeps_what_it_measured(fake: FakeBackend) -> None:
    stages: list[float] = []
    found = calibrate(progress=lambda stage, fraction: stages.append(fraction))
    assert found.profile == fake.kept[0]
    assert set(found.target.kernels) == {*ON_TILES, "head-search"}
    assert stages == sorted(stages)
    assert 0.0 <= stages[0] <= stages[-1] <= 1.0
    # Products of bfloat16 on this machine are blocked, those of integers too.
    assert set(found.profile.quiet_seconds) == ON_TILES - {"rows", "rotary"}
    quiet = found.target.kernels["stream-product"].quiet_seconds
    assert quiet == found.profile.quiet_seconds["stream-product"]
    assert len(quiet) == 24  # twelve, on one thread and on two
    assert quiet["matmul_q8_0_24576x768_rows_1_threads_1"] > 1e-4


def test_what_seems_disturbed_says_nothing_of_a_quiet_machine(
    machine: Target, profile: MachineProfile
) -> None:
    streams = [row for row in planted_rows(machine) if row.work.kernel == "stream-product"]
    rows = [
        replace(row, name=f"kernel_{number}", seconds=row.seconds * (1.5 if number % 9 == 0 else 1))
        for number, row in enumerate(streams)
    ]
    found = quiet_seconds_of(profile.kernels, rows, machine)
    assert set(found) == {"stream-product"}
    kept = {f"kernel_{number}" for number in range(len(rows)) if number % 9}
    assert set(found["stream-product"]) == kept


def test_a_model_tells_what_its_head_takes(
    fake: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    assumed = calibrate().profile.kernels.classes["head-search"]
    asked: list[tuple[Path, str, list[int]]] = []

    def heads(model: Path, spec: str, counts: list[int]) -> list[HeadTimes]:
        asked.append((model, spec, counts))
        sizes = {f"weights_{kind}": 0.0 for kind in ("6bit", "5bit", "4bit", "float")}
        sizes |= {"weights_8bit": 1e8, "rows": 1, "height": 2}
        sizes |= {"whole_bytes": 1e8, "first_bytes": 5e7, "second_bytes": 5e7}
        work = Work({"dram": 5e7}, {"int8": 2e8}, kernel="head-search", sizes=sizes)
        return [HeadTimes(work, 2, [8e-3] * 5)]

    monkeypatch.setattr(calibration, "trace_heads", heads)
    found = calibrate(model="m.gguf").profile.kernels.classes["head-search"]
    assert asked == [(Path("m.gguf"), "cpu", [1, 2])]
    assert (assumed.rows, found.rows) == (0, 5)
    assert found.values["survivors"] > assumed.values["survivors"]
    assert found.values["float_survivors"] == assumed.values["float_survivors"]


def test_a_disturbed_kernel_is_measured_again(fake: FakeBackend) -> None:
    quiet = calibrate().profile.kernels.classes["stream-product"]
    fake.timed.clear()

    def every_sixth(timed: Timed) -> float:
        return 3.0 if fake.timed.count(timed) == 1 and len(fake.timed) % 6 == 0 else 1.0

    fake.slow = every_sixth
    found = calibrate().profile.kernels.classes["stream-product"]
    assert any(fake.timed.count(timed) > 1 for timed in fake.timed)
    assert found.values["memory_share"] == pytest.approx(quiet.values["memory_share"], rel=0.03)


@pytest.fixture
def found(machine: Target, profile: MachineProfile, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the command is told that was found."""
    answer = Calibration(Path("here.toml"), profile, calibrated_target(machine, profile))
    monkeypatch.setattr(calibration, "calibrate", lambda *args, **options: answer)


@pytest.mark.usefixtures("found")
def test_calibrate_json() -> None:
    result = CliRunner().invoke(main, ["calibrate", "--threads", "2", "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["bytes_per_second"] == {"1": 1e10, "2": 2e10}
    assert report["profile"] == "here.toml"
    assert set(report["classes"]) == ON_TILES
    assert result.stderr == ""


@pytest.mark.usefixtures("found")
def test_calibrate_for_people() -> None:
    result = CliRunner().invoke(main, ["calibrate"])
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("memory reads by threads: ")
    assert result.stdout.endswith("written to here.toml\n")


def test_calibrate_refuses(fake: FakeBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="expected 1 to 2 threads, got 3"):
        calibrate(threads=3)
    assert fake.kept == []
    monkeypatch.undo()
    for target in ("cpu:x86-64-v3", "reference"):
        with pytest.raises(UserError, match="is not a machine that can be measured from here"):
            calibrate(target)


def test_an_interrupted_calibration_keeps_nothing(fake: FakeBackend) -> None:
    def stop(stage: str, fraction: float) -> None:
        if fraction > 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(progress=stop)
    assert fake.kept == []
