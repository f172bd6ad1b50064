"""Writes the weights file: each declared weight in its packed layout, at its offset."""

from __future__ import annotations

from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from infc.backends.cuda.kernels.packing import layout_for, layout_named, pack, packed_bytes
from infc.ir.attributes import attributes_of, get
from infc.ir.mlir import ir
from infc.ir.storage import STORAGE_TYPES
from infc.ir.types import TensorType
from infc.passes.codegen.panels import row_chunks
from infc.passes.memory.pack_weights import packed_weights
from infc.reference.ops import rope_table
from infc.target.backend import WeightData

ROWS = "rows"
"""Layout of vectors and tables: plain float32."""


def weight_layout(tensor: TensorType) -> tuple[str, int]:
    """Matrices are packed in panels of 16 rows, everything else is plain float32."""
    shape = [int(d) for d in tensor.shape]
    if len(shape) == 2:
        layout = layout_for(tensor.element)
        return layout.name, packed_bytes(layout, shape[0], shape[1])
    return ROWS, 4 * int(np.prod(shape))


def write_weights(module: ir.Module, weights: WeightData, out: BinaryIO) -> None:
    """Write all packed weights in the order of their offsets, with zeros between them."""
    position = 0
    for op in packed_weights(module):
        offset = get(op, "offset")
        out.write(bytes(offset - position))
        packed = _pack_one(op, weights)
        out.write(packed.data)
        position = offset + packed.nbytes
    out.write(bytes(get(module.operation, "infc.weight_bytes") - position))


def _pack_one(op: ir.OpView, weights: WeightData) -> NDArray[np.uint8]:
    """The packed bytes of one declaration."""
    attributes = attributes_of(op)
    tensor = TensorType.of(attributes["type"])
    shape = [int(d) for d in tensor.shape]
    if "inverse_frequencies" in attributes:
        table = rope_table(attributes["inverse_frequencies"], attributes["magnitude"], shape[0])
        return np.ascontiguousarray(table, np.float32).reshape(-1).view(np.uint8)
    storage = STORAGE_TYPES[tensor.element]
    raw = weights(attributes["source"])
    if attributes["layout"] == ROWS:
        return np.ascontiguousarray(storage.dequantize(raw, shape)).reshape(-1).view(np.uint8)
    out = np.zeros(attributes["size_bytes"], np.uint8)
    n, k = shape
    pack(layout_named(attributes["layout"]), row_chunks(storage, raw, n, k), n, k, out)
    return out
