"""Runs passes: checks each, dumps after each, and can ask an oracle after each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from infc.diagnostics import Code, InternalError, UserError
from infc.ir.context import print_module
from infc.ir.levels import check_legality, level_of, set_level
from infc.ir.mlir import ir
from infc.ir.verifier import verify
from infc.pipeline.passes import Pass, PassContext, Pipeline

Observer = Callable[[str, ir.Module], None]
"""Called after each pass with its name: the `--verify` oracle, a progress bar."""


@dataclass
class PassManager:
    """Runs a pipeline over a module.

    Attributes:
        pipeline: what to run.
        dump: folder that gets one numbered file a pass, or None.
        observers: called after each pass.
        first_number: number of the first dump (a resumed run counts on).
    """

    pipeline: Pipeline
    dump: Path | None = None
    observers: tuple[Observer, ...] = ()
    first_number: int = 0

    def run(self, module: ir.Module, ctx: PassContext) -> None:
        """Run every pass; on failure the last good module is in the dump folder."""
        before = self._dump(self.first_number, "input", "import", module, None)
        for number, step in enumerate(self.pipeline.passes, self.first_number + 1):
            level = level_of(module)
            if level is not step.stage:
                raise UserError(
                    Code.PIPELINE,
                    f"pass {step.name} expects a module at level {step.stage}, got {level}",
                    hint=f"the order is {', '.join(self.pipeline.names())}",
                )
            self._run_one(step, module, ctx)
            before = self._dump(number, step.result.value, step.name, module, before)
            for observer in self.observers:
                observer(step.name, module)

    def _run_one(self, step: Pass, module: ir.Module, ctx: PassContext) -> None:
        ctx.pass_name = step.name
        with ir.Location.unknown():
            step.run(module, ctx)
        set_level(module, step.result)
        # A dump says how far it came: that is where a resumed compilation goes on.
        module.operation.attributes["infc.pass"] = ir.StringAttr.get(step.name)
        try:
            verify(module)
            check_legality(module, step.result)
        except UserError as error:
            raise InternalError(
                f"pass {step.name} left a module that does not verify",
                notes=error.diagnostic.render().splitlines()[:20],
            ) from error

    def _dump(
        self, number: int, level: str, name: str, module: ir.Module, before: str | None
    ) -> str | None:
        if self.dump is None:
            return None
        text = print_module(module)
        stem = f"{number:03d}-{name}" if level == "input" else f"{number:03d}-{level}-{name}"
        changed = text != before
        path = self.dump / f"{stem}.{'mlir' if changed else 'unchanged'}"
        try:
            self.dump.mkdir(parents=True, exist_ok=True)
            path.write_text(text if changed else "")
        except OSError as error:
            raise UserError(
                Code.OUTPUT,
                f"cannot write the dump: {(error.strerror or str(error)).lower()}",
                location=str(path),
                hint="give --dump another folder, or free some space there",
            ) from error
        return text
