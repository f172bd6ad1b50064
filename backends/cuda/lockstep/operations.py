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
    warps,
)
from infc.backends.cuda.lockstep.reading import FunctionReader, Region, Step, Waits
from infc.backends.cuda.lockstep.threads import LockstepError, Where

_READERS: dict[str, Callable[[FunctionReader, Any, Where], Step | Waits | None]] = {
    **numbers.READERS,
    **vectors.READERS,
    **accesses.READERS,
    **warps.READERS,
    **barriers.READERS,
    **mbarriers.READERS,
    **copies.READERS,
    **assembly.READERS,
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
        raise LockstepError(f"expected an operation that lockstep execution knows, got {where}")
    step = reader(fn, op, where)
    region.looks |= op.name in _LOOKS or assembly.looks(op)
    if isinstance(step, Waits):
        region.waiting = True
        region.steps.append(step.step)
        region.waits.append(True)
    elif step is not None:
        region.steps.append(step)
        region.waits.append(False)
