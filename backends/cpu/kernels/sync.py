"""The barrier between the ops of a program: all threads of a call wait for each other."""

from __future__ import annotations

from infc.backends.cpu.codegen.builder import Builder, Value
from infc.ir.mlir import func, ir, llvm

BARRIER_NAME = "infc_barrier"
BARRIER_BYTES = 128
"""State of a barrier: the arrival count and, on a line of its own, the generation, the number of
threads that sleep until it moves, and how many pauses less than `_MOST_SPINS` they spin before;
64-byte aligned and zeroed once before first use."""

_GENERATION_OFFSET = 64
_SLEEPERS_OFFSET = 68
_FEWER_OFFSET = 72
_MOST_SPINS, _LEAST_SPINS = 4096, 512
"""Pauses before a waiting thread sleeps: 80 to 200 us and 10 to 25 us on servers. Threads with a
core each hardly ever wait for longer than that, and to wake a sleeper takes a virtual machine as
long. Where more threads run than cores, one that waits keeps others from working meanwhile."""
_REGAINED_SPINS = 16
"""By which a meeting that all reached lets threads spin longer at the next ones."""
_FULL_SYSTEM = 15
"""The operand `sy` of `isb`."""

_FUTEX_CALL = {"x86_64": 202, "aarch64": 98}
"""Linux's number of the system call, by the architecture of the triple."""
_FUTEX_WAIT, _FUTEX_WAKE = 128, 129
"""Operations of futex(2), private to the process."""
_EVERYBODY = 2**31 - 1


def emit_barrier(b: Builder) -> None:
    """Define `@infc_barrier(state: ptr, thread: i64, threads: i64)` in the module.

    The last thread to arrive clears the count and publishes the next generation; the others wait
    for it: they spin for a while, then sleep on a futex, so that a machine with more threads to run
    than cores spends its time on those that have work. Each sleep halves how long threads of this
    barrier spin, and each meeting makes it a little longer again: threads that wait for one whose
    core is slow for a moment get by without sleeping, those that wait for one without a core find
    out soon and hardly spin. They never yield:
    `sched_yield` gives a whole slice to whoever else wants the core, a sleeper that is woken gets
    it back at once. The last thread makes a system call only where somebody sleeps. The state is
    clean after every use, whatever the number of threads was.

    No wake-up is lost: a thread counts itself among the sleepers before the kernel compares the
    generation, and the last thread moves the generation before it reads the count, both
    sequentially consistent, so at least one of the two sees the other.
    """
    with ir.InsertionPoint(b.module.body):
        # Declared with as many operands as are used: `syscall` is variadic only in C.
        operands = [b.i64, b.ptr, b.i64, b.i64, b.i64]
        func.FuncOp("syscall", ir.FunctionType.get(operands, [b.i64]), visibility="private")
    with b.function(BARRIER_NAME, [b.ptr, b.i64, b.i64]) as (state, _thread, threads):
        b.when(b.cmp("sgt", threads, 1), lambda: _meet(b, state, threads))
        b.ret()


def _meet(b: Builder, state: Value, threads: Value) -> None:
    generation_at = b.at(state, _GENERATION_OFFSET)
    # Read before arriving: once this thread has arrived the generation may move at any moment.
    before = _load(b, generation_at, llvm.AtomicOrdering.acquire)
    arrived = _add(b, state, 1, llvm.AtomicOrdering.acq_rel)
    is_last = b.cmp("eq", b.add(b.as_i64(arrived), 1), threads)
    sleepers_at, fewer_at = b.at(state, _SLEEPERS_OFFSET), b.at(state, _FEWER_OFFSET)

    def release() -> None:
        b.store(b.const(0, b.i32), state, 4)
        fewer = _load(b, fewer_at, llvm.AtomicOrdering.monotonic)
        b.when(b.cmp("ne", fewer, 0), lambda: _spin_longer(b, fewer_at, fewer))
        _add(b, generation_at, 1, llvm.AtomicOrdering.seq_cst)
        sleepers = _load(b, sleepers_at, llvm.AtomicOrdering.seq_cst)
        b.when(
            b.cmp("ne", sleepers, 0),
            lambda: _futex(b, generation_at, _FUTEX_WAKE, b.idx(_EVERYBODY)),
        )

    b.when(is_last, release, lambda: _wait(b, generation_at, before, sleepers_at, fewer_at))


