"""From a program of the schedule level to streams, contents of memory, and outputs.

The driver makes a group for each stage, reads the model's calls in order, and lets each kernel's
emitter make its code. Weights enter only by name and type: what they are is packed later.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from infc.backends.dataflow.codegen import attention, linear, rotary, rows
from infc.backends.dataflow.codegen.builder import STAGE, Group, Origins
from infc.backends.dataflow.codegen.contents import Content, Contents, FarPlan
from infc.backends.dataflow.codegen.head import PAIR_BYTES, emit_best
from infc.backends.dataflow.codegen.home import Home
from infc.backends.dataflow.codegen.kv_home import KVHome
from infc.backends.dataflow.codegen.kv_ring import KVRing
from infc.backends.dataflow.codegen.memory import FOREVER, Buffer, SramPlan
from infc.backends.dataflow.codegen.model import ModelProgram, runs_of
from infc.backends.dataflow.codegen.scope import Kernel, Scope
from infc.backends.dataflow.codegen.stage import Emitters, StageEmitter
from infc.backends.dataflow.codegen.values import Cache, Columns, Gated, Rows, RowSpace, Value
from infc.backends.dataflow.codegen.weights import WeightStream
from infc.backends.dataflow.isa import Unit, encode_tables
from infc.backends.dataflow.machine import Machine
from infc.backends.dataflow.partition import Mapping, Stage
from infc.backends.dataflow.program import Output
from infc.backends.dataflow.tiles import lines
from infc.diagnostics import InternalError
from infc.ir.mlir import ir
from infc.ir.types import TensorType
from infc.passes.walk import body

CACHE_SHARE = 4
"""A cache that takes more than this part of SRAM lies in far memory, where there is some."""
_CACHE_SLOTS = 3
"""Tiles of such a cache that a core has room for."""


def _best(kernel: Kernel, scope: Scope) -> list[Value]:
    """`argmax`: the host reads it from the first core; no kernel does."""
    logits = kernel.operands[0]
    if not isinstance(logits, Columns):
        raise InternalError("the best of something that is no product")
    return [Rows(logits.space, emit_best(scope, logits), 2)]


def _rows(kernel: Kernel, scope: Scope) -> list[Value]:
    """`rows`; where a product is only quantised, each core does that with its columns."""
    quantize, *rest = body(kernel.function)
    alone = quantize.operation.name == "infc.quantize" and len(rest) == 1
    if isinstance(kernel.operands[0], Columns | Gated) and alone:
        form = TensorType.of(quantize.operation.results[0].type).element
        return [linear.quantize_product(scope, kernel.operands[0], form)]
    return rows.emit_rows(kernel, scope)


EMITTERS: Emitters = {
    "rows": _rows,
    "matmul": linear.emit_product,
    "rotary": rotary.emit_rotary,
    "attention": attention.emit_attention,
    "argmax": _best,
}


@dataclass
class Emitted:
    """One phase's code.

    Attributes:
        streams: binary, by core and unit.
        origins: texts.
        contents: what the host fills.
        outputs: of a call.
        plans: of the SRAM of each stage's cores.
        far: far memory and how full it is.
        cache_layers: per layer its stage and the bytes in front of it in the cache of a core.
        max_tokens, max_logit_rows: of a call.
    """

    streams: dict[tuple[int, Unit], bytes]
    origins: list[str]
    contents: Contents
    outputs: list[Output]
    plans: list[SramPlan]
    far: FarPlan | None
    cache_layers: dict[int, tuple[int, int]]
    max_tokens: int
    max_logit_rows: int

    @property
    def height_bytes(self) -> int:
        """SRAM of a core that the largest plan takes."""
        return max(plan.height_bytes for plan in self.plans)


@dataclass
class ProgramEmitter:
    """Makes the code of one program for one mapping.

    Attributes:
        factor: by which products with a matrix are multiplied, by its name.
    """

    program: ModelProgram
    machine: Machine
    mapping: Mapping
    factor: Callable[[str], float]
    contents: Contents = field(default_factory=Contents)
    origins: Origins = field(default_factory=Origins)
    cache_layers: dict[int, tuple[int, int]] = field(default_factory=dict)

    def emit(self) -> Emitted:
        """All stages, one after the other."""
        self.far = FarPlan(self.machine) if self.machine.far else None
        scopes = [self._scope(stage) for stage in self.mapping.stages]
        values: dict[ir.Value, Value] = {}
        x: Rows | None = None
        last = len(scopes) - 1
        for number, (stage, scope) in enumerate(zip(self.mapping.stages, scopes, strict=True)):
            emitter = StageEmitter(scope, self.program.functions, EMITTERS)
            emitter.values = values
            calls = self.program.layers[stage.first_layer : stage.first_layer + stage.layers]
            emitter.begin()
            scope.weights.begin(self._weight_homes(scope, number))
            self._caches(scope, calls, number)
            emitter.ropes(calls)
            if x is None:
                emitter.calls(self.program.head, "head")
                found = values[_stream(calls[0].operands)]
                if not isinstance(found, Rows):
                    raise InternalError("the first layer takes no rows")
                x = found
            else:
                x = self._receive(scope, x)
            for run in runs_of(calls):
                x = emitter.layers(run, x)
            values[calls[-1].results[0]] = x
            if number < last:
                self._hand_over(scope, scopes[number + 1], x)
            else:
                outputs = self._tail(emitter)
            self._finish(emitter, number)
        for scope in scopes:
            scope.group.sram.place()
        return Emitted(
            streams=_encoded(scopes),
            origins=self.origins.names,
            contents=self.contents,
            outputs=_outputs(scopes[-1], *outputs),
            plans=[scope.group.sram for scope in scopes],
            far=self.far,
            cache_layers=self.cache_layers,
            max_tokens=scopes[0].spaces["t"].most,
            max_logit_rows=scopes[0].spaces["r"].most,
        )

    def _scope(self, stage: Stage) -> Scope:
        machine, mapping = self.machine, self.mapping
        group = Group(stage.area, (machine.rows, machine.cols), machine.vector.native, self.origins)
        cores, maxima = stage.area.size, self.program.maxima
        prefill = self.program.phase == "prefill"
        spaces = {
            "t": RowSpace(
                "t", 1, min(maxima["t"], mapping.max_tokens), prefill and cores > 1, cores
            ),
            "r": RowSpace("r", 0, min(maxima["r"], mapping.max_logit_rows), False, cores),
        }
        home = Home(group, machine, self.contents, self.far, near=mapping.near)
        weights = WeightStream(
            group, mapping.ring_slots, mapping.slot_bytes, prefetch=mapping.prefetch
        )
        phase = self.program.phase
        return Scope(group, machine, phase, spaces, weights, home, factor=self.factor)

    def _weight_homes(self, scope: Scope, stage: int) -> list[Buffer]:
        if scope.weights.slots:
            return [Buffer(f"weights {stage}.{core.index}", 0) for core in scope.cores]
        return [scope.group.buffer("weights", 0, filled=True)] * len(scope.cores)

    def _caches(self, scope: Scope, calls: Sequence[object], stage: int) -> None:
        """One buffer with the caches of all layers of the stage."""
        size, slot, cores = 0, 0, len(scope.cores)
        first = self.mapping.stages[stage].first_layer
        for number, call in enumerate(self.program.layers[first : first + len(calls)]):
            for operand in call.operands:
                if isinstance(operand, Cache):
                    home = KVHome.of(operand.kind, cores, self.machine)
                    self.cache_layers[first + number] = (stage, size)
                    size += home.layer_bytes
                    slot = max(slot, home.tile * home.row_bytes)
        entries = [(("kv", stage, core.index), size) for core in scope.cores]
        if self.far is None or size <= self.machine.sram_bytes // CACHE_SHARE:
            scope.kv = scope.home.sram_table("kv", entries, "kv")
            return
        for core, (key, _) in zip(scope.cores, entries, strict=True):
            scope.kv_far.append(Buffer(f"kv.{stage}.{core.index}", size))
            scope.home.place(scope.kv_far[-1], core, key, "kv")
        if self.program.phase == "decode":
            scope.kv_ring = KVRing(scope, _CACHE_SLOTS, slot)

    def _hand_over(self, scope: Scope, after: Scope, x: Rows) -> None:
        """Rows to the stage behind, the same to the same core where they are shared."""
        target = after.group.buffer("x", x.space.owned * x.row_bytes)
        target.touch(0)
        area = after.group.area
        for core in scope.cores:
            if not x.space.shared and core.index:
                continue
            core.hand(core.vector, core.send)
            core.send.send(
                target, x.buffer, x.row_bytes, scope.own(core.send, x.space),
                area.one(core.index) if x.space.shared else area.all(),
                stride_d=x.row_bytes, stride_a=x.row_bytes, signal=STAGE, sent="sent",
            )  # fmt: skip
            core.vector.wait("sent")

    def _receive(self, scope: Scope, x: Rows) -> Rows:
        for core in scope.cores:
            core.vector.wait(STAGE)
        buffer = scope.group.buffer("x", 0)
        buffer.touch(scope.group.sram.step)
        return Rows(scope.spaces["t"], buffer, x.width)

    def _tail(self, emitter: StageEmitter) -> tuple[Columns, Buffer]:
        scope, program = emitter.scope, self.program
        scope.weights.body(1)
        with emitter.where_any(scope.spaces["r"]):
            emitter.calls(program.tail, "tail")
        logits, best = emitter.values[program.logits], emitter.values[program.best]
        if not isinstance(logits, Columns) or not isinstance(best, Rows):
            raise InternalError("the program's results are not where the host can read them")
        logits.buffer.touch(FOREVER)
        return logits, best.buffer

    def _finish(self, emitter: StageEmitter, stage: int) -> None:
        """Note what weights and vectors the stage needs."""
        scope = emitter.scope
        emitter.vectors_content()
        bodies = scope.weights.bodies
        chip_cores = self.machine.rows * self.machine.cols
        for core, buffer in zip(scope.cores, scope.weights.home, strict=True):
            size = scope.weights.core_bytes(core.index)
            buffer.size_bytes = max(buffer.size_bytes, size)
            key = ("cuts", tuple((turns, tuple(reads[core.index])) for turns, reads in bodies))
            if scope.weights.slots:
                buffer.size_bytes = lines(size)
                scope.home.place(buffer, core, key, "weights")
            else:
                chip = core.number // chip_cores
                self.contents.add(
                    Content(buffer, 0, core.number, chip, "sram", size, "weights", key)
                )


def _encoded(scopes: Sequence[Scope]) -> dict[tuple[int, Unit], bytes]:
    streams = [
        stream for scope in scopes for core in scope.cores for stream in core.streams if len(stream)
    ]
    programs = encode_tables([stream.finish() for stream in streams])
    keys = [(stream.core.number, stream.unit) for stream in streams]
    return dict(zip(keys, programs, strict=True))


def _stream(operands: Sequence[object]) -> ir.Value:
    return next(value for value in operands if isinstance(value, ir.Value))


def _outputs(scope: Scope, logits: Columns, best: Buffer) -> list[Output]:
    if logits.buffer.address is None or best.address is None:
        raise InternalError("the outputs have no place")
    found = [
        Output("logits", core.number, logits.buffer.address, logits.row_bytes, first, stop - first)
        for core, (first, stop) in zip(scope.cores, logits.slices, strict=True)
        if stop > first
    ]
    return [*found, Output("best", scope.cores[0].number, best.address, PAIR_BYTES, 0, 0)]
