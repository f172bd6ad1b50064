"""A model of which only the config.json is here, as its backend gets it."""

from __future__ import annotations

from pathlib import Path

from infc.driver.compilation import import_model
from infc.frontends.config_source import ConfigSource
from infc.ir.mlir import ir
from infc.passes.pipelines import SHARED
from infc.pipeline.manager import PassManager
from infc.pipeline.options import CompileOptions
from infc.pipeline.passes import PassContext
from infc.target.discovery import resolve_target
from infc.target.schema import Target


def lower_config(
    path: Path, storage: str, spec: str, options: CompileOptions
) -> tuple[ir.Module, Target]:
    """The module that a backend emits code from, in the current MLIR context.

    Args:
        path: of the config.json.
        storage: the type that every matrix is taken to have.
        spec: a target.
        options: of the compilation; `quantize` changes nothing, as there are no weights.

    Raises:
        UserError: the configuration or the target is not understood, or the target cannot do what
            the model needs (INF3001).
    """
    backend, target = resolve_target(spec)
    source = ConfigSource(path, storage)
    module = import_model(source, options, backend, target)
    PassManager(backend.pipeline(SHARED)).run(module, PassContext(options, target, backend))
    return module, target
