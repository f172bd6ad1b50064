"""Runs the programs on the functional simulator, bit for bit, and asks the other one for times."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infc.backends.dataflow.codegen.kv_home import KVHome
from infc.backends.dataflow.image import Image, read_image
from infc.backends.dataflow.layout import layout_of, local_plans
from infc.backends.dataflow.machine import Machine
from infc.backends.dataflow.needs import CACHE_FORMAT
from infc.backends.dataflow.signature import DataflowSignature
from infc.backends.dataflow.simulator.execute import Executor
from infc.backends.dataflow.simulator.memory import Memory
from infc.backends.dataflow.timed_calls import call_timeline, simulate_call
from infc.diagnostics import Code, InternalError, UserError
from infc.ir.kv_storage import load_kv, store_kv
from infc.ir.types import KVType
from infc.target.backend import LoadedPrograms
from infc.target.runnable import (
    TOP_ENTRY,
    Call,
    Cancellation,
    KVBlock,
    KVCache,
    KVShape,
    OutputKind,
    Phase,
    kv_shape_of,
    limits_of,
)
from infc.target.signature import other_programs, read_signature
from infc.target.simulated import LocalPlan, MachineLayout, SimulatedCall, Timeline

U8 = NDArray[np.uint8]
_ARGS = 8
"""Words of `args` in front of the tokens."""


class DataflowKV:
    """The caches of all layers as the machine holds them; implements `KVCache`.

    Attributes:
        bytes: of all cores that keep a part, one after the other.
    """

    def __init__(self, layout: CacheLayout) -> None:
        self.layout = layout
        self.bytes: U8 = np.zeros(layout.size_bytes, np.uint8)

    def kv_export(self, slot: int, start: int, stop: int) -> KVBlock:
        """Positions `[start, stop)` of a slot, in the logical form."""
        starts, keys, values = [], [], []
        for layer, home in enumerate(self.layout.homes):
            first = max(start, stop - home.kind.capacity)
            shape = (stop - first, home.kind.kv_heads, home.kind.head_dim)
            k, v = np.empty(shape, np.float16), np.empty(shape, np.float16)
            for row, head, where, behind in self.layout.places(layer, range(first, stop)):
                k[row, head] = self._numbers(where, home.kind.head_dim)
                v[row, head] = self._numbers(behind, home.kind.head_dim)
            starts.append(first)
            keys.append(k.astype(np.float32))
            values.append(v.astype(np.float32))
        return KVBlock(start, stop, tuple(starts), keys, values)

    def kv_import(self, slot: int, block: KVBlock) -> None:
        """Write a block into a slot, at the block's own positions."""
        for layer, home in enumerate(self.layout.homes):
            first = block.layer_starts[layer]
            kept = max(first, block.stop - home.kind.capacity)
            keys, values = block.keys[layer][kept - first :], block.values[layer][kept - first :]
            rounded = load_kv(store_kv(keys, values, home.kind.dtype))
            k, v = (part.astype(np.float16) for part in rounded)
            for row, head, where, behind in self.layout.places(layer, range(kept, block.stop)):
                self._numbers(where, home.kind.head_dim)[:] = k[row, head]
                self._numbers(behind, home.kind.head_dim)[:] = v[row, head]

    def copy(self) -> DataflowKV:
        """An independent copy."""
        other = DataflowKV(self.layout)
        other.bytes[:] = self.bytes
        return other

    def _numbers(self, at: int, count: int) -> NDArray[np.float16]:
        return self.bytes[at : at + 2 * count].view(np.float16)


class CacheLayout:
    """Where each head's rows are among the bytes that the host keeps.

    Attributes:
        homes: of each layer.
    """

    def __init__(self, signature: DataflowSignature, shape: KVShape, machine: Machine) -> None:
        self.size_bytes = signature["cache_bytes"]
        self._starts, self._layers = signature["cache_starts"], signature["cache_layers"]
        stages = len(self._starts) if all(self._starts) else 0
        if (
            shape.dtype != CACHE_FORMAT
            or len(self._layers) != len(shape.capacity)
            or max(self._layers)[0] >= stages
        ):
            raise other_programs()
        self.homes = [
            KVHome.of(
                KVType(shape.dtype, shape.kv_heads, shape.head_dim, capacity, window or 0),
                len(self._starts[stage]),
                machine,
            )
            for capacity, window, (stage, _) in zip(
                shape.capacity, shape.windows, self._layers, strict=True
            )
        ]
        for home, (stage, offset) in zip(self.homes, self._layers, strict=True):
            if max(self._starts[stage]) + offset + home.layer_bytes > self.size_bytes:
                raise other_programs()

    def places(self, layer: int, positions: Sequence[int]) -> Iterator[tuple[int, int, int, int]]:
        """(row, head, byte of the keys, byte of the values) of some positions."""
        home, (stage, offset) = self.homes[layer], self._layers[layer]
        for row, position in enumerate(positions):
            for head in range(home.kind.kv_heads):
                core, at = home.place(head, position)
                where = self._starts[stage][core] + offset + at
                yield row, head, where, where + home.value_offset


