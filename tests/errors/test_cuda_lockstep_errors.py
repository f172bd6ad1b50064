"""What lockstep execution finds in kernels that a GPU would not forgive: whole texts."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from cuda_lockstep import kernel, put, ring, run, words
from numpy import arange, int32

from infc.backends.cuda.codegen import warpgroup
from infc.backends.cuda.codegen.builder import GpuBuilder, Value
from infc.backends.cuda.lockstep import Device, LockstepError
from infc.ir.mlir import ir

Body = Callable[..., object]
SHARED_BYTES = 1024


def message(
    body: Body,
    *,
    threads: int = 64,
    grid: int = 1,
    arch: str = "sm_90a",
    seed: int | None = None,
    size_bytes: int = 1024,
) -> str:
    """What is said of a kernel, without the lines of this file; it has 1024 bytes of global memory
    of which the first 512 were written."""
    device = Device()
    x = device.allocate(size_bytes)
    device.write(x, arange(128, dtype=int32))
    with pytest.raises(LockstepError) as error:
        run(
            kernel(body, threads=threads, arch=arch),
            device,
            [x],
            grid=grid,
            threads=threads,
            shared_bytes=SHARED_BYTES,
            seed=seed,
        )
    said = str(error.value).removeprefix("error[INF9001]: ")
    said = said.replace(" (the warps of a block run together without a seed)", "")
    text = re.sub(r" at [^ ()]+\.py:\d+\)", ")", said)
    return re.sub(r"operation \d+", "operation N", text)


# ---- memory --------------------------------------------------------------------------------------


def test_outside_of_global_memory() -> None:
    def body(b: GpuBuilder, x: Value) -> None:
        b.load(b.at(x, b.mul(b.thread(), 16)), b.vec(4, b.i32), 16)

    assert message(body, size_bytes=1024) == (
        "llvm.load (operation N of @kernel), block 0, thread 32: reads global memory where "
        "byte 0 of 16 was never written"
    )

    def beyond(b: GpuBuilder, x: Value) -> None:
        b.store(b.thread(), b.at(x, b.mul(b.thread(), 64)), 4)

    assert message(beyond) == (
        "llvm.store (operation N of @kernel), block 0, thread 16: writes global memory where "
        "byte 0 of 4 is outside of every allocation"
    )


def test_far_outside_of_shared_memory() -> None:
    def body(b: GpuBuilder, x: Value) -> None:
        b.store(b.thread(), b.shared_memory(b.mul(b.sub(b.thread(), 60), -512)), 4)

    assert message(body, threads=64) == (
        "llvm.store (operation N of @kernel), block 0, thread 0: shared memory byte 30720 is "
        "outside of every allocation"
    )


def test_misaligned() -> None:
    def body(b: GpuBuilder, x: Value) -> None:
        b.load(b.at(x, b.mul(b.thread(), 8)), b.vec(4, b.i32), 16)

    assert message(body) == (
        "llvm.load (operation N of @kernel), block 0, thread 1: global memory byte 264 is not "
        "aligned to 16 bytes"
    )


def test_unwritten_shared_memory() -> None:
    def body(b: GpuBuilder, x: Value) -> None:
        place = words(b, b.shared_memory(), b.thread())
        b.when(b.cmp("slt", b.thread(), 48), lambda: b.store(b.thread(), place, 4))
        b.sync(64)
        b.load(place, b.i32, 4)

    assert message(body) == (
        "llvm.load (operation N of @kernel), block 0, thread 48: reads shared memory where byte 0 "
        "of 4 was never written"
    )


def test_threads_that_write_different_numbers_to_one_place() -> None:
    def body(b: GpuBuilder, x: Value) -> None:
        b.store(b.thread(), words(b, x, b.shr(b.thread(), 1)), 4)

    assert message(body) == (
        "llvm.store (operation N of @kernel), block 0, thread 0: another thread writes other bytes "
        "to global memory byte 256"
    )


def test_division_by_zero() -> None:
    def body(b: GpuBuilder, x: Value) -> None:
        b.div(x_word(b, x), b.bit_and(b.thread(), 3))

    def x_word(b: GpuBuilder, x: Value) -> Value:
        return b.load(x, b.i32, 4)

    assert message(body) == (
        "arith.divui (operation N of @kernel), block 0, thread 0: divides by zero"
    )


# ---- copies --------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [0, 1])
def test_a_copy_that_nobody_waited_for(groups: int) -> None:
    def body(b: GpuBuilder, x: Value) -> None:
        place = b.mul(b.thread(), 4)
        for stage in range(2):
            target = b.shared_memory(b.add(place, 256 * stage))
            b.copy_async(target, b.at(x, place), 4)
            b.copy_commit()
        b.copy_wait(groups)
        b.load(b.shared_memory(b.add(place, 256)), b.i32, 4)

    if groups:
        assert message(body) == (
            "llvm.load (operation N of @kernel), block 0, thread 0: reads shared memory where "
            "byte 0 of 4 is being written by a copy that nobody waited for"
        )
    else:
        device = Device()
        run(kernel(body), device, [put(device, arange(32, dtype=int32))])


def test_a_bulk_copy_that_nobody_waited_for() -> None:
    def body(b: GpuBuilder, x: Value) -> None:
        barrier = b.shared_memory(512)
        first = b.cmp("eq", b.thread(), 0)
        b.when(first, lambda: b.mbarrier_init(barrier, 1))
        b.sync(64)

        def copy() -> None:
            b.mbarrier_expect(barrier, b.idx(256))
            b.copy_bulk(b.shared_memory(), x, b.idx(256), barrier)

        b.when(first, copy)
        b.sync(64)
        b.load(words(b, b.shared_memory(), b.thread()), b.i32, 4)

    landed = (
        "llvm.load (operation N of @kernel), block 0, thread 0: race: reads shared memory byte 0, "
        "which a bulk copy wrote, with no barrier in between"
    )
    flying = (
        "llvm.load (operation N of @kernel), block 0, thread 0: reads shared memory where byte 0 "
        "of 4 is being written by a copy that nobody waited for"
    )
    assert message(body) == flying
    texts = {message(body, seed=seed).replace("thread 32", "thread 0") for seed in range(8)}
    assert texts <= {flying, landed.replace("byte 0,", "byte 128,"), landed, flying}
    assert len(texts) > 1


def test_the_end_before_a_bulk_copy_has_landed() -> None:
    def body(b: GpuBuilder, x: Value) -> None:
        barrier = b.shared_memory(512)

        def copy() -> None:
            b.mbarrier_init(barrier, 1)
            b.mbarrier_expect(barrier, b.idx(256))
            b.copy_bulk(b.shared_memory(), x, b.idx(256), barrier)

        b.when(b.cmp("eq", b.thread(), 0), copy)

    assert message(body) == "@kernel: block 0 ends before its copies have landed"


# ---- races ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [None, 0])
def test_reading_what_another_warp_wrote(seed: int | None) -> None:
    def body(b: GpuBuilder, x: Value) -> None:
        b.store(b.thread(), words(b, b.shared_memory(), b.thread()), 4)
        b.sync(64)
        b.store(b.thread(), words(b, b.shared_memory(), b.thread()), 4)
        b.load(words(b, b.shared_memory(), b.bit_xor(b.thread(), 32)), b.i32, 4)

    text = message(body, seed=seed)
    assert re.fullmatch(
        r"llvm\.(load|store) \(operation N of @kernel\), block 0, thread (0|32): race: "
        r"(reads|writes) shared memory byte (0|128), which warp [01] (wrote|read) "
        r"\(llvm\.(store|load) \(operation N of @kernel\)\), with no barrier in between",
        text,
    )


@pytest.mark.parametrize("seed", [None, 0])
def test_overwriting_what_another_warp_reads(seed: int | None) -> None:
    def body(b: GpuBuilder, x: Value) -> None:
        mine = words(b, b.shared_memory(), b.thread())
        b.store(b.thread(), mine, 4)
        b.sync(64)
        b.load(words(b, b.shared_memory(), b.bit_xor(b.thread(), 32)), b.i32, 4)
        b.store(b.thread(), mine, 4)

    text = message(body, seed=seed)
    assert "race: " in text
    assert "with no barrier in between" in text


def test_a_race_after_many_barriers() -> None:
    def body(b: GpuBuilder, x: Value) -> None:
        mine = words(b, b.shared_memory(), b.thread())
        other = words(b, b.shared_memory(), b.bit_xor(b.thread(), 32))
        b.store(b.thread(), mine, 4)

        def step(i: Value) -> None:
            b.sync(64)
            b.store(b.add(b.load(other, b.i32, 4), i), words(b, x, b.thread()), 4)
            b.when(b.cmp("ne", i, 400), lambda: b.sync(64))
            b.store(i, mine, 4)

        b.loop(0, 500, body=step)

    assert message(body) == (
        "llvm.store (operation N of @kernel), block 0, thread 32: race: writes shared memory byte "
        "128, which warp 0 read (llvm.load (operation N of @kernel)), with no barrier in between"
    )


@pytest.mark.parametrize("bulk", [True, False])
def test_copies_into_slots_that_were_not_given_back(bulk: bool) -> None:
    device = Device()
    x = put(device, arange(11 * 256, dtype=int32))
    program = kernel(
        ring(bulk=bulk, early=True), pointers=2, threads=288, arch="sm_90a" if bulk else "sm_80"
    )
    what = "more come while 2048 bytes are missing" if bulk else "a copy that nobody waited for"
    with pytest.raises(LockstepError, match=what):
        run(program, device, [x, device.allocate(1024)], threads=288)


# ---- barriers ------------------------------------------------------------------------------------


def test_barriers_that_do_not_agree() -> None:
    def body(b: GpuBuilder, x: Value) -> None:
        b.when(b.cmp("eq", b.warp(), 0), lambda: b.sync(64, 3), lambda: b.sync(96, 3))

    assert message(body, threads=96) == (
        "llvm.call_intrinsic (operation N of @kernel), block 0, thread 32: barrier 3 was entered "
        "for 64 threads, and now for 96"
    )

    def too_many(b: GpuBuilder, x: Value) -> None:
        b.sync(64, 3)

    assert message(too_many, threads=96) == (
        "llvm.call_intrinsic (operation N of @kernel), block 0, thread 0: barrier 3 is for 64 "
        "threads, but 96 are there"
    )


def test_part_of_a_warp() -> None:
    def body(b: GpuBuilder, x: Value) -> None:
        b.when(b.cmp("slt", b.thread(), 40), lambda: b.shuffle_xor(b.thread(), 1) and None)

    assert message(body) == (
        "nvvm.shfl.sync (operation N of @kernel), block 0, thread 0: needs whole warps, but thread "
        "40 is not there"
    )


def test_a_barrier_that_one_warp_does_not_reach() -> None:
    def body(b: GpuBuilder, x: Value) -> None:
        b.when(b.cmp("eq", b.warp(), 0), lambda: b.sync(64))

    assert message(body, grid=2) == (
        "nobody can go on; block 0, 32 threads of warps 0 at llvm.call_intrinsic (operation N of "
        "@kernel): 32 of 64 threads are at barrier 0; block 1, 32 threads of warps 0 at "
        "llvm.call_intrinsic (operation N of @kernel): 32 of 64 threads are at barrier 0"
    )


@pytest.mark.parametrize("seed", [None, 0])
def test_spinning_on_what_nobody_writes(seed: int | None) -> None:
    def body(b: GpuBuilder, x: Value) -> None:
        def spin() -> None:
            b.loop_while([], lambda: b.cmp("eq", b.load_acquire(x), 0), lambda: [])

        b.when(b.cmp("eq", b.thread(), 0), spin)

    assert message(body, seed=seed) == (
        "nobody can go on; block 0, thread 0 at scf.while (operation N of @kernel): goes round"
    )


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_an_mbarrier_whose_phase_never_ends(arch: str) -> None:
    def body(b: GpuBuilder, x: Value) -> None:
        barrier = b.shared_memory(64)
        b.when(b.cmp("eq", b.thread(), 0), lambda: b.mbarrier_init(barrier, 65))
        b.sync(64)
        b.mbarrier_arrive(barrier)
        b.mbarrier_wait(barrier, b.idx(0))

    text = message(body, arch=arch)
    if arch == "sm_90a":
        assert text == (
            "nobody can go on; block 0, 64 threads of warps 0, 1 at nvvm.mbarrier.try_wait.parity "
            "(operation N of @kernel): the mbarrier at byte 64 is in phase 0 with 64 of 65 arrivals"
        )
    else:
        assert text == (
            "nobody can go on; block 0, 64 threads of warps 0, 1 at scf.while (operation N of "
            "@kernel): goes round"
        )


def test_mbarriers_that_are_none_or_full() -> None:
    def none(b: GpuBuilder, x: Value) -> None:
        b.mbarrier_arrive(b.shared_memory(64))

    assert message(none) == (
        "nvvm.mbarrier.arrive (operation N of @kernel), block 0, thread 0: no mbarrier was "
        "initialised at shared memory byte 64"
    )

    def full(b: GpuBuilder, x: Value) -> None:
        barrier = b.shared_memory(64)
        b.when(b.cmp("eq", b.thread(), 0), lambda: b.mbarrier_init(barrier, 1))
        b.sync(64)

        def arrive() -> None:
            b.mbarrier_expect(barrier, b.idx(16))
            b.mbarrier_arrive(barrier)

        b.when(b.cmp("eq", b.thread(), 0), arrive)

    assert message(full) == (
        "nvvm.mbarrier.arrive (operation N of @kernel), block 0, thread 0: the mbarrier at byte 64 "
        "expects 1 arrivals a phase, and more come while 16 bytes are missing"
    )


# ---- the program ---------------------------------------------------------------------------------


def test_errors_know_the_line_that_emitted_the_operation() -> None:
    def body(b: GpuBuilder, x: Value) -> None:
        b.load(b.at(x, 1 << 20), b.i32, 4)

    device = Device()
    with pytest.raises(LockstepError, match=r"at tests/errors/test_cuda_lockstep_errors\.py:\d+\)"):
        run(kernel(body), device, [device.allocate(4)])


def test_operations_and_kernels_that_are_not_known() -> None:
    def body(b: GpuBuilder, x: Value) -> None:
        b.intrinsic("llvm.nvvm.brev32", b.i32, b.thread())

    with pytest.raises(LockstepError, match=r"does not know the intrinsic llvm\.nvvm\.brev32"):
        kernel(body)

    def other(b: GpuBuilder, x: Value) -> None:
        ir.Operation.create("nvvm.exit", results=[], operands=[])

    with pytest.raises(LockstepError, match=r"does not know nvvm\.exit"):
        kernel(other)
    device = Device()
    program = kernel(lambda b, x: None)
    with pytest.raises(LockstepError, match="takes 1 arguments, got 2"):
        run(program, device, [1, 2])
    with pytest.raises(LockstepError, match="is for 32 threads, got 64"):
        run(program, device, [1], threads=64)


@pytest.mark.parametrize("fenced", [False, True])
def test_matrix_units_do_not_see_ordinary_writes(fenced: bool) -> None:
    def body(b: GpuBuilder, x: Value) -> None:
        one = b.idx(0x3F803F80)  # two bf16
        lines = b.shared_memory()
        b.store(b.splat(one, 4), b.at(lines, b.mul(b.bit_and(b.thread(), 63), 16)), 16)
        if fenced:
            b.fence_async()
        b.sync(128)
        warpgroup.fence()
        description = warpgroup.descriptor(b, lines)
        sums = warpgroup.multiply(b, [one] * 4, description, [b.const(0.0, b.f32)] * 4)
        warpgroup.commit()
        warpgroup.wait(0)
        b.store(sums[3], words(b, x, b.thread()), 4)

    if fenced:
        device = Device()
        x = device.allocate(512)
        run(kernel(body, threads=128), device, [x], threads=128)
        assert (device.read(x, "f4", 128) == 16).all()
    else:
        assert message(body, threads=128) == (
            "llvm.inline_asm (operation N of @kernel), block 0, thread 0: shared memory byte 0, "
            "which warp 2 wrote (llvm.store (operation N of @kernel)), has no fence.proxy.async "
            "behind that"
        )
