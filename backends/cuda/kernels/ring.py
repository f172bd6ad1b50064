"""The ring of shared memory through which products get their weights.

One warp (`WARPS`, the ninth) fills slots with contiguous runs of weights and waits for nothing but
free slots, so that it stays ahead of the warps that work, over kernels and barriers of the grid.
Both sides count the slots they have used: number `count` lies in slot `count % slots` and is that
slot's use `count // slots`. Each slot has two barriers in the first bytes of shared memory: `full`,
whose phases end when a use is filled, and `empty`, whose phases end when the workers are through.
"""

from __future__ import annotations

from dataclasses import dataclass

from infc.backends.cuda.codegen.builder import WARP, GpuBuilder, Value
from infc.backends.cuda.kernels.frame import WARPS, WORK_OFFSET

_BARRIER_BYTES = 8
_UNIT_BYTES = 16
"""What a lane copies at once where there are no bulk copies."""
_UNITS_AT_ONCE = 8


@dataclass(frozen=True)
class Ring:
    """Where the ring lies in shared memory.

    Attributes:
        slots: how many.
        slot_bytes: of each, a multiple of 128.
        offset: of the first slot, behind the work of all kernels; a multiple of 128.
    """

    slots: int
    slot_bytes: int
    offset: int

    def __post_init__(self) -> None:
        if not 1 <= self.slots <= WORK_OFFSET // (2 * _BARRIER_BYTES):
            raise ValueError(f"a ring has 1 .. {WORK_OFFSET // 16} slots, got {self.slots}")
        if self.slot_bytes < 1 or self.slot_bytes % 128 or self.offset % 128:
            raise ValueError(f"slots are multiples of 128 bytes, got {self}")

    @property
    def end(self) -> int:
        """Bytes of shared memory of a kernel with this ring."""
        return self.offset + self.slots * self.slot_bytes

    def emit_init(self, b: GpuBuilder) -> None:
        """Initialise the barriers at the start of a kernel; then the whole block meets."""

        def initialise() -> None:
            filled = 1 if b.compute_capability >= 90 else WARP
            for slot in range(self.slots):
                b.mbarrier_init(b.shared_memory(_BARRIER_BYTES * slot), filled)
                b.mbarrier_init(b.shared_memory(_BARRIER_BYTES * (self.slots + slot)), WARPS)
            b.fence_mbarrier_init()

        b.when(b.cmp("eq", b.thread(), 0), initialise)

    def wait_full(self, b: GpuBuilder, count: Value) -> Value:
        """Wait, as a warp that works, until use number `count` (i32) is filled; where it lies."""
        full, _ = self._barriers(b, count)
        b.mbarrier_wait(full, b.bit_and(b.div(count, self.slots), 1))
        return self._slot(b, count)

    def release(self, b: GpuBuilder, count: Value) -> None:
        """Say, as each warp that works, that it has read all it wants of use number `count`."""
        _, empty = self._barriers(b, count)
        b.sync_warp()
        b.when(b.cmp("eq", b.lane(), 0), lambda: b.mbarrier_arrive(empty))

    def fill(self, b: GpuBuilder, count: Value, source: Value, size_bytes: Value) -> None:
        """Fill use number `count`, as the whole ninth warp, as soon as its slot is free.

        Args:
            b: the builder.
            count: i32.
            source: global memory, 16-aligned.
            size_bytes: i32, a multiple of 32 up to `slot_bytes`.
        """
        full, empty = self._barriers(b, count)
        slot = self._slot(b, count)
        # A phase before the first is taken as ended: the first use waits for nothing.
        parity = b.bit_and(b.add(b.div(count, self.slots), 1), 1)
        if b.compute_capability >= 90:

            def copy() -> None:
                b.mbarrier_wait(empty, parity)
                b.mbarrier_expect(full, size_bytes)
                b.copy_bulk(slot, source, size_bytes, full)

            b.when(b.cmp("eq", b.lane(), 0), copy)
            return
        b.mbarrier_wait(empty, parity)
        mine = b.mul(b.lane(), _UNIT_BYTES)
        stride = WARP * _UNIT_BYTES

        def copy_unit(place: Value) -> None:
            def copy() -> None:
                b.copy_async(b.at(slot, place), b.at(source, place))

            b.when(b.cmp("slt", place, size_bytes), copy)

        def copy_units(offset: Value) -> None:
            for unit in range(_UNITS_AT_ONCE):
                copy_unit(b.add(b.add(offset, mine), unit * stride))

        b.loop(0, size_bytes, stride * _UNITS_AT_ONCE, body=copy_units)
        b.copy_arrive(full)

    def _slot(self, b: GpuBuilder, count: Value) -> Value:
        offset = b.mul(b.rem(count, self.slots), self.slot_bytes)
        return b.at(b.shared_memory(self.offset), offset)

    def _barriers(self, b: GpuBuilder, count: Value) -> tuple[Value, Value]:
        """The barriers `full` and `empty` of use number `count`."""
        full = b.at(b.shared_memory(), b.mul(b.rem(count, self.slots), _BARRIER_BYTES))
        return full, b.at(full, _BARRIER_BYTES * self.slots)


