"""Small kernels for the tests of lockstep execution."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infc.backends.cuda.codegen.builder import GpuBuilder, Value
from infc.backends.cuda.codegen.ptx import new_gpu_module
from infc.backends.cuda.codegen.warp_matrices import load_matrices
from infc.backends.cuda.lockstep import Device, Program, launch, read
from infc.ir.mlir import ir

Body = Callable[..., None]


@contextmanager
def building(arch: str = "sm_90a") -> Iterator[GpuBuilder]:
    """A builder of an empty module, whose operations know the line of Python they come from."""
    with ir.Context(), ir.Location.unknown(), ir.loc_tracebacks():
        module = ir.Module.create()
        b = GpuBuilder(new_gpu_module(module, "kernels"), arch)
        b.declare_shared_memory()
        yield b


def kernel(
    body: Body, *, pointers: int = 1, numbers: int = 0, threads: int = 32, arch: str = "sm_90a"
) -> Program:
    """A program of one kernel, `kernel`, that `body(b, pointers..., numbers...)` emits."""
    with building(arch) as b:
        types = [b.ptr] * pointers + [b.i32] * numbers
        with b.kernel("kernel", types, threads=threads) as arguments:
            body(b, *arguments)
        return read(b.module)


def run(
    program: Program,
    device: Device,
    arguments: Sequence[int],
    *,
    grid: int = 1,
    threads: int = 32,
    shared_bytes: int = 4096,
    seed: int | None = None,
) -> None:
    """Launch `kernel`."""
    launch(
        program,
        "kernel",
        grid=grid,
        threads=threads,
        shared_bytes=shared_bytes,
        arguments=arguments,
        device=device,
        seed=seed,
    )


def put(device: Device, array: NDArray[Any]) -> int:
    """The address of a copy of an array."""
    address = device.allocate(array.nbytes)
    device.write(address, array)
    return address


def to_bf16(values: NDArray[Any]) -> NDArray[np.uint16]:
    """The bits of f32 rounded to bf16, ties to even, by another way than the interpreter's: the
    nearer neighbour of two."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    low = bits & 0xFFFF
    up = (low > 0x8000) | ((low == 0x8000) & ((bits >> 16) & 1 == 1))
    return ((bits >> 16) + up).astype(np.uint16)


def from_bf16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """bf16 as f32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def words(b: GpuBuilder, pointer: Value, index: Value | int) -> Value:
    """A pointer to word number `index` behind a pointer."""
    return b.at(pointer, index * 4 if isinstance(index, int) else b.mul(index, 4))


def load_fragments(
    b: GpuBuilder, tile: Value | int, row_bytes: int, column_bytes: Value | int = 0
) -> list[Value]:
    """A 16x16 tile of 16-bit numbers in shared memory as the first operand of `mma`."""
    lane = b.lane()
    row, half = b.bit_and(lane, 15), b.shr(lane, 4)
    offset = b.add(b.mul(row, row_bytes), b.mul(half, 16))
    return load_matrices(b, b.at(b.at(b.shared_memory(tile), offset), column_bytes))


def store_tile(b: GpuBuilder, sums: Sequence[Value], target: Value, row_elements: int) -> None:
    """Store the 16x8 f32 result of `mma`."""
    lane = b.lane()
    r, q = b.shr(lane, 2), b.bit_and(lane, 3)
    for i, value in enumerate(sums):
        row = b.add(r, 8 * (i // 2))
        place = b.add(b.mul(row, row_elements), b.add(b.mul(q, 2), i % 2))
        b.store(value, words(b, target, place), 4)


RING, SLOT_BYTES, CHUNKS = 3, 1024, 11


def consume(b: GpuBuilder, full: Value, empty: Value, slots: Value, y: Value) -> None:
    """Eight warps take chunks out of the ring and add up their words."""

    def take(i: Value, total: Value) -> Value:
        slot = b.rem(i, RING)
        b.mbarrier_wait(b.at(full, b.mul(slot, 8)), b.bit_and(b.div(i, RING), 1))
        place = b.add(b.mul(slot, SLOT_BYTES), b.mul(b.thread(), 4))
        total = b.add(total, b.load(b.at(slots, place), b.i32, 4))
        b.sync_warp()
        b.when(b.cmp("eq", b.lane(), 0), lambda: b.mbarrier_arrive(b.at(empty, b.mul(slot, 8))))
        return total

    (total,) = b.loop(0, CHUNKS, 1, [b.idx(0)], body=take)
    b.store(total, words(b, y, b.add(b.thread(), b.mul(b.cta(), 256))), 4)


def ring(*, bulk: bool, early: bool = False) -> Body:
    """A kernel of eight warps that work and one that copies into a ring of slots for them; where
    it is `early`, without waiting for free slots."""

    def body(b: GpuBuilder, x: Value, y: Value) -> None:
        full, empty, slots = (b.shared_memory(offset) for offset in (0, 64, 128))

        def begin() -> None:
            for i in range(RING):
                b.mbarrier_init(b.at(full, 8 * i), 1 if bulk else 32)
                b.mbarrier_init(b.at(empty, 8 * i), 8)

        def give(i: Value) -> None:
            slot = b.rem(i, RING)
            turn = b.div(i, RING)
            if not early:
                b.mbarrier_wait(b.at(empty, b.mul(slot, 8)), b.bit_xor(b.bit_and(turn, 1), 1))
            barrier = b.at(full, b.mul(slot, 8))
            target, source = b.mul(slot, SLOT_BYTES), b.mul(i, SLOT_BYTES)
            if bulk:

                def one() -> None:
                    size = b.idx(SLOT_BYTES)
                    b.mbarrier_expect(barrier, size)
                    b.copy_bulk(b.at(slots, target), b.at(x, source), size, barrier)

                b.when(b.cmp("eq", b.lane(), 0), one)
            else:
                for part in range(SLOT_BYTES // 512):
                    piece = b.mul(b.add(b.lane(), 32 * part), 16)
                    b.copy_async(b.at(slots, b.add(target, piece)), b.at(x, b.add(source, piece)))
                b.copy_arrive(barrier)

        b.when(b.cmp("eq", b.thread(), 0), begin)
        b.fence_mbarrier_init()
        b.sync(288)
        b.when(
            b.cmp("eq", b.warp(), 8),
            lambda: b.loop(0, CHUNKS, body=give) and None,
            lambda: consume(b, full, empty, slots, y),
        )

    return body
