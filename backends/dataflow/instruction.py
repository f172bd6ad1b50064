"""One instruction as numbers, and many as rows of a table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from operator import attrgetter
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from infc.backends.dataflow.operations import NONE

Table: TypeAlias = NDArray[np.int64]
"""Instructions: int64 [instructions, len(FIELDS)]."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction; an operation uses the fields that its `Form` names, others are as here."""

    op: int
    fmt: int = 0
    flags: int = 0
    origin: int = 0
    rd: int = 0
    ra: int = 0
    rb: int = 0
    rc: int = 0
    rn: int = 0
    rm: int = 0
    signal: int = NONE
    signal_local: int = NONE
    d: int = 0
    a: int = 0
    b: int = 0
    c: int = 0
    n: int = 0
    m: int = 0
    k: int = 0
    stride_d: int = 0
    stride_a: int = 0
    stride_b: int = 0
    stride_c: int = 0
    x: int = 0


FIELDS: Final = tuple(Instruction.__dataclass_fields__)
# Columns of a table.
F_OP: Final = 0
F_FMT: Final = 1
F_FLAGS: Final = 2
F_ORIGIN: Final = 3
F_RD: Final = 4
F_RA: Final = 5
F_RB: Final = 6
F_RC: Final = 7
F_RN: Final = 8
F_RM: Final = 9
F_SIGNAL: Final = 10
F_SIGNAL_LOCAL: Final = 11
F_D: Final = 12
F_A: Final = 13
F_B: Final = 14
F_C: Final = 15
F_N: Final = 16
F_M: Final = 17
F_K: Final = 18
F_STRIDE_D: Final = 19
F_STRIDE_A: Final = 20
F_STRIDE_B: Final = 21
F_STRIDE_C: Final = 22
F_X: Final = 23

_row = attrgetter(*FIELDS)


def to_table(instructions: Iterable[Instruction]) -> Table:
    """Instructions as rows, whether they are allowed or not.

    Raises OverflowError where a number has more than 63 bits.
    """
    rows = [_row(instruction) for instruction in instructions]
    return np.array(rows, np.int64).reshape(len(rows), len(FIELDS))
