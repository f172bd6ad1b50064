"""A program as far as its time depends on it: operations in order, with their sizes.

An artifact keeps the sketches of its programs, so that any of their calls can be predicted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from infc.backends.dataflow.codegen.model import CallSite, ModelProgram
from infc.backends.dataflow.codegen.stage import name_of
from infc.backends.dataflow.codegen.tables import RopeSource
from infc.diagnostics import InternalError
from infc.ir.attributes import get
from infc.ir.mlir import ir
from infc.ir.types import KVType, TensorType
from infc.passes.walk import body
from infc.target.signature import Count, PhaseName, Size

PRODUCTS = "products"
"""The operation that stands for all products of one input in a kernel."""


@dataclass(frozen=True)
class Step:
    """One operation.

    Attributes:
        op: its name, or `products`.
        origin: the model's name of the kernel that it is in.
        space: of its rows: `t` tokens or `r` logit rows.
        takes: numbers of the values that it reads, those that no operation made left out.
        makes: numbers of what it makes.
        sizes: `width` of the rows that it reads, and others by operation.
        matrices: of products, `(n, storage type)` of each.
        kind: of an activation, of the products' activations or of quantised rows, by name.
    """

    op: str
    origin: str
    space: str
    takes: tuple[Size, ...]
    makes: tuple[Size, ...]
    sizes: Mapping[str, Size] = field(default_factory=dict)
    matrices: tuple[tuple[Count, str], ...] = ()
    kind: str = ""


@dataclass(frozen=True)
class Sketch:
    """One phase.

    Attributes:
        phase: `prefill` or `decode`.
        most: rows of a call by symbol, at most.
        ropes: pairs of each rotary table.
        head, tail: what is in front of the layers, and behind.
        bodies: the different layers; value 0 is what they take, the last one what they make.
        layers: which of the bodies each layer is.
    """

    phase: PhaseName
    most: Mapping[str, Count]
    ropes: tuple[Size, ...]
    head: tuple[Step, ...]
    bodies: tuple[tuple[Step, ...], ...]
    layers: tuple[Size, ...]
    tail: tuple[Step, ...]

    @classmethod
    def of(cls, program: ModelProgram) -> Self:
        """What a program's time depends on."""
        functions = {str(get(call.function, "sym_name")): call.function for call in program.layers}
        names = list(functions)
        return cls(
            program.phase,
            dict(program.maxima),
            _ropes(program.layers),
            _calls(program.head),
            tuple(_layer(program, function) for function in functions.values()),
            tuple(names.index(str(get(call.function, "sym_name"))) for call in program.layers),
            _calls(program.tail),
        )

    def record(self) -> dict[str, Any]:
        """As JSON values: lists in place of tuples; `signature.Timed` reads them."""
        found: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return found


def _ropes(layers: Sequence[CallSite]) -> tuple[int, ...]:
    found = dict.fromkeys(
        operand for call in layers for operand in call.operands if isinstance(operand, RopeSource)
    )
    return tuple(len(source.frequencies) for source in found)


def _calls(calls: Sequence[CallSite]) -> tuple[Step, ...]:
    """Calls of kernels outside of layers."""
    reader = _Reader()
    for call in calls:
        given = [value if isinstance(value, ir.Value) else None for value in call.operands]
        reader.kernel(call.function, given, call.results)
    return tuple(reader.steps)


def _layer(program: ModelProgram, function: ir.OpView) -> tuple[Step, ...]:
    """The kernels of a layer."""
    reader = _Reader()
    for op in body(function):
        if op.operation.name != "func.return":
            callee = program.functions[str(get(op, "callee"))]
            reader.kernel(callee, list(op.operation.operands), list(op.operation.results))
    return tuple(reader.steps)


def _rows_of(value: ir.Value) -> TensorType | None:
    """The type of rows; None of all else: weights, caches, tables, arguments."""
    if not isinstance(value.type, ir.RankedTensorType):
        return None
    found = TensorType.of(value.type)
    return found if len(found.shape) == 2 and isinstance(found.shape[0], str) else None


