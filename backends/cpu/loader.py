"""Loads a shared object from memory: no file is left anywhere."""

from __future__ import annotations

import ctypes
import os
import tempfile


def load_library(code: memoryview) -> ctypes.CDLL:
    """Load a shared object given by its bytes.

    Where the kernel offers anonymous files (Linux) nothing touches the disk; elsewhere a temporary
    file is removed as soon as it is loaded.
    """
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("infc-program", os.MFD_CLOEXEC)
        try:
            _write_all(descriptor, code)
            return ctypes.CDLL(f"/proc/self/fd/{descriptor}")
        finally:
            os.close(descriptor)
    with tempfile.NamedTemporaryFile(suffix=".so") as file:
        file.write(code)
        file.flush()
        return ctypes.CDLL(file.name)


def _write_all(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
