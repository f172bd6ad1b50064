"""Compiles a model for one target: import, weights as the options want them, passes, code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from infc.artifact.output import output_error
from infc.diagnostics import Code, InfcError, UserError
from infc.diagnostics.progress import Progress
from infc.driver.dumps import check_weights, device_of, read_dump, rest_of
from infc.driver.fit import check_plan_fits
from infc.driver.importing import import_model
from infc.driver.oracle import Oracle
from infc.driver.tuning import Tuner, Tuning, database_path
from infc.driver.tuning_database import TuningDatabase
from infc.frontends import check_finite
from infc.frontends.requantize import Loss, RequantizedSource
from infc.frontends.source import ModelSource
from infc.ir.attributes import from_attribute, get
from infc.ir.context import context
from infc.ir.mlir import ir
from infc.passes.pipelines import SHARED
from infc.pipeline.manager import Observer, PassManager
from infc.pipeline.options import CompileOptions
from infc.pipeline.passes import PassContext, Pipeline, Remark
from infc.target.backend import Backend, EmulatingBackend, Programs
from infc.target.discovery import resolve_target
from infc.target.schema import Target

_TUNING_FRACTION = 0.3
"""About where the schedule is chosen."""


@dataclass(frozen=True)
class Compiled:
    """A model compiled for one target."""

    options: CompileOptions
    target: Target
    programs: Programs
    report: Mapping[str, Any]
    """The module's `infc.report`, by phase; empty where the backend plans nothing."""


class TargetCompiler:
    """Compiles one model, for one target after another.

    Args:
        source: the model; `close` closes it.
        report: told how far the compilation is.
        verify: compare with the reference after every pass.
        remarks: gets what the passes declined to do.
        folder: for large temporary files.
        tuning: measure mappings; gets what was learnt.

    Attributes:
        oracle: what `verify` compares with, from the first pass on.
    """

    def __init__(
        self,
        source: ModelSource,
        report: Progress,
        *,
        verify: bool,
        remarks: list[Remark] | None,
        folder: Path,
        tuning: Tuning | None,
    ) -> None:
        self._source = source
        self._folder = folder
        self._report = report
        self._verify = verify
        self._remarks = remarks
        self._tuning = tuning
        self.oracle: Oracle | None = None
        self._files = ExitStack()
        self._files.callback(source.close)
        self._requantized: RequantizedSource | None = None
        """The weights as the options want them, where those are not the model's."""

    @property
    def losses(self) -> Mapping[str, Loss]:
        """What matrices lost that were converted, by storage type."""
        return {} if self._requantized is None else self._requantized.losses

    def close(self) -> None:
        """Close the model and what was made of it."""
        self._files.close()

    def compile(self, spec: str, options: CompileOptions, dump: Path | None) -> Compiled:
        """From the model itself."""
        with context():
            backend, target = resolve_target(spec)
            _refuse_cost_only(target)
            weights = self._weights(options)
            module = import_model(weights, options, backend, target)
            return self._run(module, options, backend, target, backend.pipeline(SHARED), dump)

    def resume(self, path: Path, dump: Path | None) -> Compiled:
        """From a dump: its options and its target count."""
        with context():
            module = read_dump(path, self._source)
            try:
                options = CompileOptions.from_module(module)
                check_weights(module, self._weights(options), path)
                backend, target = device_of(module)
                pipeline = rest_of(backend.pipeline(SHARED), module)
                return self._run(module, options, backend, target, pipeline, dump)
            except UserError:
                raise
            except Exception as error:
                # An edit may keep every rule of the verifier and still say what no pass ever does.
                reason = error.diagnostic.message if isinstance(error, InfcError) else repr(error)
                raise UserError(
                    Code.IR_VERIFY,
                    f"the compilation cannot go on from the dump: {reason}",
                    location=str(path),
                    hint="undo the edits of the dump; where there were none, please report this",
                ) from error

    def _run(
        self,
        module: ir.Module,
        options: CompileOptions,
        backend: Backend,
        target: Target,
        pipeline: Pipeline,
        dump: Path | None,
    ) -> Compiled:
        weights = self._weights(options)
        used = list(dict.fromkeys(weights.config.weights.values()))
        check_finite(self._source, used)
        if self._requantized is not None:
            self._requantize(self._requantized, used)
        ctx = PassContext(options, target, backend)
        if self._verify and self.oracle is None:
            self.oracle = Oracle(module, weights.data)
        manager = PassManager(
            pipeline,
            dump=dump,
            observers=_observers(self._report, pipeline, self.oracle),
            first_number=len(backend.pipeline(SHARED).passes) - len(pipeline.passes),
        )
        with ExitStack() as stack:
            if self._tuning is not None:
                ctx.tuner = self._tuner(self._tuning, ctx, stack)
            manager.run(module, ctx)
        if self.oracle is not None and isinstance(backend, EmulatingBackend):
            self.oracle.emulator = backend.emulator(module, target)
        if self._remarks is not None:
            self._remarks += ctx.remarks
        attributes = module.operation.attributes
        report = from_attribute(attributes["infc.report"]) if "infc.report" in attributes else {}
        if report:
            signature = from_attribute(attributes["infc.signature"])
            check_plan_fits(
                get(module.operation, "infc.weight_bytes"),
                report,
                signature,
                target,
                weights.config.context_length,
            )
        self._report("generating code", 0.6)
        programs = backend.emit(module, target, weights.data)
        return Compiled(options, target, programs, report)

    def _weights(self, options: CompileOptions) -> ModelSource:
        """The model's weights, or those that `options.quantize` makes of them."""
        if options.quantize == "keep":
            return self._source
        if self._requantized is None:
            try:
                out = self._files.enter_context(TemporaryFile(dir=self._folder))  # noqa: SIM115
            except OSError as error:
                raise output_error(self._folder, error) from error
            self._requantized = RequantizedSource(self._source, options.quantize, out)
        return self._requantized

    def _requantize(self, weights: RequantizedSource, used: Sequence[str]) -> None:
        try:
            changed = weights.convert(
                used, lambda done: self._report("quantizing weights", 0.1 * done)
            )
        except OSError as error:
            raise output_error(self._folder, error) from error
        check_finite(
            weights, changed, hint="weights so large need --quantize keep: scales are float16"
        )

    def _tuner(self, tuning: Tuning, ctx: PassContext, stack: ExitStack) -> Tuner:
        database = stack.enter_context(TuningDatabase(database_path()))
        tuning.notes += database.notes
        return Tuner(
            tuning,
            ctx.backend,
            ctx.target,
            database,
            lambda stage: self._report(stage, _TUNING_FRACTION),
        )


def _refuse_cost_only(target: Target) -> None:
    if target.kind == "model-only":
        raise UserError(
            Code.TARGET_UNSUPPORTED,
            f"target {target.name!r} has a cost model and no code generator",
            hint=f"`infc estimate MODEL --target {target.name}` predicts what it would do",
        )


def _observers(report: Progress, pipeline: Pipeline, oracle: Oracle | None) -> tuple[Observer, ...]:
    names = pipeline.names()

    def show(name: str, module: ir.Module) -> None:
        report(name, 0.1 + 0.5 * (names.index(name) + 1) / len(names))

    return (show,) if oracle is None else (show, oracle.check)
