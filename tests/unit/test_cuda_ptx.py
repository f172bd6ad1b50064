"""What PTX must say that no execution on a CPU shows."""

from __future__ import annotations

from collections.abc import Callable

from infc.backends.cuda.codegen.builder import GpuBuilder, Value
from infc.backends.cuda.codegen.ptx import new_gpu_module, to_ptx
from infc.backends.cuda.codegen.warp_matrices import load_matrices, mma
from infc.backends.cuda.lowering.persistent import BARRIER, emit_barrier
from infc.ir.context import context
from infc.ir.mlir import ir


def ptx_of(emit: Callable[[GpuBuilder, Value], None], arch: str = "sm_90a") -> str:
    """PTX of a kernel of 256 threads with a pointer; `emit` makes its body."""
    with context(), ir.Location.unknown():
        module = ir.Module.create()
        b = GpuBuilder(new_gpu_module(module, "programs"), arch)
        b.declare_shared_memory()
        with b.function("meet", [b.ptr]) as (x,):
            b.sync(256, 1)
            b.store(b.thread(), x, 4)
            b.ret()
        emit_barrier(b)
        with b.kernel("kernel", [b.ptr], threads=256) as (x,):
            emit(b, x)
        return to_ptx(module, arch)["programs"]


def test_a_function_with_a_barrier_is_called_by_whole_warps() -> None:
    """Two branches on one condition must not become one with a copy of the call on each side."""

    def body(b: GpuBuilder, x: Value) -> None:
        first = b.cmp("eq", b.thread(), 0)
        b.when(first, lambda: b.store(b.clock_ns(), x, 8))
        b.call("meet", [x])
        b.when(first, lambda: b.store(b.clock_ns(), b.at(x, 8), 8))

    text = ptx_of(body)
    assert text.count("%globaltimer") == 2
    assert text.count("call.uni meet") == 1


def test_what_other_blocks_wrote_is_loaded_again_behind_a_grid_barrier() -> None:
    """Not from a cache that nobody keeps up to date (`ld.global.nc`), nor from a register."""

    def body(b: GpuBuilder, x: Value) -> None:
        before = b.load(x, b.i32, 4)
        b.call(BARRIER, [b.at(x, 128), b.idx(1)])
        b.store(b.add(before, b.load(x, b.i32, 4)), b.at(x, 4), 4)

    text = ptx_of(body)
    kernel = text[text.index(".entry kernel") :]
    assert kernel.count("ld.global.b32") == 2
    assert ".nc" not in text
    meeting = text[text.index(f".func {BARRIER}") : text.index(".entry kernel")]
    order = [
        "bar.sync",
        "fence.acq_rel.gpu",
        "atom.global.add",
        "ld.acquire.gpu",
        "bar.sync",
        "ret",
    ]
    at = 0
    for word in order:
        at = meeting.index(word, at) + 1


def test_warp_instructions_stay_out_of_branches() -> None:
    """Only some threads use what came of them: they are not moved to where only those are."""

    def body(b: GpuBuilder, x: Value) -> None:
        number = b.load(b.at(x, b.mul(b.lane(), 4)), b.i32, 4)
        left = load_matrices(b, b.shared_memory(b.mul(b.lane(), 16)))
        sums = mma(b, "bf16", left, [number, number], [b.const(0.0, b.f32)] * 4)
        other = b.shuffle_xor(number, 1)
        voted = b.ballot(b.cmp("eq", other, 7))

        def store() -> None:
            for i, value in enumerate([*sums, other, voted]):
                b.store(value, b.at(x, 256 + 4 * i), 4)

        b.when(b.cmp("slt", b.load(x, b.i32, 4), b.lane()), store)

    text = ptx_of(body)
    branch = text.index(" bra ", text.index(".entry kernel"))
    for word in ("ldmatrix", "mma.sync", "shfl.sync", "vote.sync"):
        assert 0 < text.index(word) < branch
        assert word not in text[branch:]
