"""The packed weights file gets its order: each weight an offset, in the order of first use.

    packed @w3 {offset = -1, size_bytes = 704512}   -->   packed @w3 {offset = 1179648, ...}

Requires: bufferised programs. Guarantees: offsets are multiples of 64 and disjoint; the layers'
weights lie in the order in which decode reads them, so that it reads one ascending stream.
"""

from __future__ import annotations

from infc.ir.attributes import get, to_attribute
from infc.ir.levels import Level
from infc.ir.mlir import ir
from infc.pipeline.passes import FunctionPass, PassContext

ALIGN = 64
"""Bytes: packed weights are read by whole lines."""


def packed_weights(module: ir.Module) -> list[ir.OpView]:
    """The declarations of packed weights, in file order."""
    return [op for op in module.body.operations if op.operation.name == "infc.packed"]


def pack_weights(module: ir.Module, ctx: PassContext) -> None:
    """Give every `infc.packed` its offset."""
    offset = 0
    for op in packed_weights(module):
        op.operation.attributes["offset"] = to_attribute(offset)
        offset += -(-get(op, "size_bytes") // ALIGN) * ALIGN
    module.operation.attributes["infc.weight_bytes"] = to_attribute(offset)


PACK_WEIGHTS = FunctionPass("pack-weights", Level.MEMORY, pack_weights)
