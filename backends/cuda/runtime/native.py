"""A device through the CUDA driver API, by the package `cuda-bindings`; every call is checked."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infc.backends.cuda.runtime.driver import DeviceFacts, KernelLaunch, Member
from infc.backends.cuda.runtime.images import load_image
from infc.diagnostics import Code, InternalError, UserError
from infc.diagnostics.quantities import human_bytes

_OUT_OF_MEMORY = 2
_LOG_BYTES = 16384


class CudaError(InternalError):
    """A call of the driver failed.

    Attributes:
        number: its `CUresult`.
    """

    def __init__(self, call: str, number: int, name: str, text: str) -> None:
        self.number = number
        super().__init__(f"{call} failed: {name} ({text})")


class Api:
    """The functions of the driver by name; raises CudaError where one fails.

    Args:
        driver: the module `cuda.bindings.driver`.
    """

    def __init__(self, driver: ModuleType) -> None:
        self.driver = driver

    def call(self, name: str, *arguments: Any) -> Any:
        """What the function gives: nothing, one value, or a tuple."""
        answer = getattr(self.driver, name)(*arguments)
        result = answer[0]
        if result != 0:
            raise CudaError(name, int(result), *self._words(result))
        if len(answer) == 1:
            return None
        return answer[1] if len(answer) == 2 else answer[1:]

    def _words(self, result: Any) -> tuple[str, str]:
        """The name of a result and what it says."""
        words = []
        for function in (self.driver.cuGetErrorName, self.driver.cuGetErrorString):
            status, text = function(result)
            words.append("unknown" if int(status) else bytes(text).decode())
        return words[0], words[1]


def facts_of(api: Api, device: Any) -> DeviceFacts:
    """What a device says of itself; no context is made."""

    def attribute(name: str) -> int:
        which = getattr(api.driver.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
        return int(api.call("cuDeviceGetAttribute", which, device))

    name = api.call("cuDeviceGetName", 256, device)
    width = attribute("GLOBAL_MEMORY_BUS_WIDTH")
    version = int(api.call("cuDriverGetVersion"))
    return DeviceFacts(
        name=bytes(name).split(b"\0")[0].decode(),
        capability=(attribute("COMPUTE_CAPABILITY_MAJOR"), attribute("COMPUTE_CAPABILITY_MINOR")),
        multiprocessors=attribute("MULTIPROCESSOR_COUNT"),
        memory_bytes=int(api.call("cuDeviceTotalMem", device)),
        # kHz, two transfers each, and bits.
        memory_bytes_per_s=2e3 * attribute("MEMORY_CLOCK_RATE") * width / 8,
        l2_bytes=attribute("L2_CACHE_SIZE"),
        shared_bytes_per_sm=attribute("MAX_SHARED_MEMORY_PER_MULTIPROCESSOR"),
        shared_bytes_per_block=attribute("MAX_SHARED_MEMORY_PER_BLOCK_OPTIN"),
        cooperative=bool(attribute("COOPERATIVE_LAUNCH")),
        cuda=(version // 1000, version % 1000 // 10),
    )


class NativeDevice:
    """Implements `Device` in the device's primary context, which frameworks share."""

    def __init__(self, api: Api, device: Any) -> None:
        self._api = api
        self._device = device
        self.facts = facts_of(api, device)
        self._context = api.call("cuDevicePrimaryCtxRetain", device)
        self.use()
        non_blocking = 1
        self._stream = api.call("cuStreamCreate", non_blocking)
        self._modules: list[Any] = []
        self._graphs: list[Any] = []
        self._pinned: dict[int, NDArray[np.uint8]] = {}  # by address
        self._addresses: dict[int, int] = {}  # of pinned arrays, by `id`: quicker than to ask them

    def use(self) -> None:
        """Make the context this thread's."""
        self._api.call("cuCtxSetCurrent", self._context)

    def free_bytes(self) -> int:
        """Bytes that can be allocated."""
        return int(self._api.call("cuMemGetInfo")[0])

    def allocate(self, size_bytes: int) -> int:
        """Address of bytes, aligned to 256."""
        try:
            return int(self._api.call("cuMemAlloc", size_bytes))
        except CudaError as error:
            if error.number != _OUT_OF_MEMORY:
                raise
            raise self._no_memory(size_bytes) from None

    def _no_memory(self, size_bytes: int) -> UserError:
        return UserError(
            Code.PLAN,
            f"{self.facts.name} has no {human_bytes(size_bytes)} in one piece: "
            f"{human_bytes(self.free_bytes())} are free",
            hint="end other programs that use the device, or compile with a smaller --max-context "
            "or --max-batch",
        )

    def free(self, address: int) -> None:
        """Give bytes back."""
        self._api.call("cuMemFree", address)

    def pinned(self, size_bytes: int) -> NDArray[np.uint8]:
        """Page-locked host memory."""
        address = int(self._api.call("cuMemHostAlloc", size_bytes, 0))
        data = np.ctypeslib.as_array((ctypes.c_uint8 * size_bytes).from_address(address))
        self._pinned[address] = data
        self._addresses[id(data)] = address
        return data

    def upload(self, address: int, data: NDArray[Any]) -> None:
        """Begin to copy to the device."""
        source = self._addresses.get(id(data)) or data.ctypes.data
        self._api.call("cuMemcpyHtoDAsync", address, source, data.nbytes, self._stream)

    def download(self, data: NDArray[Any], address: int) -> None:
        """Begin to copy from the device."""
        self._api.call("cuMemcpyDtoHAsync", data.ctypes.data, address, data.nbytes, self._stream)

    def copy(self, target: int, source: int, size_bytes: int) -> None:
        """Begin to copy on the device."""
        self._api.call("cuMemcpyDtoDAsync", target, source, size_bytes, self._stream)

    def fill(self, address: int, size_bytes: int, byte: int) -> None:
        """Begin to set bytes."""
        self._api.call("cuMemsetD8Async", address, byte, size_bytes, self._stream)

    def load_module(self, name: str, member: Member) -> Any:
        """Machine code where it fits the device, else PTX."""
        module = load_image(name, member, self.facts, self._load)
        self._modules.append(module)
        return module

    def _load(self, image: bytes) -> Any:
        """Load machine code or PTX (ended by a zero byte).

        Raises:
            CudaError: the driver's log is among its notes.
        """
        option = self._api.driver.CUjit_option
        log = bytes(_LOG_BYTES)  # which the driver writes to: the package takes nothing else
        options = {
            option.CU_JIT_ERROR_LOG_BUFFER: log,
            option.CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES: _LOG_BYTES,
        }
        try:
            return self._api.call(
                "cuModuleLoadDataEx", image, len(options), list(options), list(options.values())
            )
        except CudaError as error:
            error.add_note(log.partition(b"\0")[0].decode(errors="replace").strip())
            raise

    def function(self, module: Any, name: str, shared_bytes: int) -> Any:
        """A kernel with its limit of shared memory raised."""
        function = self._api.call("cuModuleGetFunction", module, name.encode())
        which = self._api.driver.CUfunction_attribute
        limit = which.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        self._api.call("cuFuncSetAttribute", function, limit, shared_bytes)
        return function

    def blocks_per_multiprocessor(self, function: Any, threads: int, shared_bytes: int) -> int:
        """By registers, threads and shared memory."""
        name = "cuOccupancyMaxActiveBlocksPerMultiprocessor"
        return int(self._api.call(name, function, threads, shared_bytes))

    def launch(self, launch: KernelLaunch) -> None:
        """Begin to run a kernel."""
        shape = (launch.grid, 1, 1, launch.threads, 1, 1, launch.shared_bytes, self._stream)
        parameters = ctypes.addressof(launch.parameters)
        if launch.cooperative:
            self._api.call("cuLaunchCooperativeKernel", launch.function, *shape, parameters)
        else:
            self._api.call("cuLaunchKernel", launch.function, *shape, parameters, 0)

    def capture(self, launches: Sequence[KernelLaunch]) -> Any:
        """Launch into a graph instead of onto the device."""
        mode = self._api.driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._api.call("cuStreamBeginCapture", self._stream, mode)
        try:
            for launch in launches:
                self.launch(launch)
        finally:
            captured = self._api.call("cuStreamEndCapture", self._stream)
        graph = self._api.call("cuGraphInstantiate", captured, 0)
        self._api.call("cuGraphDestroy", captured)
        self._graphs.append(graph)
        return graph

    def launch_graph(self, graph: Any) -> None:
        """Begin to run a graph."""
        self._api.call("cuGraphLaunch", graph, self._stream)

    def record(self) -> Any:
        """An event behind all that was begun."""
        event = self._api.call("cuEventCreate", 0)
        self._api.call("cuEventRecord", event, self._stream)
        return event

    def wait(self, mark: Any) -> None:
        """Wait for an event."""
        self._api.call("cuEventSynchronize", mark)

    def seconds(self, start: Any, stop: Any) -> float:
        """Time between two events."""
        return float(self._api.call("cuEventElapsedTime", start, stop)) * 1e-3

    def forget(self, mark: Any) -> None:
        """Let go of an event."""
        self._api.call("cuEventDestroy", mark)

    def synchronize(self) -> None:
        """Wait for the stream."""
        self._api.call("cuStreamSynchronize", self._stream)

    def close(self) -> None:
        """Let go of everything but what was allocated."""
        self.use()
        for graph in self._graphs:
            self._api.call("cuGraphExecDestroy", graph)
        for module in self._modules:
            self._api.call("cuModuleUnload", module)
        for address in self._pinned:
            self._api.call("cuMemFreeHost", address)
        self._api.call("cuStreamDestroy", self._stream)
        self._api.call("cuDevicePrimaryCtxRelease", self._device)
        self._graphs, self._modules, self._pinned, self._addresses = [], [], {}, {}
