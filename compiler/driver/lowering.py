"""A model as its backend gets it: for what needs no weights, but programs or their times."""

from __future__ import annotations

from infc.driver.importing import import_model
from infc.frontends.source import ModelSource
from infc.ir.mlir import ir
from infc.passes.pipelines import SHARED
from infc.pipeline.manager import PassManager
from infc.pipeline.options import CompileOptions
from infc.pipeline.passes import PassContext
from infc.target.discovery import resolve_target
from infc.target.schema import Target


def lower_model(
    source: ModelSource, spec: str, options: CompileOptions
) -> tuple[ir.Module, Target]:
    """The module that a backend emits code from, in the current MLIR context.

    Args:
        source: its data are not read; a `ConfigSource` has none.
        spec: a target.
        options: of the compilation; weights stay as they are whatever `quantize` says.

    Raises:
        UserError: the target is not understood, or it cannot do what the model needs (INF3004).
    """
    backend, target = resolve_target(spec)
    module = import_model(source, options, backend, target)
    PassManager(backend.pipeline(SHARED)).run(module, PassContext(options, target, backend))
    return module, target
