"""The cost model of the dataflow machine: beside the simulator, its direction, its choices."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from oracle.families import make_family
from small_models import SmallModels

from infc import driver
from infc.artifact import open_artifact
from infc.backends.dataflow.choose import partitions_of
from infc.backends.dataflow.cost.constants import Constants, fitted
from infc.backends.dataflow.cost.predict import call_cost
from infc.backends.dataflow.cost.sketch import Sketch
from infc.backends.dataflow.emission import EmittedModel, emit_model
from infc.backends.dataflow.machine import Machine
from infc.backends.dataflow.partition import Mapping
from infc.backends.dataflow.signature import Timed
from infc.backends.dataflow.simulator.timing import simulate_time
from infc.driver.lowering import lower_model
from infc.frontends.config_source import ConfigSource
from infc.ir.context import context
from infc.ir.mlir import ir
from infc.pipeline.options import CompileOptions
from infc.pipeline.passes import Remark
from infc.target.signature import read_signature

PROMPT, NEW_TOKENS = 16, 32
OPTIONS = CompileOptions(max_context=64, chunk=16, prompt=PROMPT, new_tokens=NEW_TOKENS)


class Lowered:
    """A tiny model of which only the configuration is there, ready for the code generator."""

    def __init__(self, family: str, storage: str, spec: str, folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(make_family(family)[0]))
        self.module: ir.Module
        self.module, target = lower_model(ConfigSource(path, storage), spec, OPTIONS)
        self.machine = Machine.of(target)

    def simulated(self, model: EmittedModel, phase: str, tokens: int, position: int) -> float:
        """Seconds of a call."""
        image = model.images[phase]
        args = np.zeros(8 + image.max_tokens + image.max_logit_rows, np.int32)
        args[:4] = tokens, 1, 0, position
        args[8 + image.max_tokens :] = tokens - 1
        return simulate_time(image, self.machine, args).seconds

    def predicted(self, model: EmittedModel, phase: str, tokens: int, position: int) -> float:
        """The same by the cost model."""
        return seconds(model.sketches[phase], self.machine, model.mappings[phase], tokens, position)


def seconds(
    sketch: Sketch, machine: Machine, mapping: Mapping, tokens: int, position: int
) -> float:
    return call_cost(
        sketch, machine, mapping,
        tokens=tokens, position=position, logit_rows=1, constants=fitted().constants,
    ).seconds  # fmt: skip


@pytest.fixture(autouse=True)
def in_context() -> Iterator[None]:
    with context():
        yield


@pytest.mark.parametrize(
    ("family", "storage", "spec"),
    [
        ("qwen3", "q4_0", "dataflow:test"),
        ("mistral", "q8_0", "dataflow:test-sram"),
        ("gemma2", "bf16", "dataflow:test"),
        ("llama2", "q8_0", "dataflow:lpu-like@2"),
    ],
)
def test_predictions_are_within_a_tenth_of_the_simulator(
    family: str, storage: str, spec: str, tmp_path: Path
) -> None:
    lowered = Lowered(family, storage, spec, tmp_path)
    model = emit_model(lowered.module, lowered.machine)
    for phase, tokens, position in (("decode", 1, 3), ("decode", 1, 50), ("prefill", 16, 0)):
        told = lowered.predicted(model, phase, tokens, position)
        took = lowered.simulated(model, phase, tokens, position)
        assert told == pytest.approx(took, rel=0.1), (phase, tokens, position)


@pytest.mark.parametrize(
    ("family", "spec"),
    [
        ("llama3", "dataflow:test-sram"),
        ("gemma3", "dataflow:test-sram"),
        ("qwen2", "dataflow:lpu-like@2"),
    ],
)
def test_the_chosen_partition_is_about_the_best_one(family: str, spec: str, tmp_path: Path) -> None:
    lowered = Lowered(family, "q8_0", spec, tmp_path)

    def use(model: EmittedModel) -> float:
        prefill = lowered.simulated(model, "prefill", PROMPT, 0)
        return prefill + NEW_TOKENS * lowered.simulated(model, "decode", 1, PROMPT + 10)

    partitions = partitions_of(lowered.module)
    assert len(partitions) > 1
    chosen = use(emit_model(lowered.module, lowered.machine))
    others = [use(emit_model(lowered.module, lowered.machine, p["prefill"])) for p in partitions]
    assert chosen <= 1.05 * min(others)


FASTER = {
    "far memory": lambda m: replace(
        m, far=tuple(replace(t, channel_bytes_per_s=2 * t.channel_bytes_per_s) for t in m.far)
    ),
    "latency of far memory": lambda m: replace(
        m, far=tuple(replace(t, latency_s=t.latency_s / 2) for t in m.far)
    ),
    "matrix unit": lambda m: replace(
        m,
        matrix=replace(
            m.matrix,
            tile_cycles={name: n // 2 for name, n in m.matrix.tile_cycles.items()},
            weight_bytes_per_cycle=2 * m.matrix.weight_bytes_per_cycle,
        ),
    ),
    "vector unit": lambda m: replace(m, vector=replace(m.vector, lanes=2 * m.vector.lanes)),
    "SRAM": lambda m: replace(m, sram_bytes_per_s=2 * m.sram_bytes_per_s),
    "mesh": lambda m: replace(
        m, mesh=replace(m.mesh, link_bytes_per_s=2 * m.mesh.link_bytes_per_s)
    ),
    "hops": lambda m: replace(m, mesh=replace(m.mesh, hop_s=m.mesh.hop_s / 2)),
    "links": lambda m: replace(
        m, links=m.links and replace(m.links, bytes_per_s=2 * m.links.bytes_per_s)
    ),
    "hops between chips": lambda m: replace(
        m, links=m.links and replace(m.links, hop_s=m.links.hop_s / 2)
    ),
    "call": lambda m: replace(m, launch_s=m.launch_s / 2),
}


@pytest.mark.parametrize("spec", ["dataflow:test", "dataflow:test-sram"])
def test_a_faster_machine_is_never_slower(spec: str, tmp_path: Path) -> None:
    lowered = Lowered("gemma3", "q8_0", spec, tmp_path)
    model = emit_model(
        lowered.module, lowered.machine, partitions_of(lowered.module)[-1]["prefill"]
    )
    gained = set()
    for phase, tokens, position in (("decode", 1, 40), ("prefill", 16, 0)):
        sketch, mapping = model.sketches[phase], model.mappings[phase]
        usual = seconds(sketch, lowered.machine, mapping, tokens, position)
        for name, faster in FASTER.items():
            told = seconds(sketch, faster(lowered.machine), mapping, tokens, position)
            assert told <= usual * (1 + 1e-12), (name, phase)
            gained |= {name} if told < usual * (1 - 1e-9) else set()
    assert {"matrix unit", "vector unit", "hops", "call"} <= gained
    assert ("far memory" in gained) == (spec == "dataflow:test")
    assert ("links" in gained) == (spec == "dataflow:test-sram")


def test_more_work_takes_longer(tmp_path: Path) -> None:
    lowered = Lowered("llama3", "q8_0", "dataflow:test", tmp_path)
    model = emit_model(lowered.module, lowered.machine)

    def told(phase: str, tokens: int, position: int) -> float:
        return lowered.predicted(model, phase, tokens, position)

    by_tokens = [told("prefill", tokens, 0) for tokens in range(1, 17)]
    assert by_tokens[-1] > by_tokens[0]
    assert min(np.diff(by_tokens[3::4])) >= 0  # whole shares of rows
    # What earlier calls left is attended to as well.
    assert told("prefill", 16, 40) > told("prefill", 16, 0)


def test_parts_of_a_prediction_add_up(tmp_path: Path) -> None:
    lowered = Lowered("gemma2", "q4_0", "dataflow:test-sram", tmp_path)
    model = emit_model(lowered.module, lowered.machine)
    for phase, tokens in (("decode", 1), ("prefill", 9)):
        cost = call_cost(
            model.sketches[phase], lowered.machine, model.mappings[phase],
            tokens=tokens, position=7, logit_rows=1, constants=fitted().constants,
        )  # fmt: skip
        assert sum(cost.by_resource.values()) == pytest.approx(cost.seconds)
        assert all(spent >= 0 for spent in cost.by_resource.values())
        without = call_cost(
            model.sketches[phase], lowered.machine, model.mappings[phase],
            tokens=tokens, position=7, logit_rows=0, constants=fitted().constants,
        )  # fmt: skip
        assert without.seconds < cost.seconds


def test_sketches_and_mappings_survive_json(tmp_path: Path) -> None:
    lowered = Lowered("gemma3", "q4_0", "dataflow:test-sram", tmp_path)
    model = emit_model(lowered.module, lowered.machine)
    for phase, sketch in model.sketches.items():
        mapping = model.mappings[phase]
        record = {"sketch": sketch.record(), "mapping": mapping.record()}
        assert read_signature(Timed, record) == {"sketch": sketch, "mapping": mapping}
        assert Mapping.read(json.loads(json.dumps(mapping.record()))) == mapping


def test_constants_are_in_their_ranges() -> None:
    constants = fitted().constants
    for name, known in Constants.ranges().items():
        assert known.low <= getattr(constants, name) <= known.high, name
    for phase in ("prefill", "decode"):
        residuals = fitted().residuals[phase]
        assert -0.1 < residuals.low <= 0.0 <= residuals.high < 0.1


def test_an_artifact_is_predicted_and_says_why(small_models: SmallModels) -> None:
    remarks: list[Remark] = []
    path = small_models.artifact(
        small_models.model("llama3", "Q8_0"), "dataflow:test-sram", max_batch=1, remarks=remarks
    )
    chosen = [r.reason for r in remarks if r.pass_name == "choose-partition"]
    assert chosen[0].startswith("2 stages of 4 cores: chosen; ")
    assert chosen[1].startswith("1 stage of 8 cores: 1.")
    predicted = driver.predict(open_artifact(path), prompt_tokens=20, new_tokens=8, threads=1)
    for phase, tokens in (("prefill", 20), ("decode", 8)):
        found = predicted[phase]
        assert found is not None
        assert 0 < found.seconds_low < found.seconds < found.seconds_high
        # 2 layers of a width of 64: so many multiplications for each token at least.
        assert found.operations > tokens * 2 * 2 * (3 * 64 * 96 + 3 * 64 * 64)
        assert found.bytes > 0
        assert found.bound in ("vector", "matrix", "latency", "chip links")