def _wait(
    b: Builder, generation_at: Value, before: Value, sleepers_at: Value, fewer_at: Value
) -> None:
    """Return once the generation is another than `before`."""
    fewer = _load(b, fewer_at, llvm.AtomicOrdering.monotonic)
    spins = b.sub(_MOST_SPINS, b.ext_u(fewer, b.i64))

    def waiting(_turn: Value) -> Value:
        return b.cmp("eq", _load(b, generation_at, llvm.AtomicOrdering.acquire), before)

    def sleep() -> None:
        _spin_shorter(b, fewer_at, fewer)
        _add(b, sleepers_at, 1, llvm.AtomicOrdering.seq_cst)
        # Returns at once where the generation has moved; a signal may end it early.
        _futex(b, generation_at, _FUTEX_WAIT, b.ext_u(before, b.i64))
        _add(b, sleepers_at, -1, llvm.AtomicOrdering.seq_cst)

    def wait(turn: Value) -> list[Value]:
        b.when(b.cmp("slt", turn, spins), lambda: _pause(b), sleep)
        return [b.add(turn, 1)]

    b.loop_while([b.idx(0)], waiting, wait)


def _spin_shorter(b: Builder, fewer_at: Value, fewer: Value) -> None:
    """Half as many pauses as now; of threads that do so at once one counts."""
    halved = b.shr(b.add(fewer, b.const(_MOST_SPINS, b.i32)), 1)
    _store(b, b.min(halved, b.const(_MOST_SPINS - _LEAST_SPINS, b.i32)), fewer_at)


def _spin_longer(b: Builder, fewer_at: Value, fewer: Value) -> None:
    regained = b.min(fewer, b.const(_REGAINED_SPINS, b.i32))
    _store(b, b.sub(fewer, regained), fewer_at)


def _futex(b: Builder, word: Value, operation: int, value: Value) -> None:
    """Sleep while `*word == value`, or wake `value` threads that sleep on it."""
    number = _FUTEX_CALL[b.isa.triple.partition("-")[0]]
    no_timeout = b.idx(0)
    operands = [b.idx(number), word, b.idx(operation), value, no_timeout]
    _discard(b.call("syscall", operands, [b.i64]))


def _pause(b: Builder) -> None:
    """Tell the core that it spins, so that it saves power and its sibling thread gets on.

    On AArch64 `isb`: `yield` does nothing on most cores.
    """
    if b.isa.triple.startswith("x86_64"):
        b.intrinsic("llvm.x86.sse2.pause", None)
    else:
        b.intrinsic("llvm.aarch64.isb", None, b.const(_FULL_SYSTEM, b.i32))


def _load(b: Builder, pointer: Value, ordering: llvm.AtomicOrdering) -> Value:
    return llvm.LoadOp(b.i32, pointer, alignment=4, ordering=ordering).result


def _store(b: Builder, value: Value, pointer: Value) -> None:
    llvm.StoreOp(value, pointer, alignment=4, ordering=llvm.AtomicOrdering.monotonic)


def _add(b: Builder, pointer: Value, amount: int, ordering: llvm.AtomicOrdering) -> Value:
    """Add to an `i32` in memory; what it was before."""
    return llvm.AtomicRMWOp(
        llvm.AtomicBinOp.add, pointer, b.const(amount, b.i32), ordering, alignment=4
    ).result


def _discard(_values: list[Value]) -> None:
    """Drop the results of a call made for its effect."""
