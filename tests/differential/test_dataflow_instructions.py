"""Every instruction of the dataflow machine that computes, against NumPy, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from dataflow_oracle import F32, U8, apply, floats, read, same, write
from dataflow_programs import MACHINE, NO_ARGS, image_of

from infc.backends.dataflow.isa import (
    ACC,
    Binary,
    Conversion,
    Float,
    Instruction,
    Op,
    Pairing,
    Reduction,
    Unary,
    Unit,
    float_bits,
)
from infc.backends.dataflow.simulator.execute import execute
from infc.backends.dataflow.simulator.memory import Memory
from infc.reference.a8 import A8_SMALLEST, a8_offsets, quantize_a8

SPECIAL = np.array(
    [
        0.0, -0.0, 1e-45, -1e-45, 1e-39, 1.1754944e-38, 1.0, -1.0, 2.0, 88.7, 89.5, -87.5, -103.9,
        -150.0, 65504.0, 65519.9, 65520.0, 6e-8, 3e-8, 2.9e-8, 3.4028235e38, -3.4028235e38,
        np.inf, -np.inf, np.nan,
    ],
    np.float32,
)  # fmt: skip
D, A, B, C = 0x8000, 0x10000, 0x18000, 0x20000


def run(sram: U8, *instructions: Instruction) -> U8:
    """The SRAM of core 0 after these instructions of one unit."""
    unit = Unit.MATRIX if instructions[0].op in (Op.MM_Q, Op.MM_F) else Unit.VECTOR
    image = image_of({(0, unit): [*instructions, Instruction(Op.HALT)]})
    memory = Memory.of(image)
    memory.sram[0] = sram
    execute(image, MACHINE, memory, NO_ARGS)
    assert not memory.sram[1:].any()
    return memory.sram[0]


def check(sram: U8, instruction: Instruction) -> U8:
    """The machine and NumPy make the same of it; returns what."""
    expected = sram.copy()
    apply(instruction, expected)
    got = run(sram, instruction)
    assert same(got, expected)
    return got


def memory_of(rng: np.random.Generator, *, specials: bool = True, scale: float = 3.0) -> U8:
    """Normal float32 everywhere, among them special ones."""
    values = (scale * rng.normal(size=MACHINE.sram_bytes // 4)).astype(np.float32)
    if specials:
        at = rng.integers(0, values.size, values.size // 8)
        values[at] = rng.choice(SPECIAL, at.size)
    return values.view(np.uint8)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


# The vector unit


@pytest.mark.parametrize("n", [0, 1, 15, 64, 1023])
@pytest.mark.parametrize("form", Binary)
@pytest.mark.parametrize("op", [Op.V_BIN, Op.V_BINS, Op.V_IMM])
def test_binary_operations(op: Op, form: Binary, n: int, rng: np.random.Generator) -> None:
    sram = memory_of(rng)
    b = B if op is not Op.V_IMM else 0
    for value in (1.5, np.nan, -0.0) if op is Op.V_IMM else (0.0,):
        x = float_bits(value) if op is Op.V_IMM else 0
        check(sram, Instruction(op, fmt=form, d=D, a=A, b=b, n=n, x=x))
        check(sram, Instruction(op, fmt=form, d=A, a=A, b=b, n=n, x=x))


@pytest.mark.parametrize("form", Unary)
def test_functions_of_one_number(form: Unary, rng: np.random.Generator) -> None:
    sram = memory_of(rng)
    write(sram, A, np.resize(SPECIAL, 1024))
    for scale in (0.0, 0.2, 3.0, 40.0):
        if scale:
            write(sram, A, (scale * rng.normal(size=1024)).astype(np.float32))
        check(sram, Instruction(Op.V_UN, fmt=form, d=D, a=A, n=1024))
    check(sram, Instruction(Op.V_UN, fmt=form, d=A, a=A, n=37))


REAL = np.longdouble
ACCURACY = {
    Unary.EXP: lambda v: np.exp(v),
    Unary.TANH: lambda v: np.tanh(v),
    Unary.SILU: lambda v: v / (1 + np.exp(-v)),
    Unary.GELU_TANH: lambda v: (
        v / (1 + np.exp(-2 * np.sqrt(2 / np.arccos(REAL(-1))) * (v + REAL("0.044715") * v**3)))
    ),
    Unary.RSQRT: lambda v: 1 / np.sqrt(v),
    Unary.RECIP: lambda v: 1 / v,
    Unary.SQRT: np.sqrt,
}


@pytest.mark.parametrize("form", ACCURACY)
def test_functions_are_within_four_units_in_the_last_place(
    form: Unary, rng: np.random.Generator
) -> None:
    bits = rng.integers(0, 2**32, 16384, dtype=np.uint32).view(np.float32)
    near = rng.uniform(-110, 95, 16384).astype(np.float32)
    x = np.concatenate([bits[np.isfinite(bits)], near, near / 8, near / 1000])
    x = x[: x.size // 1024 * 1024]
    sram = np.zeros(MACHINE.sram_bytes, np.uint8)
    starts = range(0, x.size, 1024)
    got = []
    for first in range(0, len(starts), 30):
        part = x[first * 1024 : (first + 30) * 1024]
        write(sram, 0, part)
        steps = [
            Instruction(Op.V_UN, fmt=form, d=4 * at, a=4 * at, n=1024)
            for at in range(0, part.size, 1024)
        ]
        got.append(floats(run(sram, *steps), 0, part.size))
    result = np.concatenate(got)
    with np.errstate(all="ignore"):
        exact = ACCURACY[form](x.astype(REAL))
        rounded = exact.astype(np.float32)
    assert (np.isnan(result) == np.isnan(rounded)).all()
    finite = np.isfinite(rounded) & np.isfinite(result)
    assert (np.abs(exact[np.isinf(result)]) > 3.4e38).all()
    unit = np.spacing(np.abs(rounded[finite])).astype(REAL)
    assert (np.abs(result[finite] - exact[finite]) / unit).max() <= 4


@pytest.mark.parametrize("acc", [0, ACC])
@pytest.mark.parametrize("n", [0, 1, 15, 16, 17, 640, 1024])
@pytest.mark.parametrize("form", Reduction)
def test_reductions(form: Reduction, n: int, acc: int, rng: np.random.Generator) -> None:
    for specials in (False, True):
        sram = memory_of(rng, specials=specials)
        check(sram, Instruction(Op.V_RED, fmt=form, flags=acc, d=D, a=A, n=n))
        if n:
            check(sram, Instruction(Op.V_RED, fmt=form, flags=acc, d=A + 4 * (n - 1), a=A, n=n))


@pytest.mark.parametrize("form", Conversion)
def test_conversions(form: Conversion, rng: np.random.Generator) -> None:
    sram = memory_of(rng)
    if form in (Conversion.F32_BF16, Conversion.F32_F16):
        numbers = floats(sram, A, 1024)
        ties = (np.arange(0x3F80_0000, 0x3F80_0000 + 0x400 * 0x800, 0x800)).astype(np.uint32)
        small = (rng.normal(size=1024) * 3e-6).astype(np.float32)
        for values in (np.where(np.isnan(numbers), 1, numbers), ties.view(np.float32), small):
            write(sram, A, values.astype(np.float32))
            check(sram, Instruction(Op.V_CVT, fmt=form, d=D, a=A, n=1023))
        write(sram, A, np.array([np.nan, -np.nan], np.float32))
        halves = read(run(sram, Instruction(Op.V_CVT, fmt=form, d=D, a=A, n=2)), D, 2, "<u2")
        infinite = 0x7F80 if form is Conversion.F32_BF16 else 0x7C00
        assert ((halves & 0x7FFF) > infinite).all()
        return
    if form is not Conversion.I32_F32:
        for first in range(0, 65536, 1024):
            write(sram, A, np.arange(first, first + 1024).astype(np.uint16))
            check(sram, Instruction(Op.V_CVT, fmt=form, d=D, a=A, n=1024))
    check(sram, Instruction(Op.V_CVT, fmt=form, d=D, a=A, n=999))


def corner_blocks(rng: np.random.Generator) -> F32:
    """Blocks of 32 around what the a8 form treats apart."""
    rows = [np.zeros(32), np.full(32, -0.0), np.full(32, 1e-45), rng.normal(size=32) * 1e-42]
    smallest = np.float32(A8_SMALLEST)
    for value in (np.nextafter(smallest, np.float32(0)), smallest, np.nextafter(smallest, np.inf)):
        rows.append(np.linspace(-float(value), float(value), 32))
    rows.append(np.full(32, 3.4028235e38) * np.where(np.arange(32) % 2, 1, -1))
    for steps in (127, 254, 127.0 * 0.37):
        rows.append((np.arange(32) * 8 - 127) / steps)
        rows.append(np.concatenate([[127.0], np.arange(31) - 15.5]) * steps)
    return np.array(rows, np.float32)


def test_quantising(rng: np.random.Generator) -> None:
    sram = memory_of(rng, specials=False)
    check(sram, Instruction(Op.V_Q8, d=D, b=B, a=A, n=1024))
    check(sram, Instruction(Op.V_Q8, d=D, b=B, a=A, n=0))
    blocks = corner_blocks(rng)
    write(sram, A, blocks)
    got = check(sram, Instruction(Op.V_Q8, d=D, b=B, a=A, n=blocks.size))
    row, at = quantize_a8(blocks.reshape(1, -1))[0], a8_offsets(blocks.size)
    assert read(got, D, blocks.size, "u1").tolist() == row[: at.scales].tolist()
    assert read(got, B, 4 * len(blocks), "u1").tolist() == row[at.scales : at.sums].tolist()


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_a_block_that_is_not_finite_makes_products_nan(bad: float) -> None:
    sram = np.zeros(MACHINE.sram_bytes, np.uint8)
    block = np.ones(64, np.float32)
    block[5] = bad
    write(sram, A, block)
    got = run(sram, Instruction(Op.V_Q8, d=D, b=B, a=A, n=64))
    scales, codes = floats(got, B, 2), read(got, D, 64, "i1")
    assert not np.isfinite(scales[0])
    assert scales[1] == np.float32(1) / np.float32(127)
    assert codes[5] == 0
    assert (codes[32:] == 127).all()
    with np.errstate(invalid="ignore"):
        assert np.isnan(codes[5].astype(np.float32) * scales[0])


def halves(rng: np.random.Generator, count: int, scale: float = 0.05) -> U8:
    """f16, among them zeros and subnormals."""
    values = (rng.normal(size=count) * scale).astype(np.float16)
    values[:: max(count // 5, 2)] = 6e-8
    values[1 :: max(count // 7, 2)] = -0.0
    return values.view(np.uint8)


@pytest.mark.parametrize("form", range(8))
def test_dequantising(form: int, rng: np.random.Generator) -> None:
    sram = rng.integers(0, 256, MACHINE.sram_bytes, dtype=np.uint8)
    write(sram, B, halves(rng, 64))
    write(sram, C, halves(rng, 64))
    c = C if form & 4 else 0
    for n in (0, 32, 96, 1024):
        check(sram, Instruction(Op.V_DQ, fmt=form, d=D, a=A, b=B, c=c, n=n))


@pytest.mark.parametrize("form", Pairing)
def test_rotating(form: Pairing, rng: np.random.Generator) -> None:
    for n in (0, 1, 31, 128):
        sram = memory_of(rng)
        check(sram, Instruction(Op.V_ROPE, fmt=form, d=D, a=A, b=B, n=n))
        check(sram, Instruction(Op.V_ROPE, fmt=form, d=A, a=A, b=B, n=n))


def test_filling(rng: np.random.Generator) -> None:
    for n in (0, 1, 1024):
        check(memory_of(rng), Instruction(Op.V_FILL, d=D, n=n, x=float_bits(-2.5)))


@pytest.mark.parametrize("acc", [0, ACC])
def test_the_best_of_a_row(acc: int, rng: np.random.Generator) -> None:
    sram = memory_of(rng)
    few = rng.integers(-3, 3, 1024).astype(np.float32)
    for values in (floats(sram, A, 1024), few, np.full(9, np.nan), np.full(9, -np.inf)):
        for start in (-np.inf, np.nan, 2.0, 3.0):
            write(sram, A, values.astype(np.float32))
            write(sram, D, np.array([start], np.float32))
            write(sram, D + 4, np.array([500], np.int32))
            check(sram, Instruction(Op.V_ARGMAX, flags=acc, d=D, a=A, n=len(values), c=400))
    check(sram, Instruction(Op.V_ARGMAX, flags=acc, d=D, a=A, n=0, c=3))


@pytest.mark.parametrize("right", [1.0, 2.0, np.nan, -np.inf])
@pytest.mark.parametrize("left", [1.0, np.nan, -np.inf])
def test_merging_bests(left: float, right: float) -> None:
    for indices in ((3, 9), (9, 3), (4, 4)):
        sram = np.zeros(MACHINE.sram_bytes, np.uint8)
        for at, value, index in zip((D, A), (left, right), indices, strict=True):
            write(sram, at, np.array([value], np.float32))
            write(sram, at + 4, np.array([index], np.int32))
        check(sram, Instruction(Op.V_MERGE, d=D, a=A))


# The matrix unit


@pytest.mark.parametrize("acc", [0, ACC])
@pytest.mark.parametrize("form", range(8))
def test_products_of_codes(form: int, acc: int, rng: np.random.Generator) -> None:
    for m, n, k in ((1, 32, 64), (32, 32, 64), (3, 5, 32), (0, 4, 64), (2, 0, 64)):
        sram = rng.integers(0, 256, MACHINE.sram_bytes, dtype=np.uint8)
        write(sram, 0, memory_of(rng, specials=False)[:D])
        write(sram, B, (rng.uniform(0, 0.1, 256)).astype(np.float32))
        codes, groups = n * k // (2 if form & 1 else 1), n * k // (16 if form & 2 else 32)
        write(sram, C + codes, halves(rng, groups))
        write(sram, C + codes + 2 * groups, halves(rng, groups, 0.5))
        strides = {"stride_d": 4 * n + 12, "stride_a": k + 7, "stride_b": 12} if m > 1 else {}
        product = Instruction(Op.MM_Q, form, acc, a=A, b=B, c=C, n=n, m=m, k=k, **strides)
        check(sram, product)


def test_products_of_the_largest_codes_are_exact() -> None:
    sram = np.zeros(MACHINE.sram_bytes, np.uint8)
    write(sram, A, np.full(64, -128, np.int8))
    write(sram, B, np.ones(2, np.float32))
    write(sram, C, np.full(64, -128, np.int8))
    write(sram, C + 64, np.ones(2, np.float16))
    got = check(sram, Instruction(Op.MM_Q, d=D, a=A, b=B, c=C, n=1, m=1, k=64))
    assert floats(got, D, 1)[0] == 64 * 128 * 128


@pytest.mark.parametrize("acc", [0, ACC])
@pytest.mark.parametrize("across", [True, False])
@pytest.mark.parametrize("form", Float)
def test_products_of_floats(form: Float, across: bool, acc: int, rng: np.random.Generator) -> None:
    for m, n, k in ((1, 32, 64), (32, 7, 33), (4, 32, 1)):
        sram = memory_of(rng, specials=form is Float.BF16)
        if form is Float.F16:
            write(sram, A, halves(rng, 0x4000, 2.0))
            write(sram, C, halves(rng, 0x4000, 2.0))
        down, right = (2, 2 * k + 6) if across else (2 * n + 2, 2)
        check(
            sram,
            Instruction(
                Op.MM_F, fmt=form, flags=acc, d=D, a=A, c=C, n=n, m=m, k=k,
                stride_d=4 * n, stride_a=2 * k + 2, stride_b=down, stride_c=right,
            ),
        )  # fmt: skip
