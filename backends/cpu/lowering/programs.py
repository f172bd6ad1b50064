"""Walks a program's calling functions (main and layers) and emits them at the machine level."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import reduce

from infc.backends.cpu.codegen.builder import Builder, Value
from infc.backends.cpu.kernels.dealing import DEAL_BYTES
from infc.backends.cpu.kernels.kv_layout import KVLayout
from infc.backends.cpu.kernels.sync import BARRIER_BYTES, BARRIER_NAME
from infc.backends.cpu.lowering.abi import ControlBlock
from infc.backends.cpu.lowering.forms import (
    Environment,
    Form,
    attention_form,
    matmul_form,
    rotary_form,
)
from infc.backends.cpu.lowering.head_forms import (
    argmax_form,
    head_form,
    head_logits_form,
    reads_split,
    top_k_form,
)
from infc.backends.cpu.lowering.row_kernel import row_form
from infc.diagnostics import InternalError
from infc.ir.attributes import get
from infc.ir.mlir import ir
from infc.ir.types import BufferType
from infc.passes.codegen.kernel_body import KernelBody
from infc.passes.memory.demand import OUTPUTS, demanded_by, kinds_of_call
from infc.passes.walk import body, dim_maxima, program_functions

KINDS = ("logits", "argmax", "top_k")
"""The kinds of output by their number in a call."""


@dataclass(frozen=True)
class MainArguments:
    """What the entry point hands to the body of a program."""

    operands: list[Value]
    """tokens, positions, row slots, logit rows; logits, best, top logits and top ids: pointers."""
    spaces: dict[str, Value]
    weights: Value
    kv: Value
    flags: Value
    cancel: Value
    kind: Value
    """i64: the kind of output that the call asks for."""
    env: Environment


class ProgramLowering:
    """Emits the functions of one program; `emit_main` appends its body at the insertion point."""

    def __init__(
        self, b: Builder, program: ir.OpView, kv: KVLayout, weight_offsets: dict[str, int]
    ) -> None:
        self.b = b
        self.phase: str = get(program, "infc.phase")
        self.maxima = dim_maxima(program)
        self.kv = kv
        self.weight_offsets = weight_offsets
        self.functions = {get(f, "sym_name"): f for f in program_functions(program)}
        self.forms: dict[str, Form] = {}
        for name, function in self.functions.items():
            kind = get(function, "infc.kernel")
            if kind is not None:
                with function.location:
                    self.forms[name] = self.emit_kernel(name, KernelBody(function))
        self.control = self.control_block()
        self.deals = 0
        for name, function in self.functions.items():
            if name not in self.forms and name != "main":
                with function.location:
                    self.emit_layer(name, function)

    @property
    def main(self) -> ir.OpView:
        """The memory-level `@main`."""
        return self.functions["main"]

    def space_bytes(self, space: str) -> int:
        """Bytes that main's plan takes in a space."""
        return int(get(self.main, "infc.plan")[space]["height_bytes"])

    def layer_count(self) -> int:
        """Calls of layer functions in main."""
        return sum("infc.layer" in op.operation.attributes for op in body(self.main))

    def control_block(self) -> ControlBlock:
        """The layout of the start of the arena: each call of a kernel has a deal of its own."""
        rows = self.maxima["t"]
        mappings = [get(function, "infc.mapping", {}) for function in self.functions.values()]
        divided = any(mapping.get("parts", 1) > 1 for mapping in mappings)
        arrivals = rows * self.kv.kv_heads if divided else 0
        calls = [
            get(op, "callee")
            for function in self.functions.values()
            for op in body(function)
            if op.operation.name == "func.call"
        ]
        deals = sum(name in self.forms and self.forms[name].is_dealt for name in calls)
        return ControlBlock.of(BARRIER_BYTES, arrivals, deals, self.layer_count(), rows)

    def emit_kernel(self, name: str, kernel: KernelBody) -> Form:
        """The function of a kernel, in the form that its kind has."""
        native, rows = f"{self.phase}_{name}", self.maxima["t"]
        if kernel.kind == "rows":
            return row_form(self.b, native, kernel)
        if kernel.kind == "matmul":
            rows = self.maxima[kernel.row_symbol()]
            form = head_logits_form if reads_split(kernel) else matmul_form
            return form(self.b, native, kernel, rows)
        if kernel.kind == "rotary":
            return rotary_form(self.b, native, kernel, self.kv.slots)
        if kernel.kind == "attention":
            return attention_form(self.b, native, kernel, rows)
        if kernel.kind == "argmax":
            return argmax_form(self.b, native, kernel)
        if kernel.kind == "top_k":
            return top_k_form(self.b, native, kernel)
        if kernel.kind == "head":
            return head_form(self.b, native, kernel, self.maxima[kernel.row_symbol()])
        raise InternalError(f"unknown kernel kind '{kernel.kind}'")

    def emit_layer(self, name: str, function: ir.OpView) -> None:
        """One function a layer class: operands, numbers, the barrier and its place in the trace."""
        b = self.b
        arguments = function.regions[0].blocks[0].arguments
        kinds = [b.ptr] * len(arguments) + [b.i64] * 5 + [b.ptr] * 2
        with b.function(f"{self.phase}_{name}", kinds, inline=False) as values:
            *operands, t, r, thread, threads, traces, barrier, trace = values
            env = Environment({"t": t, "r": r}, thread, threads, barrier, trace, traces)
            step = 0
            places = dict(zip(arguments, operands, strict=True))
            for op in body(function):
                with op.location:
                    step += self.emit_step(op, places, env, step)
            b.ret()

    def emit_step(
        self, op: ir.OpView, places: dict[Value, Value], env: Environment, step: int
    ) -> int:
        """An operation that main and layers have in common; returns how many kernels it runs."""
        b, name = self.b, op.operation.name
        if name == "infc.alloc":
            frame = places[op.operation.operands[0]]
            places[op.operation.results[0]] = b.at(frame, get(op, "offset"))
        elif name == "infc.barrier":
            b.call(BARRIER_NAME, [env.barrier, env.thread, env.threads])
        elif name == "func.call":
            operands = [places[value] for value in op.operation.operands]
            callee = get(op, "callee")
            if callee in self.forms:
                form = self.forms[callee]
                if form.is_dealt:
                    place = self.control.deals + DEAL_BYTES * self.deals
                    env = replace(env, deal=b.at(env.barrier, place))
                    self.deals += 1
                form.call(b, operands, env)
                self.emit_trace(env, step)
                return 1
            extra = [*env.numbers(), env.barrier, b.at(env.trace, 8 * step)]
            b.call(f"{self.phase}_{callee}", [*operands, *extra])
            return self.kernel_calls(callee)
        elif name != "func.return":
            raise InternalError(f"{name} has no machine form", location=str(op.location))
        return 0

    def kernel_calls(self, name: str) -> int:
        """Kernels that a call of a function runs."""
        callees = [
            get(op, "callee")
            for op in body(self.functions[name])
            if op.operation.name == "func.call"
        ]
        return sum(1 if callee in self.forms else self.kernel_calls(callee) for callee in callees)

    def emit_trace(self, env: Environment, step: int) -> None:
        """Store the cycle counter in the trace, where this thread writes one."""
        b = self.b

        def store() -> None:
            now = b.intrinsic("llvm.readcyclecounter", b.i64)
            b.store(now, b.at(env.trace, 8 * step), 8)

        b.when(b.cmp("ne", env.traces, 0), store)

    def emit_main(self, main: MainArguments) -> Value:
        """Append the body of `@main`; returns whether the call was cancelled (i1).

        Before each layer thread 0 publishes whether the caller cancels; all threads read what it
        published a layer ago: at least one barrier lies between, so all of them agree.
        """
        b = self.b
        places: dict[Value, Value] = dict(
            zip(self.main.regions[0].blocks[0].arguments, main.operands, strict=False)
        )
        needs = demanded_by(self.main, self.functions)
        stopped: Value = b.const(0, b.i1)
        step = 0
        for op in body(self.main):
            name = op.operation.name
            with op.location:
                if name == "infc.space":
                    space = BufferType.of(op.operation.results[0].type).space
                    places[op.operation.results[0]] = main.spaces[space]
                elif name == "infc.packed_ref":
                    offset = self.weight_offsets[get(op, "packed")]
                    places[op.operation.results[0]] = b.at(main.weights, offset)
                elif name == "infc.kv_cache":
                    offset = self.kv.layer_offsets[get(op, "index")]
                    places[op.operation.results[0]] = b.at(main.kv, offset)
                elif name == "infc.alloc":
                    self.emit_step(op, places, main.env, step)
                else:
                    if "infc.layer" in op.operation.attributes:
                        stopped = self.emit_cancel_point(get(op, "infc.layer"), stopped, main)
                    step += self.emit_guarded(op, places, stopped, main, step, needs)
        return stopped

    def emit_guarded(
        self,
        op: ir.OpView,
        places: dict[Value, Value],
        stopped: Value,
        main: MainArguments,
        step: int,
        needs: dict[Value, frozenset[str]],
    ) -> int:
        """A step that only runs while the call is not cancelled, and asks for what it makes;
        returns its kernels."""
        b, kernels = self.b, 0
        runs = b.bit_xor(stopped, b.const(1, b.i1))
        if op.operation.name == "func.call":
            callee = get(op, "callee")
            every = frozenset(OUTPUTS)
            kinds = kinds_of_call(op, self.functions, needs, every)
            if kinds != every:
                asked = [b.cmp("eq", main.kind, KINDS.index(kind)) for kind in sorted(kinds)]
                runs = b.bit_and(runs, reduce(b.bit_or, asked))
            if callee in self.forms and self.forms[callee].symbol == "r":
                # A call that only fills the cache asks for no logits: the head is not read.
                runs = b.bit_and(runs, b.cmp("sgt", main.env.rows["r"], 0))

        def emit() -> None:
            nonlocal kernels
            kernels = self.emit_step(op, places, main.env, step)

        b.when(runs, emit)
        return kernels

    def emit_cancel_point(self, layer: int, stopped: Value, main: MainArguments) -> Value:
        """Whether to stop: what thread 0 has read of the caller's flag, alike for all threads."""
        b = self.b
        if layer > 0:
            seen = b.load(b.at(main.flags, 4 * (layer - 1)), b.i32, 4)
            stopped = b.bit_or(stopped, b.cmp("ne", seen, 0))
        leads = b.cmp("eq", main.env.thread, 0)
        publishes = b.bit_and(leads, b.bit_xor(stopped, b.const(1, b.i1)))

        def publish() -> None:
            b.store(b.load(main.cancel, b.i32, 4), b.at(main.flags, 4 * layer), 4)

        b.when(publishes, publish)
        return stopped
