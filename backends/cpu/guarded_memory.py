"""Memory between pages that no one may touch."""

from __future__ import annotations

import ctypes
import mmap

import numpy as np
from numpy.typing import NDArray

from infc.diagnostics import InternalError

_PAGE = mmap.PAGESIZE
_HUGE_PAGE = 1 << 21
"""Bytes of a large page of x86-64, and of AArch64 with pages of 4 KiB."""


class GuardedMemory:
    """Zeroed memory that ends at a page no one may touch: a write past the plan stops the process.

    The usable bytes are pushed against the guard page behind them (up to 64-byte alignment); one
    more guard page stands in front. Some megabytes and more are whole large pages, for rows far
    apart are then found without a walk through the page tables.

    Attributes:
        bytes: the usable ones, uint8.
        address: where they start, 64-byte aligned.
    """

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = -(-size_bytes // 64) * 64
        step = _HUGE_PAGE if self.size_bytes >= 2 * _HUGE_PAGE else _PAGE
        body = -(-self.size_bytes // step) * step
        self._map = mmap.mmap(-1, body + step + _PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        whole = np.frombuffer(self._map, np.uint8)
        base = whole.ctypes.data
        first = -(-(base + _PAGE) // step) * step - base
        if step == _HUGE_PAGE:
            self._map.madvise(mmap.MADV_HUGEPAGE, first, body)
        _protect(base + first - _PAGE)
        _protect(base + first + body)
        start = first + body - self.size_bytes
        self.bytes: NDArray[np.uint8] = whole[start : start + self.size_bytes]
        self.address = int(base + start)


def _protect(address: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(_PAGE), 0) != 0:
        raise InternalError(f"mprotect failed with errno {ctypes.get_errno()}")
