"""Which class of the cost model a kernel under a mapping belongs to, and its sizes there.

A kernel without a class is left to the roofline.
"""

from __future__ import annotations

from infc.backends.cpu.kernels.layouts import layout_for
from infc.cost.kernels.threaded import HEAD_SEARCH, STREAM, WEIGHT_KINDS
from infc.cost.roofline import Way
from infc.ir.kv_storage import position_bytes
from infc.target.backend import KernelMapping, KernelSummary

_STREAMED_PAIR = 2
"""Rows that share a pass over the weights where they are not enough for a tile."""


def kernel_class(kernel: KernelSummary, mapping: KernelMapping) -> str:
    """The name of the class, or nothing."""
    if kernel.kind in ("matmul", "head"):
        return _product_class(kernel, mapping, kernel.typical_rows)
    if kernel.kind == "attention":
        return "tile-attention" if mapping.get("tiles") else "row-attention"
    return kernel.kind if kernel.kind in ("rows", "rotary") else ""


def kernel_ways(kernel: KernelSummary, mapping: KernelMapping) -> tuple[Way, ...]:
    """Of a product whose weights stream past few rows and are staged for many, and of a head, which
    is searched for one row; else nothing."""
    if kernel.kind not in ("matmul", "head") or kernel.rows == 1:
        return ()
    ways: list[Way] = []
    for rows in (1, 2, max(2, int(mapping["row_tile"]))):
        name = _product_class(kernel, mapping, rows)
        if not ways or ways[-1].kernel != name:
            ways.append(Way(rows, name, _height(kernel, name, mapping)))
    return tuple(ways) if len(ways) > 1 else ()


def _product_class(kernel: KernelSummary, mapping: KernelMapping, rows: int) -> str:
    if kernel.kind == "head" and rows == 1:
        return HEAD_SEARCH
    if "bf16" in kernel.operations:
        return "blocked-product"
    few = rows == 1 or (rows < int(mapping["row_tile"]) and not _codes_in_planes(kernel))
    if few or int(mapping["col_tile"]) == 0:
        return STREAM
    return "staged-product" if "int8" in kernel.operations else "float-product"


def _codes_in_planes(kernel: KernelSummary) -> bool:
    """Whether codes lie in two planes: several rows share what is put together (`head_rows`)."""
    return (kernel.kind == "head" or kernel.split) and "int8" in kernel.operations


def _height(kernel: KernelSummary, name: str, mapping: KernelMapping) -> int:
    """Rows that share a pass over the weights in calls of a class."""
    tile, staged = int(mapping["row_tile"]), int(mapping["col_tile"])
    if name in (STREAM, HEAD_SEARCH):
        return _STREAMED_PAIR if staged else tile
    return 1 if _codes_in_planes(kernel) else tile  # no row of a tile is made in vain there


def kernel_sizes(kernel: KernelSummary, mapping: KernelMapping) -> dict[str, float]:
    """The sizes that the class asks for, but the planes of a head."""
    if kernel.kind in ("matmul", "head"):
        return _product_sizes(kernel, mapping)
    rows = float(kernel.typical_rows)
    if kernel.kind == "attention":
        shapes = kernel.shapes
        sizes = {name: float(shapes[name]) for name in ("heads", "kv_heads", "head_dim", "window")}
        units = shapes["kv_heads"] * int(mapping["parts"])
        held = shapes["kv_heads"] * position_bytes(kernel.kv_dtype, shapes["head_dim"])
        return sizes | {
            "rows": rows,
            "caches": rows if kernel.phase == "decode" else 1.0,
            "context": float(shapes["context"]),
            "units": float(units),
            "position_bytes": float(held),
        }
    return {
        "rows": rows,
        "row_operations": sum(kernel.operations.values()) / rows,
        "row_bytes": kernel.activation_bytes / rows,
        "replicated": float(mapping.get("partition") == "replicate"),
    }


def _product_sizes(kernel: KernelSummary, mapping: KernelMapping) -> dict[str, float]:
    kinds = dict.fromkeys(WEIGHT_KINDS, 0.0)
    for n, k, storage in kernel.matrices:
        kinds[_kind(storage)] += n * k
    columns = sum(n for n, _, _ in kernel.matrices)
    name = _product_class(kernel, mapping, kernel.typical_rows)
    return {
        **{f"weights_{kind}": count for kind, count in kinds.items()},
        "rows": float(kernel.typical_rows),
        "height": float(_height(kernel, name, mapping)),
        "columns": float(columns),
        "gated": float(bool(kernel.gate)),
    }


def _kind(storage: str) -> str:
    layout = layout_for(storage)
    return "float" if layout.is_float else f"{layout.bits}bit"
