"""Matrix instructions of a warpgroup (four warps, sm_90a): `wgmma` with A in registers.

They run by themselves: `multiply`s between a `fence` and a `commit` are a group, `wait` waits for
groups, and until then neither their sums nor the registers of A may be touched.
"""

from __future__ import annotations

from collections.abc import Sequence

from infc.backends.cuda.codegen.builder import GpuBuilder, Type, Value
from infc.ir.mlir import ir, llvm, nvvm

WARPGROUP = 128
"""Threads of a warpgroup."""
LINE_BYTES = 128
"""Of 64 numbers along k of a token in shared memory."""
_LINES = 8
_SWIZZLE_128 = 1 << 62
_DESCRIPTOR = _SWIZZLE_128 | (_LINES * LINE_BYTES >> 4) << 32 | 1 << 16
"""What is the same in all descriptors (PTX ISA, "Matrix descriptor"): the swizzle, and bytes from
eight lines to the next eight; the distance along k is not used with a swizzle."""


def fence() -> None:
    """Registers that were written are ready for `multiply` (`wgmma.fence`)."""
    nvvm.WgmmaFenceAlignedOp()


def commit() -> None:
    """The `multiply`s since the last `commit` are a group (`wgmma.commit_group`)."""
    nvvm.WgmmaGroupSyncAlignedOp()


def wait(groups: int) -> None:
    """Wait until all but the last `groups` groups are done (`wgmma.wait_group`)."""
    nvvm.WgmmaWaitGroupSyncOp(groups)


def keep_registers(count: int, *, more: bool) -> None:
    """All warps of a warpgroup have `count` registers a thread from now on, `more` than before or
    fewer (`setmaxnreg`)."""
    action = "increase" if more else "decrease"
    nvvm.SetMaxRegisterOp(count, ir.Attribute.parse(f"#nvvm<action {action}>"))


def descriptor(b: GpuBuilder, lines: Value) -> Value:
    """How `multiply` finds activations, i64, for lines in shared memory from a multiple of 1024
    bytes on, with piece i of 16 bytes of line t at place `i ^ t % 8`. 2 more is 16 numbers on."""
    address = llvm.PtrToIntOp(b.i32, lines).res
    return b.bit_or(b.wide(b.shr(address, 4)), _DESCRIPTOR)


def multiply(b: GpuBuilder, a: Sequence[Value], lines: Value, sums: Sequence[Value]) -> list[Value]:
    """`sums + a @ x.T`: 64x16 bf16, tokens x 16 bf16, 64 x tokens f32
    (`wgmma.mma_async.m64nNk16`).

    Warp w of the warpgroup has rows 16 w on of `a` and of the sums, each as in `GpuBuilder.mma`:
    four i32, and for each eight tokens four f32. `lines` is the descriptor of the activations.
    """
    count = len(sums)
    kind = Type.parse(f"!llvm.struct<({', '.join(['f32'] * count)})>")
    numbers = [f"${i}" for i in range(2 * count + 5)]
    text = (
        f"wgmma.mma_async.sync.aligned.m64n{2 * count}k16.f32.bf16.bf16 "
        f"{{{', '.join(numbers[:count])}}}, {{{', '.join(numbers[2 * count : -1])}}}, "
        f"{numbers[-1]}, 1, 1, 1, 0;"
    )
    tied = [str(i) for i in range(count)]
    constraints = ",".join([*["=f"] * count, *tied, "r", "r", "r", "r", "l"])
    op = llvm.InlineAsmOp(kind, [*sums, *a, lines], text, constraints, has_side_effects=True)
    return b.fields(op.results[0], [b.f32] * count)
