"""Summaries of kernels, for tests of what backends and the cost model make of them."""

from infc.ir.types import storage_bytes
from infc.target.backend import KernelSummary


def product(
    rows: int, matrices: list[tuple[int, int, str]], dtype: str, **more: str
) -> KernelSummary:
    """The summary of a product."""
    return KernelSummary(
        kind="matmul",
        phase="decode" if rows == 1 else "prefill",
        rows=rows,
        typical_rows=rows,
        operations={dtype: 2.0 * rows * sum(n * k for n, k, _ in matrices)},
        weight_bytes=sum(storage_bytes(storage, (n, k)) for n, k, storage in matrices),
        activation_bytes=0,
        shapes={},
        matrices=tuple(matrices),
        **more,
    )


def attention(phase: str, rows: int, context: int) -> KernelSummary:
    """The summary of an attention."""
    shapes = {"heads": 4, "kv_heads": 2, "head_dim": 32, "window": 0, "capacity": 64}
    shapes["context"] = context
    return KernelSummary("attention", phase, rows, rows, {"f32": 1.0}, 0, 0, shapes, kv_dtype="f16")
