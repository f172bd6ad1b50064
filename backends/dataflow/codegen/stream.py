"""The instructions of one unit of one core: a method for each operation of the machine.

Operands in memory are `Address` or `Buffer`, counts are numbers or `Register`. Buffers have no
addresses yet; `Stream.finish` puts them in.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import numpy as np

from infc.backends.dataflow.codegen.memory import Address, Buffer
from infc.backends.dataflow.isa import (
    ACC,
    F_OP,
    F_ORIGIN,
    FIELDS,
    NONE,
    REGISTERS,
    REMOTE,
    Binary,
    Conversion,
    Op,
    Pairing,
    Reduction,
    Table,
    Unary,
    Unit,
    float_bits,
)
from infc.diagnostics import InternalError

if TYPE_CHECKING:
    from infc.backends.dataflow.codegen.builder import CoreProgram, Destination


_COLUMNS = {name: column for column, name in enumerate(FIELDS)}
_SUMS = {name: (_COLUMNS[name], _COLUMNS[f"r{name}"]) for name in ("d", "a", "b", "c", "n", "m")}
"""Columns of operands that are an immediate and a register."""
_UNUSED = [NONE if name in ("signal", "signal_local") else 0 for name in FIELDS]


class Register(int):
    """The number of a register, to tell it from a count."""


Count = int | Register
Place = Address | Buffer


class Stream:
    """One unit's program.

    Attributes:
        core: the core it belongs to.
        unit: which of the four it is.
    """

    def __init__(self, core: CoreProgram, unit: Unit) -> None:
        self.core, self.unit = core, unit
        # Flat, as there are millions of fields; `_patches` counts them.
        self._fields = array("q")
        self._patches: list[tuple[int, Buffer]] = []
        self._free = [Register(number) for number in range(REGISTERS - 1, 0, -1)]

    def __len__(self) -> int:
        return len(self._fields) // len(FIELDS)

    def finish(self) -> Table:
        """All instructions and a HALT, with the addresses of the planned buffers; once."""
        self._emit(Op.HALT)
        fields = self._fields
        for at, buffer in self._patches:
            if buffer.address is None:
                raise InternalError(f"the buffer {buffer.name!r} has no place")
            fields[at] += buffer.address
        self._fields, self._patches = array("q"), []
        return np.frombuffer(fields, np.int64).reshape(-1, len(FIELDS))

    def _emit(
        self,
        op: Op,
        places: Sequence[tuple[str, Place | None]] = (),
        counts: Sequence[tuple[str, Count]] = (),
        **fields: int,
    ) -> None:
        row = _UNUSED[:]
        group = self.core.group
        row[F_OP], row[F_ORIGIN] = int(op), group.origins.current
        for name, value in fields.items():
            row[_COLUMNS[name]] = value
        for name, place in places:
            if place is None:
                continue
            address = place.at() if isinstance(place, Buffer) else place
            column, register = _SUMS[name]
            row[column], row[register] = address.offset, address.register
            if address.buffer is not None:
                address.buffer.touch(group.sram.step)
                self._patches.append((len(self._fields) + column, address.buffer))
        for name, count in counts:
            column, register = _SUMS[name]
            row[register if isinstance(count, Register) else column] = count
        self._fields.extend(row)

    # Registers

    def take(self) -> Register:
        """A register for good."""
        if not self._free:
            raise InternalError(f"the {self.unit.name.lower()} stream is out of registers")
        return self._free.pop()

    @contextmanager
    def registers(self, count: int) -> Iterator[tuple[Register, ...]]:
        """Registers for a while; what is in them is not known."""
        taken = tuple(self.take() for _ in range(count))
        yield taken
        self._free += reversed(taken)

    # Control

    @contextmanager
    def loop(self, count: Count) -> Iterator[None]:
        """Repeat what is emitted inside; 0 skips it."""
        self._emit(Op.LOOP, counts=(("n", count),))
        yield
        self._emit(Op.ENDLOOP)

    @contextmanager
    def stepping(self, count: Count, *strides: int) -> Iterator[tuple[Register, ...]]:
        """A loop with registers that start at 0 and grow by a stride each behind every turn.

        A single turn needs neither loop nor registers: they are r0.
        """
        if count == 1 and not isinstance(count, Register):
            yield (Register(0),) * len(strides)
            return
        with ExitStack() as stack:
            registers = stack.enter_context(self.registers(len(strides)))
            for register in registers:
                self.mov(register, 0)
            with self.loop(count):
                yield registers
                for register, stride in zip(registers, strides, strict=True):
                    self.add(register, register, imm=stride)

    def mov(self, rd: Register, imm: int, ra: Count = 0) -> None:
        """rd = R[ra] + imm; a number in place of the register is added to the immediate."""
        if not isinstance(ra, Register):
            ra, imm = Register(0), imm + ra
        self._emit(Op.MOV, rd=int(rd), ra=int(ra), a=imm)

    def point(self, rd: Register, to: Place) -> None:
        """rd = an address: bytes of SRAM, or lines of far memory."""
        self._emit(Op.MOV, (("a", to),), rd=int(rd))

    def add(self, rd: Register, ra: int, rb: int = 0, *, imm: int = 0) -> None:
        """rd = R[ra] + R[rb] + imm."""
        self._emit(Op.ADD, rd=int(rd), ra=int(ra), rb=int(rb), a=imm)

    def mul(self, rd: Register, ra: int, by: int) -> None:
        """rd = R[ra] * by."""
        self._emit(Op.MUL, rd=int(rd), ra=int(ra), a=by)

    def div(self, rd: Register, ra: int, by: int) -> None:
        """rd = floor(R[ra] / by)."""
        self._emit(Op.DIV, rd=int(rd), ra=int(ra), a=by)

    def mod(self, rd: Register, ra: int, by: int) -> None:
        """rd = R[ra] modulo by, not negative."""
        self._emit(Op.MOD, rd=int(rd), ra=int(ra), a=by)

    def least(self, rd: Register, ra: int, imm_a: int = 0, rb: int = 0, imm_b: int = 0) -> None:
        """rd = the lesser of R[ra] + imm_a and R[rb] + imm_b."""
        self._emit(Op.MIN, rd=int(rd), ra=int(ra), a=imm_a, rb=int(rb), b=imm_b)

    def most(self, rd: Register, ra: int, imm_a: int = 0, rb: int = 0, imm_b: int = 0) -> None:
        """rd = the greater of R[ra] + imm_a and R[rb] + imm_b."""
        self._emit(Op.MAX, rd=int(rd), ra=int(ra), a=imm_a, rb=int(rb), b=imm_b)

    def wrap(self, rd: Register, limit: int, less: int) -> None:
        """Where R[rd] >= limit: R[rd] -= less."""
        self._emit(Op.WRAP, rd=int(rd), a=limit, b=less)

    def arg(self, rd: Register, index: int, ra: int = 0) -> None:
        """rd = args[R[ra] + index]."""
        self._emit(Op.ARG, rd=int(rd), ra=int(ra), a=index)

    def wait(self, semaphore: str, count: Count = 1) -> None:
        """Wait for so many posts of the group's semaphore of that name, and take them off."""
        number = self.core.group.semaphore(semaphore, waiter=self.unit)
        self._emit(Op.WAIT, counts=(("n", count),), d=number)

    def post(self, semaphore: str, count: Count = 1, *, core: int | None = None) -> None:
        """Post a semaphore of the group, here or on another core (by its absolute number)."""
        number = self.core.group.semaphore(semaphore)
        flags = 0 if core is None else REMOTE
        self._emit(Op.POST, counts=(("n", count),), d=number, flags=flags, x=core or 0)

    def _signals(self, signal: str | None, sent: str | None = None) -> dict[str, int]:
        semaphore = self.core.group.semaphore
        return {
            "signal": NONE if signal is None else semaphore(signal),
            "signal_local": NONE if sent is None else semaphore(sent),
        }

    # Moves

    def load(
        self,
        d: Place,
        a: Address,
        n: Count,
        m: Count = 1,
        *,
        stride_d: int = 0,
        stride_a: int = 0,
        tier: int = 0,
        signal: str | None = None,
    ) -> None:
        """SRAM d from far memory a (in lines): m rows of n bytes."""
        self._emit(
            Op.LOAD, (("d", d), ("a", a)), (("n", n), ("m", m)),
            fmt=tier, stride_d=stride_d, stride_a=stride_a, **self._signals(signal),
        )  # fmt: skip

    def store(
        self,
        d: Address,
        a: Place,
        n: Count,
        m: Count = 1,
        *,
        stride_d: int = 0,
        stride_a: int = 0,
        tier: int = 0,
        signal: str | None = None,
        sent: str | None = None,
    ) -> None:
        """Far memory d (in lines) from SRAM a; `sent` is posted when a may be overwritten."""
        self._emit(
            Op.STORE, (("d", d), ("a", a)), (("n", n), ("m", m)),
            fmt=tier, stride_d=stride_d, stride_a=stride_a, **self._signals(signal, sent),
        )  # fmt: skip

    def send(
        self,
        d: Place,
        a: Place,
        n: Count,
        m: Count,
        to: Destination,
        *,
        stride_d: int = 0,
        stride_a: int = 0,
        signal: str | None = None,
        sent: str | None = None,
    ) -> None:
        """SRAM d on every destination from own SRAM a.

        `signal` is posted on the destinations, `sent` here, when a may be overwritten.
        """
        self._emit(
            Op.SEND, (("d", d), ("a", a)), (("n", n), ("m", m)),
            k=to.rectangle, x=to.chips, stride_d=stride_d, stride_a=stride_a,
            **self._signals(signal, sent),
        )  # fmt: skip

    # Products

    def mm_q(
        self,
        d: Place,
        a: Place,
        b: Place,
        c: Place,
        *,
        m: Count,
        n: int,
        k: int,
        form: int,
        stride_d: int,
        stride_a: int,
        stride_b: int,
        acc: bool,
    ) -> None:
        """d[m][n] (+)= codes a[m][k], scales b[m][k / 32], times the w tile at c."""
        self._emit(
            Op.MM_Q, (("d", d), ("a", a), ("b", b), ("c", c)), (("n", n), ("m", m)),
            k=k, fmt=form, flags=ACC if acc else 0,
            stride_d=stride_d, stride_a=stride_a, stride_b=stride_b,
        )  # fmt: skip

    def mm_f(
        self,
        d: Place,
        a: Place,
        c: Place,
        *,
        m: Count,
        n: Count,
        k: int,
        form: int,
        stride_d: int,
        stride_a: int,
        stride_b: int,
        stride_c: int,
        acc: bool,
    ) -> None:
        """d[m][n] (+)= a[m][k] times w, whose element (i, j) is at c + i*stride_b + j*stride_c."""
        self._emit(
            Op.MM_F, (("d", d), ("a", a), ("c", c)), (("n", n), ("m", m)),
            k=k, fmt=form, flags=ACC if acc else 0,
            stride_d=stride_d, stride_a=stride_a, stride_b=stride_b, stride_c=stride_c,
        )  # fmt: skip

    # Vectors

    def v_bin(self, op: Binary, d: Place, a: Place, b: Place, n: Count) -> None:
        """d = a op b."""
        self._emit(Op.V_BIN, (("d", d), ("a", a), ("b", b)), (("n", n),), fmt=int(op))

    def v_bins(self, op: Binary, d: Place, a: Place, b: Place, n: Count) -> None:
        """d = a op the one number at b."""
        self._emit(Op.V_BINS, (("d", d), ("a", a), ("b", b)), (("n", n),), fmt=int(op))

    def v_imm(self, op: Binary, d: Place, a: Place, x: float, n: Count) -> None:
        """d = a op x."""
        self._emit(Op.V_IMM, (("d", d), ("a", a)), (("n", n),), fmt=int(op), x=float_bits(x))

    def v_un(self, op: Unary, d: Place, a: Place, n: Count) -> None:
        """d = op(a)."""
        self._emit(Op.V_UN, (("d", d), ("a", a)), (("n", n),), fmt=int(op))

    def v_red(self, op: Reduction, d: Place, a: Place, n: Count, *, acc: bool = False) -> None:
        """One number at d; `acc` goes on from what is there."""
        flags = ACC if acc else 0
        self._emit(Op.V_RED, (("d", d), ("a", a)), (("n", n),), fmt=int(op), flags=flags)

    def v_cvt(self, op: Conversion, d: Place, a: Place, n: Count) -> None:
        """d = a in another form."""
        self._emit(Op.V_CVT, (("d", d), ("a", a)), (("n", n),), fmt=int(op))

    def v_q8(self, codes: Place, scales: Place, a: Place, n: Count) -> None:
        """int8 codes and f32 scales of 32 each from f32 a; n is a multiple of 32."""
        self._emit(Op.V_Q8, (("d", codes), ("b", scales), ("a", a)), (("n", n),))

    def v_dq(
        self, d: Place, codes: Place, scales: Place, mins: Place | None, n: Count, form: int
    ) -> None:
        """f32 d from the codes, f16 scales and f16 mins of one row of a w tile."""
        places = (("d", d), ("a", codes), ("b", scales), ("c", mins))
        self._emit(Op.V_DQ, places, (("n", n),), fmt=form)

    def v_rope(self, op: Pairing, d: Place, a: Place, table: Place, pairs: Count) -> None:
        """Pairs of a rotated by the (cos, sin) pairs at table."""
        self._emit(Op.V_ROPE, (("d", d), ("a", a), ("b", table)), (("n", pairs),), fmt=int(op))

    def v_fill(self, d: Place, x: float, n: Count) -> None:
        """d = x."""
        self._emit(Op.V_FILL, (("d", d),), (("n", n),), x=float_bits(x))

    def v_argmax(
        self, d: Place, a: Place, n: Count, *, first: int = 0, register: int = 0, acc: bool
    ) -> None:
        """The best (value, index) at d; the first element has index R[register] + first."""
        self._emit(
            Op.V_ARGMAX, (("d", d), ("a", a)), (("n", n),),
            c=first, rc=int(register), flags=ACC if acc else 0,
        )  # fmt: skip

    def v_merge(self, d: Place, a: Place) -> None:
        """d = the better of the pairs (value, index) at d and a."""
        self._emit(Op.V_MERGE, (("d", d), ("a", a)))
