"""The pass that chooses how a model is spread over the machine.

    module @model { module @prefill ..., module @decode ... }
      -->  the same with infc.partitions = [{prefill = {stages = [...], ring_slots = 4, ...},
                                             decode = {...}}, ...]

Requires: kernels with their mappings. Guarantees: at least one partition; the first one that fits
into the machine's memories is what code is made for. Does not handle: whether it fits, which only
the code generator's plans say.

A partition may be edited in a dump: what is compiled is what the attribute says.
"""

from __future__ import annotations

from infc.backends.dataflow.codegen.model import read_program
from infc.backends.dataflow.cost.choice import Choice, Use, choices
from infc.backends.dataflow.cost.sketch import Sketch
from infc.backends.dataflow.machine import Machine
from infc.backends.dataflow.partition import Mapping
from infc.ir.attributes import get, to_attribute
from infc.ir.levels import Level
from infc.ir.mlir import ir
from infc.passes.walk import programs
from infc.pipeline.passes import FunctionPass, PassContext, Remark

ATTRIBUTE = "infc.partitions"
_KEPT = 6
"""Partitions that code may be made for; one stage over the whole machine is always among them."""


def choose_partition(module: ir.Module, ctx: PassContext) -> None:
    """Rank the partitions of the model by the expected use."""
    machine = Machine.of(ctx.target)
    found = {}
    for op in programs(module):
        sketch = Sketch.of(read_program(op))
        found[sketch.phase] = sketch
    options = ctx.options
    use = Use(options.prompt, options.new_tokens, options.max_context)
    ranked = choices(found, machine, use)
    kept = ranked[:_KEPT]
    kept += [choice for choice in ranked[_KEPT:] if _stages(choice) == 1]
    module.operation.attributes[ATTRIBUTE] = to_attribute(
        [{phase: mapping.record() for phase, mapping in choice.mappings.items()} for choice in kept]
    )
    for choice in ranked:
        ctx.remarks.append(Remark(ctx.pass_name, "all layers", _reason(choice, ranked[0])))


def partitions_of(module: ir.Module) -> list[dict[str, Mapping]]:
    """The mappings of both programs, by phase, in the order in which they are to be tried."""
    return [
        {phase: Mapping.read(record) for phase, record in partition.items()}
        for partition in get(module.operation, ATTRIBUTE, [])
    ]


def _stages(choice: Choice) -> int:
    return len(choice.mappings["decode"].stages)


def _reason(choice: Choice, best: Choice) -> str:
    """One line on a partition."""
    stages = choice.mappings["decode"].stages
    parts = []
    for phase, seconds in choice.seconds.items():
        mapping = choice.mappings[phase]
        ring = f", ring {mapping.ring_slots} x {mapping.slot_bytes} bytes" * bool(
            mapping.ring_slots
        )
        parts.append(f"{phase} {seconds * 1e6:.1f} us bound by {choice.bound[phase]}{ring}")
    rank = "chosen" if choice is best else f"{choice.total / best.total:.2f} times the chosen one"
    plural = "s" * (len(stages) > 1)
    area = stages[0].area
    return f"{len(stages)} stage{plural} of {area.size} cores: {rank}; {'; '.join(parts)}"


CHOOSE_PARTITION = FunctionPass("choose-partition", Level.SCHEDULE, choose_partition)
