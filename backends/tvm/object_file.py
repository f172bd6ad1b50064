"""From a TensorIR schedule to an object file with one plain C function.

TVM's usual way wraps a function to take tensors of its runtime, checks them, and reports errors
through that runtime. Here its lowering passes run without that step, and the function is given
pointers: what comes out needs nothing of TVM.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from infc.target.schema import Target


def tvm_target(target: Target) -> Any:
    """A processor as TVM describes it to LLVM."""
    import tvm

    facts = target.backend_facts
    disabled = [f"-{name}" for name in str(facts.get("disabled", "")).split(",") if name]
    return tvm.target.Target(
        {
            "kind": "llvm",
            "mtriple": str(facts["triple"]),
            "mcpu": str(facts["cpu"]),
            "mattr": disabled + [f"+{name}" for name in target.features],
        }
    )


def compile_function(schedule: Any, symbol: str, target: Target) -> bytes:
    """The object code of the one function of a schedule, as `void symbol(pointers...)`.

    Args:
        schedule: a `tvm.s_tir.Schedule`; its parameters are buffers of fixed shapes.
        symbol: the function's name.
        target: with the facts `triple` and `cpu`, and features under LLVM's names.
    """
    import tvm
    from tvm.target import codegen

    processor = tvm_target(target)
    with tvm.transform.PassContext(opt_level=3):
        module = tvm.tirx.transform.BindTarget(processor.with_host(processor))(schedule.mod)
        (function,) = _lowered(module).functions.values()
        plain = _with_pointers(function).with_attr("global_symbol", symbol)
        # Without LowerTVMBuiltin, which has the runtime allocate all but small buffers.
        module = tvm.tirx.transform.LowerIntrin()(tvm.IRModule({symbol: plain}))
        built = codegen.build_module(module, processor)
    with tempfile.TemporaryDirectory(prefix="infc-tvm-") as folder:
        path = Path(folder, "function.o")
        built.write_to_file(str(path))
        return path.read_bytes()


def _lowered(module: Any) -> Any:
    """TVM's pipeline for processors up to the step that packs arguments."""
    import tvm
    from tvm.s_tir import transform as scheduled
    from tvm.tirx import transform as plain

    passes = [
        scheduled.CanonicalizeLoop(),
        scheduled.LowerInitBlock(),
        scheduled.PlanAndUpdateBufferAllocationLocation(),
        scheduled.ConvertBlocksToOpaque(),
        scheduled.CompactBufferAllocation(),
        scheduled.LowerMatchBuffer(),
        scheduled.StmtSimplify(),
        scheduled.LowerOpaqueBlock(),
        plain.FlattenBuffer(),
        plain.NarrowDataType(32),
        scheduled.LoopPartition(),
        plain.VectorizeLoop(True),
        plain.StorageRewrite(),
        plain.UnrollLoop(),
        scheduled.RenormalizeSplitPattern(),
        plain.StmtSimplify(),
        plain.RemoveNoOp(),
        plain.CommonSubexprElim(),
        plain.VerifyMemory(),
    ]
    return tvm.transform.Sequential(passes)(module)


def _with_pointers(function: Any) -> Any:
    """The function with a pointer for each of its buffers, which do not overlap."""
    import tvm
    from tvm import tirx

    pointers = [
        tirx.Var(buffer.name, tvm.ir.PointerType(tvm.ir.PrimType(buffer.dtype), "global"))
        for buffer in function.params
    ]
    declared = [
        tirx.DeclBuffer(buffer, data=pointer)
        for buffer, pointer in zip(function.params, pointers, strict=True)
    ]
    body = function.body
    steps = body.seq if isinstance(body, tirx.SeqStmt) else [body]
    attributes = function.attrs
    plain = tirx.PrimFunc(
        pointers,
        tirx.SeqStmt([*declared, *steps]),
        ret_type=tvm.ir.TupleType([]),
        attrs=attributes,
    )
    return plain.with_attr("tirx.noalias", True)
