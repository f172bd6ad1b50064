"""What a kernel costs, read off its operations: the input of the cost model and of backends."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from infc.ir.attributes import get
from infc.ir.mlir import ir
from infc.ir.storage import STORAGE_TYPES
from infc.ir.types import PRODUCT_DTYPES, Dim, KVType, TensorType, is_kv, is_tensor, storage_bytes
from infc.passes.walk import body
from infc.pipeline.options import CompileOptions
from infc.target.backend import KernelSummary


def summarize(
    kernel: ir.OpView, phase: str, maxima: Mapping[str, int], options: CompileOptions
) -> KernelSummary:
    """The summary of a kernel function at the schedule level.

    Args:
        kernel: a function with `infc.kernel`.
        phase: `prefill` or `decode`.
        maxima: the largest value of each symbolic dimension.
        options: the hints say how many rows and which context are typical.
    """
    return _Summary(kernel, phase, maxima, options).result()


def typical_dims(phase: str, maxima: Mapping[str, int], options: CompileOptions) -> dict[str, int]:
    """The value of each symbolic dimension in the expected use: tokens `t`, rows of logits `r`."""
    typical = {"t": options.prompt, "r": 1} if phase == "prefill" else {}
    return {name: min(typical.get(name, options.batch), most) for name, most in maxima.items()}


class _Summary:
    def __init__(
        self, kernel: ir.OpView, phase: str, maxima: Mapping[str, int], options: CompileOptions
    ) -> None:
        self.kernel, self.phase, self.maxima, self.options = kernel, phase, maxima, options
        self.typical = typical_dims(phase, maxima, options)
        self.context = min(options.prompt + options.new_tokens, options.max_context)
        self.operations: dict[str, float] = defaultdict(float)
        self.shapes: dict[str, int] = {}
        self.kv_dtype = self.gate = ""
        self.out = "f32"
        self.matrices: list[tuple[int, int, str]] = []
        self.weight_bytes = 0
        self.activation_bytes = 0

    def result(self) -> KernelSummary:
        block = self.kernel.regions[0].blocks[0]
        for argument in block.arguments:
            self.count_bytes(_read_of(argument))
        symbol: Dim = "t"
        for op in body(self.kernel):
            self.note_form(op)
            if op.operation.name == "func.return":
                for value in op.operation.operands:
                    self.count_bytes(value.type)
                    if is_tensor(value.type):
                        symbol = TensorType.of(value.type).shape[0]
            else:
                self.count_operations(op)
        return KernelSummary(
            kind=get(self.kernel, "infc.kernel"),
            phase=self.phase,
            rows=self.number(symbol, self.maxima),
            typical_rows=self.number(symbol, self.typical),
            operations=dict(self.operations),
            weight_bytes=self.weight_bytes,
            activation_bytes=self.activation_bytes,
            shapes=self.shapes,
            matrices=tuple(self.matrices),
            kv_dtype=self.kv_dtype,
            gate=self.gate,
            out=self.out,
            split=_reads_split(self.kernel),
        )

    def note_form(self, op: ir.OpView) -> None:
        """What a product or an attention has behind it that changes how it runs."""
        kind, name = get(self.kernel, "infc.kernel"), op.operation.name
        if kind == "matmul" and name == "infc.activation":
            self.gate = get(op, "kind")
        if kind in ("matmul", "attention") and name == "infc.quantize":
            self.out = TensorType.of(op.operation.results[0].type).element

    def number(self, dim: Dim, values: Mapping[str, int]) -> int:
        return values[dim] if isinstance(dim, str) else dim

    def count_bytes(self, type_: ir.Type) -> None:
        if is_kv(type_):
            return
        tensor = TensorType.of(type_)
        shape = [self.number(dim, self.typical) for dim in tensor.shape]
        if len(tensor.shape) == 3:
            return  # of a rope table only the rows of the call's positions are read
        if tensor.element in STORAGE_TYPES and tensor.shape == tuple(shape):
            self.weight_bytes += storage_bytes(tensor.element, shape)
        else:
            self.activation_bytes += storage_bytes(tensor.element, shape)

    def count_operations(self, op: ir.OpView) -> None:
        name = op.operation.name
        operands = list(op.operation.operands)
        if name in ("infc.linear", "infc.head_candidates"):
            matrix = TensorType.of(operands[1].type)
            n, k = (int(d) for d in matrix.shape)
            self.matrices.append((n, k, matrix.element))
            x = TensorType.of(operands[0].type)
            dtype = PRODUCT_DTYPES[x.element]
            self.operations[dtype] += 2.0 * n * k * self.number(x.shape[0], self.typical)
        elif name == "infc.kv_attention":
            self.count_attention(op, operands)
        elif name == "infc.embed":
            # Only the rows that are looked up are read, not the table.
            self.weight_bytes = 0
        elif op.operation.results and is_tensor(op.operation.results[0].type):
            if name == "infc.rope":
                # Of queries and of keys.
                width = int(TensorType.of(operands[0].type).shape[1])
                heads = self.shapes.get("rotated_heads", 0) + width // get(op, "head_dim")
                self.shapes["rotated_heads"] = heads
            shape = TensorType.of(op.operation.results[0].type).shape
            elements = 1
            for dim in shape:
                elements *= self.number(dim, self.typical)
            self.operations["f32"] += 4.0 * elements

    def count_attention(self, op: ir.OpView, operands: list[ir.Value]) -> None:
        cache = KVType.of(operands[1].type)
        rows, width = TensorType.of(operands[0].type).shape
        t = self.number(rows, self.typical)
        seen = min(self.context, cache.window) if cache.window else self.context
        # In prefill a query sees half of the prompt on average.
        mean = min(seen, (t + 1) // 2) if self.phase == "prefill" else seen
        self.operations["f32"] += 4.0 * t * mean * int(width)
        caches = t if self.phase == "decode" else 1  # a token each of so many sequences
        self.activation_bytes += caches * seen * cache.position_bytes
        self.kv_dtype = cache.dtype
        self.shapes |= {
            "heads": get(op, "heads"),
            "kv_heads": cache.kv_heads,
            "head_dim": cache.head_dim,
            "window": cache.window,
            "capacity": cache.capacity,
            "context": seen,
        }


def _read_of(argument: ir.Value) -> ir.Type:
    """What of an argument is read: where only some rows are selected, those."""
    uses = list(argument.uses)
    owners = [use.owner.operation for use in uses if use.operand_number == 0]
    if len(uses) == 1 and [owner.name for owner in owners] == ["infc.select_rows"]:
        return owners[0].results[0].type
    return argument.type


def _reads_split(kernel: ir.OpView) -> bool:
    """Whether a call of the kernel is given a weight in two planes."""
    name = get(kernel, "sym_name")
    for op in kernel.operation.block:
        for call in body(op) if op.operation.name == "func.func" else ():
            if call.operation.name == "func.call" and get(call, "callee") == name:
                owners = [operand.owner for operand in call.operation.operands]
                if any(not isinstance(o, ir.Block) and get(o, "split", False) for o in owners):
                    return True
    return False
