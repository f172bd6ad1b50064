"""A module like `cuda.bindings.driver`: one device, calls are recorded, some fail on demand."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from enum import IntEnum
from types import SimpleNamespace
from typing import Any


class CUresult(IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_NO_DEVICE = 100
    CUDA_ERROR_NO_BINARY_FOR_GPU = 209
    CUDA_ERROR_INVALID_PTX = 218
    CUDA_ERROR_UNSUPPORTED_PTX_VERSION = 222
    CUDA_ERROR_LAUNCH_FAILED = 719
    CUDA_ERROR_SYSTEM_DRIVER_MISMATCH = 803


ATTRIBUTES = {
    "COMPUTE_CAPABILITY_MAJOR": 9,
    "COMPUTE_CAPABILITY_MINOR": 0,
    "MULTIPROCESSOR_COUNT": 132,
    "MEMORY_CLOCK_RATE": 2_619_000,
    "GLOBAL_MEMORY_BUS_WIDTH": 5120,
    "L2_CACHE_SIZE": 50 << 20,
    "MAX_SHARED_MEMORY_PER_MULTIPROCESSOR": 228 << 10,
    "MAX_SHARED_MEMORY_PER_BLOCK_OPTIN": 227 << 10,
    "COOPERATIVE_LAUNCH": 1,
}


class FakeDriver:
    """The functions that the runtime calls.

    Attributes:
        calls: names and arguments of all calls.
        failing: results by the function's name; a function gets its arguments and decides.
        log: what a translation of PTX that fails writes.
    """

    def __init__(self, *, cuda: int = 13000, devices: int = 1, free: int = 64 << 30) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.failing: dict[str, CUresult | Callable[..., CUresult]] = {}
        self.log = b""
        self._results = {
            "cuDriverGetVersion": cuda,
            "cuDeviceGetCount": devices,
            "cuDeviceGet": 0,
            "cuDeviceGetName": b"NVIDIA Test" + bytes(200),
            "cuDeviceTotalMem": 80 << 30,
            "cuMemGetInfo": (free, 80 << 30),
            "cuDevicePrimaryCtxRetain": "context",
            "cuStreamCreate": "stream",
            "cuMemAlloc": 0x1000,
            "cuModuleGetFunction": "function",
            "cuEventCreate": "event",
            "cuEventElapsedTime": 1.5,
            "cuStreamEndCapture": "captured",
            "cuGraphInstantiate": "graph",
            "cuOccupancyMaxActiveBlocksPerMultiprocessor": 1,
        }
        self._memory: list[Any] = []
        names = [f"CU_DEVICE_ATTRIBUTE_{name}" for name in ATTRIBUTES]
        self.CUdevice_attribute = SimpleNamespace(**{name: name for name in names})
        self.CUfunction_attribute = SimpleNamespace(
            CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES="shared"
        )
        self.CUjit_option = SimpleNamespace(
            CU_JIT_ERROR_LOG_BUFFER="log", CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES="size"
        )
        self.CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL="local")

    def cuGetErrorName(self, result: CUresult) -> tuple[CUresult, bytes]:
        return CUresult.CUDA_SUCCESS, result.name.encode()

    def cuGetErrorString(self, result: CUresult) -> tuple[CUresult, bytes]:
        return CUresult.CUDA_SUCCESS, result.name[11:].lower().replace("_", " ").encode()

    def __getattr__(self, name: str) -> Callable[..., tuple[Any, ...]]:
        if not name.startswith("cu"):
            raise AttributeError(name)

        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append((name, *arguments))
            result = self.failing.get(name, CUresult.CUDA_SUCCESS)
            if not isinstance(result, CUresult):
                result = result(*arguments)
            return result, *self._values(name, arguments, failed=bool(result))

        return call

    def _values(self, name: str, arguments: tuple[Any, ...], *, failed: bool) -> tuple[Any, ...]:
        if name == "cuDeviceGetAttribute":
            return (ATTRIBUTES[arguments[0].removeprefix("CU_DEVICE_ATTRIBUTE_")],)
        if name == "cuMemHostAlloc":
            self._memory.append(ctypes.create_string_buffer(arguments[0]))
            return (ctypes.addressof(self._memory[-1]),)
        if name == "cuModuleLoadDataEx":
            if failed:
                options = dict(zip(arguments[2], arguments[3], strict=True))
                log: bytes = options["log"]
                assert len(log) == options["size"]
                ctypes.memmove(log, self.log, len(self.log))
            return ("module",)
        if name == "cuMemcpyHtoDAsync":
            return ()
        value = self._results.get(name, ())
        return value if isinstance(value, tuple) else (value,)

    def named(self, name: str) -> list[tuple[Any, ...]]:
        """The arguments of each call of a function."""
        return [tuple(arguments) for called, *arguments in self.calls if called == name]
