"""The share of a vocabulary head that a token of text is worth: measured, or assumed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from oracle.families import make_family
from oracle.files import write_gguf
from planted_machine import PLANTED

from infc.backends.cpu.mappings import kernel_candidates, kernel_work
from infc.backends.cpu.target import resolve_cpu
from infc.cost.calibrated import call_columns
from infc.cost.fit import described
from infc.cost.kernels.machine import machine_of
from infc.cost.kernels.profile import ClassProfile, Residuals
from infc.cost.kernels.threaded import HEAD_SEARCH, STREAM, THREADED
from infc.cost.machine_profile import Speeds
from infc.cost.roofline import Work, estimate_work
from infc.diagnostics import UserError
from infc.driver.calibration_text import HeadTimes, fit_heads, trace_heads
from infc.driver.quality import MAX_TOKENS
from infc.ir.types import storage_bytes
from infc.target.backend import KernelSummary
from infc.target.fitted import FittedClass
from infc.target.schema import Target

STREAM_CONSTANTS = PLANTED[STREAM]
STREAMS = ClassProfile(
    rows=20,
    source="a test",
    constants=described(THREADED[STREAM], STREAM_CONSTANTS),
    residuals={"any": Residuals(rows=20, low=-0.1, high=0.2)},
)
SPEEDS = Speeds(bytes_per_s={1: 1e10, 2: 2e10}, operations_per_s=1e11, low=-0.03, high=0.04)


def head_work(storage: str, target: Target) -> Work:
    """The search of a head of 65536 rows."""
    n, k = 65536, 768
    dtype = "f32" if storage in ("f32", "bf16", "f16") else "int8"
    kernel = KernelSummary(
        kind="head",
        phase="decode",
        rows=1,
        typical_rows=1,
        operations={dtype: 2.0 * n * k},
        weight_bytes=storage_bytes(storage, (n, k)),
        activation_bytes=0,
        shapes={},
        matrices=((n, k, storage),),
    )
    return kernel_work(kernel, kernel_candidates(kernel, target)[0], target)


@pytest.fixture(scope="module")
def machine() -> Target:
    return resolve_cpu("cpu:x86-64-amx")


def seconds_of(work: Work, threads: int, target: Target, **survivors: float) -> float:
    constants = {**STREAM_CONSTANTS, "survivors": 0.0, "float_survivors": 0.0, **survivors}
    columns = call_columns([(work, threads)], target)
    times = THREADED[HEAD_SEARCH].times(columns, machine_of(target), constants)
    return float(times.seconds[0])


@pytest.mark.parametrize(
    ("storage", "share"),
    [("q8_0", "survivors"), ("q6_k", "survivors"), ("bf16", "float_survivors")],
)
def test_the_share_that_a_text_is_worth_is_found(machine: Target, storage: str, share: str) -> None:
    work = head_work(storage, machine)
    usual = {n: seconds_of(work, n, machine, **{share: 0.3}) for n in (1, 2)}
    spread = np.concatenate([np.full(90, 0.9), np.full(10, 1.9)])  # their mean is 1
    heads = [HeadTimes(work, n, list(usual[n] * spread)) for n in (1, 2)]
    found = fit_heads(heads, STREAMS, machine, SPEEDS)
    assert found.values[share] == pytest.approx(0.3, rel=0.01)
    assert {name: found.values[name] for name in STREAM_CONSTANTS} == STREAM_CONSTANTS
    assert found.rows == 200
    low, high = found.quantiles("any")
    assert low == pytest.approx(-np.hypot(np.log(0.9), SPEEDS.low), rel=0.02)
    assert high >= SPEEDS.high


def test_without_a_model_the_share_is_assumed_with_wide_bounds(machine: Target) -> None:
    found = fit_heads([], STREAMS, machine, SPEEDS)
    assert (found.rows, found.source) == (0, "as stream-product; survivors are assumed")
    low, high = found.quantiles("any")
    measured = STREAMS.quantiles("any")
    assert low < measured[0]
    assert high > measured[1]
    work = head_work("q8_0", machine)
    usual = seconds_of(work, 2, machine, survivors=found.values["survivors"])
    for share in (0.03, 0.9):
        ratio = np.log(seconds_of(work, 2, machine, survivors=share) / usual)
        assert low <= ratio <= high


def test_planes_of_a_head(machine: Target) -> None:
    """All of the second plane is the whole matrix, and of floats the bounds besides."""
    whole = head_work("q8_0", machine).sizes
    assert whole["first_bytes"] + whole["second_bytes"] == pytest.approx(whole["whole_bytes"])
    floats = head_work("bf16", machine).sizes
    assert floats["second_bytes"] == floats["whole_bytes"]
    assert 0 < floats["first_bytes"] < 0.4 * floats["whole_bytes"]
    for storage in ("q8_0", "bf16"):
        work = head_work(storage, machine)
        assert work.kernel == HEAD_SEARCH
        known = FittedClass(
            constants={**STREAM_CONSTANTS, "survivors": 0.5, "float_survivors": 0.5},
            low=-0.1,
            high=0.1,
        )
        more = replace_kernels(machine, {HEAD_SEARCH: known})
        few = known.model_copy(
            update={"constants": {**known.constants, "survivors": 0.1, "float_survivors": 0.1}}
        )
        less = replace_kernels(machine, {HEAD_SEARCH: few})
        assert estimate_work(work, less).mid < 0.9 * estimate_work(work, more).mid
        assert (
            estimate_work(replace(work, kernel="unheard-of"), less).bound
            == estimate_work(work, machine).bound
        )


def replace_kernels(target: Target, kernels: dict[str, FittedClass]) -> Target:
    return Target.model_validate(target.model_dump() | {"kernels": kernels})


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny models with a tokenizer: `gemma3`, and `gemma2`, whose logits are capped."""
    folder = tmp_path_factory.mktemp("readers")
    paths = {name: folder / f"{name}.gguf" for name in ("gemma3", "gemma2")}
    for name, path in paths.items():
        write_gguf(path, *make_family(name), "Q8_0", with_tokenizer=True)
    return paths


def test_a_model_reads_the_text(readers: dict[str, Path]) -> None:
    heads = trace_heads(readers["gemma3"], "cpu", [1, 2, 4])
    assert [head.threads for head in heads] == [1, 4]
    for head in heads:
        assert head.work.kernel == HEAD_SEARCH
        assert 2 < len(head.seconds) < MAX_TOKENS
        assert all(seconds > 0 for seconds in head.seconds)


def test_a_head_that_is_not_searched_is_refused(readers: dict[str, Path]) -> None:
    with pytest.raises(UserError) as caught:
        trace_heads(readers["gemma2"], "cpu", [1])
    assert str(caught.value) == (
        "error[INF5001]: the best token of this model is not searched: its head is multiplied "
        f"whole\n  --> {readers['gemma2']}\n"
        "   = hint: `infc compile --remarks split-head` says why; give another model"
    )
