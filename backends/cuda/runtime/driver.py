"""What the runtime needs of a device, as a protocol: `native.py` has it over the CUDA driver API.

Everything is 64-bit integers and bytes, so that a simulated device can stand in for a real one.
All copies and launches of a device are on one stream: they happen in order, and the host goes on.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Member = Callable[[str], memoryview | None]
"""Bytes of a file of the programs by name; None where there is no such file."""


@dataclass(frozen=True)
class DeviceFacts:
    """What a device says of itself.

    Attributes:
        name: as its maker calls it.
        capability: the compute capability, `(9, 0)`.
        multiprocessors: how many there are.
        memory_bytes, l2_bytes: of all of it.
        memory_bytes_per_s: by its clock and width; 0 where the driver does not tell.
        shared_bytes_per_sm: shared memory of a multiprocessor.
        shared_bytes_per_block: of it a block may have.
        cooperative: whether blocks of a launch may wait for each other.
        cuda: the CUDA version that the driver is made for, `(12, 4)`.
    """

    name: str
    capability: tuple[int, int]
    multiprocessors: int
    memory_bytes: int
    memory_bytes_per_s: float
    l2_bytes: int
    shared_bytes_per_sm: int
    shared_bytes_per_block: int
    cooperative: bool
    cuda: tuple[int, int]

    def __str__(self) -> str:
        major, minor = self.capability
        return f"{self.name}, compute capability {major}.{minor}"


@dataclass(frozen=True)
class KernelLaunch:
    """A launch that can be done again and again.

    Attributes:
        function: what `Device.function` gave.
        grid: blocks.
        threads: of a block.
        shared_bytes: of dynamic shared memory.
        arguments: integers of up to 64 bits and addresses.
        cooperative: all blocks run at once, and may wait for each other.
    """

    function: Any
    grid: int
    threads: int
    shared_bytes: int
    arguments: Sequence[int]
    cooperative: bool = False

    @cached_property
    def parameters(self) -> ctypes.Array[ctypes.c_void_p]:
        """Pointers to the arguments, as the driver wants them; arguments of fewer bits are the
        first bytes of eight."""
        values = (ctypes.c_uint64 * len(self.arguments))(
            *(value & 0xFFFF_FFFF_FFFF_FFFF for value in self.arguments)
        )
        start = ctypes.addressof(values)
        pointers = (ctypes.c_void_p * len(values))(*(start + 8 * i for i in range(len(values))))
        pointers.values = values  # type: ignore[attr-defined]  # lives as long as the pointers
        return pointers


class Device(Protocol):
    """An open device.

    A call that fails raises InternalError with its name and the driver's word for it; too little
    memory is a UserError (INF2101).
    """

    facts: DeviceFacts

    def use(self) -> None:
        """Make the device this thread's: before anything else, in every thread."""

    def free_bytes(self) -> int:
        """Bytes that can be allocated."""

    def allocate(self, size_bytes: int) -> int:
        """Address of bytes, aligned to 256."""

    def free(self, address: int) -> None:
        """Give bytes back, once all that was begun has ended."""

    def pinned(self, size_bytes: int) -> NDArray[np.uint8]:
        """Bytes of host memory that copies read and write while the host goes on; the device frees
        them when it is closed."""

    def upload(self, address: int, data: NDArray[Any]) -> None:
        """Begin to copy a contiguous array to the device; pinned ones must not change meanwhile."""

    def download(self, data: NDArray[Any], address: int) -> None:
        """Begin to copy from the device into a contiguous array."""

    def copy(self, target: int, source: int, size_bytes: int) -> None:
        """Begin to copy on the device."""

    def fill(self, address: int, size_bytes: int, byte: int) -> None:
        """Begin to set bytes."""

    def load_module(self, name: str, member: Member) -> Any:
        """Load `NAME.cubin` where it fits the device, else have `NAME.ptx` translated.

        Raises:
            UserError: INF4005 where the driver cannot take it.
        """

    def function(self, module: Any, name: str, shared_bytes: int) -> Any:
        """A kernel, allowed so many bytes of dynamic shared memory."""

    def blocks_per_multiprocessor(self, function: Any, threads: int, shared_bytes: int) -> int:
        """Blocks of a kernel that fit on a multiprocessor."""

    def launch(self, launch: KernelLaunch) -> None:
        """Begin to run a kernel."""

    def capture(self, launches: Sequence[KernelLaunch]) -> Any:
        """A graph of launches in order."""

    def launch_graph(self, graph: Any) -> None:
        """Begin to run a graph."""

    def record(self) -> Any:
        """A mark behind all that was begun."""

    def wait(self, mark: Any) -> None:
        """Wait until all before a mark has ended."""

    def seconds(self, start: Any, stop: Any) -> float:
        """Time between two marks that have been reached, to about a microsecond."""

    def forget(self, mark: Any) -> None:
        """Let go of a mark."""

    def synchronize(self) -> None:
        """Wait for everything; raises what went wrong meanwhile."""

    def close(self) -> None:
        """Let go of modules, graphs and pinned memory."""
