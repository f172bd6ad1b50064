"""The binary form of instructions: 64 bytes each, little-endian; the front door to the others.

`docs/dataflow.md` has the meaning of every operation and of every field. What an operation does
not use must be 0 (255 where it would name a semaphore): there is one way to write an instruction.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Final

import numpy as np

from infc.backends.dataflow.instruction import (
    F_A,
    F_B,
    F_C,
    F_D,
    F_FLAGS,
    F_FMT,
    F_K,
    F_M,
    F_N,
    F_OP,
    F_ORIGIN,
    F_RA,
    F_RB,
    F_RC,
    F_RD,
    F_RM,
    F_RN,
    F_SIGNAL,
    F_SIGNAL_LOCAL,
    F_STRIDE_A,
    F_STRIDE_B,
    F_STRIDE_C,
    F_STRIDE_D,
    F_X,
    FIELDS,
    Instruction,
    Table,
    to_table,
)
from infc.backends.dataflow.operations import (
    ACC,
    BLOCK,
    CODES4,
    GROUP16,
    MAX_LOOPS,
    MINS,
    NONE,
    REGISTERS,
    REMOTE,
    SEMAPHORES,
    Binary,
    Conversion,
    Float,
    Op,
    Pairing,
    Reduction,
    Tier,
    Unary,
    Unit,
)
from infc.backends.dataflow.validity import Problem, find_problem
from infc.diagnostics import Code, InternalError, UserError

__all__ = [
    "ACC",
    "BLOCK",
    "CODES4",
    "FIELDS",
    "F_A",
    "F_B",
    "F_C",
    "F_D",
    "F_FLAGS",
    "F_FMT",
    "F_K",
    "F_M",
    "F_N",
    "F_OP",
    "F_ORIGIN",
    "F_RA",
    "F_RB",
    "F_RC",
    "F_RD",
    "F_RM",
    "F_RN",
    "F_SIGNAL",
    "F_SIGNAL_LOCAL",
    "F_STRIDE_A",
    "F_STRIDE_B",
    "F_STRIDE_C",
    "F_STRIDE_D",
    "F_X",
    "GROUP16",
    "INSTRUCTION_BYTES",
    "MAX_LOOPS",
    "MINS",
    "NONE",
    "REGISTERS",
    "REMOTE",
    "SEMAPHORES",
    "Binary",
    "Conversion",
    "Float",
    "Instruction",
    "Op",
    "Pairing",
    "Reduction",
    "Table",
    "Tier",
    "Unary",
    "Unit",
    "chips",
    "decode",
    "decode_table",
    "decode_tables",
    "encode",
    "encode_table",
    "encode_tables",
    "float_bits",
    "rectangle",
    "to_table",
]

INSTRUCTION_BYTES: Final = 64

_HINT = "compile the model again; a program of another version of infc cannot be read"

_RECORD = np.dtype(
    [(name, "u1") for name in ("op", "fmt", "flags", "zero")]
    + [("origin", "<u4")]
    + [(name, "u1") for name in ("rd", "ra", "rb", "rc", "rn", "rm", "signal", "signal_local")]
    + [(name, "<i4") for name in ("d", "a", "b", "c", "n", "m")]
    + [("k", "<u4")]
    + [(name, "<i4") for name in ("stride_d", "stride_a", "stride_b", "stride_c")]
    + [("x", "<u4")]
)


def rectangle(row: int, column: int, rows: int, columns: int) -> int:
    """The field `k` of a SEND: the cores in `rows` rows from `row` on, and so with columns."""
    return row | column << 8 | rows << 16 | columns << 24


def chips(first: int, count: int) -> int:
    """The field `x` of a SEND: `count` chips from `first` on."""
    return first | count << 16


def float_bits(value: float) -> int:
    """The field `x` that holds this number, rounded to float32."""
    return int(np.float32(value).view(np.uint32))


def encode(instructions: Iterable[Instruction]) -> bytes:
    """The binary form. Raises InternalError where an instruction has none."""
    return encode_table(to_table(instructions))


def encode_table(table: Table) -> bytes:
    """The binary form of rows; raises like `encode`."""
    problem = find_problem(table)
    if problem is not None:
        raise InternalError(f"instruction {problem.at} cannot be encoded: {problem.message}")
    records = np.zeros(len(table), _RECORD)
    for column, field in enumerate(FIELDS):
        records[field] = table[:, column]
    return records.tobytes()


def encode_tables(tables: Sequence[Table]) -> list[bytes]:
    """The binary form of many programs, as `encode_table` of each; checked together, as most of
    the time goes into checks. Instructions are counted through all of them where one is wrong."""
    data = encode_table(np.concatenate(tables))
    ends = INSTRUCTION_BYTES * np.cumsum([len(table) for table in tables])
    return [data[start:end] for start, end in pairwise([0, *ends.tolist()])]


def decode(data: bytes, name: str = "program") -> list[Instruction]:
    """The instructions of a binary program; raises like `decode_table`."""
    return [Instruction(*row) for row in decode_table(data, name).tolist()]


def decode_table(data: bytes, name: str = "program") -> Table:
    """The instructions of a binary program as rows.

    Raises UserError PROGRAM_FORMAT, which calls the program `name`, where a field is not allowed.
    """
    if len(data) % INSTRUCTION_BYTES:
        raise UserError(
            Code.PROGRAM_FORMAT,
            f"expected instructions of {INSTRUCTION_BYTES} bytes, got {len(data)} bytes",
            location=name,
            hint=_HINT,
        )
    records = np.frombuffer(data, _RECORD)
    table = np.empty((len(records), len(FIELDS)), np.int64)
    for column, field in enumerate(FIELDS):
        table[:, column] = records[field]
    problem = find_problem(table)
    padded = np.flatnonzero(records["zero"])
    if len(padded) and (problem is None or padded[0] < problem.at):
        index = int(padded[0])
        problem = Problem(index, f"expected 0 in byte 3, got {records['zero'][index]}")
    if problem is not None:
        raise UserError(
            Code.PROGRAM_FORMAT,
            problem.message,
            location=f"{name}: instruction {problem.at}",
            hint=_HINT,
        )
    return table


def decode_tables(programs: Sequence[bytes]) -> list[Table]:
    """The rows of many programs, as `decode_table` of each; checked together, and instructions are
    counted through all of them where one is wrong."""
    for program in programs:
        if len(program) % INSTRUCTION_BYTES:
            decode_table(program)
    table = decode_table(b"".join(programs))
    ends = np.cumsum([len(program) // INSTRUCTION_BYTES for program in programs])
    return [table[start:end] for start, end in pairwise([0, *ends.tolist()])]
