"""All operations that are known, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from infc.backends.cuda.lockstep import (
    accesses,
    assembly,
    barriers,
    control,
    copies,
    mbarriers,
    numbers,
    vectors,
    warpgroup,
    warps,
)
from infc.backends.cuda.lockstep.reading import FunctionReader, Region, Step, Waits
from infc.backends.cuda.lockstep.threads import LockstepError, Where
from infc.ir.mlir import ir

Reader = Callable[[FunctionReader, Any, Where], Step | Waits | None]
_INTRINSICS: dict[str, Reader] = {**numbers.INTRINSICS, **barriers.INTRINSICS}


def _intrinsic(fn: FunctionReader, op: Any, where: Where) -> Step | Waits | None:
    name = ir.StringAttr(op.attributes["intrin"]).value
    if name not in _INTRINSICS:
        raise LockstepError(f"lockstep execution does not know the intrinsic {name} of {where}")
    return _INTRINSICS[name](fn, op, where)


_READERS: dict[str, Reader] = {
    "llvm.call_intrinsic": _intrinsic,
    **numbers.READERS,
    **vectors.READERS,
    **accesses.READERS,
    **warps.READERS,
    **barriers.READERS,
    **mbarriers.READERS,
    **copies.READERS,
    **assembly.READERS,
    **warpgroup.READERS,
    **control.READERS,
}
_LAST = ("scf.yield", "func.return", "llvm.return", "scf.condition")
_LOOKS = ("llvm.load", "llvm.atomicrmw")


def read_operation(fn: FunctionReader, region: Region, op: Any, where: Where) -> None:
    """Append what an operation does to a region."""
    if op.name in _LAST:
        region.yields = fn.operands(op)
        return
    reader = _READERS.get(op.name)
    if reader is None:
        raise LockstepError(f"lockstep execution does not know {where}")
    step = reader(fn, op, where)
    region.looks |= op.name in _LOOKS or assembly.looks(op)
    if isinstance(step, Waits):
        region.waiting = True
        region.steps.append(step.step)
        region.waits.append(True)
    elif step is not None:
        region.steps.append(step)
        region.waits.append(False)
