"""The memories of a machine, and the check of every access to them."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from typing import Final, NamedTuple, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from infc.backends.dataflow.program import Image, Space
from infc.backends.dataflow.simulator.compiled import bare_part
from infc.backends.dataflow.simulator.errors import Fault
from infc.backends.dataflow.simulator.walk import Ints
from infc.diagnostics import Code, InternalError, UserError
from infc.diagnostics.quantities import human_bytes

Bytes: TypeAlias = NDArray[np.uint8]

_MAP_NORESERVE: Final = 0x4000
"""Of Linux; `mmap` names it from Python 3.13 on."""
LINE_BYTES: Final = 64
"""Far addresses count lines of this many bytes."""
_FAR: Final[tuple[Space, ...]] = ("far0", "far1")

# What compiled code returns where an instruction is refused; 0 is none.
BOUNDS: Final = 1
ALIGNMENT: Final = 2
LIMIT: Final = 3
NEGATIVE: Final = 4
OVERLAP: Final = 5
MULTIPLE: Final = 6
COUNT: Final = 7
OWNER: Final = 8
GRID: Final = 9
SCALAR: Final = 10
REFUSALS: Final = {
    BOUNDS: (Fault.BOUNDS, "expected {operand} inside {expected} bytes, got bytes {got} to {end}"),
    ALIGNMENT: (Fault.ALIGNMENT, "expected {operand} at a multiple of {expected} bytes, got {got}"),
    LIMIT: (Fault.LIMIT, "expected {operand} of at most {expected}, got {got}"),
    NEGATIVE: (Fault.OPERAND, "expected {operand} of at least 0, got {got}"),
    OVERLAP: (Fault.OPERAND, "expected {operand} apart from d, got bytes {got} to {end} of both"),
    MULTIPLE: (Fault.OPERAND, "expected {operand} to be a multiple of {expected}, got {got}"),
    COUNT: (Fault.LIMIT, "expected at most {expected} in a semaphore, got {got}"),
    GRID: (Fault.OPERAND, "expected cores inside the grid, got some outside"),
}
"""What each is, and a sentence about what is recorded in `problem`; `execute` words the others."""

# Operands in the record of a problem.
D: Final = 0
A: Final = 1
B: Final = 2
C: Final = 3
N: Final = 4
M: Final = 5
K: Final = 6
OPERANDS: Final = "dabcnmk"


@dataclass(frozen=True)
class Memory:
    """The contents of all memories.

    Attributes:
        sram: uint8 [cores, bytes].
        far: uint8 [chips, bytes] of each tier, as far as the image's regions go.
    """

    sram: Bytes
    far: tuple[Bytes, Bytes]

    @classmethod
    def of(cls, image: Image) -> Self:
        """Memory for an image, all zeros; what nobody writes takes no memory of the host."""
        ends = dict.fromkeys(_FAR, 0)
        for region in image.regions:
            if region.space != "sram":
                end = region.address_bytes + region.size_bytes
                ends[region.space] = max(ends[region.space], -(-end // LINE_BYTES) * LINE_BYTES)
        far0, far1 = (_untouched(image.chips, ends[space]) for space in _FAR)
        return cls(np.zeros((image.cores, image.sram_bytes), np.uint8), (far0, far1))

    def places(self) -> Places:
        """Where the bytes are; they must outlive it."""
        for array in (self.sram, *self.far):
            if array.dtype != np.uint8 or not array.flags.carray:
                raise InternalError("expected memory as contiguous arrays of uint8, got others")
        (sram, sram_bytes), *far = ((a.ctypes.data, a.shape[1]) for a in (self.sram, *self.far))
        return Places(sram, sram_bytes, *far[0], *far[1])


def _untouched(chips: int, size_bytes: int) -> Bytes:
    """Zeros `uint8[chips, size_bytes]` that take no memory of the host before they are written, nor
    a promise of it: the far memories of many chips are larger than it.

    Raises:
        UserError: the host has not as many addresses for this process (INF4005).
    """
    if not chips * size_bytes:
        return np.zeros((chips, size_bytes), np.uint8)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
    try:
        mapped = mmap.mmap(-1, chips * size_bytes, flags=flags)
    except (OSError, OverflowError, MemoryError, ValueError) as error:
        raise UserError(
            Code.ARTIFACT_HOST,
            f"the memories of the simulated machine take {human_bytes(chips * size_bytes)} of "
            f"addresses, which this host does not give: {error}",
            hint="lift the limit on addresses (ulimit -v, vm.overcommit_memory)",
        ) from None
    return np.frombuffer(mapped, np.uint8).reshape(chips, size_bytes)


class Places(NamedTuple):
    """Addresses of the memories of core 0 and of chip 0, and the bytes of each core and chip."""

    sram: int
    sram_bytes: int
    far0: int
    far0_bytes: int
    far1: int
    far1_bytes: int


@bare_part
def refused(
    problem: Ints,
    operand: int,
    begin: int,
    rows: int,
    row_bytes: int,
    stride: int,
    align: int,
    size: int,
) -> int:
    """The fault of an access to `rows` rows of `row_bytes` from `begin` on, or 0.

    `problem` is then what was expected and got: operand, expected, begin and end.
    """
    end = begin + (rows - 1) * stride + row_bytes
    if begin < 0 or end > size:
        problem[0], problem[1], problem[2], problem[3] = operand, size, begin, end
        return BOUNDS
    if begin % align or (rows > 1 and stride % align):
        problem[0], problem[1], problem[2] = operand, align, begin if begin % align else stride
        return ALIGNMENT
    return 0


@bare_part
def above(problem: Ints, operand: int, value: int, limit: int) -> int:
    """The fault of a count that is negative or above what the unit does at once, or 0."""
    if 0 <= value <= limit:
        return 0
    problem[0], problem[1], problem[2] = operand, limit, value
    return LIMIT if value > limit else NEGATIVE


@bare_part
def overlap(problem: Ints, operand: int, d: int, d_bytes: int, a: int, a_bytes: int) -> int:
    """The fault of a source that shares bytes with the destination, or 0."""
    begin, end = max(d, a), min(d + d_bytes, a + a_bytes)
    if begin < end:
        problem[0], problem[2], problem[3] = operand, begin, end
        return OVERLAP
    return 0


@bare_part
def uneven(problem: Ints, operand: int, value: int, of: int) -> int:
    """The fault of a count that is no multiple, or 0."""
    if value % of:
        problem[0], problem[1], problem[2] = operand, of, value
        return MULTIPLE
    return 0
