"""The graph-level module of a model, for a target that can do all that is in it."""

from __future__ import annotations

from infc.diagnostics import Code, Problem, UserError, count
from infc.frontends.graph import build_graph
from infc.frontends.source import ModelSource
from infc.ir.levels import check_legality, level_of
from infc.ir.mlir import ir
from infc.ir.verifier import verify
from infc.pipeline.options import CompileOptions
from infc.target.backend import Backend
from infc.target.schema import Target


def import_model(
    source: ModelSource, options: CompileOptions, backend: Backend, target: Target
) -> ir.Module:
    """The graph-level module of a model; raises INF3004 for what the target cannot do."""
    module = build_graph(source, max_context=options.max_context, target=target.to_json())
    module.operation.attributes["infc.options"] = options.to_attribute()
    verify(module)
    check_legality(module, level_of(module))
    _refuse_unsupported(module, backend, target, source)
    return module


def _refuse_unsupported(
    module: ir.Module, backend: Backend, target: Target, source: ModelSource
) -> None:
    """All ops the backend cannot do, in one report: each reason once, with the places in the
    model that it holds for."""
    places: dict[str, list[str]] = {}

    def visit(op: ir.Operation) -> ir.WalkResult:
        reason = backend.unsupported(op, target)
        if reason is not None:
            where = str(op.location).removeprefix('loc("').removesuffix('")')
            places.setdefault(f"{op.name}: {reason}", []).append(where)
        return ir.WalkResult.ADVANCE

    module.operation.walk(visit)
    if places:
        refused = count(sum(len(found) for found in places.values()), "operation")
        raise UserError(
            Code.TARGET_UNSUPPORTED,
            f"target {target.name} cannot compile {refused} of the model",
            location=str(source.path),
            problems=[
                Problem(
                    reason,
                    first + (f" and {count(len(others), 'other')}" if others else ""),
                )
                for reason, (first, *others) in places.items()
            ],
            hint="--target reference runs every operation, slowly",
        )
