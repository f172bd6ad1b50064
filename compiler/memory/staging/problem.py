"""What is to be scheduled: steps that use blocks, a small fast memory, a large slow one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from infc.diagnostics import Code, InternalError, UserError
from infc.diagnostics.quantities import human_bytes


@dataclass(frozen=True)
class Machine:
    """The memories, as one program sees them.

    Attributes:
        capacity_bytes: of the scratchpad (SRAM).
        bandwidth_bytes_per_s: between it and the far memory, both directions together; transfers
            that are under way at the same time share it evenly.
        latency_seconds: from the start of a transfer to its first byte.
        queues: DMA queues: transfers of one queue run one after the other.
        direct_reads: steps can read far memory themselves, while they compute.
        align_bytes: of every offset in the scratchpad.
    """

    capacity_bytes: int
    bandwidth_bytes_per_s: float
    latency_seconds: float = 0.0
    queues: int = 1
    direct_reads: bool = False
    align_bytes: int = 64

    def __post_init__(self) -> None:
        if self.capacity_bytes < 1:
            raise UserError(
                Code.PLAN,
                f"expected a scratchpad of at least one byte, got {self.capacity_bytes} bytes",
            )
        if not 0 < self.bandwidth_bytes_per_s < math.inf:
            raise UserError(
                Code.PLAN,
                "expected a far memory with a finite bandwidth above zero, got "
                f"{self.bandwidth_bytes_per_s} bytes a second",
            )
        if not 0 <= self.latency_seconds < math.inf:
            raise UserError(
                Code.PLAN,
                f"expected a latency of at least zero, got {self.latency_seconds} seconds",
            )
        if self.queues < 1:
            raise UserError(Code.PLAN, f"expected at least one DMA queue, got {self.queues}")
        if self.align_bytes < 1:
            raise InternalError(f"expected an alignment of at least 1, got {self.align_bytes}")

    def rounded(self, size_bytes: int) -> int:
        """Bytes that a piece takes in the scratchpad."""
        return -(-size_bytes // self.align_bytes) * self.align_bytes


@dataclass(frozen=True)
class Block:
    """Some bytes that steps use.

    Attributes:
        name: unique in a problem.
        starts_far: it lies in far memory before the first step (a weight, a cache, an input).
        ends_far: it must lie there after the last one (an output, a row of a cache).
    """

    name: str
    size_bytes: int
    starts_far: bool = False
    ends_far: bool = False


@dataclass(frozen=True)
class Step:
    """One kernel: the blocks it uses lie in the scratchpad while it runs.

    Attributes:
        seconds: it computes for, with all of its blocks at hand.
        reads, writes: names of blocks; what is written is written whole.
        streamed: those of them that it uses front to back, evenly over its time, so that it can
            begin with a piece: the rows of a matrix, the positions of a cache.
        far_bytes: that it moves to or from far memory itself, whatever the schedule.
    """

    name: str
    seconds: float
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    streamed: frozenset[str] = frozenset()
    far_bytes: int = 0


@dataclass(frozen=True)
class StagingProblem:
    """Steps in the order they run.

    Attributes:
        repeats: the program runs again and again, so that blocks may stay in the scratchpad from
            one time to the next: what `starts_far` and is never written may be there at the start.

    Raises:
        InternalError: names, sizes or times make no sense, or a block is read that nobody wrote.
        UserError: INF2101, where a step's blocks cannot lie in the scratchpad together.
    """

    machine: Machine
    blocks: tuple[Block, ...]
    steps: tuple[Step, ...]
    repeats: bool = False

    def __post_init__(self) -> None:
        _check_blocks(self.blocks)
        known = self.block
        written = {block.name for block in self.blocks if block.starts_far}
        for step in self.steps:
            _check_step(step, known, written)
            written.update(step.writes)
        for block in self.blocks:
            if block.ends_far and block.name not in written:
                raise InternalError(f"block {block.name!r} must end in far memory, none writes it")
        for step in self.steps:
            self._check_room(step)

    @cached_property
    def block(self) -> Mapping[str, Block]:
        """The blocks by name."""
        return {block.name: block for block in self.blocks}

    @cached_property
    def divisible(self) -> frozenset[str]:
        """Blocks that every step which uses them streams: they may be cut into pieces."""
        whole = {
            name
            for step in self.steps
            for name in (*step.reads, *step.writes)
            if name not in step.streamed
        }
        return frozenset(self.block) - whole

    @cached_property
    def written(self) -> frozenset[str]:
        """Blocks that some step writes."""
        return frozenset(name for step in self.steps for name in step.writes)

    def may_be_direct(self, name: str) -> bool:
        """Whether steps can read a block where it lies in far memory."""
        block = self.block[name]
        return self.machine.direct_reads and block.starts_far and name not in self.written

    def _check_room(self, step: Step) -> None:
        """The blocks that must be there whole, and a few bytes of each that is streamed."""
        machine = self.machine
        whole = [
            name
            for name in dict.fromkeys((*step.reads, *step.writes))
            if name not in self.divisible and not self.may_be_direct(name)
        ]
        needed = sum(machine.rounded(self.block[name].size_bytes) for name in whole)
        if needed > machine.capacity_bytes:
            largest = max(whole, key=lambda name: self.block[name].size_bytes)
            raise UserError(
                Code.PLAN,
                f"step {step.name!r} needs {human_bytes(needed)} on chip at once, the scratchpad "
                f"has {human_bytes(machine.capacity_bytes)}",
                notes=[
                    f"its largest block is {largest!r} of "
                    f"{human_bytes(self.block[largest].size_bytes)}"
                ],
                hint="cut the step into smaller ones, or let it stream its largest block",
            )


def _check_blocks(blocks: tuple[Block, ...]) -> None:
    seen: set[str] = set()
    for block in blocks:
        if block.name in seen:
            raise InternalError(f"two blocks are named {block.name!r}")
        seen.add(block.name)
        if block.size_bytes < 0:
            raise InternalError(f"block {block.name!r} has a negative size: {block.size_bytes}")


def _check_step(step: Step, known: Mapping[str, Block], written: set[str]) -> None:
    if not 0 <= step.seconds < math.inf or step.far_bytes < 0:
        raise InternalError(
            f"step {step.name!r} must take a time and move bytes of at least zero, got "
            f"{step.seconds} seconds and {step.far_bytes} bytes"
        )
    for name in (*step.reads, *step.writes, *sorted(step.streamed)):
        if name not in known:
            raise InternalError(f"step {step.name!r} uses {name!r}, which is no block")
    for name in step.reads:
        if name not in written:
            raise InternalError(f"step {step.name!r} reads {name!r} before anything wrote it")
