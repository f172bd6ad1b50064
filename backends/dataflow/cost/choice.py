"""Which mapping of a model takes the least time, of those worth considering.

Both programs have the same stages, as keys, values and weights stay where they are; rows at once
and the ring of weights are each program's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Mapping as Named
from dataclasses import dataclass, replace

from infc.backends.dataflow.codegen.kv_home import KVHome
from infc.backends.dataflow.cost.constants import fitted
from infc.backends.dataflow.cost.heads import kind_of
from infc.backends.dataflow.cost.predict import call_cost
from infc.backends.dataflow.cost.products import form_of
from infc.backends.dataflow.cost.sketch import Sketch, Step
from infc.backends.dataflow.machine import Machine
from infc.backends.dataflow.mappings import default_mapping, largest_tile
from infc.backends.dataflow.partition import Mapping, Stage, stages_of

_SLOTS = (2, 4, 8, 16)
_RING_SHARES = (8, 16, 32, 64)
"""A ring takes one of these parts of SRAM."""
_WORTH = 1.2
"""Rings are chosen for stages that take at most so many times as long as the best with usual
rings."""
_PARTS_OF_CHIP = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Stages that may share a chip."""


@dataclass(frozen=True)
class Use:
    """What a model is to be used for.

    Attributes:
        prompt: tokens to prefill.
        new_tokens: to decode behind them.
        context: positions that there are.
    """

    prompt: int
    new_tokens: int
    context: int

    @property
    def middle(self) -> int:
        """The position of a token in the middle of those that are decoded."""
        return max(1, min(self.prompt + self.new_tokens // 2, self.context - 1))


@dataclass(frozen=True)
class Choice:
    """One way to map a model.

    Attributes:
        mappings: by phase.
        seconds: of all calls of each phase, predicted.
        bound: the resource that binds most of a phase.
    """

    mappings: Named[str, Mapping]
    seconds: Named[str, float]
    bound: Named[str, str]

    @property
    def total(self) -> float:
        """Of the whole use."""
        return sum(self.seconds.values())


def choices(sketches: Named[str, Sketch], machine: Machine, use: Use) -> list[Choice]:
    """All that are considered, the one with the least predicted time first.

    Those are left out whose weights and caches alone need more SRAM than there is, unless none is
    left: the code generator then says what is missing.
    """
    all_stages = list(_stages(sketches["decode"], machine))
    fitting = [
        stages
        for stages in all_stages
        if resident_bytes(sketches["decode"], machine, stages) <= machine.sram_bytes
    ]
    usual = [
        _choice(sketches, machine, use, stages, _usual_ring) for stages in fitting or all_stages[:1]
    ]
    limit = _WORTH * min(choice.total for choice in usual)
    found = [
        _choice(sketches, machine, use, choice.mappings["decode"].stages, _rings)
        if choice.total <= limit
        else choice
        for choice in usual
    ]
    return sorted(found, key=lambda each: each.total)


def _choice(
    sketches: Named[str, Sketch],
    machine: Machine,
    use: Use,
    stages: tuple[Stage, ...],
    rings: Callable[[Sketch, Machine, tuple[Stage, ...]], Iterable[Mapping]],
) -> Choice:
    """The best of some rings for each phase."""
    best = {
        phase: min(
            (_timed(sketch, machine, mapping, use) for mapping in rings(sketch, machine, stages)),
            key=lambda each: each[0],
        )
        for phase, sketch in sketches.items()
    }
    return Choice(
        {phase: mapping for phase, (_, _, mapping) in best.items()},
        {phase: seconds for phase, (seconds, _, _) in best.items()},
        {phase: bound for phase, (_, bound, _) in best.items()},
    )


def _stages(sketch: Sketch, machine: Machine) -> Iterator[tuple[Stage, ...]]:
    """Stages of some whole chips each, or rectangles of a chip's cores, that hold about as much."""
    layers, chips = len(sketch.layers), machine.chips
    counts = [count for count in range(1, chips + 1) if chips % count == 0]
    counts += [each * chips for each in _PARTS_OF_CHIP if each <= machine.chip_cores]
    steps = [step for layer in sketch.layers for step in sketch.bodies[layer]]
    layer = _held_bytes(steps, machine) / layers
    before = 0.0 if machine.far else _held_bytes(sketch.head, machine) / layer
    behind = _held_bytes(sketch.tail, machine) / layer
    heads = next(step.sizes["kv_heads"] for step in steps if step.op == "kv_append")
    for count in counts:
        if count <= layers:
            yield stages_of(machine, layers, count, before=before, behind=behind, heads=heads)


def _usual_ring(sketch: Sketch, machine: Machine, stages: tuple[Stage, ...]) -> Iterable[Mapping]:
    """The ring of a usual size."""
    return [default_mapping(machine, stages, sketch.most["t"], min(sketch.most["r"], 1))]


def _rings(sketch: Sketch, machine: Machine, stages: tuple[Stage, ...]) -> Iterable[Mapping]:
    """Rings of weights, the smaller ones first; of equals the first is taken."""
    (mapping,) = _usual_ring(sketch, machine, stages)
    if not mapping.ring_slots:
        yield mapping
        return
    tile, seen = largest_tile(machine), set()
    for share in sorted(_RING_SHARES, reverse=True):
        for slots in _SLOTS:
            size = machine.sram_bytes // share // slots // tile * tile
            if size and (slots, size) not in seen:
                seen.add((slots, size))
                yield replace(mapping, ring_slots=slots, slot_bytes=size)
    if not seen:
        yield mapping


def _timed(
    sketch: Sketch, machine: Machine, mapping: Mapping, use: Use
) -> tuple[float, str, Mapping]:
    """Seconds of all calls of a phase, what binds them, and the mapping."""
    decode = sketch.phase == "decode"
    tokens = 1 if decode else min(use.prompt, mapping.max_tokens)
    position = use.middle if decode else 0
    cost = call_cost(
        sketch, machine, mapping,
        tokens=tokens, position=position, logit_rows=1, constants=fitted().constants,
    )  # fmt: skip
    calls = use.new_tokens if decode else -(-use.prompt // tokens)
    bound = max(cost.by_resource, key=lambda name: cost.by_resource[name])
    return calls * cost.seconds, bound, mapping


def resident_bytes(sketch: Sketch, machine: Machine, stages: tuple[Stage, ...]) -> int:
    """What a core of the fullest stage keeps in SRAM at least; 0 where there is far memory."""
    if machine.far:
        return 0
    needed = []
    for number, stage in enumerate(stages):
        layers = sketch.layers[stage.first_layer : stage.first_layer + stage.layers]
        steps = [step for layer in layers for step in sketch.bodies[layer]]
        steps += sketch.head if number == 0 else ()
        steps += sketch.tail if number == len(stages) - 1 else ()
        needed.append(_held_bytes(steps, machine, stage.area.size))
    return max(needed)


def _held_bytes(steps: Sequence[Step], machine: Machine, cores: int = 1) -> int:
    """Weights, tables and caches of some operations on a core of so many."""
    return sum(_kept_bytes(step, machine, cores) for step in steps)


def _kept_bytes(step: Step, machine: Machine, cores: int) -> int:
    if step.op == "kv_append":
        return KVHome.of(kind_of(step), cores, machine).layer_bytes
    k = step.sizes["width"]
    if step.op == "embed":
        return step.sizes["vocabulary"] // cores * form_of(step.kind).tile_bytes(1, k)
    return sum(n // cores * form_of(storage).tile_bytes(1, k) for n, storage in step.matrices)
