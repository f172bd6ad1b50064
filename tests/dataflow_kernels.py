"""Single kernels of the dataflow backend on the simulator, beside what the reference computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infc.backends.dataflow.codegen.builder import Area, Group, Origins
from infc.backends.dataflow.codegen.contents import Contents, FarPlan, WeightFile, regions
from infc.backends.dataflow.codegen.emit import EMITTERS
from infc.backends.dataflow.codegen.home import Home
from infc.backends.dataflow.codegen.kv_home import KVHome
from infc.backends.dataflow.codegen.kv_ring import KVRing
from infc.backends.dataflow.codegen.memory import FOREVER, Buffer
from infc.backends.dataflow.codegen.scope import Scope
from infc.backends.dataflow.codegen.stage import StageEmitter
from infc.backends.dataflow.codegen.values import Columns, Rows, RowSpace, Value, Weight, deal
from infc.backends.dataflow.codegen.weights import WeightStream
from infc.backends.dataflow.image import Image, share_streams
from infc.backends.dataflow.isa import encode_table
from infc.backends.dataflow.machine import Machine
from infc.backends.dataflow.simulator.check import check
from infc.backends.dataflow.simulator.execute import execute
from infc.backends.dataflow.simulator.memory import Memory
from infc.ir.context import context, parse
from infc.ir.mlir import ir
from infc.ir.types import KVType, TensorType

F32 = NDArray[np.float32]
Fill = Callable[[int], NDArray[Any]]
"""What lies in a buffer of a core, by its index."""


@dataclass
class KernelRun:
    """Kernels for one group of cores.

    Args:
        cores: of the group, in one row or two of the machine's.
        rows: most tokens of a call; shared between cores where `shared`.
        tokens: of the call.
    """

    machine: Machine
    area: Area
    rows: int
    tokens: int
    shared: bool
    logit_rows: int = 1
    fills: list[tuple[Buffer, Fill]] = field(default_factory=list)

    def __post_init__(self) -> None:
        machine, cores = self.machine, self.area.size
        grid = machine.rows, machine.cols
        self.group = Group(self.area, grid, machine.vector.native, Origins())
        self.contents = Contents()
        far = FarPlan(machine) if machine.far else None
        home = Home(self.group, machine, self.contents, far, near=True)
        spaces = {
            "t": RowSpace("t", 1, self.rows, self.shared, cores),
            "r": RowSpace("r", 0, self.logit_rows, False, cores),
        }
        weights = WeightStream(self.group, 0, 0, prefetch=True)
        phase = "prefill" if self.shared else "decode"
        self.scope = Scope(self.group, machine, phase, spaces, weights, home)
        self.stage = StageEmitter(self.scope, {}, EMITTERS)
        self.stage.begin()

    @property
    def space(self) -> RowSpace:
        """Of the tokens."""
        return self.scope.spaces["t"]

    def filled(self, name: str, size_bytes: int, fill: Fill, kind: Any = "table") -> Buffer:
        """A buffer that the test fills."""
        entries = [((name, core.index), size_bytes) for core in self.group.cores]
        buffer = self.scope.home.sram_table(name, entries, kind)
        self.fills.append((buffer, fill))
        return buffer

    def cache(self, size_bytes: int, fill: Fill, *, slot_bytes: int = 0) -> None:
        """The KV cache; in far memory where there are slots to read it through."""
        if not slot_bytes:
            self.scope.kv = self.filled("kv", size_bytes, fill, "kv")
            return
        for core in self.group.cores:
            buffer = Buffer(f"kv.{core.index}", size_bytes)
            self.scope.home.place(buffer, core, ("kv", core.index), "kv")
            self.scope.kv_far.append(buffer)
        self.far_fill = fill
        if not self.shared:
            self.scope.kv_ring = KVRing(self.scope, 2, slot_bytes)

    def cached(self, memory: Memory, core: int, size_bytes: int) -> NDArray[np.uint8]:
        """The KV cache of a core."""
        if self.scope.kv is not None:
            return self.bytes_of(memory, core, self.scope.kv, size_bytes)
        address = self.scope.kv_far[core].address
        assert address is not None
        return memory.far[0][0, 64 * address : 64 * address + size_bytes]

    def columns(self, name: str, x: F32, unit: int = 4) -> Columns:
        """Rows by columns, as a product leaves them."""
        slices = deal(x.shape[1], unit, self.area.size)
        row_bytes = 4 * max(stop - first for first, stop in slices)

        def fill(core: int) -> NDArray[Any]:
            first, stop = slices[core]
            part = np.zeros((len(x), row_bytes // 4), np.float32)
            part[:, : stop - first] = x[:, first:stop]
            return part

        buffer = self.filled(name, self.rows * row_bytes, fill)
        return Columns(self.space, buffer, x.shape[1], slices, row_bytes)

    def own(self, core: int, x: NDArray[Any]) -> NDArray[Any]:
        """The rows that a core owns."""
        if not self.shared:
            return x
        share = -(-self.tokens // self.area.size)
        return x[core * share : min((core + 1) * share, self.tokens)]

    def by_rows(self, name: str, x: F32) -> Rows:
        """Rows on the cores that own them."""
        size = self.space.owned * 4 * x.shape[1]
        buffer = self.filled(name, size, lambda core: self.own(core, x))
        return Rows(self.space, buffer, x.shape[1])

    def vectors(self, named: Mapping[str, F32]) -> dict[str, Weight]:
        """The f32 vectors of a layer."""
        at, weights = 0, {}
        for name, vector in named.items():
            self.scope.vector_offsets[name] = at
            weights[name] = Weight((name,), TensorType(vector.shape, "f32"))
            at += vector.nbytes
        if at:
            whole = np.concatenate(list(named.values()))
            self.scope.vectors = self.filled("vectors", at, lambda core: whole)
        return weights

    def kernel(self, function: ir.OpView, operands: Sequence[Value], prefix: str) -> list[Value]:
        """Make the code of a kernel."""
        return self.stage.kernel(function, tuple(operands), prefix)

    def keep(self, *buffers: Buffer) -> None:
        """Results are read when everything is over."""
        for buffer in buffers:
            buffer.touch(FOREVER)

    def run(self, args: NDArray[np.int32]) -> Memory:
        """Place buffers, check the program, execute it."""
        self.group.sram.place()
        assert self.group.sram.height_bytes <= self.machine.sram_bytes
        streams = {
            (core.number, stream.unit): encode_table(stream.finish())
            for core in self.group.cores
            for stream in core.streams
            if len(stream)
        }
        shared, programs = share_streams(streams)
        machine = self.machine
        self.image = Image(
            machine.chips, machine.rows, machine.cols, machine.sram_bytes, self.rows,
            self.logit_rows, shared, programs, self.group.origins.names,
            regions(self.contents, WeightFile(), WeightFile()), [],
        )  # fmt: skip
        memory = Memory.of(self.image)
        for buffer, fill in self.fills:
            for core in self.group.cores:
                self.bytes_of(memory, core.index, buffer, fill(core.index).nbytes)[:] = (
                    np.ascontiguousarray(fill(core.index)).reshape(-1).view(np.uint8)
                )
        for core in range(len(self.scope.kv_far)):
            raw = self.far_fill(core).view(np.uint8)
            self.cached(memory, core, len(raw))[:] = raw
        check(self.image, machine, args)
        execute(self.image, machine, memory, args)
        return memory

    def bytes_of(self, memory: Memory, core: int, buffer: Buffer, size: int) -> NDArray[np.uint8]:
        """The first bytes of a buffer."""
        assert buffer.address is not None
        number = self.group.cores[core].number
        return memory.sram[number, buffer.address : buffer.address + size]

    def array(
        self, memory: Memory, core: int, buffer: Buffer, shape: tuple[int, ...], dtype: str = "<f4"
    ) -> NDArray[Any]:
        """A buffer as an array."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return self.bytes_of(memory, core, buffer, size).view(dtype).reshape(shape)

    def read(self, memory: Memory, value: Value, rows: int) -> F32:
        """All rows of a result, `[rows][width]`."""
        found = np.zeros((rows, value.width), np.float32)
        if isinstance(value, Columns):
            for core, (first, stop) in enumerate(value.slices):
                part = self.array(memory, core, value.buffer, (rows, value.row_bytes // 4))
                found[:, first:stop] = part[:, : stop - first]
            return found
        assert isinstance(value, Rows)
        for core in range(self.area.size):
            own = self.own(core, found)
            own[:] = self.array(memory, core, value.buffer, own.shape)
        return found


def arguments(tokens: int, position: int, *, most: int, logit_rows: int = 1) -> NDArray[np.int32]:
    """The arguments of a call."""
    args = np.zeros(8 + most + logit_rows, np.int32)
    args[0], args[1], args[3] = tokens, logit_rows, position
    return args


def functions(text: str) -> dict[str, ir.OpView]:
    """The functions of a module; the current context must outlive them."""
    module = parse(text)
    found = {}
    for op in module.body.operations:
        found[ir.StringAttr(op.attributes["sym_name"]).value] = op
    found[""] = module  # kept alive
    return found


__all__ = ["KVHome", "KVType", "KernelRun", "arguments", "context", "functions"]
