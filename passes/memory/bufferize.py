"""Tensors get places: every value between kernels becomes a buffer, every weight a packed one.

    %y = call @k0_rows(%x, %g)         %b = alloc %frame {offset = -1, size_bytes = ...}
                                  -->  call @k0_rows(%bx, %bg, %b)
    func @k0_rows(%x, %g) -> %y        func @k0_rows(%bx, %bg, %by) {
                                         %x = read %bx ... write %y, %by }

Requires: kernels with mappings.
Guarantees: functions return nothing and write into their last arguments; inside a kernel values are
tensors between `read` and `write`; results of kernels mapped with `partition = "replicate"` live in
the `thread` space, all others in the `arena`; a layer function places its own buffers in frames it
is given; a function called with buffers in different spaces (equal kernels may be) is one function
for each choice; weights are declared once, as `infc.packed`, for both programs.
Does not handle: in-place results (declined by construction: an output never is an input).

MLIR's one-shot bufferisation refuses operations defined through IRDL, hence a pass of our own.
"""

from __future__ import annotations

from collections.abc import Sequence

from infc.diagnostics import InternalError
from infc.ir import ops
from infc.ir.attributes import attributes_of, get
from infc.ir.levels import Level
from infc.ir.mlir import func, ir
from infc.ir.outline import clone_ops
from infc.ir.types import BufferType, TensorType, is_kv, is_tensor
from infc.passes.walk import body, dim_maxima, program_functions, programs
from infc.pipeline.passes import FunctionPass, PassContext

FRAME = TensorType((0,), "i8")
"""Stand-in type of raw frames: their size is an attribute of the op that makes them."""
SPACES = ("arena", "thread")


def bufferize(module: ir.Module, ctx: PassContext) -> None:
    """Rewrite the functions of both programs."""
    packed = _PackedWeights(module, ctx)
    for program in programs(module):
        _Program(program, ctx, packed).run()


class _PackedWeights:
    """Declares each distinct weight once, at the top of the module."""

    def __init__(self, module: ir.Module, ctx: PassContext) -> None:
        self.module = module
        self.ctx = ctx
        self.names: dict[tuple[str, str], str] = {}

    def reference(self, op: ir.OpView) -> ir.Value:
        """A value for the packed form of a weight or of a rope table."""
        tensor = TensorType.of(op.operation.results[0].type)
        split = get(op, "split", False)
        layout, size_bytes = self.ctx.backend.weight_layout(tensor, split=split)
        described = attributes_of(op)
        described.pop("infc.layer", None)
        key = (str(described), str(tensor))
        if key not in self.names:
            self.names[key] = f"w{len(self.names)}"
            first_program = next(programs(self.module))
            kept = {n: op.operation.attributes[n] for n in described}
            with ir.InsertionPoint(first_program), op.location:
                ops.create(
                    "infc.packed",
                    sym_name=self.names[key],
                    offset=-1,
                    size_bytes=size_bytes,
                    layout=layout,
                    type=ir.TypeAttr.get(tensor.mlir()),
                    **kept,
                )
        with op.location:
            kind = BufferType(tensor, layout, "weights").mlir()
            return ops.create("infc.packed_ref", results=[kind], packed=self.names[key]).results[0]


