"""What an op of a model needs of a machine, and what of it a target lacks."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from infc.backends.dataflow.machine import FORMAT_BITS, Format
from infc.ir.mlir import ir
from infc.ir.types import TensorType
from infc.target.schema import Target

PRODUCT_OF_STORAGE: Final[Mapping[str, Format]] = MappingProxyType(
    {
        "f16": "f16",
        "bf16": "bf16",
        "q4_0": "int4",
        "q4_1": "int4",
        "q4_k": "int4",
        "q2_k": "int4",
        "q3_k": "int4",
        "q5_0": "int8",
        "q5_1": "int8",
        "q5_k": "int8",
        "q6_k": "int8",
        "q8_0": "int8",
    }
)
"""The format of a matrix product with weights of a storage type."""
CACHE_FORMAT: Final[Format] = "f16"
"""Keys and values are kept and multiplied in this format."""
_STRUCTURE: Final = frozenset({"infc.weight", "infc.dim", "infc.device"})


def lacking(op: ir.Operation, target: Target) -> str | None:
    """Why a target cannot do a graph-level op, or None where it can."""
    if not op.name.startswith("infc.") or op.name in _STRUCTURE:
        return None
    units = {unit.name: unit for unit in target.compute}
    there = ", ".join(units)
    if "vector" not in units:
        return f"expected a target with a vector unit, got {there}"
    if op.name == "infc.linear":
        storage = TensorType.of(op.operands[1].type).element
        if storage not in PRODUCT_OF_STORAGE:
            return (
                f"expected weights of one of {', '.join(sorted(PRODUCT_OF_STORAGE))}, got {storage}"
            )
        needed = PRODUCT_OF_STORAGE[storage]
    elif op.name == "infc.attention":
        needed = CACHE_FORMAT
    else:
        return None
    if "matrix" not in units:
        return f"expected a target with a matrix unit, got {there}"
    forms = [form for form in FORMAT_BITS if form in units["matrix"].tiles]
    if needed not in forms:
        return f"expected a matrix unit with products of {needed}, got {', '.join(forms)}"
    return None
