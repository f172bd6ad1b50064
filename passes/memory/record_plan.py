"""What the plan promises, written down where lowering cannot lose it: the module's `infc.report`.

Requires: planned memory and mapped kernels. Guarantees: `infc.report` has, for both programs, each
kernel's launches, work and estimate and the outputs of a call that it works for, and each buffer's
place and lifetime; `infc explain`, `infc bench` and the artifact's manifest read it from there.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from infc.ir.attributes import get, to_attribute
from infc.ir.levels import Level
from infc.ir.mlir import ir
from infc.ir.types import BufferType
from infc.passes.memory.bufferize import SPACES
from infc.passes.memory.demand import OUTPUTS, demanded_by, kinds_of_call
from infc.passes.walk import body, program_functions, programs
from infc.pipeline.passes import FunctionPass, PassContext


def record_plan(module: ir.Module, ctx: PassContext) -> None:
    """Write the report."""
    report = {get(p, "infc.phase"): _program_report(p) for p in programs(module)}
    module.operation.attributes["infc.report"] = to_attribute(report)


def _program_report(program: ir.OpView) -> dict[str, Any]:
    functions = {get(f, "sym_name"): f for f in program_functions(program)}
    order = _order("main", functions)
    launches = Counter(order)
    outputs = _outputs(functions)
    kernels = [
        {
            "kernel": name,
            "kind": get(function, "infc.kernel"),
            "location": _name_of(function),
            "launches": launches[name],
            "outputs": sorted(outputs[name]),
            "mapping": get(function, "infc.mapping"),
            **get(function, "infc.work"),
        }
        for name, function in functions.items()
        if get(function, "infc.kernel") is not None
    ]
    plans = {
        name: {
            **get(function, "infc.plan"),
            "buffers": _buffers(function),
            **_transfers(function),
        }
        for name, function in functions.items()
        if get(function, "infc.plan") is not None
    }
    return {"kernels": kernels, "order": order, "plans": plans}


def _outputs(functions: dict[str, ir.OpView]) -> dict[str, frozenset[str]]:
    """The kinds of output that each kernel works for: those called in layers for all of them."""
    main, every = functions["main"], frozenset(OUTPUTS)
    needs = demanded_by(main, functions)
    found: dict[str, frozenset[str]] = {}
    for op in body(main):
        if op.operation.name != "func.call":
            continue
        kinds = kinds_of_call(op, functions, needs, every)
        for kernel in _order(get(op, "callee"), functions) or [get(op, "callee")]:
            found[kernel] = found.get(kernel, frozenset()) | kinds
    return found


def _order(name: str, functions: dict[str, ir.OpView]) -> list[str]:
    """The kernels of a call of a function, in the order they run."""
    order: list[str] = []
    for op in body(functions[name]):
        if op.operation.name == "func.call":
            callee = get(op, "callee")
            is_kernel = get(functions[callee], "infc.kernel") is not None
            order += [callee] if is_kernel else _order(callee, functions)
    return order


def _buffers(function: ir.OpView) -> list[dict[str, Any]]:
    return [
        {
            "buffer": _name_of(op),
            "space": BufferType.of(op.operation.results[0].type).space,
            "type": str(BufferType.of(op.operation.results[0].type).tensor.mlir()),
            "offset_bytes": get(op, "offset"),
            "size_bytes": get(op, "size_bytes"),
            "first": get(op, "first"),
            "last": get(op, "last"),
        }
        for op in body(function)
        if op.operation.name == "infc.alloc"
    ]


def _transfers(function: ir.OpView) -> dict[str, Any]:
    """When each transfer begins and ends, in steps, and the schedule's time; nothing for none."""
    staging = get(function, "infc.staging")
    if staging is None:
        return {}
    # Lifetimes count steps as the plan saw them, without barriers.
    counted = [op for op in body(function) if op.operation.name != "infc.barrier"]
    step = {op.operation: number for number, op in enumerate(counted)}
    rows = []
    for op in counted:
        if op.operation.name not in ("infc.move", "infc.prefetch"):
            continue
        ends = [use.owner.operation for result in op.operation.results for use in result.uses]
        source = BufferType.of(op.operation.operands[0].type)
        home = ("weights", *SPACES)
        near = op.operation.operands[1 if source.space in home else 0]
        rows.append(
            {
                "buffer": _name_of(op),
                "space": BufferType.of(near.type).space,
                "load": source.space in home,
                "offset_bytes": get(near.owner, "offset"),
                "size_bytes": get(near.owner, "size_bytes"),
                "first": step[op.operation],
                "last": step[ends[0]] if ends else step[op.operation],
            }
        )
    return {"transfers": rows, "staging": staging}


def _name_of(op: ir.OpView) -> str:
    """The name in a location, without MLIR's punctuation."""
    return str(op.location).removeprefix("loc(").removesuffix(")").strip('"')


RECORD_PLAN = FunctionPass("record-plan", Level.MEMORY, record_plan)