class _Program:
    """One phase's image and the machine it is in."""

    def __init__(self, image: Image, machine: Machine, weights: U8) -> None:
        self.image = image
        self.memory = Memory.of(image)
        self._executor = Executor(image, machine, self.memory)
        self.caches: list[tuple[U8, int]] = []
        for region in image.regions:
            if region.space == "sram":
                whole = self.memory.sram[region.core]
            else:
                whole = self.memory.far[int(region.space == "far1")][region.chip]
            part = whole[region.address_bytes : region.address_bytes + region.size_bytes]
            if region.kind in ("weights", "table"):
                stop = region.source_offset + region.size_bytes
                part[:] = weights[region.source_offset : stop]
            elif region.kind == "kv":
                self.caches.append((part, region.source_offset))

    def run(self, args: NDArray[np.int32], kv: DataflowKV) -> None:
        """One call; the cache is the machine's while it runs."""
        for part, start in self.caches:
            part[:] = kv.bytes[start : start + len(part)]
        self._executor.run(args)
        for part, start in self.caches:
            kv.bytes[start : start + len(part)] = part

    def logits(self, rows: int, vocabulary: int) -> NDArray[np.float32]:
        """`[rows, vocabulary]` of the last call."""
        found = np.empty((rows, vocabulary), np.float32)
        for output in self.image.outputs:
            if output.kind == "logits":
                stop = output.first_column + output.columns
                for row in range(rows):
                    at = output.address_bytes + row * output.row_stride_bytes
                    numbers = self.memory.sram[output.core, at : at + 4 * output.columns]
                    found[row, output.first_column : stop] = numbers.view(np.float32)
        return found

    def best(self, rows: int) -> NDArray[np.int32]:
        """The best token of each row of the last call."""
        output = next(output for output in self.image.outputs if output.kind == "best")
        starts = [output.address_bytes + row * output.row_stride_bytes for row in range(rows)]
        pairs = [self.memory.sram[output.core, at + 4 : at + 8].view(np.int32) for at in starts]
        return np.concatenate([np.zeros(0, np.int32), *pairs])


