"""The programs that a compilation would make, for estimates: planned, and never emitted.

All passes of the backend run down to its record of kernels and memory. No weight is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from infc.cost.estimate import Estimate
from infc.cost.programs import ProgramBytes
from infc.cost.transformer import Rows
from infc.cost.workload import Workload
from infc.driver.fit import program_bytes
from infc.driver.prediction import Turns, kernels_for, prefill_turns, program_seconds
from infc.frontends import open_model
from infc.frontends.source import ModelSource
from infc.ir.kv_storage import KV_DTYPES
from infc.target.discovery import load_backend
from infc.target.schema import Target

if TYPE_CHECKING:  # reading a configuration does not wait for MLIR
    from infc.pipeline.options import CompileOptions
    from infc.target.backend import Backend

RECORDED = "record-plan"
"""The pass behind which a module says which kernels run and what memory they take."""


@dataclass(frozen=True)
class PlannedPrograms:
    """Implements `infc.cost.programs.Programs`.

    Attributes:
        kernels: those of greedy generation, by phase, as an artifact lists them.
    """

    kernels: Mapping[str, Sequence[Mapping[str, Any]]]
    chunk: int
    kv_dtype: str
    memory: ProgramBytes

    @property
    def dtype(self) -> str:
        """In which most operations of a prompt are; the first by name among equals."""
        counted: dict[str, float] = {}
        for kernel in self.kernels["prefill"]:
            for dtype, operations in kernel["operations"].items():
                counted[dtype] = counted.get(dtype, 0) + operations * kernel["launches"]
        return min(counted, key=lambda dtype: (-counted[dtype], dtype))

    @property
    def dtypes(self) -> tuple[str, ...]:
        """In which the kernels compute, by name."""
        every = [kernel for kernels in self.kernels.values() for kernel in kernels]
        return tuple(sorted({dtype for kernel in every for dtype in kernel["operations"]}))

    def step(self, rows: Rows, target: Target) -> Estimate:
        """A decode call of all sequences, or their prompts one after the other."""
        if rows.length == 1 and rows.past:
            turns = [Turns(1, rows.batch, rows.past + 1)]
            return program_seconds(self.kernels["decode"], "decode", turns, target, None)
        turns = prefill_turns(rows.length, self.chunk, rows.past)
        prompt = program_seconds(self.kernels["prefill"], "prefill", turns, target, None)
        return prompt.scale(rows.batch)


@dataclass(frozen=True)
class _Unread:
    """An opened model whose digest nobody asks for: it would read all of the file."""

    opened: ModelSource

    def __getattr__(self, name: str) -> Any:
        return getattr(self.opened, name)

    def digest(self) -> str:
        """None: what is planned is not kept."""
        return ""


class OwnPrograms:
    """The programs of a model for a target, for whatever it is asked to hold."""

    def __init__(self, model: Path, target: Target) -> None:
        """Of a model file or folder; `target` is one that `makes_programs`."""
        self._model, self._target = model, target
        self._planned: dict[CompileOptions, PlannedPrograms] = {}

    def planned(self, workload: Workload, requests: int, kv_dtype: str | None) -> PlannedPrograms:
        """For so many requests of a workload at a time, or as many as programs hold at most, each
        at its full length.

        Raises:
            UserError: as `infc.driver.compile`, for what the target cannot do.
        """
        from infc.pipeline.options import LARGEST_SIZE, CompileOptions

        rows = min(requests, LARGEST_SIZE)
        length = workload.context + workload.prompt + workload.new_tokens
        usual = CompileOptions()
        options = CompileOptions(
            max_context=max(usual.max_context, length),
            max_batch=rows,
            prompt=workload.prompt,
            new_tokens=max(1, workload.new_tokens),
            batch=rows,
            kv_dtype=kv_dtype or usual.kv_dtype,
        )
        if options not in self._planned:
            self._planned[options] = _plan(self._model, options, self._target)
        return self._planned[options]


def makes_programs(target: Target) -> bool:
    """Whether the target's backend makes programs whose kernels and memory are planned."""
    if target.kind == "model-only":
        return False
    from infc.passes.pipelines import SHARED

    return RECORDED in load_backend(target.backend).pipeline(SHARED).names()


def holds_cache(kv_dtype: str | None) -> bool:
    """Whether programs have caches of a dtype of the cost model; None is what they have."""
    return kv_dtype is None or kv_dtype in KV_DTYPES


def _plan(model: Path, options: CompileOptions, target: Target) -> PlannedPrograms:
    from infc.driver.importing import import_model
    from infc.ir.attributes import from_attribute, get
    from infc.ir.context import context
    from infc.passes.pipelines import SHARED
    from infc.pipeline.manager import PassManager
    from infc.pipeline.passes import PassContext, Pipeline

    backend: Backend = load_backend(target.backend)
    shared = backend.pipeline(SHARED)
    source = open_model(model)
    try:
        with context():
            unread = cast(ModelSource, _Unread(source))
            module = import_model(unread, options, backend, target)
            pipeline = Pipeline(shared.passes[: shared.index(RECORDED) + 1])
            PassManager(pipeline).run(module, PassContext(options, target, backend))
            attributes = module.operation.attributes
            report = from_attribute(attributes["infc.report"])
            signature = from_attribute(attributes["infc.signature"])
            weight_bytes = get(module.operation, "infc.weight_bytes")
    finally:
        source.close()
    return PlannedPrograms(
        kernels={phase: kernels_for(part["kernels"], "argmax") for phase, part in report.items()},
        chunk=options.prefill_rows,
        kv_dtype=signature["kv_dtype"],
        memory=program_bytes(weight_bytes, report, signature, target),
    )
