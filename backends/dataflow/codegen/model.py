"""A program of the schedule level as what stages are made of: calls in order, layers apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from infc.backends.dataflow.codegen.tables import RopeSource
from infc.backends.dataflow.codegen.values import Argument, Cache, Weight
from infc.diagnostics import InternalError
from infc.ir.attributes import get
from infc.ir.mlir import ir
from infc.ir.types import KVType, TensorType
from infc.passes.walk import body, dim_maxima, program_functions

IrValue: TypeAlias = ir.Value
Constant: TypeAlias = Argument | Cache | RopeSource | Weight
Operand: TypeAlias = Constant | IrValue
"""What a call is given: something known, or the result of another call."""


@dataclass(frozen=True)
class CallSite:
    """A call of a kernel or of a layer.

    Attributes:
        function: that is called.
        operands: what with.
        results: what it makes.
        layer: number of the layer, None outside.
    """

    function: ir.OpView
    operands: tuple[Operand, ...]
    results: tuple[ir.Value, ...]
    layer: int | None

    @property
    def kind(self) -> str:
        """Of a kernel; empty for a layer."""
        return str(get(self.function, "infc.kernel", ""))


@dataclass(frozen=True)
class ModelProgram:
    """One phase.

    Attributes:
        phase: `prefill` or `decode`.
        maxima: the most rows by symbol.
        functions: all of the program, by name.
        head: calls in front of the layers.
        layers: calls of layers, in order.
        tail: calls behind them, those of `top_k` left out: the host does that.
        logits, best: what the program returns.
    """

    phase: str
    maxima: Mapping[str, int]
    functions: Mapping[str, ir.OpView]
    head: Sequence[CallSite]
    layers: Sequence[CallSite]
    tail: Sequence[CallSite]
    logits: ir.Value
    best: ir.Value


def read_program(program: ir.OpView) -> ModelProgram:
    """Take a program's module apart."""
    functions = {str(get(f, "sym_name")): f for f in program_functions(program)}
    main = functions["main"]
    arguments = main.regions[0].blocks[0].arguments
    known: dict[ir.Value, Constant] = {
        argument: Argument(name)
        for argument, name in zip(arguments, ("tokens", "positions", "slots", "rows"), strict=True)
    }
    calls: list[CallSite] = []
    returned: list[ir.Value] = []
    for op in body(main):
        name, operation = op.operation.name, op.operation
        if name == "func.call":
            function = functions[str(get(op, "callee"))]
            operands = tuple(known.get(value, value) for value in operation.operands)
            calls.append(
                CallSite(function, operands, tuple(operation.results), get(op, "infc.layer"))
            )
        elif name == "func.return":
            returned = list(operation.operands)
        else:
            known[operation.results[0]] = _constant(op)
    layers = [number for number, call in enumerate(calls) if call.layer is not None]
    first, stop = layers[0], layers[-1] + 1
    return ModelProgram(
        phase=str(get(program, "infc.phase")),
        maxima=dim_maxima(program),
        functions=functions,
        head=calls[:first],
        layers=calls[first:stop],
        tail=[call for call in calls[stop:] if call.kind != "top_k"],
        logits=returned[0],
        best=returned[1],
    )


def _constant(op: ir.OpView) -> Constant:
    result = op.operation.results[0]
    if op.operation.name == "infc.weight":
        return Weight((str(get(op, "source")),), TensorType.of(result.type))
    if op.operation.name == "infc.kv_cache":
        return Cache((int(get(op, "index")),), KVType.of(result.type))
    if op.operation.name == "infc.rope_table":
        positions = int(TensorType.of(result.type).shape[0])
        frequencies = tuple(get(op, "inverse_frequencies"))
        return RopeSource(frequencies, float(get(op, "magnitude")), positions)
    raise InternalError(f"{op.operation.name} outside of kernels", location=str(op.location))


@dataclass(frozen=True)
class Run:
    """Equal layers one after the other: one loop.

    Attributes:
        function: the layer.
        operands: of the first turn; weights and caches name those of all turns.
        x: which operand is the residual stream.
    """

    function: ir.OpView
    operands: tuple[Operand, ...]
    turns: int
    x: int


def runs_of(calls: Sequence[CallSite]) -> list[Run]:
    """Layers that differ in weights and caches only, gathered."""
    runs: list[Run] = []
    last: CallSite | None = None
    for call in calls:
        x = _stream_operand(call)
        merged = None
        if last is not None and runs[-1].function == call.function and runs[-1].x == x:
            merged = _merge(runs[-1].operands, call.operands, x)
        if merged is None:
            runs.append(Run(call.function, call.operands, 1, x))
        else:
            runs[-1] = Run(call.function, merged, runs[-1].turns + 1, x)
        last = call
    return runs


def _stream_operand(call: CallSite) -> int:
    made = [i for i, value in enumerate(call.operands) if isinstance(value, ir.Value)]
    if len(made) != 1 or len(call.results) != 1:
        raise InternalError("a layer takes one value and makes one", location=str(call.function))
    return made[0]


def _merge(
    first: Sequence[Operand], other: Sequence[Operand], x: int
) -> tuple[Operand, ...] | None:
    """The operands of one turn more; None where something else than weights differs."""
    merged: list[Operand] = []
    for number, (a, b) in enumerate(zip(first, other, strict=True)):
        if number == x:
            merged.append(a)
        elif isinstance(a, Weight) and isinstance(b, Weight):
            merged.append(Weight(a.sources + b.sources, a.type))
        elif isinstance(a, Cache) and isinstance(b, Cache):
            merged.append(Cache(a.layers + b.layers, a.kind))
        elif a == b:
            merged.append(a)
        else:
            return None
    return tuple(merged)
