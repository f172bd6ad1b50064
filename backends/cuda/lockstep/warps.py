"""Who a thread is, exchanges between the threads of a warp, and matrix instructions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from infc.backends.cuda.lockstep.memory import Array
from infc.backends.cuda.lockstep.reading import FunctionReader, Step
from infc.backends.cuda.lockstep.threads import (
    WARP,
    LockstepError,
    Registers,
    Threads,
    Where,
    everybody,
)
from infc.ir.mlir import ir


def _who(value: Callable[[Threads], Array]) -> Callable[[FunctionReader, Any, Where], Step]:
    def reader(fn: FunctionReader, op: Any, where: Where) -> Step:
        (to,) = fn.results(op)

        def step(r: Registers, t: Threads) -> None:
            r[to] = value(t)

        return step

    return reader


def _clock(t: Threads) -> Array:
    """Time that passes with what happens, so that it is the same each time."""
    t.machine.clock_ns += 1
    return np.array([t.machine.clock_ns], np.int64)


def _all_threads(fn: FunctionReader, op: Any, where: Where) -> None:
    mask = fn.constant(op.operands[0])
    if mask is None or int(mask[0]) != -1:
        raise LockstepError(f"expected the mask of all threads of a warp (-1) at {where}")


def by_warp(value: Array, t: Threads) -> Array:
    """`[threads or 1]` as `[warps, 32]`."""
    return everybody(value, t).reshape(-1, WARP)


_LANES = np.arange(WARP)


def _shuffle(fn: FunctionReader, op: Any, where: Where) -> Step:
    _all_threads(fn, op, where)
    v, offset = fn.operands(op)[1:3]
    (to,) = fn.results(op)
    word = str(op.attributes["kind"]).split()[-1].rstrip(">")
    held, limit = fn.constant(op.operands[2]), fn.constant(op.operands[3])
    if limit is None or int(limit[0]) != (0 if word == "up" else WARP - 1):
        raise LockstepError(f"expected a shuffle within the whole warp at {where}")

    def source(by: Array) -> Array:
        lanes = {"bfly": _LANES ^ by, "idx": 0 * _LANES + by, "up": _LANES - by}.get(word)
        lanes = _LANES + by if lanes is None else lanes
        inside = (lanes >= 0) & (lanes < WARP)
        return np.where(inside, lanes, _LANES) if word != "idx" else lanes % WARP

    fixed = None if held is None else source(held.astype(np.int64))

    def step(r: Registers, t: Threads) -> None:
        if not t.whole:
            t.need_whole_warps(where)
        value = r[v]
        if len(value) == 1:
            r[to] = value
        elif fixed is not None:
            r[to] = value.reshape(-1, WARP).take(fixed, axis=1).reshape(-1)
        else:
            lanes = source(by_warp(r[offset], t).astype(np.int64))
            r[to] = np.take_along_axis(value.reshape(-1, WARP), lanes, axis=1).reshape(-1)

    return step


def _vote(fn: FunctionReader, op: Any, where: Where) -> Step:
    _all_threads(fn, op, where)
    _, c = fn.operands(op)
    (to,) = fn.results(op)
    word = str(op.attributes["kind"]).split()[-1].rstrip(">")

    def step(r: Registers, t: Threads) -> None:
        if not t.whole:
            t.need_whole_warps(where)
        votes = by_warp(r[c], t)
        out: Array
        if word == "ballot":
            out = np.packbits(votes, axis=1, bitorder="little").view(np.int32)[:, 0]
        elif word == "any":
            out = np.logical_or.reduce(votes, axis=1)
        else:
            same = votes if word == "all" else votes == votes[:, :1]
            out = np.logical_and.reduce(same, axis=1)
        r[to] = np.repeat(out, WARP)

    return step


def _sync_warp(fn: FunctionReader, op: Any, where: Where) -> Step:
    _all_threads(fn, op, where)

    def step(r: Registers, t: Threads) -> None:
        if not t.whole:
            t.need_whole_warps(where)

    return step


def _load_matrices(fn: FunctionReader, op: Any, where: Where) -> Step:
    (a,) = fn.operands(op)
    (to,) = fn.results(op)
    count = int(ir.IntegerAttr(op.attributes["num"]).value)
    transposed = "col" in str(op.attributes["layout"])

    def step(r: Registers, t: Threads) -> None:
        if not t.whole:
            t.need_whole_warps(where)
        lanes = by_warp(r[a], t)[:, : 8 * count]
        who = by_warp(np.arange(t.count), t)[:, : 8 * count].reshape(-1)
        raw = t.block.shared.load(lanes.reshape(-1), 16, 16, t, where, who)
        matrices = raw.view(np.uint16).reshape(-1, count, 8, 8)
        if transposed:
            matrices = np.ascontiguousarray(matrices.swapaxes(2, 3))
        pairs = matrices.view(np.int32).reshape(-1, count, WARP)
        parts = tuple(pairs[:, i].reshape(-1) for i in range(count))
        r[to] = parts if count > 1 else parts[0]

    return step


def _numbers(registers: list[Array], kind: str, t: Threads) -> Array:
    """Registers of two numbers of 16 bits each, `[registers, warps, 8, 8]`: lane `4 r + c` has of
    row `r` columns 2c and 2c + 1."""
    held: Array
    if registers[0].ndim == 2:
        held = np.empty((len(registers), t.count, 2), registers[0].dtype)
    else:
        held = np.empty((len(registers), t.count), np.int32)
    for i, register in enumerate(registers):
        held[i] = register
    if kind == "f16":
        numbers = held.view(np.float16)
    else:
        numbers = (held.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return numbers.reshape(len(registers), -1, 8, 8)


def _mma(fn: FunctionReader, op: Any, where: Where) -> Step:
    """Products are exact, sums are made in f64 and rounded to f32 once."""
    slots = fn.operands(op)
    (to,) = fn.results(op)
    shape = str(op.attributes["shape"]).replace(" ", "")
    if shape != "#nvvm.shape<m=16,n=8,k=16>" or len(slots) != 10:
        raise LockstepError(f"expected a 16x8x16 product, got {shape} of {where}")
    kind = str(op.attributes["multiplicandAPtxType"]).removeprefix("#nvvm.mma_type<").rstrip(">")
    a, b, c = slots[:4], slots[4:6], slots[6:]

    def step(r: Registers, t: Threads) -> None:
        if not t.whole:
            t.need_whole_warps(where)
        warps = t.count // WARP
        first, second = (
            _numbers([r[slot] for slot in a], kind, t),
            _numbers([r[slot] for slot in b], kind, t),
        )
        left, right = np.empty((2, warps, 8, 16)), np.empty((warps, 8, 16))
        left[..., :8], left[..., 8:] = first[:2], first[2:]
        right[..., :8], right[..., 8:] = second[0], second[1]
        products = (left @ right.swapaxes(1, 2)).reshape(2, -1, 2)
        r[to] = tuple(
            (products[i // 2, :, i % 2] + r[slot]).astype(np.float32) for i, slot in enumerate(c)
        )

    return step


READERS: dict[str, Callable[[FunctionReader, Any, Where], Step | None]] = {
    "nvvm.read.ptx.sreg.tid.x": _who(lambda t: t.ids),
    "nvvm.read.ptx.sreg.laneid": _who(lambda t: t.ids & (WARP - 1)),
    "nvvm.read.ptx.sreg.ntid.x": _who(lambda t: np.array([t.block.threads], np.int32)),
    "nvvm.read.ptx.sreg.ctaid.x": _who(lambda t: np.array([t.block.number], np.int32)),
    "nvvm.read.ptx.sreg.nctaid.x": _who(lambda t: np.array([t.machine.blocks], np.int32)),
    "nvvm.read.ptx.sreg.globaltimer": _who(_clock),
    "nvvm.shfl.sync": _shuffle,
    "nvvm.vote.sync": _vote,
    "nvvm.bar.warp.sync": _sync_warp,
    "nvvm.ldmatrix": _load_matrices,
    "nvvm.mma.sync": _mma,
}
