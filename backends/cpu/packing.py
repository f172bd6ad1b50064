"""Writes the weights file: each declared weight in its packed layout, at its offset."""

from __future__ import annotations

from functools import partial
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from infc.backends.cpu.kernels.bounded_layout import (
    BoundedLayout,
    bounded_layout_for,
    bounded_layout_named,
    pack_bounded,
)
from infc.backends.cpu.kernels.layouts import layout_for, layout_named, pack, packed_bytes
from infc.backends.cpu.kernels.split_layout import (
    SplitLayout,
    pack_split,
    split_layout_for,
    split_layout_named,
)
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


def planes_for(storage: str, k: int) -> SplitLayout | BoundedLayout | None:
    """The layout in two planes for weights in rows of `k`; None where there is none."""
    return split_layout_for(storage, k) or bounded_layout_for(storage, k)


def splits(tensor: TensorType) -> bool:
    """Whether a matrix can be packed in two planes."""
    return planes_for(tensor.element, int(tensor.shape[1])) is not None


def weight_layout(tensor: TensorType, split: bool) -> tuple[str, int]:
    """Matrices are packed in panels of 16 rows, in two planes where `split`, everything else is
    plain float32."""
    shape = [int(d) for d in tensor.shape]
    planes = planes_for(tensor.element, shape[1]) if split else None
    if planes is not None:
        return planes.name, planes.size_bytes(shape[0], shape[1])
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
        packed = pack_one(op, weights)
        out.write(packed.data)
        position = offset + packed.nbytes
    out.write(bytes(get(module.operation, "infc.weight_bytes") - position))


def pack_one(op: ir.OpView, weights: WeightData) -> NDArray[np.uint8]:
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
    chunks = partial(row_chunks, storage, raw, n, k)
    name = attributes["layout"]
    if bounded := bounded_layout_named(name):
        pack_bounded(bounded, chunks, n, k, out)
    elif planes := split_layout_named(name):
        pack_split(planes, chunks(), n, k, out)
    else:
        pack(layout_named(name), chunks(), n, k, out)
    return out
