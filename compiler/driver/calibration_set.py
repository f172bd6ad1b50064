"""The kernels that a machine is calibrated with.

Sizes lie between those of models of 0.1 to 10 billion weights and are those of none that the
project is tested or measured with: a profile must predict models it has not seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from infc.cost.roofline import Work, estimate_work
from infc.ir.types import PRODUCT_DTYPES, storage_bytes
from infc.target.backend import Backend, KernelMapping, KernelSummary
from infc.target.schema import Target

_STREAMED: Final = (
    *((storage, 1280, 768) for storage in ("q4_0", "q5_0", "q8_0")),
    *((storage, 5120, 1536) for storage in ("q4_k", "q6_k", "q8_0", "bf16")),
    ("q4_k", 512, 512),
    ("q5_0", 3584, 1280),
    ("q6_k", 1280, 768),
    ("bf16", 640, 1024),
    ("q8_0", 24576, 768),
)
"""`(storage, n, k)` of products with one row."""
_BATCHED: Final = (
    ("q4_0", 1280, 768, 48),
    ("q4_0", 1280, 768, 448),
    ("q4_k", 2560, 1536, 96),
    ("q4_k", 2560, 1536, 384),
    ("q8_0", 1280, 768, 96),
    ("q8_0", 1280, 768, 448),
    ("q6_k", 768, 2560, 320),
    ("q6_k", 1792, 1280, 448),
    ("q6_k", 512, 768, 128),
    ("bf16", 1280, 768, 64),
    ("bf16", 1280, 768, 256),
    ("q5_0", 640, 512, 256),
    ("q5_0", 2560, 768, 160),
    ("q4_k", 256, 768, 448),
    # Small ones, for a call's own time.
    ("q8_0", 128, 256, 32),
    ("q4_0", 192, 512, 96),
    # Few rows, for staging.
    ("bf16", 2560, 1536, 48),
    ("bf16", 1536, 768, 32),
    ("q6_k", 3072, 768, 64),
    ("q5_0", 1792, 1280, 40),
    # Long and short rows.
    ("q8_0", 6144, 256, 512),
    ("q4_0", 8192, 256, 320),
    ("q8_0", 1024, 4608, 448),
    ("q4_k", 640, 5120, 512),
    # Floats, which are multiplied as such where a processor has no products of bf16.
    ("bf16", 256, 512, 40),
    ("bf16", 640, 2560, 320),
    ("f16", 1280, 768, 160),
    ("f16", 3072, 384, 24),
    ("f32", 768, 1280, 96),
    ("f32", 1792, 768, 384),
)
"""`(storage, n, k, rows)` of products with many rows."""
_GATED: Final = (
    ("q4_k", 1792, 768, 256),
    ("q8_0", 3072, 1280, 128),
    ("q5_0", 2560, 768, 448),
    ("q8_0", 2560, 256, 512),
)
_HEADS: Final = ((12, 4, 64), (8, 2, 128), (3, 1, 256), (24, 8, 64))
"""`(heads, kv_heads, head_dim)` of attention."""
_CONTEXTS: Final = (192, 1536)
_PROMPTS: Final = (96, 320, 512)
_ROWS: Final = 512
_ACTIVATION: Final = "silu"


def calibration_kernels(backend: Backend, target: Target) -> Iterator[KernelSummary]:
    """Products and attention, in an order that mixes them."""
    kernels = [
        *(_product(backend, target, (s, n, k), 1) for s, n, k in _STREAMED),
        *(_product(backend, target, (s, n, k), rows) for s, n, k, rows in _BATCHED),
        *(_product(backend, target, (s, n, k), rows, gated=True) for s, n, k, rows in _GATED),
        *(_attention(heads, "decode", context) for heads in _HEADS for context in _CONTEXTS),
        *(_attention(heads, "prefill", prompt) for heads in _HEADS for prompt in _PROMPTS),
    ]
    step = 7  # coprime to most lengths: neighbours in time are not neighbours in the list
    for start in range(step):
        yield from kernels[start::step]


def best_alone(
    backend: Backend, kernel: KernelSummary, target: Target, threads: int
) -> tuple[KernelMapping, Work]:
    """The mapping that is timed, the same before and after calibrating, and its work: a kernel that
    is timed alone ends without a barrier, programs add theirs."""
    plain = target.model_copy(update={"kernels": {}})
    mapping, work = min(
        (
            (mapping, backend.work(kernel, mapping, plain))
            for mapping in backend.candidates(kernel, plain)
        ),
        key=lambda choice: estimate_work(choice[1], plain, threads).mid,
    )
    return mapping, replace(work, barriers=0, speed=1.0)


def kernel_name(kernel: KernelSummary, threads: int) -> str:
    """What a kernel of the set on so many threads is called."""
    shape = "_".join(f"{storage}_{n}x{k}" for n, k, storage in kernel.matrices)
    if not shape:
        sizes = kernel.shapes
        shape = f"{sizes['heads']}x{sizes['kv_heads']}x{sizes['head_dim']}_of_{sizes['context']}"
    return f"{kernel.kind}_{shape}_rows_{kernel.typical_rows}_threads_{threads}"


def _product(
    backend: Backend,
    target: Target,
    matrix: tuple[str, int, int],
    rows: int,
    *,
    gated: bool = False,
) -> KernelSummary:
    storage, n, k = matrix
    form = backend.activation_forms(storage, k, rows, target)[0]
    count = 2 if gated else 1
    return KernelSummary(
        kind="matmul",
        phase="decode" if rows == 1 else "prefill",
        rows=1 if rows == 1 else _ROWS,
        typical_rows=rows,
        operations={PRODUCT_DTYPES[form]: 2.0 * rows * n * k * count},
        weight_bytes=count * storage_bytes(storage, (n, k)),
        activation_bytes=storage_bytes(form, (rows, k)) + storage_bytes("f32", (rows, n)),
        shapes={},
        matrices=((n, k, storage),) * count,
        gate=_ACTIVATION if gated else "",
        out=form if gated and form == "abf16" else "f32",
    )


def _attention(heads: tuple[int, int, int], phase: str, context: int) -> KernelSummary:
    query_heads, kv_heads, head_dim = heads
    rows = context if phase == "prefill" else 1
    pairs = rows * (context + 1) / 2 if phase == "prefill" else context
    position = 2 * 2 * kv_heads * head_dim
    return KernelSummary(
        kind="attention",
        phase=phase,
        rows=_ROWS if phase == "prefill" else 1,
        typical_rows=rows,
        operations={"f32": 4.0 * pairs * query_heads * head_dim},
        weight_bytes=0,
        activation_bytes=position * context + 2 * 4 * rows * query_heads * head_dim,
        shapes={
            "heads": query_heads,
            "kv_heads": kv_heads,
            "head_dim": head_dim,
            "window": 0,
            "capacity": 2048,
            "context": context,
        },
        kv_dtype="f16",
    )
