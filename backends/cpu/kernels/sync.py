"""The barrier between the ops of a program: all threads of a call wait for each other."""

from __future__ import annotations

from infc.backends.cpu.codegen.builder import Builder, Value
from infc.ir.mlir import func, ir, llvm

BARRIER_NAME = "infc_barrier"
BARRIER_BYTES = 128
"""State of a barrier: the arrival count and, on a line of its own, the generation; 64-byte aligned
and zeroed once before first use."""

_GENERATION_OFFSET = 64
_SPINS_BEFORE_YIELD = 1024


def emit_barrier(b: Builder) -> None:
    """Define `@infc_barrier(state: ptr, thread: i64, threads: i64)` in the module.

    The last thread to arrive clears the count and publishes the next generation; the others spin on
    the generation. After some thousands of spins a waiting thread offers its core with
    `sched_yield`, so that a machine with fewer cores than threads makes progress. The state is
    clean after every use, whatever the number of threads was.
    """
    with ir.InsertionPoint(b.module.body):
        func.FuncOp("sched_yield", ir.FunctionType.get([], [b.i32]), visibility="private")
    with b.function(BARRIER_NAME, [b.ptr, b.i64, b.i64]) as (state, _thread, threads):
        b.when(b.cmp("sgt", threads, 1), lambda: _wait(b, state, threads))
        b.ret()


def _wait(b: Builder, state: Value, threads: Value) -> None:
    generation_at = b.at(state, _GENERATION_OFFSET)
    # Read before arriving: once this thread has arrived the generation may move at any moment.
    before = _load_acquire(b, generation_at)
    arrived = llvm.AtomicRMWOp(
        llvm.AtomicBinOp.add,
        state,
        b.const(1, b.i32),
        llvm.AtomicOrdering.acq_rel,
        alignment=4,
    ).result
    is_last = b.cmp("eq", b.add(b.as_i64(arrived), 1), threads)

    def release() -> None:
        b.store(b.const(0, b.i32), state, 4)
        llvm.StoreOp(
            b.add(before, 1), generation_at, alignment=4, ordering=llvm.AtomicOrdering.release
        )

    b.when(is_last, release, lambda: _spin(b, generation_at, before))


def _spin(b: Builder, generation_at: Value, before: Value) -> None:
    def waiting(_spins: Value) -> Value:
        return b.cmp("eq", _load_acquire(b, generation_at), before)

    def spin(spins: Value) -> list[Value]:
        b.when(
            b.cmp("sge", spins, _SPINS_BEFORE_YIELD),
            lambda: _discard(b.call("sched_yield", [], [b.i32])),
            lambda: _pause(b),
        )
        return [b.add(spins, 1)]

    b.loop_while([b.idx(0)], waiting, spin)


def _pause(b: Builder) -> None:
    """Tell an x86 core that it spins; other architectures have no need of a hint."""
    if b.isa.triple.startswith("x86_64"):
        b.intrinsic("llvm.x86.sse2.pause", None)


def _load_acquire(b: Builder, pointer: Value) -> Value:
    return llvm.LoadOp(b.i32, pointer, alignment=4, ordering=llvm.AtomicOrdering.acquire).result


def _discard(_values: list[Value]) -> None:
    """Drop the results of a call made for its effect."""
