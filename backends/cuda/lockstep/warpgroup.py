"""Matrix instructions of warpgroups. They run by themselves, so they are executed as late as they
may be: when somebody waits for them. Until then the sums are NaN, and what lies in shared memory
may still change."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from infc.backends.cuda.lockstep.memory import Array
from infc.backends.cuda.lockstep.numbers import widen
from infc.backends.cuda.lockstep.reading import FunctionReader, Step
from infc.backends.cuda.lockstep.threads import (
    Block,
    LockstepError,
    Registers,
    Threads,
    Where,
)
from infc.ir.mlir import ir

_TEXT = re.compile(
    r"wgmma\.mma_async\.sync\.aligned\.m64n(\d+)k16\.f32\.bf16\.bf16 [^;]*, 1, 1, 1, 0;"
)
_PIECE = 16
_SWIZZLE_128 = 1


@dataclass
class _Pending:
    """What some warps began.

    Attributes:
        open: not yet in a group.
        groups: those that were committed, the oldest first.
        fenced: whether registers are ready for what comes next.
    """

    open: list[Callable[[], None]] = field(default_factory=list)
    groups: list[list[Callable[[], None]]] = field(default_factory=list)
    fenced: bool = False


_pending: WeakKeyDictionary[Block, dict[bytes, _Pending]] = WeakKeyDictionary()


def _of(t: Threads, where: Where) -> _Pending:
    if not t.whole:
        t.need_whole_warps(where)
    return _pending.setdefault(t.block, {}).setdefault(t.ids.tobytes(), _Pending())


def _fence(fn: FunctionReader, op: Any, where: Where) -> Step:
    def step(r: Registers, t: Threads) -> None:
        _of(t, where).fenced = True

    return step


def _commit(fn: FunctionReader, op: Any, where: Where) -> Step:
    def step(r: Registers, t: Threads) -> None:
        mine = _of(t, where)
        mine.groups.append(mine.open)
        mine.open, mine.fenced = [], False

    return step


def _wait(fn: FunctionReader, op: Any, where: Where) -> Step:
    left = int(ir.IntegerAttr(op.attributes["group"]).value)

    def step(r: Registers, t: Threads) -> None:
        groups = _of(t, where).groups
        while len(groups) > left:
            for product in groups.pop(0):
                product()

    return step


def _nothing(fn: FunctionReader, op: Any, where: Where) -> None:
    """Registers are dealt anew: there are as many as one wants here."""


def is_multiply(text: str) -> bool:
    """Whether inline assembly is a product of a warpgroup."""
    return _TEXT.fullmatch(text) is not None


def multiply(fn: FunctionReader, op: Any, where: Where) -> Step:
    """A product of 64x16 bf16 in registers and tokens x 16 in shared memory."""
    found = _TEXT.fullmatch(ir.StringAttr(op.attributes["asm_string"]).value)
    if found is None:
        raise LockstepError(f"expected a product of bf16, got {where}")
    tokens = int(found[1])
    slots = fn.operands(op)
    (to,) = fn.results(op)
    sums, a, lines = slots[: tokens // 2], slots[-5:-1], slots[-1]

    def step(r: Registers, t: Threads) -> None:
        mine = _of(t, where)
        if not mine.fenced:
            t.fail(where, 0, "registers are not ready: expected wgmma.fence before it")
        made = tuple(np.full(t.count, np.nan, np.float32) for _ in sums)
        before, left = [r[slot] for slot in sums], _rows([r[slot] for slot in a], t)
        mine.open.append(partial(_product, t, where, left, r[lines], before, made))
        r[to] = made

    return step


def _product(
    t: Threads,
    where: Where,
    left: Array,
    lines: Array,
    before: list[Array],
    made: tuple[Array, ...],
) -> None:
    """Fill `made` with `before` and the products, exact and rounded once."""
    if (lines != lines[0]).any():
        t.fail(where, int((lines != lines[0]).argmax()), "descriptor differs between threads")
    right = _tokens(t, where, int(lines[0]), 2 * len(made))
    products = (left @ right.T).reshape(-1, 2, 8, len(made) // 4, 4, 2)  # warp h r fragment q i
    for i, (old, new) in enumerate(zip(before, made, strict=True)):
        part = products[:, i % 4 // 2, :, i // 4, :, i % 2].reshape(-1)
        new[:] = part + old


def _rows(registers: list[Array], t: Threads) -> Array:
    """The rows of each warp, f64 [warps, 16, 16], as the first operand of `mma.sync` has them."""
    held = np.stack([np.broadcast_to(value, (t.count,)) for value in registers])
    numbers = widen(np.ascontiguousarray(held).view(np.uint16)).astype(np.float64)
    parts = numbers.reshape(2, 2, -1, 8, 8)  # k half, row half, warp, r, numbers of a half
    return np.ascontiguousarray(parts.transpose(2, 1, 3, 0, 4)).reshape(-1, 16, 16)


def _tokens(t: Threads, where: Where, descriptor: int, tokens: int) -> Array:
    """Activations that a descriptor says, f64 [tokens, 16]."""
    if descriptor >> 62 & 3 != _SWIZZLE_128:
        t.fail(where, 0, "expected a descriptor with the swizzle of 128 bytes")
    start, eight_lines = ((descriptor >> shift & 0x3FFF) << 4 for shift in (0, 32))
    token, piece = np.divmod(np.arange(2 * tokens, dtype=np.int64), 2)
    address = start + token // 8 * eight_lines + token % 8 * 128 + piece * _PIECE
    address ^= (address >> 7 & 7) << 4
    who = np.zeros(len(address), np.int64)
    shared = t.block.shared
    raw = shared.load(address, _PIECE, _PIECE, t, where, who)
    index, width = shared.locate(address, _PIECE, _PIECE, t.failing(where, who))
    t.block.races.need_fence(index, width, t, where, who)
    numbers = widen(np.ascontiguousarray(raw).view(np.uint16))
    return numbers.astype(np.float64).reshape(tokens, 16)


READERS: dict[str, Callable[[FunctionReader, Any, Where], Step | None]] = {
    "nvvm.wgmma.fence.aligned": _fence,
    "nvvm.wgmma.commit.group.sync.aligned": _commit,
    "nvvm.wgmma.wait.group.sync.aligned": _wait,
    "nvvm.setmaxregister": _nothing,
}
