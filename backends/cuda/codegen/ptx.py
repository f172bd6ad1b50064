"""From a module of kernels to PTX: MLIR's lowering to the nvvm dialect, LLVM's NVPTX back end."""

from __future__ import annotations

from infc.diagnostics import InternalError
from infc.ir.mlir import PassManager, gpu, ir

_FEATURES = {"sm_80": "+ptx80", "sm_90a": "+ptx83", "sm_100a": "+ptx86"}
"""The version of the PTX ISA: what the instructions need, so that older drivers take it."""
_PASSES = (
    "convert-vector-to-scf",
    "convert-scf-to-cf",
    "convert-vector-to-llvm",
    "convert-to-llvm",
    "reconcile-unrealized-casts",
)


def new_gpu_module(module: ir.Module, name: str) -> ir.OpView:
    """An empty `gpu.module` at the end of `module`."""
    with ir.InsertionPoint(module.body):
        op = gpu.GPUModuleOp(ir.StringAttr.get(name))
    op.regions[0].blocks.append()
    return op


def to_ptx(module: ir.Module, arch: str) -> dict[str, str]:
    """PTX of each `gpu.module`, by name.

    Args:
        module: holds `gpu.module`s of kernels and device functions, in the dialects that the
            builder makes. It is left as it is.
        arch: `sm_80`, `sm_90a`, ...
    """
    attach = f"nvvm-attach-target{{chip={arch} features={_FEATURES[arch]} O=3}}"
    inner = ",".join(_PASSES)
    text = f"builtin.module({attach},gpu.module({inner}),gpu-module-to-binary{{format=isa}})"
    copy = ir.Module.parse(str(module), module.context)
    PassManager.parse(text, module.context).run(copy.operation)
    made: dict[str, str] = {}
    for op in copy.body.operations:
        if op.operation.name == "gpu.binary":
            (attribute,) = ir.ArrayAttr(op.operation.attributes["objects"])
            ptx = gpu.ObjectAttr(attribute).object.decode().rstrip("\0")
            made[ir.StringAttr(op.operation.attributes["sym_name"]).value] = ptx
    if not made:
        raise InternalError("MLIR made no PTX")
    return made
