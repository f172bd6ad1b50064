"""The operations of the dataflow machine: numbers, units, and what the fields of each hold.

Every number in this file is part of the binary format. `FORMS` is the only description of the
operands: the check of binary programs, the assembler and the disassembler all read it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

REGISTERS: Final = 32
SEMAPHORES: Final = 64
NONE: Final = 255
"""In a field of a semaphore: none."""
MAX_LOOPS: Final = 8
"""Loops open at once."""
BLOCK: Final = 32
"""Elements that share a scale of quantised activations."""

ACC: Final = 1
"""Flag: go on from what is at the destination instead of starting anew."""
REMOTE: Final = 2
"""Flag of POST: on the core `x`."""


class Unit(IntEnum):
    """The four units of a core; each has a stream of its own."""

    LOAD = 0
    MATRIX = 1
    VECTOR = 2
    SEND = 3


class Op(IntEnum):
    """The opcodes. 0 is none, so that blank memory is no program."""

    HALT = 0x01
    LOOP = 0x02
    ENDLOOP = 0x03
    MOV = 0x04
    ADD = 0x05
    MUL = 0x06
    DIV = 0x07
    MOD = 0x08
    MIN = 0x09
    MAX = 0x0A
    WRAP = 0x0B
    ARG = 0x0C
    WAIT = 0x0D
    POST = 0x0E
    LOAD = 0x20
    STORE = 0x30
    SEND = 0x31
    MM_Q = 0x40
    MM_F = 0x41
    V_BIN = 0x50
    V_BINS = 0x51
    V_IMM = 0x52
    V_UN = 0x53
    V_RED = 0x54
    V_CVT = 0x55
    V_Q8 = 0x56
    V_DQ = 0x57
    V_ROPE = 0x58
    V_FILL = 0x59
    V_ARGMAX = 0x5A
    V_MERGE = 0x5B


class Tier(IntEnum):
    """`fmt` of LOAD and STORE: which far memory."""

    FAR0 = 0
    FAR1 = 1


class Float(IntEnum):
    """`fmt` of MM_F: what x and w are."""

    BF16 = 0
    F16 = 1


class Binary(IntEnum):
    """`fmt` of V_BIN, V_BINS and V_IMM."""

    ADD = 0
    SUB = 1
    MUL = 2
    MAX = 3
    MIN = 4


class Unary(IntEnum):
    """`fmt` of V_UN."""

    COPY = 0
    EXP = 1
    SILU = 2
    GELU_TANH = 3
    TANH = 4
    RSQRT = 5
    RECIP = 6
    NEG = 7
    SQRT = 8


class Reduction(IntEnum):
    """`fmt` of V_RED."""

    SUM = 0
    MAX = 1
    SUMSQ = 2


class Conversion(IntEnum):
    """`fmt` of V_CVT."""

    F32_BF16 = 0
    F32_F16 = 1
    BF16_F32 = 2
    F16_F32 = 3
    I32_F32 = 4


class Pairing(IntEnum):
    """`fmt` of V_ROPE: element i goes with i + n, or 2i with 2i + 1."""

    HALVES = 0
    INTERLEAVED = 1


CODES4: Final = 1
"""Bit of `fmt` of MM_Q and V_DQ: codes of 4 bits, else of 8."""
GROUP16: Final = 2
"""Bit of `fmt` of MM_Q and V_DQ: a scale for 16 elements, else for 32."""
MINS: Final = 4
"""Bit of `fmt` of MM_Q and V_DQ: groups have mins."""


class Kind(IntEnum):
    """What an operand is; the fields it takes follow in `Operand`."""

    VALUE = 0
    """Register + immediate, any number."""
    SIZE = 1
    """Register + immediate: an address or a count; without a register at least 0."""
    TARGET = 2
    """The register that is written: not r0, which is always 0."""
    REGISTER = 3
    """A register."""
    NUMBER = 4
    """An immediate, any number."""
    POSITIVE = 5
    """An immediate of at least 1."""
    STRIDE = 6
    """An immediate of at least 0."""
    SEMAPHORE = 7
    """A semaphore by number."""
    SIGNAL = 8
    """A semaphore, or none."""
    FLOAT = 9
    """The bits of a float32."""
    CORE = 10
    """The absolute number of a core."""
    CHIPS = 11
    """First chip and number of chips, 16 bits each."""
    RECTANGLE = 12
    """First row, first column, rows, columns, 8 bits each."""


@dataclass(frozen=True)
class Operand:
    """One operand: its name in assembly, what it is, and the fields that hold it.

    `fields` is the immediate and then the register of kinds that have both.
    """

    name: str
    kind: Kind
    fields: tuple[str, ...]


@dataclass(frozen=True)
class Form:
    """What an operation looks like.

    Attributes:
        mnemonic: in assembly; a name of `formats` and `.acc` or `.remote` may follow it.
        units: whose streams may hold it.
        operands: all there are; every other field is 0, or `NONE` where it names a semaphore.
        formats: the names of the values of `fmt`, from 0.
        flags: the flags it may have.
    """

    mnemonic: str
    units: frozenset[Unit]
    operands: tuple[Operand, ...]
    formats: tuple[str, ...] = ("",)
    flags: int = 0


def _sum(name: str, field: str, kind: Kind = Kind.SIZE) -> Operand:
    return Operand(name, kind, (field, f"r{field}"))


def _one(name: str, kind: Kind, field: str | None = None) -> Operand:
    return Operand(name, kind, (field or name,))


def _names(values: type[IntEnum]) -> tuple[str, ...]:
    return tuple(value.name.lower() for value in values)


_QUANTISED = tuple(
    f"q{4 if fmt & CODES4 else 8}g{16 if fmt & GROUP16 else 32}{'m' if fmt & MINS else ''}"
    for fmt in range(8)
)
_ANY = frozenset(Unit)
_MATRIX, _VECTOR = frozenset({Unit.MATRIX}), frozenset({Unit.VECTOR})
_LOAD, _SEND = frozenset({Unit.LOAD}), frozenset({Unit.SEND})
_TO = _one("to", Kind.TARGET, "rd")
_SIGNAL, _RELEASE = _one("signal", Kind.SIGNAL), _one("signal_local", Kind.SIGNAL)
_FLOAT = _one("x", Kind.FLOAT)
_D, _A, _B, _C = (_sum(name, name) for name in "dabc")
_N, _M, _K = _sum("n", "n"), _sum("m", "m"), _one("k", Kind.POSITIVE)
_STRIDE_D, _STRIDE_A, _STRIDE_B, _STRIDE_C = (_one(f"stride_{n}", Kind.STRIDE) for n in "dabc")
_COUNT = _sum("count", "n")
_LEFT, _RIGHT = _sum("a", "a", Kind.VALUE), _sum("b", "b", Kind.VALUE)
_MOVED = (_D, _A, _M, _N, _STRIDE_D, _STRIDE_A)

FORMS: Final[dict[Op, Form]] = {
    Op.HALT: Form("halt", _ANY, ()),
    Op.LOOP: Form("loop", _ANY, (_COUNT,)),
    Op.ENDLOOP: Form("endloop", _ANY, ()),
    Op.MOV: Form("mov", _ANY, (_TO, _LEFT)),
    Op.ADD: Form("add", _ANY, (_TO, _LEFT, _one("b", Kind.REGISTER, "rb"))),
    Op.MUL: Form("mul", _ANY, (_TO, _one("a", Kind.REGISTER, "ra"), _one("by", Kind.NUMBER, "a"))),
    Op.DIV: Form(
        "div", _ANY, (_TO, _one("a", Kind.REGISTER, "ra"), _one("by", Kind.POSITIVE, "a"))
    ),
    Op.MOD: Form(
        "mod", _ANY, (_TO, _one("a", Kind.REGISTER, "ra"), _one("by", Kind.POSITIVE, "a"))
    ),
    Op.MIN: Form("min", _ANY, (_TO, _LEFT, _RIGHT)),
    Op.MAX: Form("max", _ANY, (_TO, _LEFT, _RIGHT)),
    Op.WRAP: Form(
        "wrap", _ANY, (_TO, _one("limit", Kind.NUMBER, "a"), _one("less", Kind.NUMBER, "b"))
    ),
    Op.ARG: Form("arg", _ANY, (_TO, _sum("index", "a"))),
    Op.WAIT: Form("wait", _ANY, (_one("semaphore", Kind.SEMAPHORE, "d"), _COUNT)),
    Op.POST: Form(
        "post",
        _ANY,
        (_one("semaphore", Kind.SEMAPHORE, "d"), _COUNT, _one("core", Kind.CORE, "x")),
        flags=REMOTE,
    ),
    Op.LOAD: Form("load", _LOAD, (*_MOVED, _SIGNAL), _names(Tier)),
    Op.STORE: Form("store", _SEND, (*_MOVED, _SIGNAL, _RELEASE), _names(Tier)),
    Op.SEND: Form(
        "send",
        _SEND,
        (
            *_MOVED,
            _one("chips", Kind.CHIPS, "x"),
            _one("cores", Kind.RECTANGLE, "k"),
            _SIGNAL,
            _RELEASE,
        ),
    ),
    Op.MM_Q: Form(
        "mm_q",
        _MATRIX,
        (_D, _A, _B, _C, _M, _N, _K, _STRIDE_D, _STRIDE_A, _STRIDE_B, _SIGNAL),
        _QUANTISED,
        ACC,
    ),
    Op.MM_F: Form(
        "mm_f",
        _MATRIX,
        (_D, _A, _C, _M, _N, _K, _STRIDE_D, _STRIDE_A, _STRIDE_B, _STRIDE_C, _SIGNAL),
        _names(Float),
        ACC,
    ),
    Op.V_BIN: Form("v_bin", _VECTOR, (_D, _A, _B, _N, _SIGNAL), _names(Binary)),
    Op.V_BINS: Form("v_bins", _VECTOR, (_D, _A, _B, _N, _SIGNAL), _names(Binary)),
    Op.V_IMM: Form("v_imm", _VECTOR, (_D, _A, _FLOAT, _N, _SIGNAL), _names(Binary)),
    Op.V_UN: Form("v_un", _VECTOR, (_D, _A, _N, _SIGNAL), _names(Unary)),
    Op.V_RED: Form("v_red", _VECTOR, (_D, _A, _N, _SIGNAL), _names(Reduction), ACC),
    Op.V_CVT: Form("v_cvt", _VECTOR, (_D, _A, _N, _SIGNAL), _names(Conversion)),
    Op.V_Q8: Form("v_q8", _VECTOR, (_D, _B, _A, _N, _SIGNAL)),
    Op.V_DQ: Form("v_dq", _VECTOR, (_D, _A, _B, _C, _N, _SIGNAL), _QUANTISED),
    Op.V_ROPE: Form("v_rope", _VECTOR, (_D, _A, _B, _N, _SIGNAL), _names(Pairing)),
    Op.V_FILL: Form("v_fill", _VECTOR, (_D, _FLOAT, _N, _SIGNAL)),
    Op.V_ARGMAX: Form(
        "v_argmax",
        _VECTOR,
        (_D, _A, _N, _sum("first", "c", Kind.VALUE), _SIGNAL),
        flags=ACC,
    ),
    Op.V_MERGE: Form("v_merge", _VECTOR, (_D, _A, _SIGNAL)),
}
