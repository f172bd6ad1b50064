"""The code of one stage: what comes in front, loops over equal layers, what comes behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from infc.backends.dataflow.codegen.attention_columns import identity
from infc.backends.dataflow.codegen.exchange import as_rows, rows_of
from infc.backends.dataflow.codegen.kv_home import KVHome
from infc.backends.dataflow.codegen.model import CallSite, Operand, Run
from infc.backends.dataflow.codegen.scope import (
    ARG_LOGIT_ROWS,
    ARG_POSITION,
    ARG_TOKENS,
    Kernel,
    RowCounts,
    Scope,
    factor_key,
)
from infc.backends.dataflow.codegen.stream import Stream
from infc.backends.dataflow.codegen.tables import RopeSource, fetch_rope
from infc.backends.dataflow.codegen.values import (
    Cache,
    RopeTable,
    Rows,
    RowSpace,
    Value,
    Weight,
)
from infc.backends.dataflow.isa import Unary
from infc.diagnostics import InternalError
from infc.ir.attributes import get
from infc.ir.mlir import ir
from infc.ir.types import TensorType
from infc.passes.walk import body

Emitter = Callable[[Kernel, Scope], list[Value]]
Emitters = Mapping[str, Emitter]
"""What makes the code of a kernel, by kind."""


class StageEmitter:
    """Emits into the groups's streams, in order."""

    def __init__(
        self, scope: Scope, functions: Mapping[str, ir.OpView], emitters: Emitters
    ) -> None:
        self.scope, self.functions, self.emitters = scope, functions, emitters
        self.values: dict[ir.Value, Value] = {}
        self._ropes: dict[RopeSource, RopeTable] = {}
        self._vector_bytes = 0
        self._vector_blocks: list[tuple[Weight, ...]] = []

    def begin(self) -> None:
        """Registers that every stream keeps."""
        scope = self.scope
        for core in scope.cores:
            for stream in core.streams:
                key = core.index, stream.unit
                scope.position[key] = stream.take()
                scope.scratch[key] = stream.take()
                stream.arg(scope.position[key], ARG_POSITION)
                scope.cache_base[key] = stream.take()
                stream.mov(scope.cache_base[key], 0)
                for space in scope.spaces.values():
                    argument = ARG_TOKENS if space.symbol == "t" else ARG_LOGIT_ROWS
                    self._count_rows(stream, space, argument)
            scope.vector_base[core.index] = core.vector.take()
            core.vector.mov(scope.vector_base[core.index], 0)
        scope.vectors = scope.group.buffer("vectors", 0, filled=True)
        if scope.phase == "prefill":
            # In front of what the stage before sends.
            identity(scope)

    def _count_rows(self, stream: Stream, space: RowSpace, argument: int) -> None:
        counts = self.scope.counts
        key = stream.core.index, stream.unit, space.symbol
        if space.least == space.most:
            counts[key] = RowCounts(space.most, None, space.most)
            return
        total = stream.take()
        stream.arg(total, argument)
        counts[key] = RowCounts(total, None, total)
        if space.shared:
            first, own = stream.take(), stream.take()
            rows_of(self.scope, stream, space, stream.core.index, first, own)
            counts[key] = RowCounts(total, first, own)

    def ropes(self, calls: Sequence[CallSite]) -> None:
        """The rows of all rotary tables that layers of this stage read."""
        for call in calls:
            for operand in call.operands:
                if isinstance(operand, RopeSource) and operand not in self._ropes:
                    self._ropes[operand] = fetch_rope(
                        self.scope, operand, f"rope{len(self._ropes)}"
                    )

    def layers(self, run: Run, x: Rows) -> Rows:
        """A loop over equal layers; what comes out of the last one."""
        scope, number = self.scope, len(self._vector_blocks)
        scope.weights.body(run.turns)
        block = self._block(run.operands)
        operands = [
            x if place == run.x else self._value(value) for place, value in enumerate(run.operands)
        ]
        scope.body_start, scope.receives = scope.group.sram.step, []
        with ExitStack() as stack:
            if run.turns > 1:
                for core in scope.cores:
                    for stream in core.streams:
                        stack.enter_context(stream.loop(run.turns))
            result = as_rows(scope, self._function(run.function, operands, f"{number}."))
            if run.turns > 1:
                _copy_rows(scope, result, x)
                result = x
            for core in scope.cores:
                base = scope.vector_base[core.index]
                core.vector.add(base, base, imm=block)
                for stream in core.streams:
                    kept = scope.cache_base[core.index, stream.unit]
                    stream.add(kept, kept, imm=self._cache_bytes(run.operands))
        for buffer in scope.receives:
            buffer.touch(scope.body_start)
            buffer.touch(scope.group.sram.step)
        scope.body_start = None
        scope.group.sram.next_step()
        return result

    def calls(self, calls: Sequence[CallSite], part: str) -> None:
        """Kernels in front of layers or behind; their results are kept in `values`."""
        self.scope.part, self.scope.site = part, 0
        weights = tuple(o for call in calls for o in call.operands)
        base = self._vector_bytes
        self._block(weights)
        scope = self.scope
        scope.vector_offsets = {k: base + at for k, at in scope.vector_offsets.items()}
        kept, scope.vector_base = scope.vector_base, {}
        for number, call in enumerate(calls):
            operands = tuple(self._value(value) for value in call.operands)
            results = self.kernel(call.function, operands, f"{part}.{number}.")
            self.values.update(zip(call.results, results, strict=True))
        scope.vector_base = kept

    @contextmanager
    def where_any(self, space: RowSpace) -> Iterator[None]:
        """Skip what is emitted inside where a call has no such rows."""
        with ExitStack() as stack:
            for core in self.scope.cores:
                for stream in core.streams:
                    (some,) = stack.enter_context(stream.registers(1))
                    total = self.scope.total(stream, space)
                    stream.mov(some, 0, total)
                    stream.least(some, some, 0, 0, 1)
                    stack.enter_context(stream.loop(some))
            yield

    def kernel(self, function: ir.OpView, operands: tuple[Value, ...], prefix: str) -> list[Value]:
        """One kernel."""
        kind = str(get(function, "infc.kernel"))
        self.scope.prefix = prefix
        if kind != "rotary":
            self.scope.await_products()
        with self.scope.group.origins.of(name_of(function)):
            results = self.emitters[kind](Kernel(function, operands), self.scope)
        self.scope.group.sram.next_step()
        return results

    def _function(self, function: ir.OpView, operands: Sequence[Value], prefix: str) -> Value:
        """The kernels of a layer; its one result."""
        self.scope.part, self.scope.site = "layer", 0
        values: dict[ir.Value, Value] = dict(
            zip(function.regions[0].blocks[0].arguments, operands, strict=True)
        )
        for number, op in enumerate(body(function)):
            given = tuple(values[value] for value in op.operation.operands)
            if op.operation.name == "func.return":
                return given[0]
            callee = self.functions[str(get(op, "callee"))]
            results = self.kernel(callee, given, f"{prefix}{number}.")
            values.update(zip(op.operation.results, results, strict=True))
        raise InternalError("a layer has no return")

    def _value(self, operand: Operand) -> Value:
        if isinstance(operand, RopeSource):
            return self._ropes[operand]
        return self.values[operand] if isinstance(operand, ir.Value) else operand

    def _block(self, operands: Sequence[Operand]) -> int:
        """Give the vectors among the operands their places; bytes of one turn."""
        vectors = tuple(o for o in operands if isinstance(o, Weight) and len(o.type.shape) == 1)
        vectors = tuple(dict.fromkeys([*vectors, *self._factors(operands)]))
        at, offsets = 0, {}
        for weight in vectors:
            offsets[weight.sources[0]] = at
            at += 4 * int(weight.type.shape[0])
        self.scope.vector_offsets = offsets
        self._vector_blocks.append(vectors)
        turns = len(vectors[0].sources) if vectors else 0
        self._vector_bytes += turns * at
        return at

    def _factors(self, operands: Sequence[Operand]) -> list[Weight]:
        """Factors of matrices, as vectors of one number, where one of them is not 1."""
        return [
            Weight(tuple(map(factor_key, o.sources)), TensorType((1,), "f32"))
            for o in operands
            if isinstance(o, Weight) and len(o.type.shape) == 2
            if any(self.scope.factor(source) != 1.0 for source in o.sources)
        ]

    def _cache_bytes(self, operands: Sequence[Operand]) -> int:
        caches = [o for o in operands if isinstance(o, Cache)]
        cores, machine = len(self.scope.cores), self.scope.machine
        return sum(KVHome.of(cache.kind, cores, machine).layer_bytes for cache in caches)

    def vectors_content(self) -> None:
        """Fill the vectors of all layers, the same on every core."""
        sources = tuple(
            vector.sources[turn]
            for block in self._vector_blocks
            for turn in range(len(block[0].sources) if block else 0)
            for vector in block
        )
        if sources and self.scope.vectors is not None:
            self.scope.home.sram_table(
                "vectors", [(("vectors", sources), self._vector_bytes)] * len(self.scope.cores)
            )


def _copy_rows(scope: Scope, source: Rows, target: Rows) -> None:
    for core in scope.cores:
        v = core.vector
        with v.stepping(scope.own(v, source.space), source.row_bytes) as (row,):
            for at, count in scope.group.pieces(source.width):
                v.v_un(
                    Unary.COPY, target.buffer.at(4 * at, row), source.buffer.at(4 * at, row), count
                )


def name_of(function: ir.OpView) -> str:
    """The model's name of what a kernel does."""
    text = str(function.location)
    return text.removeprefix("loc(").removesuffix(")").strip('"')
