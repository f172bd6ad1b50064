"""Each kernel gets the mapping that the cost model likes best.

    func @k1_matmul ... {infc.kernel = "matmul"}
      -->  ... {infc.kernel = "matmul", infc.mapping = {row_tile = 6, col_tile = 2, ...},
                infc.work = {rows, bytes, operations, barriers}}

Requires: fused kernels. Guarantees: every kernel has a mapping; all row kernels of a program share
their partition, so that a value is in one space wherever it is used. Does not handle: measuring
(that is tuning, which replaces the ranking and not the candidates).

A mapping may be edited in a dump: what is compiled is what the attribute says.
"""

from __future__ import annotations

from infc.cost.roofline import Work, estimate_work
from infc.ir.attributes import get, to_attribute
from infc.ir.levels import Level
from infc.ir.mlir import ir
from infc.passes.schedule.summary import summarize
from infc.passes.walk import dim_maxima, program_functions, programs
from infc.pipeline.passes import FunctionPass, PassContext
from infc.target.backend import KernelMapping, KernelSummary


def choose_mappings(module: ir.Module, ctx: PassContext) -> None:
    """Choose for every kernel of both programs."""
    for program in programs(module):
        phase, maxima = get(program, "infc.phase"), dim_maxima(program)
        kernels = {
            function: summarize(function, phase, maxima, ctx.options)
            for function in program_functions(program)
            if get(function, "infc.kernel") is not None
        }
        for function, summary in kernels.items():
            mapping, work = best_mapping(summary, ctx)
            function.operation.attributes["infc.mapping"] = to_attribute(dict(mapping))
            function.operation.attributes["infc.work"] = to_attribute(
                {
                    "rows": summary.typical_rows,
                    "bytes": {name: int(moved) for name, moved in work.bytes.items()},
                    "operations": {name: int(count) for name, count in work.operations.items()},
                    "barriers": work.barriers,
                }
            )


def best_mapping(summary: KernelSummary, ctx: PassContext) -> tuple[KernelMapping, Work]:
    """The candidate with the least expected time; the backend's order breaks ties."""
    choices = [
        (mapping, ctx.backend.work(summary, mapping, ctx.target))
        for mapping in ctx.backend.candidates(summary, ctx.target)
    ]
    return min(choices, key=lambda choice: estimate_work(choice[1], ctx.target).mid)


CHOOSE_MAPPINGS = FunctionPass("choose-mappings", Level.SCHEDULE, choose_mappings)
