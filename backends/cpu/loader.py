"""Loads a shared object from memory: no file is left anywhere."""

from __future__ import annotations

import ctypes
import itertools
import os
import tempfile

_loads = itertools.count()


def load_library(code: memoryview) -> ctypes.CDLL:
    """Load a shared object given by its bytes.

    Where the kernel offers anonymous files (Linux) nothing touches the disk; elsewhere a temporary
    file is removed as soon as it is loaded.
    """
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("infc-program", os.MFD_CLOEXEC)
        try:
            _write_all(descriptor, code)
            # The dynamic linker takes a path it has seen for the library it has: descriptors are
            # numbered again and again, so each load spells its path in its own way.
            spelling = f"{next(_loads):b}".replace("0", "/").replace("1", "./")
            return ctypes.CDLL(f"/proc/self/{spelling}fd/{descriptor}")
        finally:
            os.close(descriptor)
    with tempfile.NamedTemporaryFile(suffix=".so") as file:
        file.write(code)
        file.flush()
        return ctypes.CDLL(file.name)


def _write_all(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