@dataclass(frozen=True)
class Runs:
    """How the blocks of a panel are cut into what a slot holds, part by part.

    Attributes:
        size: blocks of each run but the last of a part.
        count: runs of each part but the last.
        last: blocks of the last of them.
        parts: how many parts.
        tail: blocks of the last part.
    """

    size: int
    count: int
    last: int
    parts: int
    tail: int

    @staticmethod
    def of(blocks: int, block_bytes: int, slot_bytes: int, part_blocks: int) -> Runs:
        """Runs of about the same size that give all warps as many blocks where that is possible,
        best in fours. Block `i` of a panel is the warp's with number `i % 8`, however it is cut.

        Args:
            blocks: of a panel.
            block_bytes: of each.
            slot_bytes: of a slot: room for a panel, or for eight blocks at least.
            part_blocks: blocks of each part but the last, a multiple of 8 where there are more.
        """
        most, part = slot_bytes // block_bytes, part_blocks
        if most < min(part, WARPS):
            raise ValueError(f"{WARPS} blocks of {block_bytes} bytes are more than {slot_bytes}")
        unit = 4 * WARPS if most >= 4 * WARPS else WARPS
        size = part
        if part > most:
            count = -(-part // (most // unit * unit))
            size = -(-part // (count * unit)) * unit
        count = -(-part // size)
        parts = -(-blocks // part)
        return Runs(size, count, part - (count - 1) * size, parts, blocks - (parts - 1) * part)

    @property
    def tail_count(self) -> int:
        """Runs of the last part."""
        return -(-self.tail // self.size)

    def counted(self, b: GpuBuilder, part: Value) -> Value:
        """Runs of a part, i32."""
        return self._of_part(b, part, self.count, self.tail_count)

    def blocks(self, b: GpuBuilder, part: Value, run: Value) -> Value:
        """Blocks of a run of a part, i32."""
        tail_last = self.tail - (self.tail_count - 1) * self.size
        last = self._of_part(b, part, self.last, tail_last)
        if self.last == tail_last == self.size:
            return last
        is_last = b.cmp("eq", run, b.sub(self.counted(b, part), 1))
        return b.select(is_last, last, b.idx(self.size))

    def before(self, b: GpuBuilder, part: Value, run: Value) -> Value:
        """Blocks of the panel before a run of a part, i32."""
        here = b.mul(run, self.size)
        if self.parts == 1:
            return here
        return b.add(b.mul(part, self.last + (self.count - 1) * self.size), here)

    def _of_part(self, b: GpuBuilder, part: Value, usual: int, last: int) -> Value:
        if self.parts == 1 or usual == last:
            return b.idx(last)
        return b.select(b.cmp("eq", part, self.parts - 1), b.idx(last), b.idx(usual))
