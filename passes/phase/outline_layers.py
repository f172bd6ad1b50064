"""Layers become functions, one for each class: layers that differ only in their weights share one.

    ops of layer 0 ...            func @layer0(x, positions, slots, cache, w0, w1, ...) { ops }
    ops of layer 1 ...    -->     main: x1 = call @layer0(x0, ..., weights of layer 0)
                                        x2 = call @layer0(x1, ..., weights of layer 1)

Requires: programs whose ops carry `infc.layer`, the ops of a layer being consecutive once weights
and caches are set aside.
Guarantees: `@main` calls a layer function for every layer; weights and caches are made in `@main`
and passed in; code size and the work of all later passes grow with the number of distinct classes.
"""

from __future__ import annotations

from infc.ir.attributes import get, to_attribute
from infc.ir.levels import Level
from infc.ir.mlir import func, ir
from infc.ir.outline import (
    operands_from_outside,
    outline,
    results_used_outside,
    structural_key,
)
from infc.pipeline.passes import FunctionPass, PassContext

_PASSED_IN = frozenset({"infc.weight", "infc.kv_cache", "infc.rope_table"})


def outline_layers(module: ir.Module, ctx: PassContext) -> None:
    """Outline the layers of both programs."""
    for program in module.body.operations:
        if program.operation.name == "builtin.module":
            _outline_program(program)


def _outline_program(program: ir.OpView) -> None:
    body = program.operation.regions[0].blocks[0]
    main = next(op for op in body.operations if op.operation.name == "func.func")
    classes: dict[str, str] = {}
    for index, layer_ops in sorted(_layers(main).items()):
        inside = [op for op in layer_ops if op.operation.name not in _PASSED_IN]
        inputs, outputs = operands_from_outside(inside), results_used_outside(inside)
        with inside[0].location:
            name = f"layer{len(classes)}"
            function = outline(inside, name, inputs, outputs, ir.InsertionPoint(main))
        for op in function.regions[0].blocks[0].operations:
            if "infc.layer" in op.operation.attributes:
                del op.operation.attributes["infc.layer"]
        key = structural_key(function)
        if key in classes:
            function.operation.erase()
            name = classes[key]
        else:
            function.operation.attributes["infc.layer_class"] = to_attribute(len(classes))
            classes[key] = name
        with ir.InsertionPoint(inside[-1]), ir.Location.name(f"layers.{index}"):
            call = func.CallOp([v.type for v in outputs], name, inputs)
            call.operation.attributes["infc.layer"] = to_attribute(index)
        for old, new in zip(outputs, call.operation.results, strict=True):
            old.replace_all_uses_with(new)
        for op in reversed(inside):
            op.operation.erase()


def _layers(main: ir.OpView) -> dict[int, list[ir.OpView]]:
    layers: dict[int, list[ir.OpView]] = {}
    for op in main.regions[0].blocks[0].operations:
        index = get(op, "infc.layer")
        if index is not None:
            layers.setdefault(index, []).append(op)
    return layers


OUTLINE_LAYERS = FunctionPass("outline-layers", Level.PHASE, outline_layers)