class DataflowRunnable:
    """Implements `infc.target.runnable.Runnable`, and `SimulatedRunnable` next to it."""

    def __init__(self, programs: LoadedPrograms) -> None:
        signature = programs.signature
        self.vocab_size: int = signature["vocab_size"]
        self.limits = limits_of(signature)
        self.kv_shape = kv_shape_of(signature)
        self._own = read_signature(DataflowSignature, signature)
        self.planned_bytes = self._own["planned_bytes"]
        self._check = programs.check
        self._machine = Machine.of(programs.target)
        self._layout = CacheLayout(self._own, self.kv_shape, self._machine)
        self._weights = np.frombuffer(programs.weights, np.uint8)
        self._images: dict[Phase, Image] = {}
        for phase in Phase:
            name = f"{phase.name.lower()}.dfx"
            self._images[phase] = read_image(bytes(programs.member(name)), name)
            self._check_image(self._images[phase])
        # Filled when they first run: how long they take needs no memories.
        self._programs: dict[Phase, _Program] = {}

    def _check_image(self, image: Image) -> None:
        """Raise UserError (INF4003) unless all that the image takes and gives is there."""
        held = {"weights": len(self._weights), "table": len(self._weights)}
        held["kv"] = self._layout.size_bytes
        for region in image.regions:
            stop = region.source_offset + region.size_bytes
            if region.kind in held and stop > held[region.kind]:
                raise other_programs()
        columns = [o.first_column + o.columns for o in image.outputs if o.kind == "logits"]
        if columns and max(columns) != self.vocab_size:
            raise other_programs()

    def new_kv(self) -> DataflowKV:
        """An empty cache of every layer."""
        return DataflowKV(self._layout)

    def run(
        self,
        phase: Phase,
        call: Call,
        kv: KVCache,
        *,
        threads: int,
        cancel: Cancellation | None = None,
    ) -> NDArray[Any]:
        """Run one program on the simulator; `threads` changes nothing.

        A call of more rows, or of more rows of logits, than the program takes is cut.
        """
        if not isinstance(kv, DataflowKV):
            raise InternalError("the KV cache belongs to another backend")
        parts, places = self._cut(phase, call)
        self._check()
        if phase not in self._programs:
            self._programs[phase] = _Program(self._images[phase], self._machine, self._weights)
        program, found = self._programs[phase], []
        for part in parts:
            if cancel is not None and cancel.is_set():
                raise UserError(Code.CANCELLED, "the call was cancelled")
            program.run(_args(part, program.image), kv)
            found.append(self._output(program, part))
        return np.asarray(np.concatenate(found)[places])

    def _cut(self, phase: Phase, call: Call) -> tuple[list[Call], NDArray[np.intp]]:
        """What the program takes one after the other, and where in their rows the wanted are."""
        if len(call.slots) != 1:
            raise UserError(
                Code.OPTION,
                f"expected one sequence a call, got {len(call.slots)}",
                hint="programs of a dataflow target take one sequence at a time",
            )
        image = self._images[phase]
        rows, places = np.unique(call.logit_rows, return_inverse=True)
        call = replace(call, logit_rows=rows)
        return list(_parts(call, image.max_tokens, image.max_logit_rows)), places

    def _output(self, program: _Program, call: Call) -> NDArray[Any]:
        rows = len(call.logit_rows)
        if call.output is OutputKind.ARGMAX:
            return program.best(rows)
        logits = program.logits(rows, self.vocab_size)
        return top_entries(logits, call.top_k) if call.output is OutputKind.TOP_K else logits

    def trace(self, phase: Phase, call: Call, kv: KVCache, *, threads: int) -> None:
        """`simulate` tells more: kernels overlap."""

    def simulate(self, phase: Phase, call: Call) -> SimulatedCall:
        """See `infc.target.simulated`."""
        return simulate_call(self._images[phase], self._machine, self._arguments(phase, call))

    def timeline(self, phase: Phase, call: Call, *, most_events: int) -> Timeline:
        """See `infc.target.simulated`."""
        args = self._arguments(phase, call)
        return call_timeline(self._images[phase], self._machine, args, most_events=most_events)

    def layout(self, phase: Phase) -> MachineLayout:
        """See `infc.target.simulated`."""
        return layout_of(self._images[phase], self._machine, self._own)

    def local_plans(self, phase: Phase) -> list[LocalPlan]:
        """See `infc.target.simulated`."""
        return local_plans(self._own["sram"][phase.name.lower()])

    def _arguments(self, phase: Phase, call: Call) -> list[NDArray[np.int32]]:
        parts, _ = self._cut(phase, call)
        return [_args(part, self._images[phase]) for part in parts]

    def close(self) -> None:
        """Forget the machine."""
        self._programs.clear()


def top_entries(logits: NDArray[np.float32], count: int) -> NDArray[Any]:
    """The largest logits of each row, the largest first, of equals the lowest index."""
    values = np.where(np.isnan(logits), np.float32(-np.inf), logits)
    order = np.argsort(-values, axis=1, kind="stable")[:, :count]
    found = np.empty(order.shape, TOP_ENTRY)
    found["logit"] = np.take_along_axis(values, order, 1)
    found["id"] = np.where(np.isneginf(found["logit"]), 0, order)
    return found


def _parts(call: Call, max_tokens: int, max_logit_rows: int) -> Iterator[Call]:
    """A call as calls that the program takes; their outputs one after the other are the whole's.

    The rows of logits must ascend.
    """
    start, wanted = 0, list(map(int, call.logit_rows))
    while start < len(call.tokens):
        stop = min(start + max_tokens, len(call.tokens))
        inside = [row for row in wanted if start <= row < stop]
        if len(inside) > max_logit_rows:
            stop = inside[max_logit_rows]
            inside = inside[:max_logit_rows]
        yield replace(
            call,
            tokens=call.tokens[start:stop],
            positions=call.positions[start:stop],
            row_offsets=np.array([0, stop - start], np.int32),
            logit_rows=np.array(inside, np.int32) - np.int32(start),
        )
        start = stop


def _args(call: Call, image: Image) -> NDArray[np.int32]:
    args = np.zeros(_ARGS + image.max_tokens + image.max_logit_rows, np.int32)
    args[:4] = len(call.tokens), len(call.logit_rows), int(call.output), call.positions[0]
    args[4] = call.slots[0]
    args[_ARGS : _ARGS + len(call.tokens)] = call.tokens
    first = _ARGS + image.max_tokens
    args[first : first + len(call.logit_rows)] = call.logit_rows
    return args
