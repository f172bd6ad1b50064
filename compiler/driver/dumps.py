"""Dumps: modules in text form that say all a compilation needs besides the model file.

A compilation goes on from one where its pass left off (`read_dump`, `check_weights`, `device_of`,
`rest_of`); `run_opt` runs chosen passes over one.
"""

from __future__ import annotations

from pathlib import Path

from infc.diagnostics import Code, Problem, UserError, count
from infc.frontends.graph import DEVICE
from infc.frontends.source import ModelSource
from infc.ir.attributes import get
from infc.ir.context import context, parse, print_module
from infc.ir.levels import check_legality, level_of
from infc.ir.mlir import ir
from infc.ir.types import TensorType
from infc.ir.verifier import verify
from infc.ir.version import DIALECT_VERSION
from infc.passes.pipelines import SHARED
from infc.pipeline.manager import PassManager
from infc.pipeline.options import CompileOptions
from infc.pipeline.passes import PassContext, Pipeline, Remark
from infc.target.backend import Backend
from infc.target.discovery import load_backend
from infc.target.schema import Target


def read_dump(path: Path, source: ModelSource) -> ir.Module:
    """The module of a dump, in the current MLIR context, checked to belong to the model.

    Raises:
        UserError: the file cannot be read, the text does not parse or verify, or it was made by
            another version or of another model.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            Code.IR_SYNTAX, f"the dump could not be read: {error}", location=str(path)
        ) from error
    module = _parsed(text, str(path))
    made_with = get(module.operation, "infc.version")
    if made_with != DIALECT_VERSION:
        raise UserError(
            Code.IR_SYNTAX,
            f"expected a dump of dialect version {DIALECT_VERSION}, got {made_with}",
            location=str(path),
        )
    digest = get(module.operation, "infc.model")
    if digest != source.digest():
        raise UserError(
            Code.MODEL_CHANGED,
            f"expected the model with sha256 {digest}, got {source.digest()}",
            location=str(source.path),
            hint="a dump continues with the model it was made from",
        )
    return module


def check_weights(module: ir.Module, source: ModelSource, path: Path) -> None:
    """The weights a dump names, against the model's; all that differ in one report.

    Raises:
        UserError: INF2002, where they do.
    """
    problems: dict[str, None] = {}

    def visit(op: ir.Operation) -> ir.WalkResult:
        name = get(op, "source") if op.name in ("infc.weight", "infc.packed") else None
        if name is not None:
            kind = TensorType.of(op.results[0].type if op.results else get(op, "type"))
            said = f"{kind.element} {tuple(int(d) for d in kind.shape)}"
            info = source.tensors.get(name)
            held = "nothing" if info is None else f"{info.storage} {tuple(info.shape)}"
            if said != held:
                problems[f"weight {name}: expected {held}, got {said}"] = None
        return ir.WalkResult.ADVANCE

    module.operation.walk(visit)
    if problems:
        raise UserError(
            Code.IR_VERIFY,
            f"not the model's: {count(len(problems), 'weight')} of the dump",
            location=str(path),
            problems=[Problem(text) for text in problems],
        )


def device_of(module: ir.Module) -> tuple[Backend, Target]:
    """The backend and target that a module was made for."""
    for op in module.body.operations:
        if op.operation.name == "infc.device" and get(op, "sym_name") == DEVICE:
            target = Target.from_json(get(op, "target"))
            # The facts are in the module: nothing asks this machine again.
            return load_backend(target.backend), target
    raise UserError(Code.IR_SYNTAX, f"the module declares no infc.device @{DEVICE}")


def rest_of(pipeline: Pipeline, module: ir.Module) -> Pipeline:
    """The passes that a module has not been through."""
    last = get(module.operation, "infc.pass")
    return pipeline if last is None else pipeline.after(last)


def run_opt(
    text: str, pipeline: str, *, location: str = "-", remarks: list[Remark] | None = None
) -> str:
    """Run passes by name over a module in text form; returns the text after them.

    Args:
        text: a module, as a dump has it.
        pipeline: names of passes, with commas between them.
        location: what errors call the text.
        remarks: gets what the passes declined to do, and why.

    Raises:
        UserError: the text does not parse or verify, or a pass is unknown or out of order.
    """
    with context():
        module = _parsed(text, location)
        backend, target = device_of(module)
        known = backend.pipeline(SHARED)
        names = [name.strip() for name in pipeline.split(",") if name.strip()]
        chosen = Pipeline(tuple(known.passes[known.index(name)] for name in names))
        ctx = PassContext(CompileOptions.from_module(module), target, backend)
        PassManager(chosen).run(module, ctx)
        if remarks is not None:
            remarks += ctx.remarks
        return print_module(module)


def _parsed(text: str, name: str) -> ir.Module:
    """A module in text form, verified; `name` is what errors call the text."""
    module = parse(text, name=name)
    verify(module)
    check_legality(module, level_of(module))
    return module