class _Program:
    """Rewrites one program, `@main` first, callees as they are met."""

    def __init__(self, program: ir.OpView, ctx: PassContext, packed: _PackedWeights) -> None:
        self.program = program
        self.ctx = ctx
        self.packed = packed
        self.maxima = dim_maxima(program)
        self.old = {get(f, "sym_name"): f for f in program_functions(program)}
        self.done: dict[tuple[str, tuple[ir.Type, ...]], str] = {}
        self.taken = set(self.old)

    def run(self) -> None:
        main = self.old["main"]
        arguments = [
            BufferType(TensorType.of(a.type), "rows", "call").mlir()
            for a in main.regions[0].blocks[0].arguments
        ]
        returned = body(main)[-1].operation.operands
        results = [BufferType(TensorType.of(v.type), "rows", "call").mlir() for v in returned]
        self.caller("main", "main", arguments, results)
        for function in self.old.values():
            function.operation.erase()

    def buffer_type(self, value: ir.Value, space: str) -> BufferType:
        return BufferType(TensorType.of(value.type), "rows", space)

    # ---- functions that call: main and layers ----

    def caller(
        self, callee: str, name: str, arguments: list[ir.Type], results: list[ir.Type]
    ) -> None:
        """Rewrite a calling function: arguments, then results, then (layers) the two frames."""
        old = self.old[callee]
        frames = [] if name == "main" else [_frame(space) for space in SPACES]
        function = self.new_function(old, name, [*arguments, *results, *frames])
        block = function.add_entry_block()
        values: dict[ir.Value, ir.Value] = dict(
            zip(old.regions[0].blocks[0].arguments, block.arguments, strict=False)
        )
        returned = list(body(old)[-1].operation.operands)
        out = list(block.arguments)[len(arguments) : len(arguments) + len(results)]
        targets = dict(zip(returned, out, strict=True))
        with ir.InsertionPoint(block):
            if name == "main":
                frame = {
                    space: ops.create("infc.space", results=[_frame(space)], size_bytes=0).results[
                        0
                    ]
                    for space in SPACES
                }
            else:
                frame = dict(zip(SPACES, list(block.arguments)[-2:], strict=True))
            for op in body(old):
                with op.location:
                    self.rewrite(op, values, targets, frame)

    def rewrite(
        self,
        op: ir.OpView,
        values: dict[ir.Value, ir.Value],
        targets: dict[ir.Value, ir.Value],
        frame: dict[str, ir.Value],
    ) -> None:
        name = op.operation.name
        if name in ("infc.weight", "infc.rope_table"):
            values[op.operation.results[0]] = self.packed.reference(op)
        elif name == "infc.kv_cache":
            clone_ops([op], values)
        elif name == "func.return":
            func.ReturnOp([])
        elif name == "func.call":
            self.call(op, values, targets, frame)
        else:
            raise InternalError(f"{name} stands outside of a kernel", location=str(op.location))

    def call(
        self,
        op: ir.OpView,
        values: dict[ir.Value, ir.Value],
        targets: dict[ir.Value, ir.Value],
        frame: dict[str, ir.Value],
    ) -> None:
        callee = get(op, "callee")
        function = self.old[callee]
        operands = [values[v] for v in op.operation.operands]
        outputs: list[ir.Value] = []
        spaces = self.result_spaces(callee)
        for result, space in zip(op.operation.results, spaces, strict=True):
            if is_kv(result.type):
                # The updated cache is the cache: a handle, not a copy.
                index = self.cache_argument(callee, result.result_number)
                values[result] = operands[index]
                continue
            if result in targets:
                buffer = targets[result]
            else:
                buffer = self.allocate(frame[space], self.buffer_type(result, space))
            values[result] = buffer
            outputs.append(buffer)
        kernel = get(function, "infc.kernel") is not None
        extra = (
            self.scratch(function, frame)
            if kernel
            else [self.frame_for(frame[space], space) for space in SPACES]
        )
        arguments, results = [v.type for v in operands], [v.type for v in outputs]
        signature = (callee, (*arguments, *results))
        if signature not in self.done:
            name = self.done[signature] = self.name_for(callee)
            with ir.InsertionPoint(self.program.operation.regions[0].blocks[0]):
                if kernel:
                    self.kernel(callee, name, arguments, results, [v.type for v in extra])
                else:
                    self.caller(callee, name, arguments, results)
        call = func.CallOp([], self.done[signature], [*operands, *outputs, *extra])
        if "infc.layer" in op.operation.attributes:
            call.operation.attributes["infc.layer"] = op.operation.attributes["infc.layer"]

    def name_for(self, callee: str) -> str:
        """A function's own name at first, then another for each further choice of spaces."""
        name, number = callee, 2
        if any(known == callee for known, _ in self.done):
            while name in self.taken:
                name, number = f"{callee}_{number}", number + 1
            self.taken.add(name)
        return name

    def result_spaces(self, callee: str) -> list[str]:
        """The space of each result: of a kernel by its mapping, of a layer by who makes it."""
        function = self.old[callee]
        returned = list(body(function)[-1].operation.operands)
        if get(function, "infc.kernel") is not None:
            replicated = get(function, "infc.mapping", {}).get("partition") == "replicate"
            return ["thread" if replicated else "arena"] * len(returned)
        spaces = []
        for value in returned:
            maker = value.owner
            index = list(maker.results).index(value)
            spaces.append(self.result_spaces(get(maker, "callee"))[index])
        return spaces

    def cache_argument(self, callee: str, result: int) -> int:
        """Which argument of a function is the cache that a result continues."""
        function = self.old[callee]
        value = body(function)[-1].operation.operands[result]
        while not isinstance(value.owner, ir.Block):
            value = value.owner.operands[0]
        return int(ir.BlockArgument(value).arg_number)

    def allocate(self, frame: ir.Value, kind: BufferType) -> ir.Value:
        size_bytes = kind.tensor.size_bytes(self.maxima)
        return ops.alloc(frame, kind, offset=-1, size_bytes=size_bytes)

    def frame_for(self, frame: ir.Value, space: str) -> ir.Value:
        """Room for a callee's own buffers; plan-memory learns how much."""
        return ops.alloc(frame, BufferType(FRAME, "frame", space), offset=-1, size_bytes=0)

    def scratch(self, kernel: ir.OpView, frame: dict[str, ir.Value]) -> list[ir.Value]:
        """A kernel's own room: of each thread, and of all of them together."""
        mapping, made = get(kernel, "infc.mapping", {}), []
        for field, space in (("scratch_bytes", "thread"), ("shared_bytes", "arena")):
            if size_bytes := mapping.get(field, 0):
                kind = BufferType(TensorType((size_bytes,), "i8"), "frame", space)
                made.append(ops.alloc(frame[space], kind, offset=-1, size_bytes=size_bytes))
        return made

    # ---- kernels ----

    def kernel(
        self,
        callee: str,
        name: str,
        arguments: list[ir.Type],
        results: list[ir.Type],
        extra: list[ir.Type],
    ) -> None:
        old = self.old[callee]
        with old.location:
            function = self.new_function(old, name, [*arguments, *results, *extra])
        block = function.add_entry_block()
        mapping: dict[ir.Value, ir.Value] = {}
        operations = body(old)
        with ir.InsertionPoint(block), old.location:
            inputs = list(block.arguments)[: len(arguments)]
            for before, after in zip(old.regions[0].blocks[0].arguments, inputs, strict=True):
                mapping[before] = after if is_kv(after.type) else ops.read(after)
            clone_ops(operations[:-1], mapping)
            tensors = [v for v in operations[-1].operation.operands if is_tensor(v.type)]
            outputs = list(block.arguments)[len(arguments) : len(arguments) + len(results)]
            for value, target in zip(tensors, outputs, strict=True):
                ops.write(mapping[value], target)
            func.ReturnOp([])

    def new_function(self, old: ir.OpView, name: str, kinds: Sequence[ir.Type]) -> func.FuncOp:
        # The old function may hold the name until all are rewritten: MLIR only checks at verify.
        with ir.InsertionPoint(self.program.operation.regions[0].blocks[0]), old.location:
            function = func.FuncOp(name, ir.FunctionType.get(list(kinds), []))
        if name != "main":
            function.operation.attributes["sym_visibility"] = ir.StringAttr.get("private")
        for attribute in old.operation.attributes:
            if attribute.startswith("infc."):
                function.operation.attributes[attribute] = old.operation.attributes[attribute]
        return function


def _frame(space: str) -> ir.Type:
    return BufferType(FRAME, "frame", space).mlir()


BUFFERIZE = FunctionPass("bufferize", Level.SCHEDULE, bufferize, raises_to=Level.MEMORY)
