"""From the schedule level to what an artifact holds: an image for each phase, and the weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from collections.abc import Mapping as Named
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

from infc.backends.dataflow.choose import partitions_of
from infc.backends.dataflow.codegen.contents import WeightFile, regions
from infc.backends.dataflow.codegen.emit import Emitted, ProgramEmitter
from infc.backends.dataflow.codegen.memory import SramPlan
from infc.backends.dataflow.codegen.model import ModelProgram, read_program
from infc.backends.dataflow.cost.sketch import Sketch
from infc.backends.dataflow.image import Image, share_streams, write_image
from infc.backends.dataflow.machine import Machine
from infc.backends.dataflow.packing import Packer
from infc.backends.dataflow.partition import Mapping
from infc.diagnostics import Code, InternalError, UserError
from infc.ir.attributes import from_attribute, get
from infc.ir.mlir import ir
from infc.ir.types import TensorType
from infc.passes.walk import body, program_functions, programs
from infc.target.backend import Programs, WeightData
from infc.target.schema import Target

Factor = Callable[[str], float]

_FEWEST_TOKENS = 8
"""Of a prefill program: with fewer rows at once nothing is won by smaller buffers."""


@dataclass(frozen=True)
class EmittedModel:
    """Both programs of a model for one mapping.

    Attributes:
        images: by phase.
        weights: what the file of packed weights holds.
        cache: what the host keeps of the KV cache, and in which order.
        emitted: by phase.
        mappings: by phase.
        sketches: by phase.
    """

    images: Named[str, Image]
    weights: WeightFile
    cache: WeightFile
    emitted: Named[str, Emitted]
    mappings: Named[str, Mapping]
    sketches: Named[str, Sketch]


def emit_programs(
    module: ir.Module, target: Target, weights: WeightData, mapping: Mapping | None = None
) -> Programs:
    """The images of both programs of a schedule-level module.

    Args:
        mapping: how the model is spread; None takes what the module says.

    Raises:
        UserError: the model is larger than the machine (INF2101); the options ask for several
            sequences or another cache than f16 (INF5001).
    """
    signature = from_attribute(module.operation.attributes["infc.signature"])
    _check_options(signature)
    machine = Machine.of(target)
    packer = Packer(weights, _types(module))
    model = emit_model(module, machine, mapping, factor=cache(packer.factor))
    return Programs(
        members={f"{phase}.dfx": write_image(image) for phase, image in model.images.items()},
        write_weights=partial(packer.write, model.weights),
        weight_bytes=model.weights.size_bytes,
        signature={**signature, **_own_signature(model, machine)},
    )


def _own_signature(model: EmittedModel, machine: Machine) -> dict[str, Any]:
    """The entries that `signature.DataflowSignature` names."""
    stages = model.mappings["decode"].stages
    layers = model.emitted["decode"].cache_layers
    return {
        "stages": [
            [stage.area.core(i, (machine.rows, machine.cols)) for i in range(stage.area.size)]
            for stage in stages
        ],
        "cache_bytes": model.cache.size_bytes,
        "cache_starts": [
            [model.cache.offsets["kv", number, i] for i in range(stage.area.size)]
            for number, stage in enumerate(stages)
        ],
        "cache_layers": [list(layers[layer]) for layer in range(len(layers))],
        "planned_bytes": max(e.height_bytes for e in model.emitted.values()),
        "timed": {
            phase: {"sketch": model.sketches[phase].record(), "mapping": mapping.record()}
            for phase, mapping in model.mappings.items()
        },
        "sram": {phase: _sram_plans(e.plans) for phase, e in model.emitted.items()},
    }


def emit_model(
    module: ir.Module,
    machine: Machine,
    mapping: Mapping | None = None,
    *,
    factor: Factor = lambda source: 1.0,
) -> EmittedModel:
    """Both programs, under a mapping or the first of the module's partitions that fits.

    Without a mapping the prefill program takes as many rows at once as fit. No weights are needed:
    `factor` says by which products with a matrix are multiplied.
    """
    found = [read_program(op) for op in programs(module)]
    if mapping is not None:
        return _emit(found, machine, {p.phase: mapping for p in found}, factor, fixed=True)
    partitions = partitions_of(module)
    for number, partition in enumerate(partitions):
        try:
            return _emit(found, machine, partition, factor, fixed=False)
        except UserError as error:
            if error.code is not Code.PLAN or number == len(partitions) - 1:
                raise
    raise InternalError("a module without partitions")


def _emit(
    found: Sequence[ModelProgram],
    machine: Machine,
    partition: Named[str, Mapping],
    factor: Factor,
    *,
    fixed: bool,
) -> EmittedModel:
    """Both programs under one mapping each; raises UserError (INF2101) where they do not fit."""
    emitted, mappings = {}, {}
    # Decode first: where it does not fit nothing does.
    for program in sorted(found, key=lambda each: each.phase):
        phase = program.phase
        emitted[phase], mappings[phase] = _fitting(
            program, machine, partition[phase], factor, fixed=fixed
        )
    weights, caches = WeightFile(), WeightFile()
    # Its order is the order in which most of the time weights are read.
    images = {phase: _image(emitted[phase], machine, weights, caches) for phase in sorted(emitted)}
    sketches = {program.phase: Sketch.of(program) for program in found}
    return EmittedModel(images, weights, caches, emitted, mappings, sketches)


def _fitting(
    program: ModelProgram, machine: Machine, mapping: Mapping, factor: Factor, *, fixed: bool
) -> tuple[Emitted, Mapping]:
    """The code of a program, for fewer rows at once where it would not fit."""
    while True:
        emitted = ProgramEmitter(program, machine, mapping, factor).emit()
        height = emitted.height_bytes
        overflow = None if emitted.far is None else emitted.far.overflow()
        if overflow is not None:
            raise _too_large(*overflow, machine, "far memory")
        if height <= machine.sram_bytes:
            return emitted, mapping
        rows = min(program.maxima["t"], mapping.max_tokens)
        if fixed or rows <= _FEWEST_TOKENS:
            raise _too_large("sram", height, machine.sram_bytes, machine, "SRAM of a core")
        mapping = replace(mapping, max_tokens=max(_FEWEST_TOKENS, rows // 2))


def _sram_plans(plans: Sequence[SramPlan]) -> list[dict[str, Any]]:
    """Each different plan once, with the stages that have it."""
    records = [plan.record() for plan in plans]
    return [
        {"stages": [stage for stage, other in enumerate(records) if other == record], **record}
        for number, record in enumerate(records)
        if record not in records[:number]
    ]


def _too_large(name: str, needed: int, there: int, machine: Machine, what: str) -> UserError:
    chips = -(-needed * machine.chips // there)
    return UserError(
        Code.PLAN,
        f"the model needs {needed} bytes in a part of {name} that holds {there}",
        location=machine.name,
        notes=[f"it is spread over {machine.chips} chips; what does not fit is the {what}"],
        hint=f"a machine of about {chips} chips ('{machine.name.partition('@')[0]}@{chips}'), a "
        "smaller --max-context or stronger quantisation may fit",
    )


def _image(emitted: Emitted, machine: Machine, weights: WeightFile, caches: WeightFile) -> Image:
    streams, shared = share_streams(emitted.streams)
    return Image(
        chips=machine.chips,
        rows=machine.rows,
        cols=machine.cols,
        sram_bytes=machine.sram_bytes,
        max_tokens=emitted.max_tokens,
        max_logit_rows=emitted.max_logit_rows,
        streams=streams,
        programs=shared,
        origins=emitted.origins,
        regions=regions(emitted.contents, weights, caches),
        outputs=emitted.outputs,
    )


def _check_options(signature: Named[str, Any]) -> None:
    if signature["max_slots"] != 1:
        raise UserError(
            Code.OPTION,
            f"expected a max-batch of 1 on a dataflow target, got {signature['max_slots']}",
            hint="programs for it take one sequence a call: leave out --max-batch",
        )
    if signature["kv_dtype"] != "f16":
        raise UserError(
            Code.OPTION,
            f"expected a KV cache of f16 on a dataflow target, got {signature['kv_dtype']}",
            hint="leave out --kv-dtype",
        )


def _types(module: ir.Module) -> dict[str, TensorType]:
    """The tensors that both programs read, by their names in the model file."""
    return {
        str(get(op, "source")): TensorType.of(op.operation.results[0].type)
        for program in programs(module)
        for function in program_functions(program)
        for op in body(function)
        if op.operation.name == "infc.weight"
    }
