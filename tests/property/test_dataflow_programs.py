"""Random small programs of the dataflow machine: assembled, run, and compared with NumPy."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from dataflow_oracle import apply, same
from dataflow_programs import MACHINE, NO_ARGS, WEIGHTS, image_of
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from infc.backends.dataflow.assembler import assemble, disassemble
from infc.backends.dataflow.isa import (
    ACC,
    REMOTE,
    Binary,
    Instruction,
    Op,
    Unary,
    Unit,
    chips,
    rectangle,
)
from infc.backends.dataflow.simulator.execute import execute
from infc.backends.dataflow.simulator.memory import LINE_BYTES, Memory

# Scalar programs: registers 1 to 6, loops in loops.

REGISTERS = 6
ARGS = np.arange(-8, 24, dtype=np.int32)
Statement = Any
"""An instruction, or (count, statements) of a loop; the count is a number or a register."""


def register() -> st.SearchStrategy[int]:
    return st.integers(1, REGISTERS)


def scalar(op: Op, **fields: st.SearchStrategy[int]) -> st.SearchStrategy[Statement]:
    return st.builds(Instruction, op=st.just(op), rd=register(), **fields)


SMALL = st.integers(-20, 20)
SOURCE = st.integers(0, REGISTERS)
SCALARS = st.one_of(
    scalar(Op.MOV, ra=SOURCE, a=SMALL),
    scalar(Op.ADD, ra=SOURCE, rb=SOURCE, a=SMALL),
    scalar(Op.MUL, ra=SOURCE, a=SMALL),
    scalar(Op.DIV, ra=SOURCE, a=st.integers(1, 9)),
    scalar(Op.MOD, ra=SOURCE, a=st.integers(1, 9)),
    scalar(Op.MIN, ra=SOURCE, a=SMALL, rb=SOURCE, b=SMALL),
    scalar(Op.MAX, ra=SOURCE, a=SMALL, rb=SOURCE, b=SMALL),
    scalar(Op.WRAP, a=SMALL, b=SMALL),
    scalar(Op.ARG, a=st.integers(0, len(ARGS) - 1)),
)
STATEMENTS = st.recursive(
    st.lists(SCALARS, max_size=5),
    lambda inner: st.lists(
        st.one_of(SCALARS, st.tuples(st.integers(-REGISTERS, 3), inner)), max_size=5
    ),
    max_leaves=8,
)


def lowered(statements: list[Statement]) -> list[Instruction]:
    """Loops of a negative count -r are as often as register r modulo 3 says."""
    result = []
    for statement in statements:
        if isinstance(statement, Instruction):
            result.append(statement)
            continue
        count, body = statement
        if count < 0:
            result.append(Instruction(Op.MOD, rd=7, ra=-count, a=3))
            result.append(Instruction(Op.LOOP, rn=7))
        else:
            result.append(Instruction(Op.LOOP, n=count))
        result += [*lowered(body), Instruction(Op.ENDLOOP)]
    return result


def meaning(i: Instruction, r: list[int]) -> int:
    """What a scalar instruction puts into its register."""
    a = r[i.ra] + i.a
    values = {
        Op.MOV: lambda: a,
        Op.ADD: lambda: a + r[i.rb],
        Op.MUL: lambda: r[i.ra] * i.a,
        Op.DIV: lambda: r[i.ra] // i.a,
        Op.MOD: lambda: r[i.ra] % i.a,
        Op.MIN: lambda: min(a, r[i.rb] + i.b),
        Op.MAX: lambda: max(a, r[i.rb] + i.b),
        Op.WRAP: lambda: r[i.rd] - i.b if r[i.rd] >= i.a else r[i.rd],
        Op.ARG: lambda: int(ARGS[a]),
    }
    return (values[Op(i.op)]() + 2**63) % 2**64 - 2**63


def interpret(statements: list[Statement], r: list[int]) -> None:
    for statement in statements:
        if isinstance(statement, Instruction):
            r[statement.rd] = meaning(statement, r)
        else:
            count, body = statement
            for _ in range(r[-count] % 3 if count < 0 else count):
                interpret(body, r)


@settings(max_examples=100, deadline=None)
@given(STATEMENTS, st.sampled_from(Unit))
def test_scalar_programs(statements: list[Statement], unit: Unit) -> None:
    expected = [0] * (REGISTERS + 1)
    interpret(statements, expected)
    # Registers are seen from outside as counts of semaphores.
    program = lowered(statements)
    for number in range(1, REGISTERS + 1):
        program.append(Instruction(Op.MOD, rd=8, ra=number, a=60_013))
        program.append(Instruction(Op.POST, d=number, x=3, flags=REMOTE, rn=8))
    program.append(Instruction(Op.HALT))
    assert assemble(disassemble(program)) == program
    # The vector unit of core 3 waits for exactly as many, and then no more are left.
    watch = []
    for number in range(1, REGISTERS + 1):
        watch.append(Instruction(Op.WAIT, d=number, n=expected[number] % 60_013))
        watch.append(Instruction(Op.V_FILL, d=4 * number, n=1, x=number))
    streams = {(0, unit): program, (3, Unit.VECTOR): [*watch, Instruction(Op.HALT)]}
    memory = Memory.of(image_of(streams))
    report = execute(image_of(streams), MACHINE, memory, ARGS)
    assert report.instructions[3, Unit.VECTOR] == len(watch)
    seen = memory.sram[3].view(np.int32)[1 : REGISTERS + 1]
    assert seen.tolist() == list(range(1, REGISTERS + 1))


# Programs of data: each step is done by one unit of one core, and hands a token to the next.

BLOCK = 256
"""Bytes of what steps read and write; each core has 8 of them."""
BLOCKS = 8
FAR_LINES = BLOCK // LINE_BYTES


@dataclass(frozen=True)
class Step:
    core: int
    unit: Unit
    instruction: Instruction


def steps() -> st.SearchStrategy[Step]:
    core, block = st.integers(0, 3), st.integers(0, BLOCKS - 1).map(lambda i: i * BLOCK)
    far = st.integers(0, BLOCKS - 1).map(lambda i: i * FAR_LINES)
    rows = {"m": st.integers(0, 3), "n": st.integers(0, BLOCK // 4 - 4)}
    strided = {"stride_d": st.just(BLOCK // 4), "stride_a": st.just(BLOCK // 4)}
    apart = st.tuples(block, block).filter(lambda pair: pair[0] != pair[1])

    def made(op: Op, **fields: Any) -> st.SearchStrategy[Instruction]:
        return st.builds(Instruction, op=st.just(op), **fields)

    corners = st.tuples(*[st.integers(0, 1)] * 2).flatmap(
        lambda at: st.builds(
            rectangle, st.just(at[0]), st.just(at[1]), st.integers(1, 2 - at[0]),
            st.integers(1, 2 - at[1]),
        )
    )  # fmt: skip
    vector = [
        made(Op.V_BIN, fmt=st.sampled_from(Binary), d=block, a=block, b=block, n=st.just(64)),
        made(Op.V_IMM, fmt=st.sampled_from(Binary), d=block, a=block, n=st.integers(0, 64)),
        made(Op.V_UN, fmt=st.sampled_from(Unary), d=block, a=block, n=st.integers(0, 64)),
        made(Op.V_RED, fmt=st.integers(0, 2), d=block, a=block, n=st.integers(0, 64)),
        made(Op.V_RED, fmt=st.integers(0, 2), d=block, a=block, n=st.just(9), flags=st.just(ACC)),
    ]
    matrix = made(
        Op.MM_Q, d=block, a=block, b=block, c=block, n=st.integers(0, 4), m=st.integers(0, 2),
        k=st.just(32), stride_d=st.just(16), stride_a=st.just(40), stride_b=st.just(4),
        fmt=st.integers(0, 7), flags=st.sampled_from([0, ACC]),
    )  # fmt: skip
    load = made(Op.LOAD, d=block, a=far, **rows, stride_d=strided["stride_d"], stride_a=st.just(1))
    store = made(
        Op.STORE, d=far, a=block, **rows, stride_d=st.just(1), stride_a=strided["stride_a"]
    )
    send = apart.flatmap(
        lambda pair: made(
            Op.SEND, d=st.just(pair[0]), a=st.just(pair[1]), **rows, **strided,
            x=st.just(chips(0, 1)), k=corners,
        )
    )  # fmt: skip
    return st.one_of(
        st.builds(Step, core, st.just(Unit.VECTOR), st.one_of(vector)),
        st.builds(Step, core, st.just(Unit.MATRIX), matrix.filter(_is_apart)),
        st.builds(Step, core, st.just(Unit.LOAD), load),
        st.builds(Step, core, st.just(Unit.SEND), st.one_of(store, send)),
    )


def _is_apart(i: Instruction) -> bool:
    return i.d not in (i.a, i.b, i.c)


def streams_of(order: list[Step], times: int) -> dict[tuple[int, Unit], list[Instruction]]:
    """Every stream repeats its steps; semaphore 8 + unit has the token, `unit` says "done"."""
    streams: dict[tuple[int, Unit], list[Instruction]] = {}
    for step, after in zip(order, [*order[1:], order[0]], strict=True):
        stream = streams.setdefault((step.core, step.unit), [])
        done = {"signal": int(step.unit)}
        if step.instruction.op == Op.SEND:
            done = {"signal": 40, "signal_local": int(step.unit)}
        stream += [
            Instruction(Op.WAIT, d=8 + step.unit, n=1),
            replace(step.instruction, **done),
            Instruction(Op.WAIT, d=int(step.unit), n=1),
            Instruction(Op.POST, d=8 + after.unit, n=1, x=after.core, flags=REMOTE),
        ]
    result = {}
    for key, body in streams.items():
        start = [Instruction(Op.POST, d=8 + key[1], n=1)]
        first = start if key == (order[0].core, order[0].unit) else []
        loop = [Instruction(Op.LOOP, n=times), *body, Instruction(Op.ENDLOOP)]
        result[key] = [*first, *loop, Instruction(Op.HALT)]
    return result


def perform(step: Step, sram: NDArray[np.uint8], far: NDArray[np.uint8]) -> None:
    """A step, on all memories."""
    i = step.instruction
    if step.unit in (Unit.VECTOR, Unit.MATRIX):
        apply(i, sram[step.core])
        return
    scale_d, scale_a = (LINE_BYTES, 1) if i.op == Op.STORE else (1, 1)
    if i.op == Op.LOAD:
        scale_a = LINE_BYTES
    source = far if i.op == Op.LOAD else sram[step.core]
    targets = [far]
    if i.op == Op.LOAD:
        targets = [sram[step.core]]
    elif i.op == Op.SEND:
        row, column, rows, columns = (i.k >> shift & 255 for shift in (0, 8, 16, 24))
        targets = [
            sram[2 * r + c] for r in range(row, row + rows) for c in range(column, column + columns)
        ]
    for row in range(i.m):
        at = (i.a + row * i.stride_a) * scale_a
        part = source[at : at + i.n].copy()
        at = (i.d + row * i.stride_d) * scale_d
        for target in targets:
            target[at : at + i.n] = part


@settings(max_examples=100, deadline=None)
@given(st.lists(steps(), min_size=1, max_size=14), st.integers(1, 3), st.integers(0, 9))
def test_programs_of_all_units(order: list[Step], times: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = image_of(streams_of(order, times), [replace(WEIGHTS, size_bytes=BLOCKS * BLOCK)])
    memory = Memory.of(image)
    memory.sram[:, : BLOCKS * BLOCK] = (
        rng.normal(size=(4, BLOCKS * BLOCK // 4)).astype(np.float32).view(np.uint8)
    )
    memory.far[0][:] = rng.normal(size=(1, BLOCKS * BLOCK // 4)).astype(np.float32).view(np.uint8)
    sram, far = memory.sram.copy(), memory.far[0][0].copy()
    report = execute(image, MACHINE, memory, NO_ARGS)
    for _ in range(times):
        for step in order:
            perform(step, sram, far)
    assert all(same(*pair) for pair in zip(memory.sram, sram, strict=True))
    assert same(memory.far[0][0], far)
    products = [s.instruction for s in order if s.unit is Unit.MATRIX]
    assert report.multiply_adds == times * sum(i.m * i.n * i.k for i in products)
