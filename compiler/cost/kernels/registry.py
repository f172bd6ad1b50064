"""All classes of kernels, and which of them answers a query."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from infc.cost.kernels.classes import KernelClass
from infc.cost.kernels.collectives import ALL_REDUCE, EXCHANGE
from infc.cost.kernels.decode_attention import DECODE_ATTENTION
from infc.cost.kernels.elementwise import ELEMENTWISE
from infc.cost.kernels.gemm import GEMM_8, GEMM_16
from infc.cost.kernels.prefill_attention import PREFILL_ATTENTION
from infc.cost.kernels.queries import (
    DTYPE_BYTES,
    Collective,
    DecodeAttention,
    Gemm,
    PrefillAttention,
    Query,
)
from infc.cost.kernels.threaded import THREADED

CLASSES: Final[Mapping[str, KernelClass[Any]]] = {
    kernel_class.name: kernel_class
    for kernel_class in (
        GEMM_16,
        GEMM_8,
        PREFILL_ATTENTION,
        DECODE_ATTENTION,
        ALL_REDUCE,
        EXCHANGE,
        ELEMENTWISE,
    )
}
"""By name: those that answer queries."""
EVERY_CLASS: Final[Mapping[str, KernelClass[Any]]] = {**CLASSES, **THREADED}
"""By name, with those whose calls compiled programs describe themselves."""


def class_of(query: Query) -> KernelClass[Any]:
    """The class whose formula answers a query."""
    match query:
        case Gemm():
            return GEMM_16 if DTYPE_BYTES[query.dtype] >= 2 else GEMM_8
        case PrefillAttention():
            return PREFILL_ATTENTION
        case DecodeAttention():
            return DECODE_ATTENTION
        case Collective(kind="all-reduce"):
            return ALL_REDUCE
        case Collective():
            return EXCHANGE
    return ELEMENTWISE
