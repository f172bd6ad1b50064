"""Running a kernel: all blocks of the grid at once, in turns or in any order."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from infc.backends.cuda.lockstep.memory import Array, Device
from infc.backends.cuda.lockstep.reading import FunctionReader, Program, read
from infc.backends.cuda.lockstep.threads import (
    WARP,
    Block,
    LockstepError,
    Machine,
    Running,
    Threads,
    together,
)
from infc.ir.mlir import ir


def launch(
    module: ir.OpView | Program,
    kernel: str,
    *,
    grid: int,
    threads: int,
    arguments: Sequence[int | float],
    device: Device,
    shared_bytes: int = 0,
    seed: int | None = None,
) -> None:
    """Run `grid` blocks of `threads` threads of a kernel to the end.

    Args:
        module: a `gpu.module` as `GpuBuilder` made it, or what `read` made of one (which saves
            reading it again).
        kernel: the name of the entry point.
        arguments: addresses of `device` and numbers.
        shared_bytes: dynamic shared memory of a block.
        seed: `None`: the warps of a block run together as long as they can, blocks in turn. A
            number: every warp runs by itself, and who goes on is drawn by lot; slower.

    Raises:
        LockstepError: the kernel does what it must not.
    """
    program = module if isinstance(module, Program) else read(module, kernel)
    function = program.function(kernel)
    if function.threads not in (None, threads):
        raise LockstepError(f"@{kernel} is for {function.threads} threads, got {threads}")
    machine = Machine(device, grid, None if seed is None else random.Random(seed))
    values = _values(function, arguments)
    groups: list[Running] = []
    blocks = [Block(machine, number, threads, shared_bytes) for number in range(grid)]
    for block in blocks:
        ids = np.arange(threads, dtype=np.int32)
        size = threads if seed is None else WARP
        parts = [Threads(block, ids[at : at + size]) for at in range(0, threads, size)]
        groups += [_run(function, values, part) for part in parts]
    with np.errstate(all="ignore"):
        _schedule(machine, blocks, groups)
    for block in blocks:
        if block.later:
            raise LockstepError(
                f"@{kernel}: block {block.number} ends before its copies have landed"
            )


def _values(function: FunctionReader, arguments: Sequence[int | float]) -> list[Array]:
    kinds = function.argument_kinds
    if len(kinds) != len(arguments):
        raise LockstepError(f"@{function.name} takes {len(kinds)} arguments, got {len(arguments)}")
    return [np.array([value], kind.dtype) for kind, value in zip(kinds, arguments, strict=True)]


def _run(function: FunctionReader, values: list[Array], threads: Threads) -> Running:
    registers: list[Any] = function.constants.copy()
    for slot, value in zip(function.body.arguments, values, strict=True):
        registers[slot] = value
    yield from function.body.go(registers, threads)


_PATIENCE = 200
"""Rounds of a drawn order in which nobody went on, after which it is a deadlock."""


def _schedule(machine: Machine, blocks: list[Block], groups: list[Running]) -> None:
    """Run all to the end; the copy engines work between the turns."""
    idle = 0
    seen = machine.progress
    for _ in together(machine, groups):
        for block in blocks:
            if block.later:
                block.deliver()
        idle = idle + 1 if machine.progress == seen else 0
        seen = machine.progress
        if idle > (1 if machine.dice is None else _PATIENCE):
            lines = [f"{who} at {w}: {what()}" for who, (w, what) in machine.waiting.items()]
            note = "" if machine.dice else " (the warps of a block run together without a seed)"
            raise LockstepError(f"nobody can go on{note}; " + "; ".join(lines))
