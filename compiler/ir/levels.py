"""The levels of IR, in the order data flows, and what each allows: legality is data.

The pass manager checks a module against its level's table before and after every pass, so an
ordering mistake fails at the guilty pass and not three passes later.
"""

from __future__ import annotations

from enum import StrEnum

from infc.diagnostics import Code, Problem, UserError, count
from infc.ir.mlir import ir


class Level(StrEnum):
    """graph -> phase -> schedule -> memory -> machine."""

    GRAPH = "graph"
    PHASE = "phase"
    SCHEDULE = "schedule"
    MEMORY = "memory"
    MACHINE = "machine"

    @property
    def order(self) -> int:
        """Position in the order data flows."""
        return list(Level).index(self)


_STRUCTURE = frozenset({"builtin.module", "func.func", "func.return", "infc.dim", "infc.device"})
_COMPUTE = frozenset(
    f"infc.{name}"
    for name in (
        [
            "weight",
            "embed",
            "rms_norm",
            "linear",
            "rope",
            "rope_table",
            "add",
            "mul",
            "activation",
            "softcap",
        ]
    )
)
_CACHED = frozenset(
    f"infc.{name}"
    for name in ["kv_cache", "kv_append", "kv_attention", "select_rows", "argmax", "top_k"]
)
_SCHEDULED = frozenset({"func.call", "infc.quantize", "infc.head_candidates"})

LEGAL: dict[Level, frozenset[str]] = {
    Level.GRAPH: _STRUCTURE | _COMPUTE | {"infc.attention"},
    Level.PHASE: _STRUCTURE | _COMPUTE | _CACHED | {"func.call"},
    Level.SCHEDULE: _STRUCTURE | _COMPUTE | _CACHED | _SCHEDULED,
    Level.MEMORY: _STRUCTURE
    | (_COMPUTE - {"infc.weight", "infc.rope_table"})
    | _CACHED
    | _SCHEDULED
    | {
        f"infc.{name}"
        for name in [
            "space",
            "alloc",
            "packed",
            "packed_ref",
            "read",
            "write",
            "barrier",
            "move",
            "prefetch",
            "wait",
        ]
    },
}
"""Operations a module may hold at each level; *machine* is open, a backend's own affair."""


def level_of(module: ir.Module) -> Level:
    """The level a module says it is at.

    Raises:
        UserError: INF2001 where it says none or an unknown one.
    """
    attributes = module.operation.attributes
    text = ""
    try:
        if "infc.level" in attributes:
            text = str(attributes["infc.level"]).strip('"')
        return Level(text)
    except ValueError:
        raise UserError(
            Code.IR_SYNTAX,
            f"expected infc.level to be one of {', '.join(Level)}, got '{text}'",
            hint="only modules that infc dumped carry a level",
        ) from None


def set_level(module: ir.Module, level: Level) -> None:
    """Record the level of a module."""
    module.operation.attributes["infc.level"] = ir.StringAttr.get(level.value)


def check_legality(module: ir.Module, level: Level) -> None:
    """Refuse operations a level does not allow, all of them in one report (INF2003)."""
    if level is Level.MACHINE:
        return
    legal = LEGAL[level]
    problems: list[Problem] = []

    def visit(op: ir.Operation) -> ir.WalkResult:
        if op.name not in legal:
            problems.append(Problem(f"{op.name} is not legal at level {level}", str(op.location)))
        return ir.WalkResult.ADVANCE

    module.operation.walk(visit)
    if problems:
        raise UserError(
            Code.IR_LEGALITY,
            f"not legal at level {level}: {count(len(problems), 'operation')}",
            problems=problems[:50],
        )
