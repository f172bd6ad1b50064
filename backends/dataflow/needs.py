"""What an op of a model needs of a machine, and what of it a target lacks."""

from __future__ import annotations

from typing import Final, cast

from infc.backends.dataflow.machine import FORMAT_BITS, Format
from infc.backends.dataflow.tiles import tile_format
from infc.ir.mlir import ir
from infc.ir.storage import STORAGE_TYPES
from infc.ir.types import TensorType
from infc.target.schema import Target

CACHE_FORMAT: Final[Format] = "f16"
"""Keys and values are kept and multiplied in this format."""
_STRUCTURE: Final = frozenset({"infc.weight", "infc.dim", "infc.device"})
_MATRIX_OPERAND: Final = 1
"""Which operand of `infc.linear` and `infc.embed` is the matrix."""


def storage_types() -> frozenset[str]:
    """Storage types of matrices that the matrix unit reads."""
    return frozenset(name for name in STORAGE_TYPES if tile_format(name) is not None)


def product_format(storage: str) -> Format | None:
    """The format of a product with weights of a storage type; None where there is none."""
    form = tile_format(storage)
    if form is None:
        return None
    return cast(Format, storage if form.is_float else f"int{form.bits}")


def lacking(op: ir.Operation, target: Target) -> str | None:
    """Why a target cannot do a graph-level op, or None where it can."""
    if not op.name.startswith("infc.") or op.name in _STRUCTURE:
        return None
    units = {unit.name: unit for unit in target.compute}
    there = ", ".join(units)
    if "vector" not in units:
        return f"expected a target with a vector unit, got {there}"
    needed: Format | None = CACHE_FORMAT if op.name == "infc.attention" else None
    if op.name in ("infc.linear", "infc.embed"):
        storage = TensorType.of(op.operands[_MATRIX_OPERAND].type).element
        needed = product_format(storage)
        if needed is None:
            known = ", ".join(sorted(storage_types()))
            return f"expected weights of one of {known}, got {storage}; --quantize q8_0 converts it"
    if needed is None or op.name == "infc.embed":
        return None
    if "matrix" not in units:
        return f"expected a target with a matrix unit, got {there}"
    forms = [form for form in FORMAT_BITS if form in units["matrix"].tiles]
    if needed not in forms:
        return f"expected a matrix unit with products of {needed}, got {', '.join(forms)}"
    return None
