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

from dataclasses import dataclass, field, replace
from functools import reduce

from infc.backends.cuda.call_block import ARRIVALS, KINDS
from infc.backends.cuda.codegen.builder import GpuBuilder, Type, Value
from infc.backends.cuda.kernels.frame import THREADS, WARPS, WORK_OFFSET, WORKER_BARRIER
from infc.backends.cuda.lowering.entry import RING_THREADS, ROWS, CallFields, start_ring
from infc.backends.cuda.lowering.forms import arguments_of
from infc.backends.cuda.lowering.programs import OPERANDS, ProgramKernels
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
    """Define `grid_barrier(counter)`: the workers of all blocks meet and see all writes before.

    The counter only grows: whoever arrives as number `n` waits until all of its turn are there.
    """
    with b.function(BARRIER, [b.ptr]) as (counter,):

        def meet() -> None:
            b.fence_device()
            ctas = b.ctas()
            turn = b.div(b.add_and_fetch_old(counter, 1), ctas)
            everybody = b.mul(b.add(turn, 1), ctas)
            b.loop_while(
                [],
                lambda: b.cmp("ult", b.load_acquire(counter), everybody),
                lambda: [],
            )
            b.fence_device()

        b.sync(THREADS, WORKER_BARRIER)
        b.when(b.cmp("eq", b.thread(), 0), meet)
        b.sync(THREADS, WORKER_BARRIER)
        b.ret()


@dataclass
class _State:
    """What a function knows while its body is emitted.

    Attributes:
        words: of the call; `first` is that of the function's start.
        counter: of the grid barrier.
        trace: where the nanoseconds behind the function's first kernel go.
        traces: i1, whether this thread writes them.
        count: i32, slots of the ring used so far.
        dealt: panels dealt by the function so far.
        step: kernels run so far.
        met: whether the workers have met since the last kernel.
    """

    words: dict[str, Value]
    counter: Value | None = None
    trace: Value | None = None
    traces: Value | None = None
    count: Value | None = None
    dealt: int = 0
    step: int = 0
    met: bool = False
    places: dict[Value, Value] = field(default_factory=dict)