class _Reader:
    """Goes through kernels; values of rows have the same numbers inside and outside of them."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self._numbers: dict[ir.Value, int] = {}

    def kernel(
        self,
        function: ir.OpView,
        operands: Sequence[ir.Value | None],
        results: Sequence[ir.Value],
    ) -> None:
        """All operations of a kernel."""
        arguments = function.regions[0].blocks[0].arguments
        for argument, operand in zip(arguments, operands, strict=True):
            if operand is not None and _rows_of(argument) is not None:
                self._numbers[argument] = self._number(operand)
        operations = body(function)
        products = [op for op in operations if op.operation.name == "infc.linear"]
        for op in operations:
            operation = op.operation
            if operation.name == "func.return":
                for result, value in zip(results, operation.operands, strict=True):
                    if value in self._numbers:
                        self._numbers[result] = self._numbers[value]
            elif op not in products:
                self._add(op, function)
            elif op == products[0]:
                self._add_products(products, function)
            if op in products and len(operation.operands) == 3:
                self._add(op, function, name="bias", source=operation.results[0])

    def _number(self, value: ir.Value) -> int:
        return self._numbers.setdefault(value, len(self._numbers))

    def _add(
        self, op: ir.OpView, function: ir.OpView, name: str = "", source: ir.Value | None = None
    ) -> None:
        """An operation; `source` is what it works on in place of its operands."""
        operation = op.operation
        operands = [source] if source is not None else list(operation.operands)
        rows = [value for value in operands if _rows_of(value) is not None]
        made = [value for value in operation.results if _rows_of(value) is not None]
        shape, result = _rows_of((rows or made)[0]), _rows_of((made or rows)[0])
        if shape is None or result is None:
            raise InternalError(f"{operation.name} without rows", location=str(op.location))
        sizes = {"width": int(shape.shape[1]), **_attributes(op)}
        for value in operation.operands:
            sizes |= _other_sizes(value)
        kind = str(get(op, "kind", ""))
        if operation.name == "infc.quantize":
            kind = result.element
        if operation.name == "infc.embed":
            table = TensorType.of(operation.operands[1].type)
            kind, sizes["vocabulary"] = table.element, int(table.shape[0])
        self.steps.append(
            Step(
                name or operation.name.removeprefix("infc."),
                name_of(function),
                str(result.shape[0]),
                tuple(self._number(value) for value in rows),
                tuple(self._number(value) for value in made),
                sizes,
                kind=kind,
            )
        )

    def _add_products(self, products: Sequence[ir.OpView], function: ir.OpView) -> None:
        """All at once, as the code generator makes them."""
        x = products[0].operation.operands[0]
        source = TensorType.of(x.type)
        matrices = [TensorType.of(op.operation.operands[1].type) for op in products]
        gate = any(op.operation.name == "infc.mul" for op in body(function))
        self.steps.append(
            Step(
                PRODUCTS,
                name_of(function),
                str(source.shape[0]),
                (self._number(x),),
                tuple(self._number(op.operation.results[0]) for op in products),
                {"width": int(source.shape[1]), "gate": int(gate)},
                tuple((int(matrix.shape[0]), matrix.element) for matrix in matrices),
                source.element,
            )
        )


def _attributes(op: ir.OpView) -> dict[str, int]:
    """Sizes among the attributes, and 1 for each number that makes an instruction necessary."""
    sizes = {key: int(get(op, key)) for key in ("head_dim", "heads") if get(op, key) is not None}
    for key, neutral in (("offset", 0.0), ("softcap", 0.0), ("scale", 1.0)):
        if get(op, key) is not None:
            sizes[key] = int(get(op, key) != neutral)
    return sizes


def _other_sizes(value: ir.Value) -> dict[str, int]:
    """What the types of a cache and of a rotary table say."""
    text = str(value.type)
    if text.startswith("!infc.kv<"):
        kind = KVType.of(value.type)
        return {
            "kv_heads": kind.kv_heads,
            "kv_dim": kind.head_dim,
            "capacity": kind.capacity,
            "window": kind.window,
        }
    if isinstance(value.type, ir.RankedTensorType) and len(TensorType.of(value.type).shape) == 3:
        return {"pairs": int(TensorType.of(value.type).shape[1])}
    return {}
