"""What a field may hold: the first instruction of a table, or of a stream, that is not allowed.

Rows of one operation are checked together, for a program of a big machine has many.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from infc.backends.dataflow.instruction import (
    F_C,
    F_FLAGS,
    F_FMT,
    F_K,
    F_N,
    F_OP,
    F_RC,
    F_RN,
    F_X,
    FIELDS,
    Table,
)
from infc.backends.dataflow.operations import (
    BLOCK,
    FORMS,
    GROUP16,
    MAX_LOOPS,
    MINS,
    NONE,
    REGISTERS,
    REMOTE,
    SEMAPHORES,
    Form,
    Kind,
    Op,
    Operand,
    Unit,
)


class Problem(NamedTuple):
    """What is wrong with the instruction `at`: a sentence, and the field, if it is in one."""

    at: int
    message: str
    field: str | None = None


_Mask: TypeAlias = NDArray[np.bool_]
_Check: TypeAlias = tuple[_Mask, int, str]
"""Rows that are wrong, the column to show, what was expected ({}: in that field)."""

_COLUMN: Final = {name: column for column, name in enumerate(FIELDS)}
_BYTES = {"op", "fmt", "flags", "rd", "ra", "rb", "rc", "rn", "rm", "signal", "signal_local"}
_UNSIGNED = {"origin", "k", "x"}
RANGES: Final = {
    name: (0, 255)
    if name in _BYTES
    else (0, 2**32 - 1)
    if name in _UNSIGNED
    else (-(2**31), 2**31 - 1)
    for name in FIELDS
}
"""Smallest and largest number that the binary form of a field holds."""
_NOT_USED = [NONE if name.startswith("signal") else 0 for name in FIELDS]
_LOWEST = np.array([RANGES[name][0] for name in FIELDS])
_HIGHEST = np.array([RANGES[name][1] for name in FIELDS])


def find_problem(table: Table) -> Problem | None:
    """The first instruction with a field that its operation does not allow."""
    found: list[Problem] = []
    outside = (table < _LOWEST) | (table > _HIGHEST)
    if outside.any():
        index, column = map(int, np.argwhere(outside)[0])
        low, high = RANGES[FIELDS[column]]
        found.append(_problem(index, table[index], column, f"{low} to {high} {{}}"))
    codes = table[:, F_OP]
    for code in np.unique(codes):
        at = np.flatnonzero(codes == code)
        if code not in FORMS:
            found.append(Problem(int(at[0]), f"expected an opcode, got 0x{code:02x}", "op"))
            continue
        rows = table[at]
        for wrong, column, expected in _checks(rows, Op(code), FORMS[Op(code)]):
            if wrong.any():
                first = int(np.argmax(wrong))
                found.append(_problem(int(at[first]), rows[first], column, expected))
    return min(found, key=lambda problem: problem.at, default=None)


def find_stream_problem(table: Table, unit: Unit) -> Problem | None:
    """The first place where allowed instructions make no stream of this unit."""
    if not len(table):
        return Problem(0, "expected halt at the end, got no instruction")
    codes = table[:, F_OP]
    for code in np.unique(codes):
        if unit not in FORMS[Op(code)].units:
            index = int(np.argmax(codes == code))
            name = FORMS[Op(code)].mnemonic
            return Problem(
                index, f"expected an operation of the {unit.name.lower()} unit, got {name}"
            )
    depth = np.cumsum((codes == Op.LOOP).astype(np.int64) - (codes == Op.ENDLOOP))
    if (depth < 0).any():
        return Problem(int(np.argmax(depth < 0)), "expected a loop before endloop, got none")
    if (depth > MAX_LOOPS).any():
        index = int(np.argmax(depth > MAX_LOOPS))
        return Problem(index, f"expected at most {MAX_LOOPS} loops in one another, got more")
    last = len(table) - 1
    if depth[-1]:
        return Problem(last, f"expected endloop for every loop, got {depth[-1]} too few")
    halts = np.flatnonzero(codes == Op.HALT)
    if not len(halts) or halts[0] != last:
        index = int(halts[0]) if len(halts) else last
        return Problem(index, "expected halt at the end and nowhere else")
    return None


def _problem(index: int, row: NDArray[np.int64], column: int, expected: str) -> Problem:
    """The report of one field; it names the operand and, where that is another name, the field."""
    field = FIELDS[column]
    form = FORMS.get(Op(row[F_OP])) if row[F_OP] in FORMS else None
    operands = form.operands if form else ()
    name = next((operand.name for operand in operands if operand.fields[0] == field), field)
    where = f"in {field}" if name == field else f"in {name} ({field})"
    subject = form.mnemonic if form else f"opcode {row[F_OP]}"
    message = f"{subject}: expected {expected.format(where)}, got {row[column]}"
    return Problem(index, message, field)


def _checks(rows: Table, op: Op, form: Form) -> Iterator[_Check]:
    """All checks of the rows of one operation."""
    used = {F_OP, F_FMT, F_FLAGS, _COLUMN["origin"]}
    for operand in form.operands:
        used.update(_COLUMN[field] for field in operand.fields)
    for column in range(len(FIELDS)):
        if column not in used:
            value = _NOT_USED[column]
            yield rows[:, column] != value, column, f"{value} {{}}, which is not used"
    last = len(form.formats) - 1
    yield rows[:, F_FMT] > last, F_FMT, f"0 to {last} {{}}" if last else "0 {}"
    known = "0 {}" if not form.flags else f"0 or {form.flags} {{}}"
    yield (rows[:, F_FLAGS] & ~form.flags) != 0, F_FLAGS, known
    for operand in form.operands:
        yield from _operand_checks(rows, operand)
    yield from _operation_checks(rows, op)


def _operand_checks(rows: Table, operand: Operand) -> Iterator[_Check]:
    for field in operand.fields:
        if field in ("rd", "ra", "rb", "rc", "rn", "rm"):
            column = _COLUMN[field]
            low = 1 if operand.kind is Kind.TARGET else 0
            values = rows[:, column]
            yield (values < low) | (values >= REGISTERS), column, f"{low} to {REGISTERS - 1} {{}}"
    column = _COLUMN[operand.fields[0]]
    values = rows[:, column]
    if operand.kind is Kind.SIZE:
        fixed = rows[:, _COLUMN[operand.fields[1]]] == 0
        yield fixed & (values < 0), column, "at least 0 {} without a register"
    elif operand.kind is Kind.POSITIVE:
        yield values < 1, column, "at least 1 {}"
    elif operand.kind is Kind.STRIDE:
        yield values < 0, column, "at least 0 {}"
    elif operand.kind is Kind.SEMAPHORE:
        yield (values < 0) | (values >= SEMAPHORES), column, f"0 to {SEMAPHORES - 1} {{}}"
    elif operand.kind is Kind.SIGNAL:
        wrong = (values >= SEMAPHORES) & (values != NONE)
        yield wrong, column, f"0 to {SEMAPHORES - 1} or {NONE} {{}}"
    elif operand.kind is Kind.CHIPS:
        yield values >> 16 == 0, column, "at least one chip {}"
    elif operand.kind is Kind.RECTANGLE:
        empty = (values >> 16 & 255 == 0) | (values >> 24 == 0)
        yield empty, column, "at least one row and one column {}"


def _operation_checks(rows: Table, op: Op) -> Iterator[_Check]:
    """What concerns one operation only."""
    fixed = rows[:, F_RN] == 0
    if op is Op.POST:
        here = rows[:, F_FLAGS] & REMOTE == 0
        yield here & (rows[:, F_X] != 0), F_X, "0 {}, which is not used without the flag REMOTE"
    elif op is Op.MM_Q:
        yield rows[:, F_K] % BLOCK != 0, F_K, f"a multiple of {BLOCK} {{}}"
    elif op is Op.V_Q8:
        yield fixed & (rows[:, F_N] % BLOCK != 0), F_N, f"a multiple of {BLOCK} {{}}"
    elif op is Op.V_DQ:
        group = np.where(rows[:, F_FMT] & GROUP16, BLOCK // 2, BLOCK)
        yield fixed & (rows[:, F_N] % group != 0), F_N, "a multiple of the group {}"
        plain = rows[:, F_FMT] & MINS == 0
        for column in (F_C, F_RC):
            yield plain & (rows[:, column] != 0), column, "0 {}, which is not used without mins"
