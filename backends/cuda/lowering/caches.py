"""Which cache a kernel reads or extends."""

from __future__ import annotations

from infc.backends.cuda.kernels.kv_layout import KVLayer
from infc.diagnostics import InternalError
from infc.ir.attributes import get
from infc.ir.mlir import ir
from infc.ir.types import KVType
from infc.passes.codegen.builder import Value
from infc.passes.codegen.kernel_body import KernelBody


def cache_layer(body: KernelBody, cache: Value) -> KVLayer:
    """The layer that an operand of type `!infc.kv` is, with the slots that the model has."""
    kind = KVType.of(cache.type)
    return KVLayer(kind.kv_heads, kind.head_dim, kind.capacity, kind.dtype, _slots(body))


def _slots(body: KernelBody) -> int:
    operation: ir.Operation | None = body.function.operation
    while operation is not None:
        signature = get(operation, "infc.signature")
        if signature is not None:
            return int(signature["max_slots"])
        operation = operation.parent
    raise InternalError("no signature around a kernel", location=str(body.function.location))
