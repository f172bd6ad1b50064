"""The device of this host, or why there is none."""

from __future__ import annotations

from importlib import import_module

from infc.backends.cuda.runtime.driver import Device, DeviceFacts
from infc.backends.cuda.runtime.native import Api, CudaError, NativeDevice, facts_of
from infc.diagnostics import Code, UserError

_NO_DEVICE = 100
_MISMATCH = 803
_HINTS = {
    "cuda-bindings": "pip install 'infc[cuda]'",
    "no CUDA driver": "install the driver of the device, or run it where there is one",
}


def probe_device() -> DeviceFacts | str:
    """What the first device says of itself, or why there is none. No context is made; this is
    quick, and raises nothing."""
    try:
        api = _api()
        return facts_of(api, api.call("cuDeviceGet", 0))
    except _Unavailable as reason:
        return str(reason)
    except Exception as error:  # whatever a broken installation may raise
        return " ".join(str(error).split())


def open_device() -> Device:
    """The first device; `CUDA_VISIBLE_DEVICES` says which that is.

    Raises:
        UserError: INF4005, there is none.
    """
    try:
        api = _api()
        return NativeDevice(api, api.call("cuDeviceGet", 0))
    except _Unavailable as reason:
        raise UserError(
            Code.ARTIFACT_HOST,
            f"there is no device to run on: {reason}",
            hint=remedy(str(reason)),
        ) from None


def remedy(reason: str) -> str | None:
    """What helps where there is no device, or None."""
    return next((hint for word, hint in _HINTS.items() if word in reason), None)


class _Unavailable(Exception):
    """Why no device can be used."""


def _api() -> Api:
    """The driver, initialised, with at least one device."""
    try:
        api = Api(import_module("cuda.bindings.driver"))
    except ImportError as error:
        raise _Unavailable(f"the package cuda-bindings is not installed ({error})") from None
    try:
        api.call("cuInit", 0)
        count = api.call("cuDeviceGetCount")
    except CudaError as error:
        what = error.diagnostic.message.partition("failed: ")[2]
        if error.number == _NO_DEVICE:
            raise _Unavailable("the CUDA driver finds no device") from None
        if error.number == _MISMATCH:
            what += "; restart the machine after a change of the driver"
        raise _Unavailable(f"the CUDA driver does not start: {what}") from None
    except RuntimeError:  # the package raises it where it finds no library
        raise _Unavailable("no CUDA driver (libcuda) is installed") from None
    if count == 0:
        raise _Unavailable("the CUDA driver finds no device")
    return api
