"""Attributes to and from plain Python values."""

from __future__ import annotations

from typing import Any

from infc.diagnostics import InternalError
from infc.ir.mlir import ir

Plain = bool | int | float | str | None | dict[str, Any] | list[Any]


def to_attribute(value: object) -> ir.Attribute:
    """A Python value as an attribute: bool, int (i64), float (f32), str, dict, list, or itself."""
    if isinstance(value, ir.Attribute):
        return value
    if isinstance(value, bool):
        return ir.BoolAttr.get(value)
    if isinstance(value, int):
        return ir.IntegerAttr.get(ir.IntegerType.get_signless(64), value)
    if isinstance(value, float):
        return ir.FloatAttr.get(ir.F32Type.get(), value)
    if isinstance(value, str):
        return ir.StringAttr.get(value)
    if isinstance(value, dict):
        return ir.DictAttr.get({key: to_attribute(item) for key, item in value.items()})
    if isinstance(value, (list, tuple)):
        return ir.ArrayAttr.get([to_attribute(item) for item in value])
    raise InternalError(f"no attribute for a {type(value).__name__}")


def from_attribute(attribute: ir.Attribute) -> Any:
    """The inverse of `to_attribute`; symbol references become their name, types their text."""
    if isinstance(attribute, ir.BoolAttr):
        return attribute.value
    if isinstance(attribute, (ir.IntegerAttr, ir.FloatAttr, ir.StringAttr, ir.FlatSymbolRefAttr)):
        return attribute.value
    if isinstance(attribute, ir.DictAttr):
        return {item.name: from_attribute(item.attr) for item in attribute}
    if isinstance(attribute, (ir.ArrayAttr, ir.DenseF32ArrayAttr, ir.DenseI64ArrayAttr)):
        return [from_attribute(i) if isinstance(i, ir.Attribute) else i for i in attribute]
    if isinstance(attribute, ir.TypeAttr):
        return attribute.value
    if isinstance(attribute, ir.UnitAttr):
        return True
    raise InternalError(f"no Python value for the attribute {attribute}")


def attributes_of(op: ir.Operation | ir.OpView) -> dict[str, Any]:
    """All attributes of an operation as Python values."""
    attributes = op.operation.attributes
    return {name: from_attribute(attributes[name]) for name in attributes}


def get(op: ir.Operation | ir.OpView, name: str, default: Any = None) -> Any:
    """One attribute as a Python value, or `default` where the operation has none."""
    attributes = op.operation.attributes
    return from_attribute(attributes[name]) if name in attributes else default
