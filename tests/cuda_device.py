"""Devices without a GPU: the runtime's protocol over the memory of the lockstep interpreter.

What was begun waits in a queue until somebody waits for it, as on a real device: a host that
changes pinned memory too early, or reads it too early, shows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infc.backends.cuda.lockstep.memory import Device as GlobalMemory
from infc.backends.cuda.runtime.driver import DeviceFacts, KernelLaunch, Member

FACTS = DeviceFacts(
    name="Test Device",
    capability=(9, 0),
    multiprocessors=3,
    memory_bytes=80 << 30,
    memory_bytes_per_s=3.35e12,
    l2_bytes=50 << 20,
    shared_bytes_per_sm=228 << 10,
    shared_bytes_per_block=227 << 10,
    cooperative=True,
    cuda=(13, 0),
)

Kernel = Callable[["QueuedDevice", KernelLaunch], None]


@dataclass
class Mark:
    """A place in the queue; reached once all before it was done."""

    reached: bool = False


class QueuedDevice:
    """Implements `infc.backends.cuda.runtime.driver.Device`.

    Args:
        kernels: what a launch does, by the kernel's name.

    Attributes:
        launched: names of the kernels in the order they ran.
    """

    def __init__(
        self,
        kernels: Mapping[str, Kernel] | None = None,
        *,
        facts: DeviceFacts = FACTS,
        free: int = 1 << 30,
    ) -> None:
        self.kernels = dict(kernels or {})
        self.facts = facts
        self.memory = GlobalMemory()
        self.sizes: dict[int, int] = {}
        self.launched: list[str] = []
        self.graphs = 0
        self.closed = False
        self._free = free
        self._pinned: list[NDArray[np.uint8]] = []
        self._queue: list[Callable[[], None]] = []

    def use(self) -> None:
        assert not self.closed

    def free_bytes(self) -> int:
        return self._free - sum(self.sizes.values())

    def allocate(self, size_bytes: int) -> int:
        address = self.memory.allocate(size_bytes)
        self.sizes[address] = size_bytes
        return address

    def free(self, address: int) -> None:
        self.synchronize()
        del self.sizes[address]

    def pinned(self, size_bytes: int) -> NDArray[np.uint8]:
        self._pinned.append(np.full(size_bytes, 0xA5, np.uint8))
        return self._pinned[-1]

    def upload(self, address: int, data: NDArray[Any]) -> None:
        assert data.flags.c_contiguous
        held = data if self._is_pinned(data) else data.copy()
        self._queue.append(lambda: self.memory.write(address, held))

    def download(self, data: NDArray[Any], address: int) -> None:
        assert data.flags.c_contiguous

        def copy() -> None:
            data.reshape(-1)[:] = self.memory.read(address, data.dtype, data.size)

        self._queue.append(copy)
        if not self._is_pinned(data):
            self.synchronize()

    def copy(self, target: int, source: int, size_bytes: int) -> None:
        self._queue.append(lambda: self.memory.copy(target, source, size_bytes))

    def fill(self, address: int, size_bytes: int, byte: int) -> None:
        self._queue.append(lambda: self.memory.fill(address, size_bytes, byte))

    def load_module(self, name: str, member: Member) -> Any:
        return name

    def function(self, module: Any, name: str, shared_bytes: int) -> Any:
        assert shared_bytes <= self.facts.shared_bytes_per_block
        return (module, name)

    def blocks_per_multiprocessor(self, function: Any, threads: int, shared_bytes: int) -> int:
        return 1

    def launch(self, launch: KernelLaunch) -> None:
        assert not launch.cooperative or launch.grid <= self.facts.multiprocessors
        self._queue.append(lambda: self._run(launch))

    def _run(self, launch: KernelLaunch) -> None:
        self.launched.append(launch.function[1])
        self.kernels[launch.function[1]](self, launch)

    def capture(self, launches: Sequence[KernelLaunch]) -> Any:
        return list(launches)

    def launch_graph(self, graph: Any) -> None:
        self.graphs += 1
        for launch in graph:
            self.launch(launch)

    def record(self) -> Any:
        mark = Mark()
        self._queue.append(lambda: setattr(mark, "reached", True))
        return mark

    def wait(self, mark: Any) -> None:
        while not mark.reached:
            self._do_next()

    def _do_next(self) -> None:
        try:
            self._queue.pop(0)()
        except BaseException:
            self._queue.clear()  # a fault ends all that was begun
            raise

    def forget(self, mark: Any) -> None:
        pass

    def seconds(self, start: Any, stop: Any) -> float:
        assert start.reached
        assert stop.reached
        return 1e-6

    def synchronize(self) -> None:
        while self._queue:
            self._do_next()

    def close(self) -> None:
        self.synchronize()
        self.closed = True

    def _is_pinned(self, data: NDArray[Any]) -> bool:
        return any(np.may_share_memory(data, pinned) for pinned in self._pinned)
