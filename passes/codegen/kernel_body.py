"""Reads a memory-level kernel: tensors between `infc.read` and `infc.write`."""

from __future__ import annotations

from infc.diagnostics import InternalError
from infc.ir.attributes import get
from infc.ir.mlir import ir
from infc.ir.types import BufferType
from infc.passes.codegen.builder import Value


class KernelBody:
    """A kernel function's operations, and which argument each value is read from or written to."""

    def __init__(self, function: ir.OpView) -> None:
        block = function.regions[0].blocks[0]
        self.function = function
        self.arguments = list(block.arguments)
        self.ops = [
            op
            for op in block.operations
            if op.operation.name not in ("infc.read", "infc.write", "func.return")
        ]
        self.source: dict[Value, int] = {arg: i for i, arg in enumerate(self.arguments)}
        self.target: dict[Value, int] = {}
        for op in block.operations:
            if op.operation.name == "infc.read":
                argument = ir.BlockArgument(op.operation.operands[0]).arg_number
                self.source[op.operation.results[0]] = argument
            elif op.operation.name == "infc.write":
                argument = ir.BlockArgument(op.operation.operands[1]).arg_number
                self.target[op.operation.operands[0]] = argument
        self.mapping: dict[str, int | str] = get(function, "infc.mapping")
        self.kind: str = get(function, "infc.kernel")

    def named(self, name: str) -> list[ir.OpView]:
        """The operations of one name, in order."""
        return [op for op in self.ops if op.operation.name == f"infc.{name}"]

    def buffer(self, argument: int) -> BufferType:
        """The type of a buffer argument."""
        return BufferType.of(self.arguments[argument].type)

    def row_symbol(self) -> str:
        """The symbol of the rows it works on: of what it writes, or of its first tensor."""
        argument = next(iter(self.target.values()), None)
        kind = self.buffer(argument) if argument is not None else None
        if kind is None:
            raise InternalError("a kernel writes nothing", location=str(self.function.location))
        return str(kind.tensor.shape[0])
