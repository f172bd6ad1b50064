"""How a kernel of the memory level is called: which operands go to which arguments.

Each kind of kernel has a function `(b, name, body, rows) -> Form` that fills the emitter's
specification from the operations of the kernel (`infc.passes.codegen.kernel_body`), emits the
device function `name` into the builder's module, and says how it is called. `rows` is the most
rows that a call has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from infc.backends.cuda.codegen.builder import GpuBuilder, Value
from infc.backends.cuda.kernels.frame import Emitted
from infc.passes.codegen.kernel_body import KernelBody

Word: TypeAlias = Literal["rows", "cta", "ctas", "first", "count", "scratch", "arrivals", "wanted"]
"""An argument that is no operand of the call:

- `rows`: i32, rows of this call;
- `cta`, `ctas`: i32, number of the block and how many there are. Of a kernel that is mapped
  `partition = "replicate"` each block does everything: it is given 0 and 1;
- `first`, `count`: i32, panels dealt before and slots of the ring used before (products that read
  their weights through the ring);
- `scratch`: pointer to `scratch_bytes` of global memory shared by all blocks, 256-aligned, with
  nothing in it;
- `arrivals`: pointer to `arrivals` i32 in global memory, zero before and after;
- `wanted`: i32, top tokens that the call asks for.
"""
Argument: TypeAlias = int | Word
"""An operand of the call by its number (a pointer), or one of the words."""


@dataclass(frozen=True)
class Form:
    """An emitted kernel and how to call it.

    Attributes:
        emitted: the function.
        arguments: of the function, in order.
        symbol: of the dimension whose value is `rows`: `t` or `r`.
        produce: arguments of `<name>_produce`, for products that read weights through the ring;
            else empty. Both functions then return how many slots have been used, i32.
        scratch_bytes, arrivals: global memory that it wants: bytes, and numbers of counters.
    """

    emitted: Emitted
    arguments: tuple[Argument, ...]
    symbol: str
    produce: tuple[Argument, ...] = ()
    scratch_bytes: int = 0
    arrivals: int = 0


FormMaker: TypeAlias = Callable[[GpuBuilder, str, KernelBody, int], Form]
"""Emits a kernel of one kind."""


def arguments_of(
    arguments: tuple[Argument, ...], operands: list[Value], words: Mapping[str, Value]
) -> list[Value]:
    """The values of a form's arguments in one call."""
    return [operands[a] if isinstance(a, int) else words[a] for a in arguments]
