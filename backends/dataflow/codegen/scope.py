"""What kernel emitters share while the code of one stage is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from infc.backends.dataflow.codegen.builder import CoreProgram, Group
from infc.backends.dataflow.codegen.home import Home
from infc.backends.dataflow.codegen.memory import Address, Buffer
from infc.backends.dataflow.codegen.stream import Count, Register, Stream
from infc.backends.dataflow.codegen.values import RowSpace, Value, Weight
from infc.backends.dataflow.codegen.weights import WeightStream
from infc.backends.dataflow.isa import Unit
from infc.backends.dataflow.machine import Machine
from infc.diagnostics import InternalError
from infc.ir.mlir import ir

if TYPE_CHECKING:
    from infc.backends.dataflow.codegen.kv_ring import KVRing

ARG_TOKENS, ARG_LOGIT_ROWS, ARG_POSITION, ARG_FIRST_TOKEN = 0, 1, 3, 8
"""Where the host puts the counts, the first position and the tokens of a call in `args`."""


def factor_key(source: str) -> str:
    """The name of a matrix's factor among the vectors."""
    return f"factor of {source}"


@dataclass
class RowCounts:
    """Registers of one stream that say how many rows a call has.

    Attributes:
        total: rows of the call.
        first: the first one of this core, where rows are shared.
        own: how many are its own.
    """

    total: Count
    first: Register | None
    own: Count


@dataclass(frozen=True)
class Kernel:
    """A kernel function and what it is called with.

    Attributes:
        function: at the schedule level, with `infc.kernel`.
        operands: one for each argument.
    """

    function: ir.OpView
    operands: tuple[Value, ...]


@dataclass
class Scope:
    """One stage of one program.

    Attributes:
        spaces: rows by symbol.
        weights: what products read, in order.
        home: where weights and tables lie.
        position: for each stream the register with the position of the call's first token.
        scratch: for each stream a register that nobody keeps anything in for long.
        vectors: the buffer with the f32 vectors of the layer at hand (norms, biases).
        vector_offsets: where each vector lies in it, by the name of its first source.
        vector_base: the register of each core's vector stream that says where the layer's begin;
            0 outside of layers.
        cache_base: for each stream the register with the bytes of KV cache in front of the layer.
        kv: the buffer with the caches of all layers, in SRAM; None where they are in far memory.
        kv_far: per core the buffer in far memory of tier `kv_tier`, whose address counts lines.
        kv_ring: through which decoding reads a cache in far memory.
        identity: a matrix in f16, where attention has asked for it.
        factor: by which the product with a matrix is to be multiplied, by its name: a power of two.
        prefix: in front of the names of the kernel's buffers.
        part: of the program: `head`, `layer` or `tail`.
        site: exchanges in this part, or in this layer, so far.
        last_exchange: step of the exchange before.
        body_start: first step of a loop that is being made.
        receives: buffers that others write first in a turn of the loop.
        products: under way, in order: what each makes and what it reads.
    """

    group: Group
    machine: Machine
    phase: str
    spaces: Mapping[str, RowSpace]
    weights: WeightStream
    home: Home
    counts: dict[tuple[int, Unit, str], RowCounts] = field(default_factory=dict)
    position: dict[tuple[int, Unit], Register] = field(default_factory=dict)
    scratch: dict[tuple[int, Unit], Register] = field(default_factory=dict)
    vectors: Buffer | None = None
    vector_offsets: dict[str, int] = field(default_factory=dict)
    vector_base: dict[int, Register] = field(default_factory=dict)
    cache_base: dict[tuple[int, Unit], Register] = field(default_factory=dict)
    kv: Buffer | None = None
    kv_far: list[Buffer] = field(default_factory=list)
    kv_tier: int = 0
    kv_ring: KVRing | None = None
    identity: Buffer | None = None
    factor: Callable[[str], float] = lambda source: 1.0
    prefix: str = ""
    part: str = "head"
    site: int = 0
    last_exchange: int = 0
    body_start: int | None = None
    receives: list[Buffer] = field(default_factory=list)
    products: list[tuple[Buffer, ...]] = field(default_factory=list)

    @property
    def cores(self) -> Sequence[CoreProgram]:
        """The cores of the stage."""
        return self.group.cores

    def total(self, stream: Stream, space: RowSpace) -> Count:
        """How many rows the call has."""
        return self.counts[stream.core.index, stream.unit, space.symbol].total

    def own(self, stream: Stream, space: RowSpace) -> Count:
        """How many rows this core owns."""
        return self.counts[stream.core.index, stream.unit, space.symbol].own

    def first(self, stream: Stream, space: RowSpace) -> Register:
        """The first row that this core owns; only where rows are shared."""
        first = self.counts[stream.core.index, stream.unit, space.symbol].first
        if first is None:
            raise InternalError(f"rows {space.symbol!r} are not shared")
        return first

    def await_products(self, made: Buffer | None = None) -> None:
        """The vector streams go on when a product is there, and all before it; None for all."""
        while self.products and (made is None or any(p[0] is made for p in self.products)):
            for core in self.cores:
                core.vector.wait("matrix>vector")
            for buffer in self.products.pop(0):
                buffer.touch(self.group.sram.step)

    def buffer(self, name: str, size_bytes: int) -> Buffer:
        """A buffer of the kernel at hand: its name is made unique by the kernel's."""
        return self.group.buffer(f"{self.prefix}{name}", size_bytes)

    def factor_of(self, core: CoreProgram, weight: Weight) -> Address | None:
        """Where the factor of a product with a matrix lies; None where it is 1."""
        offset = self.vector_offsets.get(factor_key(weight.sources[0]))
        if offset is None or self.vectors is None:
            return None
        return self.vectors.at(offset, self.vector_base.get(core.index, 0))

    def vector(self, core: CoreProgram, weight: Weight) -> Address:
        """Where the f32 numbers of a norm or a bias lie, for the vector stream."""
        if self.vectors is None:
            raise InternalError("no vectors are in place")
        offset = self.vector_offsets[weight.sources[0]]
        return self.vectors.at(offset, self.vector_base.get(core.index, 0))
