"""Kernels that infc itself makes for a target whose own kernels were measured.

The backend says how it would make a kernel of such sizes, its best guess, and what that asks of the
machine; the constants of the kernel's class answer, as they do for compiled programs. What no
program of that backend holds is left to the roofline.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from infc.cost.estimate import Estimate
from infc.cost.kernels.queries import (
    Collective,
    DecodeAttention,
    Elementwise,
    Gemm,
    PrefillAttention,
    Query,
)
from infc.cost.kernels.unfitted import unfitted_estimate
from infc.cost.roofline import Work, estimate_work
from infc.ir.kv_storage import position_bytes
from infc.ir.storage import STORAGE_TYPES
from infc.ir.types import PRODUCT_DTYPES, storage_bytes
from infc.target.backend import Backend, KernelSummary
from infc.target.discovery import load_backend
from infc.target.schema import Target

_STORED: Final[Mapping[str, str]] = {
    "f32": "f32",
    "bf16": "bf16",
    "f16": "f16",
    "fp8": "q8_0",
    "int8": "q8_0",
    "fp4": "q4_0",
}
"""The storage type of weights that stands for a dtype: as many bits, with scales."""
_CACHED: Final[Mapping[str, str]] = {"fp8": "int8", "fp4": "int8"}
"""What a cache holds in place of dtypes that caches do not come in."""
_POSITIONS: Final = 64
"""Caches hold a multiple of so many positions."""
_OPERATIONS_A_BYTE: Final = 2.0
"""Of row kernels: a norm of float32 counts 16 for the 8 bytes that it reads and writes."""


def own_estimate(query: Query, target: Target) -> Estimate:
    """The time of one kernel, without energy and rent; raises as `kernel_estimate`.

    Programs are launched as a whole: the kernels in them wait for a barrier only.
    """
    match query:
        case Collective():
            return unfitted_estimate(query, target)
        case Elementwise():
            sizes = {
                "rows": 1.0,
                "row_operations": _OPERATIONS_A_BYTE * query.bytes,
                "row_bytes": float(query.bytes),
                "replicated": 0.0,
            }
            operations = {"f32": _OPERATIONS_A_BYTE * query.bytes}
            return estimate_work(
                Work(operations=operations, barriers=1, kernel="rows", sizes=sizes), target
            )
        case Gemm():
            if query.k % STORAGE_TYPES[_STORED[query.dtype]].block_elems:
                return unfitted_estimate(query, target)
            return estimate_work(_product(query, target), target)
        case PrefillAttention():  # prompts come one after the other
            return estimate_work(_attention(query, target), target).scale(query.batch)
        case _:
            return estimate_work(_attention(query, target), target)


def _product(query: Gemm, target: Target) -> Work:
    backend, storage = load_backend(target.backend), _STORED[query.dtype]
    rows, n, k = query.m, query.n, query.k
    form = backend.activation_forms(storage, k, rows, target)[0]
    return _work(
        backend,
        KernelSummary(
            kind="matmul",
            phase="decode" if rows == 1 else "prefill",
            rows=rows,
            typical_rows=rows,
            operations={PRODUCT_DTYPES[form]: 2.0 * rows * n * k},
            weight_bytes=query.weight_bytes or storage_bytes(storage, (n, k)),
            activation_bytes=storage_bytes(form, (rows, k)) + storage_bytes("f32", (rows, n)),
            shapes={},
            matrices=((n, k, storage),),
        ),
        target,
    )


def _attention(query: DecodeAttention | PrefillAttention, target: Target) -> Work:
    """Of one prompt, or of a decode step of all sequences."""
    if isinstance(query, PrefillAttention):
        first, rows, caches, context = True, query.length, 1, query.past + query.length
    else:
        first, rows, caches, context = False, query.batch, query.batch, query.context
    held = min(context, query.window or context)
    pairs = rows * (held + 1) / 2 if first else rows * held
    width = query.heads * query.head_dim
    kv_dtype = _CACHED.get(query.kv_dtype, query.kv_dtype)
    position = query.kv_heads * position_bytes(kv_dtype, query.head_dim)
    return _work(
        load_backend(target.backend),
        KernelSummary(
            kind="attention",
            phase="prefill" if first else "decode",
            rows=rows,
            typical_rows=rows,
            operations={"f32": 4.0 * pairs * width},
            weight_bytes=0,
            activation_bytes=caches * position * held + 2 * 4 * rows * width,
            shapes={
                "heads": query.heads,
                "kv_heads": query.kv_heads,
                "head_dim": query.head_dim,
                "window": query.window,
                "capacity": -(-context // _POSITIONS) * _POSITIONS,
                "context": context,
            },
            kv_dtype=kv_dtype,
        ),
        target,
    )


def _work(backend: Backend, kernel: KernelSummary, target: Target) -> Work:
    # The constants were fitted to kernels under usual mappings: theirs has no speed of its own.
    return replace(backend.work(kernel, backend.candidates(kernel, target)[0], target), speed=1.0)
