"""Programs as text: one line an instruction, which says exactly what the binary form says.

    loop count=r3+2                      ; a comment
      wait semaphore=4 count=1
      mm_q.q4g32m.acc d=r1 a=256 b=512 c=r2+4096 m=8 n=64 k=128 stride_d=256 ... signal=5 @12
    endloop
    halt

The operation, its format and its flag, joined by dots; its operands, in any order; and the origin,
an index into the image's table. `r3+2` is a register and what is added; semaphores that are not
signalled and strides of 0 are left out. `docs/dataflow.md` has the operands of every operation.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Final, NamedTuple, NoReturn

import numpy as np

from infc.backends.dataflow.instruction import Instruction, to_table
from infc.backends.dataflow.isa import chips, float_bits, rectangle
from infc.backends.dataflow.operations import (
    ACC,
    FORMS,
    MINS,
    NONE,
    REMOTE,
    Form,
    Kind,
    Op,
    Operand,
)
from infc.backends.dataflow.validity import find_problem
from infc.diagnostics import Code, UserError

_OPS: Final = {form.mnemonic: op for op, form in FORMS.items()}
_FLAGS: Final = {"acc": ACC, "remote": REMOTE}
_INDENT: Final = "  "
_INTEGER = r"[0-9]{1,18}|0x[0-9a-fA-F]{1,15}"
_NUMBER = re.compile(rf"(-?)({_INTEGER})")
_REGISTER = re.compile(r"r([0-9]{1,3})")
_SUM = re.compile(rf"(?:r([0-9]{{1,3}})(?:(?=[+-])|$))?(?:([+-]?)({_INTEGER}))?")
_FLOAT = re.compile(r"-?(?:[0-9]+(?:\.[0-9]*)?(?:e[+-]?[0-9]+)?|inf)")
_BITS = re.compile(r"bits:0x([0-9a-fA-F]{8})")
_RANGE = re.compile(r"([0-9]{1,5})-([0-9]{1,5})")
_EXPECTED: Final = {
    Kind.VALUE: "a number or a register and a number, like r3+16",
    Kind.SIZE: "a number or a register and a number, like r3+16",
    Kind.TARGET: "a register, like r3",
    Kind.REGISTER: "a register, like r3",
    Kind.FLOAT: "a float32, like 0.5, -inf or bits:0x7fc00000",
    Kind.CHIPS: "the first and the last chip, like 0-3",
    Kind.RECTANGLE: "first and last row, first and last column, like 0-1,0-3",
}


class _Word(NamedTuple):
    """A word of a line and its column, from 1 on."""

    text: str
    column: int


class _Place:
    """Where the reader is, for its complaints."""

    def __init__(self, name: str, line: int) -> None:
        self.name, self.line = name, line

    def refuse(self, column: int, message: str, hint: str | None = None) -> NoReturn:
        raise UserError(
            Code.ASSEMBLY, message, location=f"{self.name}:{self.line}:{column}", hint=hint
        )


def assemble(text: str, name: str = "assembly") -> list[Instruction]:
    """The instructions of a text that messages call `name`.

    Raises UserError ASSEMBLY with line and column where one is misspelt or not allowed. Whether
    they make a stream (loops, halt, the unit) is checked when they become part of an image.
    """
    instructions: list[Instruction] = []
    for number, line in enumerate(text.split("\n"), 1):
        code = line.partition(";")[0]
        words = [_Word(match[0], match.start() + 1) for match in re.finditer(r"\S+", code)]
        if words:
            instructions.append(_parse(words, _Place(name, number)))
    return instructions


def disassemble(instructions: Iterable[Instruction], origins: Sequence[str] = ()) -> str:
    """The text of instructions that can be encoded; `assemble` gives them back.

    `origins`: the image's; a comment shows each where it begins.
    """
    lines: list[str] = []
    depth, shown = 0, None
    for instruction in instructions:
        if instruction.op == Op.ENDLOOP:
            depth = max(depth - 1, 0)
        line = _INDENT * depth + _show(instruction)
        if instruction.origin != shown and instruction.origin < len(origins):
            shown = instruction.origin
            # A comment ends with its line, whatever a name may hold.
            line += f"  ; {' '.join(origins[shown].split())}" if origins[shown] else ""
        lines.append(line)
        if instruction.op == Op.LOOP:
            depth += 1
    return "".join(f"{line}\n" for line in lines)


def _required(operand: Operand, op: Op, fmt: int, flags: int) -> bool:
    """Whether the operand must be written; others are written where they are not as usual."""
    if operand.kind in (Kind.SIGNAL, Kind.STRIDE):
        return False
    if operand.kind is Kind.CORE:
        return bool(flags & REMOTE)
    if op is Op.V_DQ and operand.name == "c":
        return bool(fmt & MINS)
    return True


def _parse(words: list[_Word], place: _Place) -> Instruction:
    op, fmt, flags = _parse_operation(words[0], place)
    form = FORMS[op]
    fields = {"op": int(op), "fmt": fmt, "flags": flags}
    columns = {field: words[0].column for field in fields}
    known = {operand.name: operand for operand in form.operands}
    given: set[str] = set()
    for word in words[1:]:
        name, equals, value = word.text.partition("=")
        if word.text.startswith("@"):
            name = "@"
            found = {"origin": _parse_origin(word, place)}
        elif not equals or name not in known:
            allowed = ", ".join(known) if known else "none"
            place.refuse(
                word.column, f"expected an operand of {form.mnemonic} ({allowed}), got {name}"
            )
        else:
            found = _parse_value(known[name], value, word.column + len(name) + 1, place)
        if name in given:
            place.refuse(word.column, f"expected {name} once, got it again")
        given.add(name)
        fields |= found
        columns |= dict.fromkeys(found, word.column)
    missing = [
        name
        for name, operand in known.items()
        if name not in given and _required(operand, op, fmt, flags)
    ]
    if missing:
        place.refuse(words[0].column, f"expected {form.mnemonic} with {', '.join(missing)}")
    instruction = Instruction(**fields)
    problem = find_problem(to_table([instruction]))
    if problem is not None:
        place.refuse(columns.get(problem.field or "op", words[0].column), problem.message)
    return instruction


def _parse_operation(word: _Word, place: _Place) -> tuple[Op, int, int]:
    """Operation, format and flags."""
    mnemonic, *suffixes = word.text.split(".")
    op = _OPS.get(mnemonic)
    if op is None:
        near = get_close_matches(mnemonic, _OPS, 1)
        hint = f"did you mean {near[0]}?" if near else None
        place.refuse(word.column, f"expected an operation, got {mnemonic}", hint)
    form = FORMS[op]
    fmt, flags = 0, 0
    column = word.column + len(mnemonic) + 1
    if len(form.formats) > 1:
        got = suffixes.pop(0) if suffixes else ""
        if got not in form.formats:
            known = ", ".join(form.formats)
            place.refuse(
                column, f"expected a format of {mnemonic} ({known}), got {got or 'nothing'}"
            )
        fmt = form.formats.index(got)
        column += len(got) + 1
    if suffixes:
        flags = _FLAGS.get(suffixes[0], 0) & form.flags
        if len(suffixes) > 1 or not flags:
            place.refuse(
                column, f"expected {_flag_names(form)} after {mnemonic}, got {'.'.join(suffixes)}"
            )
    return op, fmt, flags


def _flag_names(form: Form) -> str:
    return " or ".join(name for name, flag in _FLAGS.items() if flag & form.flags) or "nothing"


def _parse_origin(word: _Word, place: _Place) -> int:
    match = _NUMBER.fullmatch(word.text[1:])
    if match is None:
        place.refuse(word.column, f"expected an origin, like @12, got {word.text}")
    return _integer(*match.groups())


def _integer(sign: str, digits: str) -> int:
    return int(digits, 0 if "x" in digits else 10) * (-1 if sign == "-" else 1)


def _parse_value(operand: Operand, text: str, column: int, place: _Place) -> dict[str, int]:
    """The fields that a value fills."""
    values = _values_of(operand.kind, text)
    if values is None:
        expected = _EXPECTED.get(operand.kind, "a number")
        place.refuse(column, f"expected {expected} as {operand.name}, got {text or 'nothing'}")
    return dict(zip(operand.fields, values, strict=True))


def _values_of(kind: Kind, text: str) -> tuple[int, ...] | None:
    """The numbers for the fields of an operand, or None where the text is none."""
    if kind in (Kind.VALUE, Kind.SIZE):
        match = _SUM.fullmatch(text)
        if match is None or not text:
            return None
        register, sign, digits = match.groups()
        return _integer(sign, digits or "0"), int(register or 0)
    if kind in (Kind.TARGET, Kind.REGISTER):
        match = _REGISTER.fullmatch(text)
        return None if match is None else (int(match[1]),)
    if kind is Kind.FLOAT:
        return _float_bits(text)
    if kind in (Kind.CHIPS, Kind.RECTANGLE):
        return _packed_ranges(kind, text)
    match = _NUMBER.fullmatch(text)
    return None if match is None else (_integer(*match.groups()),)


def _packed_ranges(kind: Kind, text: str) -> tuple[int] | None:
    """The field of the destinations of a SEND: a range of chips, or one of rows and of columns."""
    parts, bits = (1, 16) if kind is Kind.CHIPS else (2, 8)
    matches = [_RANGE.fullmatch(part) for part in text.split(",")]
    spans = [(int(match[1]), int(match[2]) - int(match[1]) + 1) for match in matches if match]
    if len(matches) != parts or len(spans) != parts:
        return None
    if any(count < 1 or max(first, count) >> bits for first, count in spans):
        return None
    if kind is Kind.CHIPS:
        return (chips(*spans[0]),)
    (row, rows), (column, columns) = spans
    return (rectangle(row, column, rows, columns),)


def _float_bits(text: str) -> tuple[int] | None:
    match = _BITS.fullmatch(text)
    if match is not None:
        return (int(match[1], 16),)
    if _FLOAT.fullmatch(text) is None:
        return None
    with np.errstate(over="ignore"):
        value = np.float32(text)
    return None if np.isinf(value) and "inf" not in text else (float_bits(float(value)),)


def _show(instruction: Instruction) -> str:
    """The line of an instruction, without indentation."""
    op, fmt, flags = Op(instruction.op), instruction.fmt, instruction.flags
    form = FORMS[op]
    names = [form.mnemonic]
    if len(form.formats) > 1:
        names.append(form.formats[fmt])
    names += [name for name, flag in _FLAGS.items() if flag & flags]
    words = [".".join(names)]
    for operand in form.operands:
        values = tuple(getattr(instruction, field) for field in operand.fields)
        usual = NONE if operand.kind is Kind.SIGNAL else 0
        if _required(operand, op, fmt, flags) or any(value != usual for value in values):
            words.append(f"{operand.name}={_show_value(operand.kind, values)}")
    if instruction.origin:
        words.append(f"@{instruction.origin}")
    return " ".join(words)


def _show_value(kind: Kind, values: tuple[int, ...]) -> str:
    first = values[0]
    if kind in (Kind.VALUE, Kind.SIZE):
        register = values[1]
        if not register:
            return str(first)
        return f"r{register}{first:+}" if first else f"r{register}"
    if kind in (Kind.TARGET, Kind.REGISTER):
        return f"r{first}"
    if kind is Kind.FLOAT:
        value = np.uint32(first).view(np.float32)
        return f"bits:0x{first:08x}" if np.isnan(value) else str(value)
    if kind is Kind.CHIPS:
        return _show_range(first & 0xFFFF, first >> 16)
    if kind is Kind.RECTANGLE:
        rows = _show_range(first & 255, first >> 16 & 255)
        return f"{rows},{_show_range(first >> 8 & 255, first >> 24)}"
    return str(first)


def _show_range(first: int, count: int) -> str:
    return f"{first}-{first + count - 1}"
