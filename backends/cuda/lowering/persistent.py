"""One kernel that runs a whole step: one block on each multiprocessor, all of them resident.

    func @decode_step(call) {
      warp 8:      call @decode_layer0_produce(...) ...         weights into the ring, far ahead
      warps 0..7:  call @decode_k11_rows(...)
                   call @decode_layer0(...) { call @decode_k0_rows ; grid barrier ; ... } ...
    }

Layers of a class share their code: it is a function that is given where everything lies. The
workers meet at a grid barrier where the memory level has an `infc.barrier`, and before every other
kernel at a barrier of their block: what they and the block wrote is then seen. The warp that
fetches weights waits for none of this, for weights do not change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

from infc.backends.cuda.call_block import ARRIVALS, KINDS, offset_of
from infc.backends.cuda.codegen.builder import GpuBuilder, Type, Value
from infc.backends.cuda.kernels.frame import THREADS, WARPS, WORK_OFFSET, WORKER_BARRIER
from infc.backends.cuda.lowering.entry import RING_THREADS, ROWS, CallFields, start_ring
from infc.backends.cuda.lowering.forms import arguments_of
from infc.backends.cuda.lowering.grid_barriers import needed_barriers
from infc.backends.cuda.lowering.layer_operands import LayerOperands
from infc.backends.cuda.lowering.programs import OPERANDS, Place, ProgramKernels
from infc.backends.cuda.signature import Entry
from infc.diagnostics import InternalError
from infc.ir.attributes import get
from infc.ir.mlir import ir
from infc.passes.walk import body

BARRIER = "grid_barrier"
"""The function that the workers of all blocks meet in."""


def obstacle(program: ProgramKernels, shared_bytes: int) -> str:
    """Why the kernels of a program cannot share a block of `shared_bytes`; empty where they can."""
    for name, form in program.forms.items():
        if form.emitted.threads != THREADS:
            return f"{name} needs blocks of {form.emitted.threads} threads"
    most = shared_bytes if program.ring is None else program.ring.offset
    if _work_end(program) > most:
        return f"its kernels need {_work_end(program)} bytes of shared memory, and there are {most}"
    return ""


def _work_end(program: ProgramKernels) -> int:
    """Where the shared memory that kernels work in ends."""
    return WORK_OFFSET + max(form.emitted.work_bytes for form in program.forms.values())


def emit_persistent(b: GpuBuilder, program: ProgramKernels) -> Entry:
    """Define the kernel of a program; how it is launched."""
    emit_barrier(b)
    workers = _Walk(b, program, produces=False)
    workers.emit_layers()
    ring, producer = program.ring, _Walk(b, program, produces=True)
    if ring is not None:
        producer.emit_layers()
    name, threads = f"{program.phase}_step", THREADS if ring is None else RING_THREADS
    with b.kernel(name, [b.ptr], threads=threads) as (call,):
        if ring is None:
            workers.emit_main(call)
        else:
            start_ring(b, ring)
            is_producer = b.cmp("eq", b.warp(), WARPS)
            b.when(is_producer, lambda: producer.emit_main(call), lambda: workers.emit_main(call))
    return Entry(
        module=program.phase,
        entry=name,
        threads=threads,
        shared_bytes=_work_end(program) if ring is None else ring.end,
        ctas_per_sm=1,
    )


def emit_barrier(b: GpuBuilder) -> None:
    """Define `grid_barrier(counter, turn)`: the workers of all blocks meet, for the time number
    `turn` (from 1 on) of a call, and then see all writes before.

    The counter only grows. Nothing waits for the sum that an arrival makes, so that it and the
    first look at the counter are on their way at the same time.
    """
    with b.function(BARRIER, [b.ptr, b.i32]) as (counter, turn):

        def meet() -> None:
            everybody = b.mul(turn, b.ctas())
            b.fence_device()
            b.add_and_fetch_old(counter, 1)
            b.loop_while(
                [],
                lambda: b.cmp("ult", b.load_acquire(counter), everybody),
                lambda: [],
            )

        b.sync(THREADS, WORKER_BARRIER)
        b.when(b.cmp("eq", b.thread(), 0), meet)
        b.sync(THREADS, WORKER_BARRIER)
        b.ret()


@dataclass
class _State:
    """What a function knows while its body is emitted.

    Attributes:
        words: i32 of the call: `t` and `r`, `cta` and `ctas`, `wanted`; `first` and `turn`, panels
            dealt and grid barriers met before the function; `traces`, whether this thread writes
            the trace; pointers `scratch`, `counters`, and `trace`, where the time behind the
            function's first kernel goes.
        places: pointers by the values of the memory level.
        count: i32, slots of the ring used so far.
        dealt: panels dealt by the function so far.
        step: kernels run so far.
        turns: grid barriers met by the function so far.
        met: whether the workers have met since the last kernel.
    """

    words: dict[str, Value]
    places: dict[Value, Value]
    count: Value
    dealt: int = 0
    step: int = 0
    turns: int = 0
    met: bool = False


class _Walk:
    """Emits main and the layers for the workers, or for the warp that fetches weights."""

    def __init__(self, b: GpuBuilder, program: ProgramKernels, *, produces: bool) -> None:
        self.b = b
        self.program = program
        self.produces = produces
        self.suffix = "_produce" if produces else ""
        self.barriers = needed_barriers(program)
        self.calls = program.layer_calls()
        self.operands = {name: LayerOperands.of(calls) for name, calls in self.calls.items()}
        # What a layer is given besides its operands.
        self.words: dict[str, Type] = {"t": b.i32, "first": b.i32, "count": b.i32}
        if not produces:
            self.words |= {"scratch": b.ptr, "counters": b.ptr, "trace": b.ptr}
            self.words |= {"turn": b.i32, "traces": b.i32}

    # ---- layers --------------------------------------------------------------------------------

    def name(self, function: str) -> str:
        """The device function of a layer."""
        return f"{self.program.phase}_{function}{self.suffix}"

    def emit_layers(self) -> None:
        """One function for each class of layers."""
        for name, operands in self.operands.items():
            with self.program.functions[name].location:
                self._emit_layer(name, self.program.functions[name], operands)

    def _emit_layer(self, name: str, function: ir.OpView, operands: LayerOperands) -> None:
        b = self.b
        kinds = [b.ptr] * len(operands.anchors) + list(self.words.values())
        with b.function(self.name(name), kinds, [b.i32]) as values:
            anchors, extra = values[: len(operands.anchors)], values[len(operands.anchors) :]
            words = dict(zip(self.words, extra, strict=True))
            words |= {"cta": b.cta(), "ctas": b.ctas()}
            found = [b.at(anchors[anchor], offset) for anchor, offset in operands.sources]
            arguments = function.regions[0].blocks[0].arguments
            state = _State(words, dict(zip(arguments, found, strict=True)), words["count"])
            for op in body(function):
                with op.location:
                    self._emit_step(op, state)
            b.ret(state.count)

    def _emit_step(self, op: ir.OpView, state: _State) -> None:
        """An operation that main and layers have in common."""
        name = op.operation.name
        if name == "infc.alloc":
            frame = state.places[op.operation.operands[0]]
            state.places[op.operation.results[0]] = self.b.at(frame, get(op, "offset"))
        elif name == "infc.barrier":
            self._emit_grid_barrier(op, state)
        elif name == "func.call":
            self._emit_kernel(op, state)
        elif name != "func.return":
            raise InternalError(f"{name} has no machine form", location=str(op.location))

    def _emit_grid_barrier(self, op: ir.OpView, state: _State) -> None:
        if not self.produces and op.operation in self.barriers:
            state.turns += 1
            turn = self.b.add(state.words["turn"], state.turns)
            self.b.call(BARRIER, [state.words["counters"], turn])
            state.met = True

    def _emit_kernel(self, op: ir.OpView, state: _State) -> None:
        """A call of a kernel; `state` goes on behind it."""
        b, callee = self.b, get(op, "callee")
        form = self.program.forms[callee]
        operands = [state.places[value] for value in op.operation.operands]
        words = state.words | {"count": state.count}
        words["first"] = b.add(state.words["first"], state.dealt)
        if form.symbol in words:
            words["rows"] = words[form.symbol]
        if callee in self.program.replicated:
            words |= {"cta": b.idx(0), "ctas": b.idx(1)}
        if self.produces:
            if form.produce:
                values = arguments_of(form.produce, operands, words)
                (state.count,) = b.call(f"{form.emitted.name}_produce", values, [b.i32])
        else:
            words["arrivals"] = b.at(words["counters"], ARRIVALS)
            if not state.met:
                b.sync(THREADS, WORKER_BARRIER)
            values = arguments_of(form.arguments, operands, words)
            if form.produce:
                (state.count,) = b.call(form.emitted.name, values, [b.i32])
            else:
                b.call(form.emitted.name, values)
            self._emit_trace(state)
        state.step += 1
        state.dealt += form.emitted.panels
        state.met = False

    def _emit_trace(self, state: _State) -> None:
        """Store the time in the trace, where this thread writes one."""
        b = self.b

        def store() -> None:
            b.store(b.clock_ns(), b.at(state.words["trace"], 8 * state.step), 8)

        b.when(b.cmp("ne", state.words["traces"], 0), store)

    # ---- main ----------------------------------------------------------------------------------

    def emit_main(self, call: Value) -> None:
        """Append the body of `@main`."""
        b, program = self.b, self.program
        fields, cta = CallFields(b, call), b.cta()
        words = {symbol: fields.number(name) for symbol, name in ROWS.items()}
        words |= {"cta": cta, "ctas": b.ctas(), "first": b.idx(0)}
        spaces = {space: fields.pointer(space) for space in ("weights", "kv", "arena", "thread")}
        spaces["thread"] = b.at(spaces["thread"], b.mul(b.wide(cta), program.thread_bytes))
        state = _State(words, {}, b.idx(0))
        if not self.produces:
            words["scratch"] = fields.pointer("scratch")
            words["counters"] = fields.pointer("counters")
            words["wanted"], words["turn"] = fields.number("top_k"), b.idx(0)
            first = b.bit_and(b.cmp("eq", b.thread(), 0), b.cmp("eq", cta, 0))
            words["trace"] = fields.pointer("trace")
            words["traces"] = b.ext_u(b.bit_and(first, fields.is_set("trace")), b.i32)
            self._emit_trace(state)
        # Entry 0 of the trace is the start.
        state.step = 1
        pointers = {Place("call", offset_of(name)): fields.pointer(name) for name in OPERANDS}

        def pointer(place: Place) -> Value:
            if place.space == "call":
                return pointers[place]
            return b.at(spaces[place.space], place.offset)

        kind, outputs = fields.number("output_kind"), program.outputs()
        for function, op, places in program.walk():
            if function != program.main:
                continue
            with op.location:
                if op.operation.name == "infc.barrier":
                    self._emit_grid_barrier(op, state)
                elif get(op, "callee") in self.operands:
                    self._call_layer(get(op, "callee"), state, places, spaces, pointer)
                else:
                    operands = op.operation.operands
                    found = map(pointer, places)
                    state.places = dict(zip(operands, found, strict=True))
                    self._emit_guarded(op, state, outputs(op), kind)

    def _call_layer(
        self,
        layer: str,
        state: _State,
        places: Sequence[Place],
        spaces: Mapping[str, Value],
        pointer: Callable[[Place], Value],
    ) -> None:
        b = self.b

        def anchored(anchor: int | str | Place) -> Value:
            if isinstance(anchor, str):
                return spaces[anchor]
            return pointer(places[anchor] if isinstance(anchor, int) else anchor)

        anchors = [anchored(anchor) for anchor in self.operands[layer].anchors]
        words = state.words | {"count": state.count, "first": b.idx(state.dealt)}
        if not self.produces:
            words["trace"] = b.at(words["trace"], 8 * state.step)
            words["turn"] = b.idx(state.turns)
        values = [*anchors, *(words[name] for name in self.words)]
        (state.count,) = b.call(self.name(layer), values, [b.i32])
        inside = body(self.program.functions[layer])
        kernels = [op for op in inside if op.operation.name == "func.call"]
        state.turns += sum(op.operation in self.barriers for op in inside)
        state.step += len(kernels)
        state.dealt += sum(self.program.forms[get(op, "callee")].emitted.panels for op in kernels)
        state.met = False

    def _emit_guarded(
        self, op: ir.OpView, state: _State, outputs: frozenset[str], kind: Value
    ) -> None:
        """A kernel that only runs where the call asks for what it makes."""
        b, form = self.b, self.program.forms[get(op, "callee")]
        conditions: list[Value] = []
        if outputs != frozenset(KINDS):
            asked = [b.cmp("eq", kind, KINDS.index(name)) for name in sorted(outputs)]
            conditions.append(reduce(b.bit_or, asked))
        if form.symbol == "r":
            # A call that only fills the cache asks for no logits: the head is not read.
            conditions.append(b.cmp("sgt", state.words["r"], 0))
        if not conditions:
            self._emit_kernel(op, state)
            return
        before = state.count

        def run() -> list[Value]:
            self._emit_kernel(op, state)
            return [state.count]

        runs = reduce(b.bit_and, conditions)
        (state.count,) = b.when(runs, run, lambda: [before], [b.i32])
