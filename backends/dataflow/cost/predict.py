"""What one call of a program takes: its stages one after the other, operation by operation."""

from __future__ import annotations

from collections.abc import Mapping as Named
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from infc.backends.dataflow.codegen.emit import CACHE_SHARE
from infc.backends.dataflow.codegen.kv_home import KVHome
from infc.backends.dataflow.codegen.linear import FINE_COLUMNS
from infc.backends.dataflow.codegen.values import RowSpace
from infc.backends.dataflow.cost import heads, rows
from infc.backends.dataflow.cost.attention import Attention
from infc.backends.dataflow.cost.constants import Constants
from infc.backends.dataflow.cost.prefill_attention import PrefillAttention, identity
from infc.backends.dataflow.cost.products import gated, products, slice_of
from infc.backends.dataflow.cost.rates import Rates
from infc.backends.dataflow.cost.sketch import PRODUCTS, Sketch, Step
from infc.backends.dataflow.cost.timeline import Loader, Timeline
from infc.backends.dataflow.isa import BLOCK
from infc.backends.dataflow.machine import Machine
from infc.backends.dataflow.partition import Mapping, Stage
from infc.ir.types import KVType

_STEADY = 1e-3
"""Layers that differ by no more than this part are taken to be alike, with all behind them."""


@dataclass(frozen=True)
class CallCost:
    """One call.

    Attributes:
        seconds: from the host's call to its return.
        by_resource: seconds that each resource binds; they add up to all.
        by_origin: seconds by the model's name of a kernel, layers that share their code together.
    """

    seconds: float
    by_resource: Named[str, float]
    by_origin: Named[str, float]


def call_cost(
    sketch: Sketch,
    machine: Machine,
    mapping: Mapping,
    *,
    tokens: int,
    position: int,
    logit_rows: int,
    constants: Constants,
) -> CallCost:
    """Predict a call.

    Args:
        sketch: of the program.
        machine: it runs on.
        mapping: it was made for.
        tokens: of the call, at most `mapping.max_tokens`.
        position: of the first one.
        logit_rows: whose logits are wanted, at most `mapping.max_logit_rows`.
        constants: of the model.
    """
    rates = Rates(machine, constants)
    rows_of = {"t": tokens, "r": logit_rows}
    now, busy = 0.0, dict[str, float]()
    by_origin: dict[str, float] = {}
    for number, stage in enumerate(mapping.stages):
        time = _timeline(sketch, rates, mapping, stage, rows_of, position)
        time.now = now
        walk = _Stage(time, mapping, by_origin)
        walk.run(sketch, stage, first=number == 0, last=number == len(mapping.stages) - 1)
        now = time.now
        for name, cycles in time.busy.items():
            busy[name] = busy.get(name, 0.0) + cycles
    cycle = 1.0 / machine.clock_hz
    return CallCost(
        now * cycle + machine.launch_s,
        {"launch": machine.launch_s, **{name: spent * cycle for name, spent in busy.items()}},
        {name: spent * cycle for name, spent in by_origin.items()},
    )


def _timeline(
    sketch: Sketch,
    rates: Rates,
    mapping: Mapping,
    stage: Stage,
    rows_of: dict[str, int],
    position: int,
) -> Timeline:
    machine, cores = rates.machine, stage.area.size
    shared = sketch.phase == "prefill" and cores > 1
    spaces = {
        "t": RowSpace("t", 1, min(sketch.most["t"], mapping.max_tokens), shared, cores),
        "r": RowSpace("r", 0, min(sketch.most["r"], mapping.max_logit_rows), False, cores),
    }
    loader = None
    if mapping.ring_slots:
        loader = Loader(rates, cores, mapping.ring_slots, prefetch=mapping.prefetch)
    layers = sketch.layers[stage.first_layer : stage.first_layer + stage.layers]
    kinds = [kind for layer in layers for kind in _kinds(sketch.bodies[layer])]
    size = sum(KVHome.of(kind, cores, machine).layer_bytes for kind in kinds)
    far = bool(machine.far) and size > machine.sram_bytes // CACHE_SHARE
    groups = KVHome.of(kinds[0], cores, machine).groups if kinds else 1
    return Timeline(rates, stage.area, sketch.phase, spaces, rows_of, position, loader, groups, far)


def _kinds(body: Sequence[Step]) -> list[KVType]:
    return [heads.kind_of(step) for step in body if step.op == "kv_append"]


