"""What PTX must say that no execution on a CPU shows."""

from __future__ import annotations

from collections.abc import Callable

from infc.backends.cuda.codegen.builder import GpuBuilder, Value
from infc.backends.cuda.codegen.ptx import new_gpu_module, to_ptx
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
