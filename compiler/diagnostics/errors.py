"""Diagnostics as data: what is wrong, where, and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


def count(number: int, noun: str) -> str:
    """`1 rule`, `2 rules`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


class Code(StrEnum):
    """Stable codes. The hundreds digit groups by what is at fault; a code is never reused."""

    # 10xx: model files
    MODEL_NOT_FOUND = "INF1001"
    MODEL_FORMAT = "INF1002"
    MODEL_TRUNCATED = "INF1003"
    MODEL_TENSOR = "INF1004"
    MODEL_CONFIG = "INF1005"
    MODEL_UNSUPPORTED = "INF1006"
    MODEL_PATH = "INF1007"
    MODEL_NUMERIC = "INF1008"
    MODEL_CHANGED = "INF1009"
    # 11xx: tokenizers and chat templates
    TOKENIZER_MISSING = "INF1101"
    TOKENIZER_FORMAT = "INF1102"
    CHAT_TEMPLATE = "INF1103"
    # 20xx: intermediate representation and passes
    IR_SYNTAX = "INF2001"
    IR_VERIFY = "INF2002"
    IR_LEGALITY = "INF2003"
    PIPELINE = "INF2004"
    VERIFY_MISMATCH = "INF2005"
    # 21xx: scheduling and memory
    PLAN = "INF2101"
    BUFFERS = "INF2102"
    # 30xx: targets and backends
    TARGET_UNKNOWN = "INF3001"
    TARGET_FORMAT = "INF3002"
    BACKEND_BROKEN = "INF3003"
    TARGET_UNSUPPORTED = "INF3004"
    TOOLCHAIN = "INF3005"
    PROFILE_FORMAT = "INF3006"
    KERNEL_PROVIDER = "INF3007"
    # 40xx: artifacts
    ARTIFACT_NOT_FOUND = "INF4001"
    ARTIFACT_FORMAT = "INF4002"
    ARTIFACT_DAMAGED = "INF4003"
    ARTIFACT_VERSION = "INF4004"
    ARTIFACT_HOST = "INF4005"
    OUTPUT = "INF4006"
    PROGRAM_FORMAT = "INF4007"
    ASSEMBLY = "INF4008"
    # 50xx: running
    OPTION = "INF5001"
    TOKEN_RANGE = "INF5002"
    EMPTY_PROMPT = "INF5003"
    CONTEXT_OVERFLOW = "INF5004"
    SESSION_BUSY = "INF5005"
    CANCELLED = "INF5006"
    TRUNCATE = "INF5007"
    NUMERIC = "INF5008"
    # 90xx: infc itself
    INTERNAL = "INF9001"


@dataclass(frozen=True)
class Problem:
    """One of several findings of a report: a sentence and where it was found."""

    message: str
    location: str | None = None


@dataclass(frozen=True)
class Diagnostic:
    """One error as data.

    Attributes:
        code: the stable code.
        message: one sentence, lower case, no full stop; expected first, then got.
        location: file, tensor, node or key, as the user knows it.
        notes: facts that help (`pass ..., target ...`).
        hint: something the user can do.
        problems: all findings, where the error is a report of several.
    """

    code: Code
    message: str
    location: str | None = None
    notes: tuple[str, ...] = ()
    hint: str | None = None
    problems: tuple[Problem, ...] = ()

    def render(self, *, severity: str = "error") -> str:
        """The full text, as the command line prints it (without colour)."""
        lines = [f"{severity}[{self.code}]: {self.message}"]
        if self.location is not None:
            lines.append(f"  --> {self.location}")
        for problem in self.problems:
            where = f" ({problem.location})" if problem.location else ""
            lines.append(f"   - {problem.message}{where}")
        lines += [f"   |  {note}" for note in self.notes]
        if self.hint is not None:
            lines.append(f"   = hint: {self.hint}")
        return "\n".join(lines)


class InfcError(Exception):
    """Any error infc raises on purpose; `str()` of it is the full rendered text."""

    def __init__(
        self,
        code: Code,
        message: str,
        *,
        location: str | None = None,
        notes: Sequence[str] = (),
        hint: str | None = None,
        problems: Sequence[Problem] = (),
    ) -> None:
        self.diagnostic = Diagnostic(code, message, location, tuple(notes), hint, tuple(problems))
        super().__init__(self.diagnostic.render())

    @property
    def code(self) -> Code:
        """The stable code of this error."""
        return self.diagnostic.code


class UserError(InfcError):
    """The model, the options, the target or the machine is at fault: no traceback is shown."""


class InternalError(InfcError):
    """infc is at fault: the command line shows the traceback and asks for a report."""

    def __init__(
        self,
        message: str,
        *,
        location: str | None = None,
        hint: str | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        super().__init__(Code.INTERNAL, message, location=location, hint=hint, notes=notes)
