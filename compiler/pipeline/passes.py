"""What a pass is, and what it is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from infc.cost.estimate import Estimate
from infc.diagnostics import Code, UserError
from infc.ir.levels import Level
from infc.ir.mlir import ir
from infc.pipeline.options import CompileOptions
from infc.target.backend import Backend, KernelMapping, KernelSummary
from infc.target.schema import Target


@dataclass(frozen=True)
class Remark:
    """Why something was not done: the pass, the place, the reason."""

    pass_name: str
    location: str
    reason: str


class Tuner(Protocol):
    """Chooses mappings by more than the cost model."""

    def choose(
        self, kernel: KernelSummary, ranked: Sequence[tuple[KernelMapping, Estimate]]
    ) -> int:
        """Which one of a kernel's candidates is to run; the least expected time comes first."""


@dataclass
class PassContext:
    """What a pass may look at besides the module.

    Attributes:
        options: limits and hints.
        target: the resolved machine; passes ask it and never the host.
        backend: the backend of that target.
        remarks: what passes declined to do, and why.
        tuner: chooses the mappings of kernels; None leaves it to the cost model.
    """

    options: CompileOptions
    target: Target
    backend: Backend
    remarks: list[Remark] = field(default_factory=list)
    pass_name: str = ""
    tuner: Tuner | None = None

    def decline(self, op: ir.Operation | ir.OpView, reason: str) -> None:
        """Record that the running pass left an operation alone, and why."""
        self.remarks.append(Remark(self.pass_name, str(op.location), reason))


class Pass(Protocol):
    """One step."""

    @property
    def name(self) -> str:
        """What pipelines and dumps call it."""

    @property
    def stage(self) -> Level:
        """The level of the module before it."""

    @property
    def result(self) -> Level:
        """The level of the module after it."""

    def run(self, module: ir.Module, ctx: PassContext) -> None:
        """Rewrite the module in place."""


@dataclass(frozen=True)
class FunctionPass:
    """A pass made of a plain function."""

    name: str
    stage: Level
    rewrite: Callable[[ir.Module, PassContext], None]
    raises_to: Level | None = None

    @property
    def result(self) -> Level:
        """The level of the module after this pass."""
        return self.raises_to or self.stage

    def run(self, module: ir.Module, ctx: PassContext) -> None:
        """Rewrite the module in place."""
        self.rewrite(module, ctx)


@dataclass(frozen=True)
class Pipeline:
    """An ordered tuple of passes; backends edit it, they never copy it."""

    passes: tuple[Pass, ...]

    def names(self) -> list[str]:
        """The names in order."""
        return [step.name for step in self.passes]

    def index(self, name: str) -> int:
        """Where a pass stands.

        Raises:
            UserError: INF2004 for an unknown name, listing the known ones.
        """
        names = self.names()
        if name not in names:
            raise UserError(
                Code.PIPELINE,
                f"there is no pass '{name}'",
                hint=f"the passes are {', '.join(names)}",
            )
        return names.index(name)

    def after(self, name: str) -> Pipeline:
        """The passes that follow one."""
        return Pipeline(self.passes[self.index(name) + 1 :])

    def insert_after(self, name: str, *new: Pass) -> Pipeline:
        """With passes added behind one."""
        at = self.index(name) + 1
        return Pipeline((*self.passes[:at], *new, *self.passes[at:]))

    def until(self, level: Level) -> Pipeline:
        """The passes that leave the module at or before a level."""
        return Pipeline(tuple(p for p in self.passes if p.result.order <= level.order))
