"""Reads the facts of a target that only this backend has, and keeps what is wrong with them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NoReturn

from infc.diagnostics import Code, Problem, UserError, count
from infc.target.schema import ComputeUnit, Memory, Target


@dataclass
class FactReader:
    """Problems are collected, so that one error names them all; until then 1 stands in."""

    target: Target
    problems: list[Problem] = field(default_factory=list)

    def whole(self, key: str, *, least: int = 1, most: int | None = None) -> int:
        """A whole number of `backend_facts`."""
        value = self.target.backend_facts.get(key)
        wanted = f"a whole number of at least {least}" + (f" and at most {most}" if most else "")
        if isinstance(value, bool) or not isinstance(value, int):
            self.problem(f"expected {wanted}, got {_said(value)}", f"backend_facts.{key}")
        elif value < least or (most is not None and value > most):
            self.problem(f"expected {wanted}, got {value}", f"backend_facts.{key}")
        else:
            return value
        return max(least, 1)

    def number(self, key: str) -> float:
        """A number above zero of `backend_facts`."""
        value = self.target.backend_facts.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            self.problem(
                f"expected a number greater than zero, got {_said(value)}", f"backend_facts.{key}"
            )
            return 1.0
        return float(value)

    def unit(self, name: str) -> ComputeUnit | None:
        """The compute unit of that name; a missing one is a problem."""
        found = next((unit for unit in self.target.compute if unit.name == name), None)
        if found is None:
            there = ", ".join(unit.name for unit in self.target.compute)
            self.problem(f"expected a compute unit '{name}', got {there}", "compute")
        return found

    def memory(self, name: str) -> Memory | None:
        """The memory of that name; a missing one is a problem."""
        found = next((memory for memory in self.target.memories if memory.name == name), None)
        if found is None:
            there = ", ".join(memory.name for memory in self.target.memories)
            self.problem(f"expected a memory '{name}', got {there}", "memories")
        return found

    def problem(self, message: str, path: str) -> None:
        """Keep a finding and the dotted path of the fact."""
        self.problems.append(Problem(message, path))

    def check(self) -> None:
        """Raises UserError (INF3002) with all findings, if there are any."""
        if self.problems:
            self.refuse()

    def refuse(self) -> NoReturn:
        """Raises UserError (INF3002) with all findings."""
        raise UserError(
            Code.TARGET_FORMAT,
            f"target {self.target.name!r} is no dataflow machine: "
            f"{count(len(self.problems), 'problem')}",
            problems=self.problems,
            hint="docs/targets.md says what a dataflow target holds",
        )


def _said(value: object) -> str:
    return "none" if value is None else repr(value)
