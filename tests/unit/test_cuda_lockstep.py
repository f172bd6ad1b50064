"""Lockstep execution of kernels as the builder makes them, against NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cuda_lockstep import (
    CHUNKS,
    RING,
    SLOT_BYTES,
    from_bf16,
    kernel,
    load_fragments,
    put,
    ring,
    run,
    store_tile,
    to_bf16,
    words,
)
from numpy.typing import NDArray

from infc.backends.cuda.codegen.builder import GpuBuilder, Value
from infc.backends.cuda.codegen.warp_matrices import load_matrices, mma
from infc.backends.cuda.lockstep import Device

SEEDS = [None, 0, 1]


def random(shape: Any, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# ---- who runs, numbers ---------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_a_sum_through_shuffles_and_shared_memory(seed: int | None) -> None:
    def body(b: GpuBuilder, x: Value, y: Value, n: Value) -> None:
        zero = b.const(0.0, b.f32)
        (own,) = b.loop(
            b.thread(),
            n,
            128,
            [zero],
            body=lambda i, s: b.fadd(s, b.load(words(b, x, i), b.f32, 4)),
        )
        own = b.warp_reduce(b.fadd, own)
        first = b.cmp("eq", b.lane(), 0)
        mine = words(b, b.shared_memory(), b.warp())
        b.when(first, lambda: b.store(own, mine, 4))
        b.sync(128)

        def last() -> None:
            total = b.warp_reduce(
                b.fadd,
                b.when(
                    b.cmp("slt", b.lane(), 4),
                    lambda: [b.load(words(b, b.shared_memory(), b.lane()), b.f32, 4)],
                    lambda: [zero],
                    [b.f32],
                )[0],
            )
            b.when(first, lambda: b.store(total, words(b, y, b.cta()), 4))

        b.when(b.cmp("eq", b.warp(), 0), last)

    device, x = Device(), np.arange(1000, dtype=np.float32)
    y = device.allocate(12)
    program = kernel(body, pointers=2, numbers=1, threads=128)
    run(program, device, [put(device, x), y, 1000], grid=3, threads=128, seed=seed)
    assert device.read(y, np.float32, 3).tolist() == [499500.0] * 3


def test_numbers_are_rounded_as_ieee_says() -> None:
    values = random((32, 4)) * np.array([1e-3, 0.1, 10, 1e5], np.float32)
    values[0] = [1.0 + 2**-8, 1.0 + 3 * 2**-8, -0.0, np.inf]  # two ties

    def body(b: GpuBuilder, x: Value, y: Value) -> None:
        place = b.mul(b.thread(), 16)
        pair = b.load(b.at(x, place), b.vec(4, b.f32), 16)
        halves = b.trunc_f(pair, b.vec(4, b.bf16))
        single = b.trunc_f(pair, b.vec(4, b.f16))
        product = b.fma(pair, pair, b.ext_f(halves, b.vec(4, b.f32)))
        b.store(halves, b.at(y, b.mul(b.thread(), 8)), 8)
        b.store(single, b.at(y, b.add(b.mul(b.thread(), 8), 256)), 8)
        b.store(product, b.at(y, b.add(place, 512)), 16)

    device = Device()
    y = device.allocate(1024)
    run(kernel(body, pointers=2), device, [put(device, values), y])
    rounded = to_bf16(values)
    assert (device.read(y, np.uint16, (32, 4)) == rounded).all()
    with np.errstate(over="ignore"):
        assert (device.read(y + 256, np.float16, (32, 4)) == values.astype(np.float16)).all()
    wide = values.astype(np.float64)
    expected = (wide * wide + from_bf16(rounded)).astype(np.float32)
    assert (device.read(y + 512, np.float32, (32, 4)) == expected).all()


def test_integers_wrap_and_bytes_move() -> None:
    x = np.array([0x7FFFFFFF, -5, 12, 1 << 20], np.int32).repeat(8)
    z = np.arange(32, dtype=np.int32) * 0x01030507

    def body(b: GpuBuilder, x: Value, z: Value, y: Value) -> None:
        a, c = (b.load(words(b, p, b.thread()), b.i32, 4) for p in (x, z))
        results = [
            b.add(a, 1),
            b.mul(a, c),
            b.div(a, 7),
            b.rem(a, 7),
            b.shr(a, 3),
            b.shr_s(a, 3),
            b.permute_bytes(a, c, 0x7531),
            b.and_or(a, 0xFF00, c),
            b.ext_s(b.trunc_i(a, b.i8), b.i32),
            b.ext_u(b.cmp("ult", a, c), b.i32),
            b.ballot(b.cmp("slt", a, 0)),
            b.shuffle_index(c, b.bit_and(a, 31)),
        ]
        for i, value in enumerate(results):
            b.store(value, words(b, y, b.add(b.thread(), 32 * i)), 4)

    device = Device()
    y = device.allocate(12 * 128)
    run(kernel(body, pointers=3), device, [put(device, x), put(device, z), y])
    u, w = x.view(np.uint32), z.view(np.uint32)
    both = np.stack([u, w], axis=1).view(np.uint8)
    expected = np.stack(
        [
            u + np.uint32(1),
            u * w,
            u // 7,
            u % 7,
            u >> 3,
            (x >> 3).view(np.uint32),
            np.ascontiguousarray(both[:, [1, 3, 5, 7]]).view(np.uint32)[:, 0],
            u & 0xFF00 | w,
            x.astype(np.int8).astype(np.int32).view(np.uint32),
            (u < w).astype(np.uint32),
            np.full(32, 0x0000FF00, np.uint32),
            w[x & 31],
        ]
    )
    assert (device.read(y, np.uint32, (12, 32)) == expected).all()


def test_lanes_that_are_masked_are_not_touched() -> None:
    x = np.arange(30, dtype=np.float32)

    def body(b: GpuBuilder, x: Value, y: Value, n: Value) -> None:
        start = b.mul(b.thread(), 4)
        kind = b.vec(4, b.f32)
        there = b.lanes([0, 1, 2, 3], b.i32)
        mask = b.cmp("slt", b.add(b.splat(start, 4), there), b.splat(n, 4))

        def some() -> None:
            value = b.load_where(mask, words(b, x, start), kind, 4)
            b.store_where(mask, b.fadd(value, value), words(b, y, start), 4)

        b.when(b.cmp("slt", start, n), some)

    device = Device()
    y = device.allocate(120)
    run(kernel(body, pointers=2, numbers=1), device, [put(device, x), y, 30])
    assert (device.read(y, np.float32, 30) == 2 * x).all()


def test_vectors_are_taken_apart_and_put_together() -> None:
    x = random((32, 8))

    def body(b: GpuBuilder, x: Value, y: Value) -> None:
        whole = b.load(b.at(x, b.mul(b.thread(), 32)), b.vec(8, b.f32), 16)
        odd = b.shuffle(whole, whole, [1, 3, 5, 7])
        mixed = b.shuffle(b.fneg(odd), b.splat(b.extract(whole, 2), 4), [0, 6, 1, 7])
        signs = b.shr(b.bitcast(whole, b.vec(8, b.i32)), b.const(31, b.vec(8, b.i32)))
        numbers = b.vector_of(
            [b.reduce("add", whole), b.si_to_f(b.reduce("add", signs), b.f32), b.reduce("max", odd)]
        )
        out = b.at(y, b.mul(b.thread(), 32))
        b.store(mixed, out, 16)
        b.store_first(numbers, b.at(out, 16), 3, 4)
        b.store_first(b.load_first(x, b.vec(4, b.f32), 1, 4), b.at(out, 28), 1, 4)

    device = Device()
    y = device.allocate(1024)
    run(kernel(body, pointers=2), device, [put(device, x), y])
    halves = x[:, :4] + x[:, 4:]
    quarters = halves[:, :2] + halves[:, 2:]
    columns = [-x[:, 1], x[:, 2], -x[:, 3], x[:, 2], quarters[:, 0] + quarters[:, 1]]
    columns += [(x < 0).sum(axis=1), x[:, 1::2].max(axis=1), np.full(32, x[0, 0])]
    assert (device.read(y, np.float32, (32, 8)) == np.stack(columns, axis=1)).all()


# ---- control -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_threads_go_their_own_ways_through_loops_calls_and_branches(seed: int | None) -> None:
    def body(b: GpuBuilder, y: Value) -> None:
        thread = b.thread()
        one = b.idx(1)
        # Collatz steps: a loop that each thread leaves at another time
        steps, _ = b.loop_while(
            [b.idx(0), b.add(thread, 1)],
            lambda _, n: b.cmp("ne", n, 1),
            lambda s, n: [
                b.add(s, 1),
                *b.when(
                    b.cmp("eq", b.bit_and(n, 1), 1),
                    lambda: [b.add(b.mul(n, 3), 1)],
                    lambda: [b.shr(n, 1)],
                    [b.i32],
                ),
            ],
        )
        (square,) = b.call("square", [thread], [b.i32])
        (total,) = b.loop(0, thread, 1, [one], body=lambda i, s: b.add(s, b.mul(i, i)))
        for i, value in enumerate((steps, square, total)):
            b.store(value, words(b, y, b.add(thread, 64 * i)), 4)

    def module(b: GpuBuilder, y: Value) -> None:
        body(b, y)
        with b.function("square", [b.i32], [b.i32]) as (n,):
            b.ret(b.mul(n, n))

    device = Device()
    y = device.allocate(3 * 256)
    run(kernel(module, threads=64), device, [y], threads=64, seed=seed)

    def collatz(n: int) -> int:
        return 0 if n == 1 else 1 + collatz(3 * n + 1 if n % 2 else n // 2)

    got = device.read(y, np.int32, (3, 64))
    assert got[0].tolist() == [collatz(n + 1) for n in range(64)]
    assert got[1].tolist() == [n * n for n in range(64)]
    assert got[2].tolist() == [1 + sum(i * i for i in range(n)) for n in range(64)]


@pytest.mark.parametrize("seed", SEEDS)
def test_blocks_meet_at_a_counter_in_memory(seed: int | None) -> None:
    def body(b: GpuBuilder, counter: Value, x: Value, y: Value) -> None:
        first = b.cmp("eq", b.thread(), 0)
        (total,) = b.loop(0, 3, 1, [b.idx(1)], body=lambda i, s: step(b, first, counter, x, i, s))
        b.when(first, lambda: b.store(total, words(b, y, b.cta()), 4))

    def step(b: GpuBuilder, first: Value, counter: Value, x: Value, i: Value, s: Value) -> Value:
        """Each block writes its number; after the barrier each adds up all."""
        slot = b.add(b.mul(i, 4), b.cta())
        b.when(first, lambda: b.store(b.mul(s, b.add(b.cta(), 1)), words(b, x, slot), 4))
        b.sync(64)
        b.when(first, lambda: meet(b, counter, b.mul(b.add(i, 1), 4)))
        b.sync(64)
        (total,) = b.loop(
            0,
            4,
            1,
            [b.idx(0)],
            body=lambda j, t: b.add(t, b.load(words(b, x, b.add(b.mul(i, 4), j)), b.i32, 4)),
        )
        return total

    def meet(b: GpuBuilder, counter: Value, expected: Value) -> None:
        b.fence_device()
        b.add_and_fetch_old(counter, 1)
        b.loop_while([], lambda: b.cmp("slt", b.load_acquire(counter), expected), lambda: [])
        b.fence_device()

    device = Device()
    counter, x, y = (device.allocate(size) for size in (4, 48, 16))
    device.fill(counter, 4, 0)
    program = kernel(body, pointers=3, threads=64)
    run(program, device, [counter, x, y], grid=4, threads=64, seed=seed)
    assert device.read(y, np.int32, 4).tolist() == [1000] * 4


def test_atomics_of_many_threads_at_one_place() -> None:
    def body(b: GpuBuilder, counter: Value, y: Value) -> None:
        ticket = b.add_and_fetch_old(counter, 2)
        b.store(ticket, words(b, y, b.thread()), 4)
        b.float_add(b.at(counter, 4), b.si_to_f(b.thread(), b.f32))

    device = Device()
    counter, y = device.allocate(8), device.allocate(128)
    device.fill(counter, 8, 0)
    run(kernel(body, pointers=2), device, [counter, y])
    assert sorted(device.read(y, np.int32, 32).tolist()) == list(range(0, 64, 2))
    assert device.read(counter + 4, np.float32, 1)[0] == 496.0


@pytest.mark.parametrize("seed", SEEDS)
def test_one_warp_arrives_and_another_waits(seed: int | None) -> None:
    """Two named barriers pass one word to and fro, more often than races are remembered."""
    rounds = 150

    def body(b: GpuBuilder, y: Value) -> None:
        cell = words(b, b.shared_memory(), b.lane())

        def write(i: Value) -> None:
            b.sync(64, 2)
            b.store(b.add(i, b.lane()), cell, 4)
            b.arrive(64, 1)

        def read(i: Value, total: Value) -> Value:
            b.arrive(64, 2)
            b.sync(64, 1)
            return b.add(total, b.load(cell, b.i32, 4))

        (total,) = b.when(
            b.cmp("eq", b.warp(), 0),
            lambda: [*b.loop(0, rounds, body=write), b.idx(0)],
            lambda: b.loop(0, rounds, 1, [b.idx(0)], body=read),
            [b.i32],
        )
        b.store(total, words(b, y, b.thread()), 4)

    device = Device()
    y = device.allocate(256)
    run(kernel(body, threads=64), device, [y], threads=64, seed=seed)
    sums = rounds * (rounds - 1) // 2 + rounds * np.arange(32)
    assert device.read(y, np.int32, 64).tolist() == [0] * 32 + sums.tolist()


# ---- matrices and copies -------------------------------------------------------------------------

ROW_BYTES = 64 + 16


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", ["bf16", "f16"])
def test_a_product_in_stages_of_async_copies(kind: str, seed: int | None) -> None:
    """Four warps, each 16 rows; k in steps of 32 through two stages."""
    k, stages, a_bytes = 128, 2, 64 * ROW_BYTES
    stage_bytes = a_bytes + 8 * ROW_BYTES

    def copy(b: GpuBuilder, x: Value, y: Value, stage: Value, step: Value) -> None:
        target = b.shared_memory(b.mul(stage, stage_bytes))
        for part in range(2):
            piece = b.add(b.thread(), 128 * part)
            row, column = b.shr(piece, 2), b.mul(b.bit_and(piece, 3), 16)
            source = b.add(b.mul(row, 2 * k), b.add(b.mul(step, 64), column))
            b.copy_async(b.at(target, b.add(b.mul(row, ROW_BYTES), column)), b.at(x, source))
        row, column = b.shr(b.lane(), 2), b.mul(b.bit_and(b.lane(), 3), 16)
        source = b.add(b.mul(row, 2 * k), b.add(b.mul(step, 64), column))
        place = b.add(b.add(b.mul(row, ROW_BYTES), column), a_bytes)
        b.when(b.cmp("eq", b.warp(), 3), lambda: b.copy_async(b.at(target, place), b.at(y, source)))
        b.copy_commit()

    def body(b: GpuBuilder, x: Value, y: Value, z: Value) -> None:
        def step(i: Value, *sums: Value) -> list[Value]:
            b.copy_wait(0)
            b.sync(128)
            following = b.add(i, 1)
            b.when(
                b.cmp("slt", following, k // 32),
                lambda: copy(b, x, y, b.rem(following, stages), following),
            )
            base = b.mul(b.rem(i, stages), stage_bytes)
            tile = b.add(base, b.mul(b.warp(), 16 * ROW_BYTES))
            out = list(sums)
            tokens = b.add(b.mul(b.bit_and(b.lane(), 7), ROW_BYTES), b.mul(b.shr(b.lane(), 3), 16))
            right = load_matrices(b, b.at(b.shared_memory(base), b.add(tokens, a_bytes)))
            for half in range(2):
                left = load_fragments(b, tile, ROW_BYTES, 32 * half)
                out = mma(b, kind, left, right[2 * half : 2 * half + 2], out)
            return out

        copy(b, x, y, b.idx(0), b.idx(0))
        sums = b.loop(0, k // 32, 1, [b.const(0.0, b.f32)] * 4, body=step)
        store_tile(b, sums, b.at(z, b.mul(b.warp(), 16 * 32)), 8)

    x, y = random((64, k)), random((8, k), 1)
    if kind == "bf16":
        x_held, y_held = to_bf16(x), to_bf16(y)
        expected = from_bf16(x_held).astype(np.float64) @ from_bf16(y_held).T
    else:
        x_held, y_held = x.astype(np.float16), y.astype(np.float16)
        expected = x_held.astype(np.float64) @ y_held.T.astype(np.float64)
    device = Device()
    z = device.allocate(64 * 8 * 4)
    run(
        kernel(body, pointers=3, threads=128, arch="sm_80"),
        device,
        [put(device, x_held), put(device, y_held), z],
        threads=128,
        shared_bytes=stages * stage_bytes,
        seed=seed,
    )
    np.testing.assert_allclose(device.read(z, np.float32, (64, 8)), expected, atol=1e-4)


def test_transposed_matrices() -> None:
    numbers = np.arange(16 * 16, dtype=np.int16).reshape(16, 16)

    def body(b: GpuBuilder, x: Value, y: Value) -> None:
        place = b.mul(b.thread(), 16)
        b.store(b.load(b.at(x, place), b.vec(4, b.i32), 16), b.shared_memory(place), 16)
        b.sync_warp()
        lane = b.lane()
        row, half = b.bit_and(lane, 15), b.shr(lane, 4)
        offset = b.add(b.mul(row, 32), b.mul(half, 16))
        registers = load_matrices(b, b.shared_memory(offset), transposed=True)
        for i, register in enumerate(registers):
            b.store(register, words(b, y, b.add(b.mul(lane, 4), i)), 4)

    device = Device()
    y = device.allocate(512)
    run(kernel(body, pointers=2), device, [put(device, numbers), y])
    got = device.read(y, np.int16, (8, 4, 4, 2))  # r, q, matrix, number of a register
    for r in range(8):
        for q in range(4):
            for matrix, (down, right) in enumerate([(0, 0), (8, 0), (0, 8), (8, 8)]):
                column = numbers[down + 2 * q : down + 2 * q + 2, right + r]
                assert got[r, q, matrix].tolist() == column.tolist()


@pytest.mark.parametrize("seed", SEEDS)
def test_warps_wait_different_numbers_of_times(seed: int | None) -> None:
    """Warp `w` fetches `w + 1` pieces for itself."""

    def body(b: GpuBuilder, x: Value, y: Value) -> None:
        warp, lane = b.warp(), b.lane()
        barrier = b.shared_memory(b.mul(warp, 8))
        piece = b.shared_memory(b.add(b.mul(warp, 128), 128))
        first = b.cmp("eq", lane, 0)
        b.when(first, lambda: b.mbarrier_init(barrier, 1))
        b.fence_mbarrier_init()
        b.sync(128)

        def step(i: Value, total: Value) -> Value:
            def fetch() -> None:
                b.mbarrier_expect(barrier, b.idx(128))
                b.copy_bulk(piece, b.at(x, b.mul(b.add(i, warp), 128)), b.idx(128), barrier)

            b.when(first, fetch)
            b.mbarrier_wait(barrier, b.bit_and(i, 1))
            total = b.add(total, b.load(words(b, piece, lane), b.i32, 4))
            b.sync_warp()
            return total

        (total,) = b.loop(0, b.add(warp, 1), 1, [b.idx(0)], body=step)
        b.store(total, words(b, y, b.thread()), 4)

    device, x = Device(), np.arange(8 * 32, dtype=np.int32).reshape(8, 32)
    y = device.allocate(512)
    run(kernel(body, pointers=2, threads=128), device, [put(device, x), y], threads=128, seed=seed)
    expected = np.stack([x[w : 2 * w + 1].sum(axis=0) for w in range(4)])
    assert (device.read(y, np.int32, (4, 32)) == expected).all()


@pytest.mark.parametrize("seed", [None, 0, 1, 2])
@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_a_ring_between_a_producer_warp_and_eight_workers(arch: str, seed: int | None) -> None:
    x = np.arange(CHUNKS * SLOT_BYTES // 4, dtype=np.int32)
    device = Device()
    y = device.allocate(2 * 1024)
    run(
        kernel(ring(bulk=arch == "sm_90a"), pointers=2, threads=288, arch=arch),
        device,
        [put(device, x), y],
        grid=2,
        threads=288,
        shared_bytes=128 + RING * SLOT_BYTES,
        seed=seed,
    )
    expected = x.reshape(CHUNKS, 256).sum(axis=0)
    assert (device.read(y, np.int32, (2, 256)) == expected).all()


def test_memory_of_the_device() -> None:
    device = Device()
    a, b = device.allocate(10), device.allocate(1 << 20)
    assert a % 256 == b % 256 == 0
    device.write(a, np.arange(5, dtype=np.int16))
    device.copy(b, a, 10)
    assert device.read(b, np.int16, 5).tolist() == [0, 1, 2, 3, 4]
    device.fill(b + 10, 2, 255)
    assert device.written(b, 16).tolist() == [True] * 12 + [False] * 4
    with pytest.raises(ValueError, match=r"byte 12 of 16 at .* was never written"):
        device.read(b, np.uint8, 16)
    with pytest.raises(ValueError, match="not within an allocation"):
        device.fill(a, 11, 0)
