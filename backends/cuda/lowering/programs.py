"""The kernels of one program as device functions, and the order in which it runs them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from infc.backends.cuda.call_block import POINTERS, offset_of
from infc.backends.cuda.codegen.builder import GpuBuilder, Value
from infc.backends.cuda.kernels.kv_layout import KVLayout
from infc.backends.cuda.lowering.attention_form import attention_form
from infc.backends.cuda.lowering.forms import Form, FormMaker
from infc.backends.cuda.lowering.matmul_form import (
    is_streamed,
    matmul_form,
    ring_for,
    streamed_spec,
)
from infc.backends.cuda.lowering.row_forms import argmax_form, rotary_form, rows_form, top_k_form
from infc.diagnostics import InternalError
from infc.ir.attributes import get
from infc.ir.mlir import ir
from infc.ir.types import BufferType, is_kv
from infc.passes.codegen.kernel_body import KernelBody
from infc.passes.memory.demand import OUTPUTS, demanded_by, kinds_of_call
from infc.passes.walk import body, dim_maxima, program_functions

OPERANDS = POINTERS[:8]
"""The fields of the call block that are the operands of a program, in its order."""
_FORMS: dict[str, FormMaker] = {
    "rows": rows_form,
    "rotary": rotary_form,
    "attention": attention_form,
    "argmax": argmax_form,
    "top_k": top_k_form,
}


@dataclass(frozen=True)
class Place:
    """Where an operand lies: bytes from the start of a space, or, of a `call` operand, where in the
    call block its pointer stands."""

    space: str
    offset: int

    def at(self, offset: int) -> Place:
        """So many bytes further."""
        return Place(self.space, self.offset + offset)


@dataclass(frozen=True)
class Step:
    """One kernel of a program, as it is run.

    Attributes:
        kernel: its name.
        operands: where they lie.
        outputs: the kinds of output that it works for.
    """

    kernel: str
    operands: tuple[Place, ...]
    outputs: frozenset[str]


class ProgramKernels:
    """Emits the kernels of one program into the builder's module.

    Attributes:
        phase: `prefill` or `decode`.
        functions: of the memory level, by name.
        kernels: what each kernel reads and writes.
        forms: how each is called.
        replicated: kernels that each block does for itself.
        weights, kv: byte offsets of packed weights by name, and of the layers' caches.
        ring: the part of shared memory through which products get their weights, if any do.
    """

    def __init__(
        self,
        b: GpuBuilder,
        program: ir.OpView,
        kv: KVLayout,
        weights: dict[str, int],
        shared_bytes: int,
    ) -> None:
        self.b = b
        self.phase: str = get(program, "infc.phase")
        self.maxima = dim_maxima(program)
        self.weights, self.kv = weights, kv.layer_offsets
        self.functions = {get(f, "sym_name"): f for f in program_functions(program)}
        self.kernels = {
            name: KernelBody(function)
            for name, function in self.functions.items()
            if get(function, "infc.kernel") is not None
        }
        self.replicated = {
            name
            for name, kernel in self.kernels.items()
            if kernel.mapping.get("partition") == "replicate"
        }
        self.forms = {
            name: self._emit(name, kernel, _FORMS[kernel.kind])
            for name, kernel in self.kernels.items()
            if kernel.kind != "matmul"
        }
        self.ring = ring_for(
            (
                streamed_spec(kernel, self._most_rows(kernel), shared_bytes)
                for kernel in self.kernels.values()
                if is_streamed(kernel)
            ),
            # Kernels of a prefill have blocks of their own.
            self._work_bytes() if self.phase == "decode" else 0,
            shared_bytes,
        )

        def product_form(b: GpuBuilder, name: str, kernel: KernelBody, rows: int) -> Form:
            return matmul_form(b, name, kernel, rows, self.ring)

        for name, kernel in self.kernels.items():
            if kernel.kind == "matmul":
                self.forms[name] = self._emit(name, kernel, product_form)

    def _work_bytes(self) -> int:
        """Shared memory that the kernels work in which there are so far."""
        return max((form.emitted.work_bytes for form in self.forms.values()), default=0)

    def _most_rows(self, kernel: KernelBody) -> int:
        """The most rows that a call of a kernel has."""
        return self.maxima[kernel.row_symbol()]

    def _emit(
        self,
        name: str,
        kernel: KernelBody,
        form: Callable[[GpuBuilder, str, KernelBody, int], Form],
    ) -> Form:
        with kernel.function.location:
            return form(self.b, f"{self.phase}_{name}", kernel, self._most_rows(kernel))

    @property
    def main(self) -> ir.OpView:
        """The memory-level `@main`."""
        return self.functions["main"]

    def space_bytes(self, space: str) -> int:
        """Bytes that the plan takes in a space."""
        return int(get(self.main, "infc.plan")[space]["height_bytes"])

    @property
    def thread_bytes(self) -> int:
        """Bytes from one block's copy of the `thread` space to the next."""
        return -(-self.space_bytes("thread") // 256) * 256

    @property
    def scratch_bytes(self) -> int:
        """Bytes that kernels keep partial results in; one at a time uses them."""
        return max((form.scratch_bytes for form in self.forms.values()), default=0)

    @property
    def arrivals(self) -> int:
        """Counters that kernels use, likewise."""
        return max((form.arrivals for form in self.forms.values()), default=0)

    def outputs(self) -> Callable[[ir.OpView], frozenset[str]]:
        """Which kinds of output a call in `@main` works for."""
        needs, every = demanded_by(self.main, self.functions), frozenset(OUTPUTS)
        return lambda call: kinds_of_call(call, self.functions, needs, every)

    def operand_place(self, op: ir.OpView) -> Place:
        """Where what a declaration in `@main` stands for lies."""
        name = op.operation.name
        if name == "infc.space":
            return Place(BufferType.of(op.operation.results[0].type).space, 0)
        if name == "infc.packed_ref":
            return Place("weights", self.weights[get(op, "packed")])
        if name == "infc.kv_cache":
            return Place("kv", self.kv[get(op, "index")])
        raise InternalError(f"{name} has no machine form", location=str(op.location))

    def walk(self) -> Iterator[tuple[ir.OpView, ir.OpView, tuple[Place, ...]]]:
        """All barriers and calls of the program in the order in which they run, each with the
        function that it is in and the places of its operands; a layer in front of what it does."""
        arguments = self.main.regions[0].blocks[0].arguments
        places = {
            argument: Place("call", offset_of(field))
            for argument, field in zip(arguments, OPERANDS, strict=False)
        }
        yield from self._walk(self.main, places)

    def _walk(
        self, function: ir.OpView, places: dict[Value, Place]
    ) -> Iterator[tuple[ir.OpView, ir.OpView, tuple[Place, ...]]]:
        for op in body(function):
            name = op.operation.name
            if name == "infc.barrier":
                yield function, op, ()
            elif name == "func.call":
                operands = tuple(places[value] for value in op.operation.operands)
                yield function, op, operands
                callee = get(op, "callee")
                if callee not in self.kernels:
                    layer = self.functions[callee]
                    inner = layer.regions[0].blocks[0].arguments
                    yield from self._walk(layer, dict(zip(inner, operands, strict=True)))
            elif name == "infc.alloc":
                frame = places[op.operation.operands[0]]
                places[op.operation.results[0]] = frame.at(get(op, "offset"))
            elif name != "func.return":
                places[op.operation.results[0]] = self.operand_place(op)

    def steps(self) -> list[Step]:
        """All kernels of the program in the order in which they run."""
        outputs = self.outputs()
        found: list[Step] = []
        of_layer = frozenset(OUTPUTS)
        for function, op, operands in self.walk():
            if op.operation.name == "func.call" and get(op, "callee") in self.kernels:
                wanted = outputs(op) if function == self.main else of_layer
                found.append(Step(get(op, "callee"), operands, wanted))
        return found

    def layer_calls(self) -> dict[str, list[tuple[Place, ...]]]:
        """The places of the operands of all calls of each layer class."""
        found: dict[str, list[tuple[Place, ...]]] = {}
        for _, op, operands in self.walk():
            if op.operation.name == "func.call" and get(op, "callee") not in self.kernels:
                found.setdefault(get(op, "callee"), []).append(operands)
        return found

    def kernel_calls(self, name: str) -> int:
        """Kernels that a call of a function runs."""
        if name in self.forms:
            return 1
        calls = [op for op in body(self.functions[name]) if op.operation.name == "func.call"]
        return sum(self.kernel_calls(get(op, "callee")) for op in calls)

    def spaces(self, kernel: str) -> list[str]:
        """The space of each operand of a kernel."""
        kinds = [argument.type for argument in self.kernels[kernel].arguments]
        return ["kv" if is_kv(kind) else BufferType.of(kind).space for kind in kinds]
