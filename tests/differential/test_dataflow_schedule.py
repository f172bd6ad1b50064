"""How near programs come to what their machine can do, on simulated time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from infc.backends.dataflow.emission import EmittedModel, emit_model
from infc.backends.dataflow.image import Image
from infc.backends.dataflow.machine import Machine
from infc.backends.dataflow.simulator.timing import Timing, simulate_time
from infc.driver.lowering import lower_model
from infc.frontends.config_source import ConfigSource
from infc.ir.context import context
from infc.pipeline.options import CompileOptions

CONFIG = Path(__file__).parents[2] / "samples" / "configs" / "llama-3.1-8b.json"
PROMPT, CONTEXT = 512, 1024
UNITS = ("matrix", "vector", "send")


@dataclass(frozen=True)
class Programs:
    """Those of five layers of a model, under the default mapping and others."""

    machine: Machine
    model: EmittedModel
    others: Mapping[str, EmittedModel]

    def decode(self, image: Image) -> Timing:
        """One token behind some others, without logits."""
        return self._time(image, 1, CONTEXT - 1)

    def prefill(self, image: Image) -> Timing:
        """A prompt, without logits."""
        assert image.max_tokens == PROMPT
        return self._time(image, PROMPT, 0)

    def _time(self, image: Image, tokens: int, position: int) -> Timing:
        args = np.zeros(8 + image.max_tokens + image.max_logit_rows, np.int32)
        args[0], args[3] = tokens, position
        return simulate_time(image, self.machine, args)


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    path = tmp_path_factory.mktemp("model") / "config.json"
    path.write_text(json.dumps({**json.loads(CONFIG.read_text()), "num_hidden_layers": 5}))
    options = CompileOptions(max_context=2 * CONTEXT, chunk=PROMPT, logit_rows=1)
    with context():
        source = ConfigSource(path, "q8_0")
        module, target = lower_model(source, "dataflow:systolic-hbm", options)
        machine = Machine.of(target)
        model = emit_model(module, machine)
        mapping = model.mappings["prefill"]
        changes = {
            "late": replace(mapping, prefetch=False, ring_slots=1),
            "anywhere": replace(mapping, near=False),
        }
        others = {name: emit_model(module, machine, other) for name, other in changes.items()}
    return Programs(machine, model, others)


def test_decode_reads_far_memory_all_the_time(programs: Programs) -> None:
    timing = programs.decode(programs.model.images["decode"])
    reading = timing.channel_bytes.max() / programs.machine.far[0].channel_bytes_per_s
    assert reading / timing.program_seconds >= 0.94


def test_prefill_multiplies_most_of_the_time(programs: Programs) -> None:
    timing = programs.prefill(programs.model.images["prefill"])
    assert timing.busy_s.max() / timing.program_seconds >= 0.8


def test_gates_are_rounded_and_sent_behind_their_products(programs: Programs) -> None:
    timing = programs.prefill(programs.model.images["prefill"])
    gates = [origin for origin in timing.origins if origin.name.endswith("activation")]
    waits = {unit: sum(origin.critical_by.get(unit, 0) for origin in gates) for unit in UNITS}
    assert gates
    assert waits["vector"] + waits["send"] <= 0.02 * waits["matrix"]


def test_loads_ahead_and_near_channels_are_worth_their_while(programs: Programs) -> None:
    seconds = programs.decode(programs.model.images["decode"]).seconds
    late = programs.decode(programs.others["late"].images["decode"]).seconds
    anywhere = programs.decode(programs.others["anywhere"].images["decode"]).seconds
    # Of one channel all cores together get the bandwidth that one of them has for itself.
    assert late >= 1.3 * seconds
    assert anywhere >= 3.5 * seconds
