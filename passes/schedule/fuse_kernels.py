"""Neighbouring operations become kernels: one function each, called where the operations stood.

    %n = rms_norm %x, %g ; %a = quantize %n        %a = call @k0_rows(%x, %g)
    %q = linear %a, %wq ; %k = linear %a, %wk  -->  %q, %k = call @k1_matmul(%a, %wq, %wk)

| kind | operations | why together |
|---|---|---|
| rows | embed, select_rows, rms_norm, add, mul, activation, softcap, quantize | a row stays in L1 |
| matmul | linear of one input; act(gate) * up; softcap; to bf16 | no trips for the gate |
| rotary | norms of heads, rope, kv_append | keys go straight to the cache |
| attention | kv_attention; to bf16 | |
| argmax, top_k, head | argmax, top_k, head_candidates | |

Requires: layers outlined. Guarantees: functions hold only calls, weights, caches and tables; equal
kernels of a program are one function; each has `infc.kernel`. Does not handle: fusing a product's
output with the row operations behind it (declined: they need whole rows).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from infc.ir.attributes import get, to_attribute
from infc.ir.levels import Level
from infc.ir.mlir import func, ir
from infc.ir.outline import (
    operands_from_outside,
    outline,
    results_used_outside,
    structural_key,
)
from infc.ir.types import ABF16, TensorType, is_tensor
from infc.passes.walk import body, program_functions, programs
from infc.pipeline.passes import FunctionPass, PassContext

_LEFT_ALONE = frozenset(
    {"infc.weight", "infc.kv_cache", "infc.rope_table", "func.call", "func.return"}
)
_KINDS = {
    "infc.linear": "matmul",
    "infc.rope": "rotary",
    "infc.kv_append": "rotary",
    "infc.kv_attention": "attention",
    "infc.argmax": "argmax",
    "infc.top_k": "top_k",
    "infc.head_candidates": "head",
}
_ALONE = frozenset({"attention", "argmax", "top_k", "head", "matmul"})
_EPILOGUE = frozenset({"infc.activation", "infc.mul", "infc.softcap"})


@dataclass
class Group:
    """Operations that will be one kernel."""

    kind: str
    ops: list[ir.OpView] = field(default_factory=list)

    def makes(self, value: ir.Value) -> bool:
        """Whether one of the operations makes a value."""
        return any(value in list(op.operation.results) for op in self.ops)

    @property
    def input(self) -> ir.Value:
        """What the first operation reads first."""
        return self.ops[0].operation.operands[0]

    def names(self) -> list[str]:
        """The operations' names without the dialect."""
        return [op.operation.name.removeprefix("infc.") for op in self.ops]


def fuse_kernels(module: ir.Module, ctx: PassContext) -> None:
    """Group and outline the operations of every function."""
    for program in programs(module):
        kernels: dict[str, str] = {}
        for function in program_functions(program):
            for group in _groups(function, ctx):
                _outline(function, group, kernels)


def _groups(function: ir.OpView, ctx: PassContext) -> list[Group]:
    groups: list[Group] = []
    for op in body(function):
        if op.operation.name in _LEFT_ALONE:
            if op.operation.name == "func.call":
                groups.append(Group("call"))
            continue
        kind = _kind(op)
        current = groups[-1] if groups else Group("none")
        if _joins(op, kind, current, ctx):
            current.ops.append(op)
        else:
            groups.append(Group(kind, [op]))
    return [part for group in groups if group.ops for part in _as_supported(group)]


def _kind(op: ir.OpView) -> str:
    if op.operation.name == "infc.rms_norm" and get(op, "head_dim") is not None:
        return "rotary"
    return _KINDS.get(op.operation.name, "rows")


def _joins(op: ir.OpView, kind: str, group: Group, ctx: PassContext) -> bool:
    if group.kind == "matmul":
        if op.operation.name == "infc.linear":
            same = op.operation.operands[0] == group.ops[0].operation.operands[0]
            if not same:
                ctx.decline(op, "reads another input than the product before it")
            return same and set(group.names()) == {"linear"}
        if op.operation.name in _EPILOGUE:
            return all(group.makes(value) for value in op.operation.operands)
        if _rounds(op, group) and TensorType.of(group.input.type).element == ABF16:
            return True
        ctx.decline(op, "needs whole rows of the product before it")
        return False
    if group.kind == "attention" and _rounds(op, group):
        return True
    if kind != group.kind or kind in _ALONE:
        return False
    return kind == "rotary" or _rows(op) == _rows(group.ops[0])


def _rounds(op: ir.OpView, group: Group) -> bool:
    """Whether bf16 rows are all that is wanted of the group: each element is rounded for itself."""
    if op.operation.name != "infc.quantize":
        return False
    value, result = op.operation.operands[0], op.operation.results[0]
    is_bf16 = TensorType.of(result.type).element == ABF16
    return is_bf16 and group.makes(value) and len(list(value.uses)) == 1


def _rows(op: ir.OpView) -> object:
    result = op.operation.results[0]
    return TensorType.of(result.type).shape[0] if is_tensor(result.type) else None


def _as_supported(group: Group) -> list[Group]:
    """A product with an epilogue of a known form stays one kernel; any other is split in two."""
    if group.kind != "matmul":
        return [group]
    names = group.names()
    products = names.count("linear")
    tail = names[products:]
    fits = (
        not tail
        or (products == 2 and tail in (["activation", "mul"], ["activation", "mul", "quantize"]))
        or (products == 1 and tail == ["softcap"])
    )
    if fits:
        return [group]
    return [Group("matmul", group.ops[:products]), Group("rows", group.ops[products:])]


def _outline(function: ir.OpView, group: Group, kernels: dict[str, str]) -> None:
    inputs, outputs = operands_from_outside(group.ops), results_used_outside(group.ops)
    last = group.ops[-1]
    name = f"k{len(kernels)}_{group.kind}"
    with last.location:
        kernel = outline(group.ops, name, inputs, outputs, ir.InsertionPoint(function))
    kernel.operation.attributes["infc.kernel"] = to_attribute(group.kind)
    key = structural_key(kernel)
    if key in kernels:
        kernel.operation.erase()
        name = kernels[key]
    else:
        kernels[key] = name
    with ir.InsertionPoint(last), last.location:
        call = func.CallOp([v.type for v in outputs], name, inputs)
    for old, new in zip(outputs, call.operation.results, strict=True):
        old.replace_all_uses_with(new)
    for op in reversed(group.ops):
        op.operation.erase()


FUSE_KERNELS = FunctionPass("fuse-kernels", Level.SCHEDULE, fuse_kernels)
