"""Whole models as programs of the dataflow machine, under any mapping."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from infc.backends.dataflow import BACKEND
from infc.backends.dataflow.emission import emit_programs
from infc.backends.dataflow.image import Image, read_image
from infc.backends.dataflow.machine import Machine
from infc.backends.dataflow.partition import Mapping
from infc.backends.dataflow.presets import resolve_dataflow
from infc.backends.dataflow.runnable import DataflowRunnable
from infc.backends.dataflow.simulator.check import check
from infc.driver.importing import import_model
from infc.frontends import open_model
from infc.ir.context import context
from infc.passes.pipelines import SHARED
from infc.pipeline.manager import PassManager
from infc.pipeline.options import CompileOptions
from infc.pipeline.passes import PassContext
from infc.target.backend import LoadedPrograms


@dataclass(frozen=True)
class DataflowModel:
    """A model's programs, loaded and as images."""

    machine: Machine
    runnable: DataflowRunnable
    images: dict[str, Image]

    def check(self, phase: str, tokens: int, position: int, logit_rows: int) -> None:
        """Check one call for races, reads of what nobody wrote, bounds and deadlocks."""
        image = self.images[phase]
        args = np.zeros(8 + image.max_tokens + image.max_logit_rows, np.int32)
        args[:4] = tokens, logit_rows, 0, position
        args[8 : 8 + tokens] = np.arange(tokens)
        args[8 + image.max_tokens :][:logit_rows] = tokens - 1
        check(image, self.machine, args)


def load_dataflow(
    path: Path, spec: str, mapping: Mapping | None = None, **options: int
) -> DataflowModel:
    """Compile a model for a target, in memory; a context of 64 and chunks of 16 unless said."""
    asked = CompileOptions(**{"max_context": 64, "max_batch": 1, "chunk": 16, **options})
    target = resolve_dataflow(spec)
    source = open_model(path)
    out = BytesIO()
    with context():
        module = import_model(source, asked, BACKEND, target)
        PassManager(BACKEND.pipeline(SHARED)).run(module, PassContext(asked, target, BACKEND))
        programs = emit_programs(module, target, source.data, mapping)
        programs.write_weights(out)
    weights: NDArray[np.uint8] = np.frombuffer(out.getvalue(), np.uint8)
    loaded = LoadedPrograms(
        member=lambda name: memoryview(programs.members[name]),
        extract=Path,
        weights=memoryview(weights),
        weights_file=(path, 0),
        signature=programs.signature,
        target=target,
        check=lambda: None,
    )
    images = {
        name.removesuffix(".dfx"): read_image(data, name) for name, data in programs.members.items()
    }
    return DataflowModel(Machine.of(target), DataflowRunnable(loaded), images)
