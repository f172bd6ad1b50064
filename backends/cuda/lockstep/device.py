"""A device of the runtime whose kernels the lockstep interpreter executes: everything at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infc.backends.cuda.lockstep.launch import launch
from infc.backends.cuda.lockstep.memory import Device as GlobalMemory
from infc.backends.cuda.lockstep.reading import Program
from infc.backends.cuda.runtime.driver import DeviceFacts, KernelLaunch, Member


class LockstepDevice:
    """Implements `infc.backends.cuda.runtime.driver.Device`.

    Args:
        programs: the modules of kernels, by name.
        facts: what it is taken for.
    """

    def __init__(self, programs: Mapping[str, Program], facts: DeviceFacts) -> None:
        self.facts = facts
        self._programs = programs
        self._memory = GlobalMemory()

    def use(self) -> None:
        """It is any thread's."""

    def free_bytes(self) -> int:
        """What the memory has; the host's sets the limit."""
        return self.facts.memory_bytes

    def allocate(self, size_bytes: int) -> int:
        """Address of bytes that nobody wrote."""
        return self._memory.allocate(size_bytes)

    def free(self, address: int) -> None:
        """Nothing: what little it holds ends with it."""

    def pinned(self, size_bytes: int) -> NDArray[np.uint8]:
        """Any bytes: nothing goes on meanwhile."""
        return np.zeros(size_bytes, np.uint8)

    def upload(self, address: int, data: NDArray[Any]) -> None:
        """Copy to the device."""
        self._memory.write(address, data)

    def download(self, data: NDArray[Any], address: int) -> None:
        """Copy from the device."""
        data.reshape(-1)[:] = self._memory.read(address, data.dtype, data.size)

    def copy(self, target: int, source: int, size_bytes: int) -> None:
        """Copy on the device."""
        self._memory.copy(target, source, size_bytes)

    def fill(self, address: int, size_bytes: int, byte: int) -> None:
        """Set bytes."""
        self._memory.fill(address, size_bytes, byte)

    def load_module(self, name: str, member: Member) -> Any:
        """The kernels as they were built, in place of their PTX."""
        return self._programs[name]

    def function(self, module: Any, name: str, shared_bytes: int) -> Any:
        """A kernel."""
        return module, name

    def blocks_per_multiprocessor(self, function: Any, threads: int, shared_bytes: int) -> int:
        """One: results do not depend on it."""
        return 1

    def launch(self, launch_: KernelLaunch) -> None:
        """Run a kernel to its end; raises LockstepError where it does what it must not."""
        program, name = launch_.function
        launch(
            program,
            name,
            grid=launch_.grid,
            threads=launch_.threads,
            arguments=launch_.arguments,
            device=self._memory,
            shared_bytes=launch_.shared_bytes,
        )

    def capture(self, launches: Sequence[KernelLaunch]) -> Any:
        """The launches."""
        return list(launches)

    def launch_graph(self, graph: Any) -> None:
        """Run them."""
        for each in graph:
            self.launch(each)

    def record(self) -> Any:
        """Nothing: all that was begun has ended."""

    def wait(self, mark: Any) -> None:
        """For nothing."""

    def seconds(self, start: Any, stop: Any) -> float:
        """It has no clock."""
        return 0.0

    def forget(self, mark: Any) -> None:
        """A mark is nothing."""

    def synchronize(self) -> None:
        """All that was begun has ended."""

    def close(self) -> None:
        """Nothing is open."""