class _Walk:
    """Emits main and the layers for the workers, or for the warp that fetches weights."""

    def __init__(self, b: GpuBuilder, program: ProgramKernels, *, produces: bool) -> None:
        self.b = b
        self.program = program
        self.produces = produces
        self.suffix = "_produce" if produces else ""
        self.words = ("t", "r", "cta", "ctas", "first", "count")
        self.pointers = () if produces else ("scratch", "arrivals", "counter", "trace")
        self.numbers = () if produces else ("wanted", "traces")

    # ---- layers --------------------------------------------------------------------------------

    def name(self, function: str) -> str:
        """The device function of a layer."""
        return f"{self.program.phase}_{function}{self.suffix}"

    def extra_types(self) -> list[Type]:
        """What a layer is given besides its operands."""
        b = self.b
        return [b.i32] * len(self.words + self.numbers) + [b.ptr] * len(self.pointers)

    def extra_values(self, state: _State) -> list[Value]:
        """The values of `extra_types` for a layer that is called now."""
        b = self.b
        known = state.words | {"count": state.count}
        known["first"] = b.add(state.words["first"], state.dealt)
        if not self.produces:
            known["counter"] = state.counter
            known["trace"] = b.at(state.trace, 8 * state.step)
            known["traces"] = b.ext_u(state.traces, b.i32)
        return [known[name] for name in (*self.words, *self.numbers, *self.pointers)]

    def emit_layers(self) -> None:
        """One function for each class of layers, those called first."""
        for name, function in self.program.functions.items():
            if name != "main" and name not in self.program.forms:
                with function.location:
                    self._emit_layer(name, function)

    def _emit_layer(self, name: str, function: ir.OpView) -> None:
        b = self.b
        arguments = function.regions[0].blocks[0].arguments
        kinds = [b.ptr] * len(arguments) + self.extra_types()
        with b.function(self.name(name), kinds, [b.i32]) as values:
            operands, extra = values[: len(arguments)], values[len(arguments) :]
            names = (*self.words, *self.numbers, *self.pointers)
            words = dict(zip(names, extra, strict=True))
            state = _State(words, count=words["count"])
            if not self.produces:
                state.counter, state.trace = words["counter"], words["trace"]
                state.traces = b.cmp("ne", words["traces"], 0)
            state.places = dict(zip(arguments, operands, strict=True))
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
            self._emit_grid_barrier(state)
        elif name == "func.call":
            self._emit_call(op, state)
        elif name != "func.return":
            raise InternalError(f"{name} has no machine form", location=str(op.location))

    def _emit_grid_barrier(self, state: _State) -> None:
        if not self.produces:
            self.b.call(BARRIER, [state.counter])
            state.met = True

    def _emit_call(self, op: ir.OpView, state: _State) -> None:
        """A call of a kernel or of a layer; `state` goes on behind it."""
        b, callee = self.b, get(op, "callee")
        operands = [state.places[value] for value in op.operation.operands]
        form = self.program.forms.get(callee)
        if form is None:
            extra = self.extra_values(state)
            (state.count,) = b.call(self.name(callee), [*operands, *extra], [b.i32])
            state.step += self.program.kernel_calls(callee)
            state.dealt += self._panels(callee)
            state.met = False
            return
        words = state.words | {"rows": state.words[form.symbol], "count": state.count}
        words["first"] = b.add(state.words["first"], state.dealt)
        if callee in self.program.replicated:
            words |= {"cta": b.idx(0), "ctas": b.idx(1)}
        if self.produces:
            if form.produce:
                values = arguments_of(form.produce, operands, words)
                (state.count,) = b.call(f"{form.emitted.name}_produce", values, [b.i32])
        else:
            if not state.met:
                b.sync(THREADS, WORKER_BARRIER)
            results = b.call(
                form.emitted.name,
                arguments_of(form.arguments, operands, words),
                [b.i32] if form.produce else [],
            )
            state.count = results[0] if form.produce else state.count
            self._emit_trace(state)
        state.step += 1
        state.dealt += form.emitted.panels
        state.met = False

    def _panels(self, function: str) -> int:
        """Panels that a function deals."""
        if function in self.program.forms:
            return self.program.forms[function].emitted.panels
        calls = [
            op for op in body(self.program.functions[function]) if op.operation.name == "func.call"
        ]
        return sum(self._panels(get(op, "callee")) for op in calls)

    def _emit_trace(self, state: _State) -> None:
        """Store the time in the trace, where this thread writes one."""
        b = self.b

        def store() -> None:
            b.store(b.clock_ns(), b.at(state.trace, 8 * state.step), 8)

        b.when(state.traces, store)

    # ---- main ----------------------------------------------------------------------------------

    def emit_main(self, call: Value) -> None:
        """Append the body of `@main`."""
        b, program = self.b, self.program
        fields = CallFields(b, call)
        cta, none = b.cta(), b.idx(0)
        words = {symbol: fields.number(name) for symbol, name in ROWS.items()}
        words |= {"cta": cta, "ctas": b.ctas(), "first": none}
        state = _State(words, count=none)
        # Entry 0 of the trace is the start.
        if not self.produces:
            counters, trace = fields.pointer("counters"), fields.pointer("trace")
            words["scratch"] = fields.pointer("scratch")
            words["arrivals"] = b.at(counters, ARRIVALS)
            words["wanted"] = fields.number("top_k")
            first = b.bit_and(b.cmp("eq", b.thread(), 0), b.cmp("eq", cta, 0))
            state.counter, state.trace = counters, b.at(trace, 8)
            state.traces = b.bit_and(fields.is_set("trace"), first)
            self._emit_trace(replace(state, step=-1))
        arguments = program.main.regions[0].blocks[0].arguments
        state.places = {
            argument: fields.pointer(name)
            for argument, name in zip(arguments, OPERANDS, strict=False)
        }
        bases = {space: fields.pointer(space) for space in ("weights", "kv", "arena", "thread")}
        bases["thread"] = b.at(bases["thread"], b.mul(b.wide(cta), program.thread_bytes))
        kind = fields.number("output_kind")
        outputs = program.outputs()
        for op in body(program.main):
            with op.location:
                if op.operation.name == "func.call":
                    self._emit_guarded(op, state, outputs(op), kind)
                elif op.operation.name in ("infc.alloc", "infc.barrier", "func.return"):
                    self._emit_step(op, state)
                else:
                    place = program.operand_place(op)
                    state.places[op.operation.results[0]] = b.at(bases[place.space], place.offset)

    def _emit_guarded(
        self, op: ir.OpView, state: _State, outputs: frozenset[str], kind: Value
    ) -> None:
        """A call that only runs where the call asks for what it makes."""
        b, form = self.b, self.program.forms.get(get(op, "callee"))
        conditions: list[Value] = []
        if outputs != frozenset(KINDS):
            asked = [b.cmp("eq", kind, KINDS.index(name)) for name in sorted(outputs)]
            conditions.append(reduce(b.bit_or, asked))
        if form is not None and form.symbol == "r":
            # A call that only fills the cache asks for no logits: the head is not read.
            conditions.append(b.cmp("sgt", state.words["r"], 0))
        if not conditions:
            self._emit_call(op, state)
            return
        before = state.count

        def run() -> list[Value]:
            self._emit_call(op, state)
            return [state.count]

        runs = reduce(b.bit_and, conditions)
        (state.count,) = b.when(runs, run, lambda: [before], [b.i32])
