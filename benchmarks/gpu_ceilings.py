"""What a device can do at best, measured through PyTorch: copies, reads, matrix products."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

COPY_BYTES = 4 << 30
SQUARE = 8192
REPEATS = 20


def device_seconds(torch: Any, run: Callable[[], Any], repeats: int = REPEATS) -> float:
    """Median seconds of a call by the device's events, after a few that are not counted."""
    for _ in range(3):
        run()
    times = []
    for _ in range(repeats):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop) * 1e-3)
    return statistics.median(times)


def measure_ceilings() -> dict[str, float]:
    """Bytes a second of a copy (read and written) and of reading alone, operations a second of a
    large product of bfloat16."""
    import torch

    x = torch.randn(COPY_BYTES // 4, device="cuda")
    y = torch.empty_like(x)
    copy = device_seconds(torch, partial(y.copy_, x))
    read = device_seconds(torch, x.sum)
    del x, y
    a, b = (torch.randn(SQUARE, SQUARE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    product = device_seconds(torch, lambda: a @ b)
    return {
        "copy_bytes_per_s": 2 * COPY_BYTES / copy,
        "read_bytes_per_s": COPY_BYTES / read,
        "matmul_operations_per_s": 2 * SQUARE**3 / product,
    }


def library_seconds(matrices: Sequence[tuple[int, int, int]]) -> float:
    """Seconds that the matrix library takes for products of bfloat16, one after the other.

    Args:
        matrices: (rows, n, k) of each; equal ones are measured once. Operands of one size take
            turns, so that none is found in the cache because it was just used.
    """
    import torch

    found: dict[tuple[int, int, int], float] = {}
    for rows, n, k in matrices:
        if (rows, n, k) in found:
            continue
        copies = max(2, min(16, (256 << 20) // (2 * n * k)))
        weights = [torch.randn(k, n, device="cuda", dtype=torch.bfloat16) for _ in range(copies)]
        x = torch.randn(rows, k, device="cuda", dtype=torch.bfloat16)

        found[rows, n, k] = device_seconds(torch, partial(_products, x, weights), 5) / copies
    return sum(found[matrix] for matrix in matrices)


def _products(x: Any, weights: Sequence[Any]) -> None:
    for weight in weights:
        x @ weight