class _Stage:
    """Goes through the operations of a stage.

    Attributes:
        columns: of the values that are columns, those of the core that has most.
        gates: products of gates that wait to be rounded, by the value that they are.
    """

    def __init__(self, time: Timeline, mapping: Mapping, by_origin: dict[str, float]) -> None:
        self.time, self.mapping, self.by_origin = time, mapping, by_origin
        self.columns: dict[int, int] = {}
        self.gates: dict[int, Step] = {}

    def run(self, sketch: Sketch, stage: Stage, *, first: bool, last: bool) -> None:
        """All layers of the stage, with what is in front and behind."""
        if first:
            rows.ropes(self.time, sketch.ropes)
            if sketch.phase == "prefill":
                identity(self.time)
            self.steps(sketch.head)
        layers = sketch.layers[stage.first_layer : stage.first_layer + stage.layers]
        for layer, turns in groupby(layers):
            self._turns(sketch.bodies[layer], len(list(turns)))
        if not last:
            self._hand_over(sketch.bodies[layers[-1]][0].sizes["width"])
        elif self.time.rows["r"]:
            self.steps(sketch.tail)

    def _turns(self, body: Sequence[Step], turns: int) -> None:
        """Equal layers one after the other, until each takes as long as the one before."""
        time, before = self.time, 0.0
        for turn in range(turns):
            since, busy, by_origin = time.now, dict(time.busy), dict(self.by_origin)
            self.steps(body)
            self.as_rows(body[-1].makes, "t")
            if turns > 1:
                rows.copy_rows(time, body[0].sizes["width"])
            took, left = time.now - since, turns - turn - 1
            if left and abs(took - before) <= _STEADY * took:
                time.repeat(left, since, busy)
                for name, spent in self.by_origin.items():
                    more = left * (spent - by_origin.get(name, 0.0))
                    self.by_origin[name] = spent + more
                return
            before = took

    def steps(self, steps: Sequence[Step]) -> None:
        """Operations in order."""
        self.columns, self.gates = {}, {}
        for step in steps:
            before = self.time.now
            self.step(step)
            spent = self.time.now - before
            self.by_origin[step.origin] = self.by_origin.get(step.origin, 0.0) + spent

    def step(self, step: Step) -> None:
        """One operation."""
        if step.op == PRODUCTS:
            self._products(step)
        elif any(value in self.gates for value in step.takes):
            self._gated(step)
        elif step.op == "quantize":
            rows.quantize(self.time, step, columns=self._columns(step))
        elif step.op == "kv_attention":
            self._attention(step)
        elif step.op in rows.ELEMENTWISE:
            self._elementwise(step)
        else:
            if step.op != "argmax":
                self.as_rows(
                    list(self.columns) if "head_dim" in step.sizes else step.takes, step.space
                )
            op = "head_norm" if step.op == "rms_norm" and "head_dim" in step.sizes else step.op
            _STEPS[op](self.time, step)

    def _columns(self, step: Step) -> int | None:
        return self.columns.get(step.takes[0])

    def _products(self, step: Step) -> None:
        time = self.time
        x = step.takes[0]
        rounded = Step("quantize", step.origin, step.space, (x,), (), step.sizes, kind="f16")
        if x in self.gates:
            self._gated(rounded)
        elif x in self.columns or step.kind == "f32":
            rows.quantize(time, rounded, columns=self.columns.get(x))
        gate = bool(step.sizes["gate"])
        if gate and len(step.makes) == 2 and time.phase == "prefill":
            self.gates.update(dict.fromkeys(step.makes, step))
            return
        products(time, step, self.mapping.slot_bytes)
        unit = BLOCK if gate else FINE_COLUMNS
        for value, (n, _) in zip(step.makes, step.matrices, strict=True):
            self.columns[value] = slice_of(n, unit, time.cores)

    def _gated(self, step: Step) -> None:
        """Activation and product of a gate come with its rounding."""
        gate = next(self.gates[value] for value in step.takes if value in self.gates)
        if step.op == "quantize":
            gated(self.time, gate, self.mapping.slot_bytes, step.kind)
        else:
            self.gates.update(dict.fromkeys(step.makes, gate))

    def _attention(self, step: Step) -> None:
        time = self.time
        self.as_rows(step.takes, step.space)
        if time.phase == "prefill":
            PrefillAttention(time, step).by_rows()
            return
        found = Attention(time, step)
        found.by_positions()
        width = found.home.heads * found.width
        if found.columns:
            self.columns[step.makes[0]] = found.columns
            if width % BLOCK:
                self.as_rows(step.makes, step.space)

    def _elementwise(self, step: Step) -> None:
        """On columns where a product left them and nothing else is read."""
        stays = step.op != "add" and all(value in self.columns for value in step.takes)
        if not stays:
            self.as_rows(step.takes, step.space)
        columns = self._columns(step) if stays else None
        rows.elementwise(self.time, step, columns=columns)
        if columns is not None:
            self.columns.update(dict.fromkeys(step.makes, columns))

    def as_rows(self, values: Sequence[int], space: str) -> None:
        """Bring columns together."""
        found = [self.columns.pop(value) for value in values if value in self.columns]
        if found:
            rows.gather(self.time, space, found)

    def _hand_over(self, width: int) -> None:
        time = self.time
        size = float(time.own("t") * width * 4)
        time.exchange(time.network.to_next(size, spread=time.spaces["t"].shared))


_STEPS = {
    "rms_norm": rows.norm,
    "head_norm": heads.head_norm,
    "rope": heads.rope,
    "kv_append": heads.append,
    "select_rows": rows.select_rows,
    "embed": rows.embed,
    "argmax": rows.best,
}
