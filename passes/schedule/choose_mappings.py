"""Each kernel gets the mapping that the cost model likes best.

    func @k1_matmul ... {infc.kernel = "matmul"}
      -->  ... {infc.kernel = "matmul", infc.mapping = {row_tile = 6, col_tile = 2, ...},
                infc.work = {rows, bytes, operations, barriers, class, sizes, ways, ahead}}

Requires: fused kernels. Guarantees: every kernel has a mapping; all row kernels of a program share
their partition, so that a value is in one space wherever it is used. Does not handle: measuring
(that is the context's tuner, which is given the ranking and chooses).

A mapping may be edited in a dump: what is compiled is what the attribute says.
"""

from __future__ import annotations

from dataclasses import asdict

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
                    **_classed(work),
                    **({} if work.ahead is None else {"ahead": asdict(work.ahead)}),
                }
            )


def _classed(work: Work) -> dict[str, object]:
    """The class of the cost model that a kernel belongs to, and its sizes; nothing without one."""
    if not work.kernel:
        return {}
    return {
        "class": work.kernel,
        "sizes": {name: round(size) for name, size in work.sizes.items()},
        **({"ways": [asdict(way) for way in work.ways]} if work.ways else {}),
    }


def best_mapping(summary: KernelSummary, ctx: PassContext) -> tuple[KernelMapping, Work]:
    """The candidate with the least expected time; the backend's order breaks ties.

    Where there is a tuner it is asked which one of them it is to be.
    """
    choices = [
        (mapping, ctx.backend.work(summary, mapping, ctx.target))
        for mapping in ctx.backend.candidates(summary, ctx.target)
    ]
    estimates = [estimate_work(work, ctx.target) for _, work in choices]
    order = sorted(range(len(choices)), key=lambda number: estimates[number].mid)
    if ctx.tuner is None:
        return choices[order[0]]
    # What tells mappings apart ranks them, and is in no predicted time.
    ranked = [
        (choices[number][0], estimates[number].scale(choices[number][1].speed)) for number in order
    ]
    return choices[order[ctx.tuner.choose(summary, ranked)]]


CHOOSE_MAPPINGS = FunctionPass("choose-mappings", Level.SCHEDULE, choose_mappings)
