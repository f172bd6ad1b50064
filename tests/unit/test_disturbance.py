"""How disturbed a machine is while something is measured, by kernels that run in turns with it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from oracle.families import make_family
from oracle.files import write_gguf
from planted_machine import PlantedBackend, planted_profile

import infc
from infc.artifact import Artifact
from infc.backends.cpu.target import resolve_cpu
from infc.cost.machine_profile import calibrated_target
from infc.diagnostics import Code, UserError
from infc.driver import DisturbanceProbe, disturbance, predict
from infc.driver.prediction import Slowdown, Turns, decode_turns, prefill_turns
from infc.target.backend import KernelTimer
from infc.target.runnable import Phase

PROMPT, ANSWER, THREADS = 40, 24, 2
TURNS: dict[Phase, list[Turns]] = {
    Phase.PREFILL: prefill_turns(PROMPT, 512),
    Phase.DECODE: decode_turns(PROMPT, ANSWER),
}
NAMES = ("prefill", "decode")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    path = tmp_path_factory.mktemp("model") / "m.gguf"
    sizes = {"hidden_size": 512, "intermediate_size": 2048, "vocab_size": 4096, "head_dim": 64}
    config, tensors = make_family("gemma3", num_hidden_layers=2, **sizes)
    write_gguf(path, config, tensors, "Q8_0")
    output = path.with_suffix(".infc")
    return infc.compile(path, target="cpu:x86-64-v3", output=output, prompt_tokens=PROMPT)


@pytest.fixture(scope="module")
def artifact(plain: Artifact) -> Artifact:
    """As if the target had been calibrated."""
    machine = resolve_cpu("cpu:x86-64-v3")
    facts = json.loads(calibrated_target(machine, planted_profile(machine)).to_json())
    manifest = plain.manifest.model_copy(update={"targets": dict.fromkeys(NAMES, facts)})
    return SimpleNamespace(manifest=manifest, path=Path("m.infc"))  # type: ignore[return-value]


@pytest.fixture
def timers(monkeypatch: pytest.MonkeyPatch) -> PlantedBackend:
    found = PlantedBackend()
    monkeypatch.setattr(disturbance, "load_backend", lambda name: found)
    return found


def slowdowns(artifact: Artifact, runs: int = 1) -> dict[str, Slowdown]:
    with DisturbanceProbe(artifact, threads=THREADS, turns=TURNS) as probe:
        for _ in range(runs):
            probe.begin()
            probe.passed(Phase.PREFILL, 1e-5)
            probe.passed(Phase.DECODE, 1e-5)
    return probe.slowdowns()


def seconds(artifact: Artifact, slow: Mapping[str, Slowdown]) -> dict[str, float]:
    asked = {"prompt_tokens": PROMPT, "new_tokens": ANSWER, "threads": THREADS}
    found = predict(artifact, **asked, slowdowns=slow)  # type: ignore[arg-type]
    return {name: one.seconds for name, one in found.items() if one is not None}


def test_an_undisturbed_machine_is_not_slow(artifact: Artifact, timers: PlantedBackend) -> None:
    found = slowdowns(artifact)
    assert set(found) == set(NAMES)
    for slow in found.values():
        assert slow.others == pytest.approx(1.0, rel=0.03)
        assert list(slow.classes.values()) == pytest.approx([1.0] * len(slow.classes), rel=0.03)
    assert timers.open == 0


def test_all_is_slower_where_all_kernels_are(artifact: Artifact, timers: PlantedBackend) -> None:
    timers.slow = lambda timed: 1.5
    calm, slow = seconds(artifact, {}), seconds(artifact, slowdowns(artifact))
    assert set(slow) == set(NAMES)
    assert slow == pytest.approx({name: 1.5 * calm[name] for name in NAMES}, rel=0.03)


def test_classes_are_slow_each_for_itself(artifact: Artifact, timers: PlantedBackend) -> None:
    timers.slow = lambda timed: 3.0 if timed.kernel_class == "stream-product" else 1.2
    found = slowdowns(artifact)
    assert found["prefill"].classes["staged-product"] == pytest.approx(1.2, rel=0.05)
    assert found["decode"].classes["stream-product"] == pytest.approx(3.0, rel=0.05)
    # Searches of the best token are not timed alone: they are streams.
    assert found["decode"].classes["head-search"] == found["decode"].classes["stream-product"]


def test_kernels_are_those_that_take_about_as_long(
    artifact: Artifact, timers: PlantedBackend
) -> None:
    slowdowns(artifact)
    assert {timed.threads for timed in timers.timed} == {THREADS}
    for name in {timed.kernel_class for timed in timers.timed}:
        assert sum(timed.kernel_class == name for timed in timers.timed) <= 3
    # The largest product of this model takes 0.2 ms, that of the set a millisecond.
    streams = [t.seconds for t in timers.timed if t.kernel_class == "stream-product"]
    assert max(streams) < 5e-4
    assert {(timed.kernel.phase, timed.kernel_class) for timed in timers.timed} >= {
        ("prefill", "staged-product"),
        ("decode", "stream-product"),
    }


def test_a_run_that_was_hit_does_not_count(artifact: Artifact, timers: PlantedBackend) -> None:
    """Of measured times the median of three runs counts, and so of these."""
    factor, run = (1.3, 9.0, 1.25), 0
    timers.slow = lambda timed: factor[run]
    with DisturbanceProbe(artifact, threads=THREADS, turns=TURNS) as probe:
        for run in range(3):  # noqa: B007 - which run it is, for the timers
            probe.begin()
            probe.passed(Phase.PREFILL, 1e-5)
            probe.passed(Phase.DECODE, 1e-5)
    for slow in probe.slowdowns().values():
        assert slow.others == pytest.approx(1.3, rel=0.03)


def test_a_phase_that_never_ran_has_no_slowdown(artifact: Artifact, timers: PlantedBackend) -> None:
    timers.slow = lambda timed: 2.0
    with DisturbanceProbe(artifact, threads=THREADS, turns=TURNS) as probe:
        assert probe.slowdowns() == {}
        probe.begin()
        assert set(probe.slowdowns()) == {"prefill"}  # looked at before a prompt


def test_where_kernels_cannot_be_made_there_is_a_reason(
    artifact: Artifact, timers: PlantedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that runs programs may have no linker."""

    @contextmanager
    def refuse(*asked: object, threads: int) -> Iterator[KernelTimer]:
        raise UserError(Code.TOOLCHAIN, "no linker here")
        yield  # a context manager is a generator

    monkeypatch.setattr(timers, "timer", refuse)
    with DisturbanceProbe(artifact, threads=THREADS, turns=TURNS) as probe:
        probe.begin()
        probe.passed(Phase.DECODE, 1e-5)
        assert probe.slowdowns() == {}
    assert probe.unavailable == "no linker here"


def test_making_them_shows_progress(artifact: Artifact, timers: PlantedBackend) -> None:
    stages: list[tuple[str, float]] = []
    with DisturbanceProbe(
        artifact, threads=THREADS, turns=TURNS, progress=lambda *stage: stages.append(stage)
    ):
        fractions = [fraction for _, fraction in stages]
        assert len(fractions) == len(timers.timed)
        assert fractions == sorted(fractions)
        assert fractions[0] == 0.0
        assert fractions[-1] < 1.0
    assert {stage for stage, _ in stages} == {"making kernels to measure the machine with"}


def test_an_uncalibrated_target_is_not_probed(plain: Artifact, timers: PlantedBackend) -> None:
    assert slowdowns(plain) == {}
    assert timers.timed == []
