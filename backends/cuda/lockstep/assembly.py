"""Inline assembly: each text that the builder has, and what it does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from infc.backends.cuda.codegen.inline_ptx import AND_OR, SELECT_BITS, TEST_WAIT
from infc.backends.cuda.lockstep.mbarriers import test_wait
from infc.backends.cuda.lockstep.numbers import pure
from infc.backends.cuda.lockstep.reading import FunctionReader, Step, Waits
from infc.backends.cuda.lockstep.threads import LockstepError, Where
from infc.backends.cuda.lockstep.warpgroup import is_multiply, multiply
from infc.ir.mlir import ir

Reader = Callable[[FunctionReader, Any, Where], Step | Waits | None]


TEXTS: dict[str, Reader] = {
    TEST_WAIT: test_wait,
    AND_OR: pure(lambda a, b, c: a & b | c),
    SELECT_BITS: pure(lambda a, b, mask: a & mask | b & ~mask),
}
_LOOKS = (TEST_WAIT,)


def _text(op: Any) -> str:
    return str(ir.StringAttr(op.attributes["asm_string"]).value)


def looks(op: Any) -> bool:
    """Whether this is assembly that looks at memory."""
    return op.name == "llvm.inline_asm" and _text(op) in _LOOKS


def _assembly(fn: FunctionReader, op: Any, where: Where) -> Step | Waits | None:
    text = _text(op)
    reader = multiply if is_multiply(text) else TEXTS.get(text)
    if reader is None:
        raise LockstepError(f"lockstep execution does not know the assembly {text!r} of {where}")
    return reader(fn, op, where)


READERS: dict[str, Reader] = {"llvm.inline_asm": _assembly}
