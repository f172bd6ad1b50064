"""Kernels to be timed alone: the code of some mappings of one kernel, and operands for it.

    infc_ticks() -> i64                      the counter that times are in
    run_0(call, thread, threads) -> i32      `count` calls of the kernel under the first mapping
    run_1, ...                               under the others
    infc_lead, infc_help                     run one of them on a team of threads

Before each call of the kernel the threads meet; each notes the ticks in front of its part and
behind it. A call's pointers are a row of a table, so that each call can have other weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infc.backends.cpu.codegen.builder import Builder, Value
from infc.backends.cpu.codegen.linking import link_shared
from infc.backends.cpu.codegen.toolchain import code_only, emit_object, lower_to_llvm
from infc.backends.cpu.kernels.attention import (
    AttentionMapping,
    attention_scratch_bytes,
    attention_shared_bytes,
    emit_attention,
)
from infc.backends.cpu.kernels.kv_layout import KVLayout
from infc.backends.cpu.kernels.layouts import HEADER_BYTES, PackedLayout, pack
from infc.backends.cpu.kernels.matmul import MatmulSpec, emit_matmul
from infc.backends.cpu.kernels.sync import BARRIER_NAME, emit_barrier
from infc.backends.cpu.lowering.forms import matmul_mapping_of
from infc.backends.cpu.lowering.team import emit_team
from infc.backends.cpu.mappings import attention_of, matmul_spec
from infc.backends.cpu.provided import provided_objects, sums_provider
from infc.backends.cpu.target import isa_of
from infc.diagnostics import InternalError
from infc.ir.context import context
from infc.ir.mlir import ir
from infc.ir.storage import STORAGE_TYPES, Codes
from infc.ir.types import storage_bytes
from infc.passes.codegen.panels import panels_of
from infc.reference.a8 import quantize_a8
from infc.reference.abf16 import to_abf16
from infc.target.backend import KernelMapping, KernelSummary
from infc.target.schema import Target

MEASURED = frozenset({"matmul", "attention"})
"""Kinds of kernels that have more than one mapping to choose from."""
ROWS, COUNT, TRACE, BARRIER, DEAL, SCRATCH, SCRATCH_BYTES, TABLE = range(8)
"""The fields of a call, eight bytes each."""
FIELDS = 8
_SAMPLE_PANELS = 4
"""A matrix is random panels over and over: what numbers it has takes no time."""


@dataclass(frozen=True)
class Operands:
    """What a kernel is called with.

    Attributes:
        order: of its arguments: `h` the next pointer to what stays hot, `c` the next one to what
            a model comes back to after all its other layers, `m`, `i`, `n` rows, thread and
            threads, `d` where pieces are counted, `s` the thread's scratch.
        rows: of a call.
        hot: bytes of each pointer `h`: the input rows, then `outputs` outputs, then the others.
        cold: bytes of each pointer `c`.
        scratch_bytes: of one thread.
        outputs: how many there are.
    """

    order: str
    rows: int
    hot: tuple[NDArray[np.uint8], ...]
    cold: tuple[NDArray[np.uint8], ...]
    scratch_bytes: int = 0
    outputs: int = 1


def kernel_library(
    kernel: KernelSummary, mappings: Sequence[KernelMapping], target: Target
) -> bytes:
    """A shared object with the kernel under each mapping.

    Raises:
        UserError: there is no linker (INF3005), or a provider of functions fails (INF3007).
    """
    with context():
        module = ir.Module.create()
        isa = isa_of(target)
        b = Builder(module, isa)
        emit_barrier(b)
        names = []
        for number, mapping in enumerate(mappings):
            order = _emit_kernel(b, f"kernel_{number}", kernel, mapping)
            names.append(f"run_{number}")
            _emit_calls(b, names[-1], f"kernel_{number}", order)
        emit_team(b, names)
        with b.function("infc_ticks", [], [b.i64], private=False):
            b.ret(_ticks(b))
        lower_to_llvm(module)
        objects = provided_objects(module, target)
        return link_shared(emit_object(code_only(module), isa), *objects)


def _emit_kernel(b: Builder, name: str, kernel: KernelSummary, mapping: KernelMapping) -> str:
    """Define the kernel; the order of its arguments."""
    if kernel.kind == "matmul":
        product = matmul_spec(kernel)
        emit_matmul(b, name, product, matmul_mapping_of(mapping), sums_provider(mapping))
        return _matmul_order(product)
    spec, chosen = attention_of(kernel, mapping)
    emit_attention(b, name, spec, chosen)
    return _attention_order(chosen)


def _matmul_order(spec: MatmulSpec) -> str:
    return "hmind" + "c" * len(spec.segments) + "h" * len(spec.outputs)


def _attention_order(mapping: AttentionMapping) -> str:
    return "hchhhminds" + ("hh" if mapping.parts > 1 else "")


def _emit_calls(b: Builder, name: str, kernel: str, order: str) -> None:
    pointers = sum(letter in "hc" for letter in order)
    with b.function(name, [b.ptr, b.i32, b.i32], [b.i32], private=False) as arguments:
        call, thread, threads = arguments[0], b.as_i64(arguments[1]), b.as_i64(arguments[2])

        def field(number: int, type_: ir.Type) -> Value:
            return b.load(b.at(call, 8 * number), type_, 8)

        barrier, trace, table = (field(number, b.ptr) for number in (BARRIER, TRACE, TABLE))
        own = b.mul(field(SCRATCH_BYTES, b.i64), thread)
        numbers = {
            "m": field(ROWS, b.i64),
            "i": thread,
            "n": threads,
            "d": field(DEAL, b.ptr),
            "s": b.at(field(SCRATCH, b.ptr), own),
        }

        def once(index: Value) -> None:
            row = b.at(table, b.mul(index, 8 * pointers))
            places = iter(range(pointers))
            operands = [
                b.load(b.at(row, 8 * next(places)), b.ptr, 8) if letter in "hc" else numbers[letter]
                for letter in order
            ]
            place = b.at(trace, b.mul(b.add(b.mul(index, threads), thread), 16))
            b.call(BARRIER_NAME, [barrier, thread, threads])
            b.store(_ticks(b), place, 8)
            b.call(kernel, operands)
            b.store(_ticks(b), b.at(place, 8), 8)

        b.loop(0, field(COUNT, b.i64), body=once)
        b.ret(b.const(0, b.i32))


def _ticks(b: Builder) -> Value:
    return b.intrinsic("llvm.readcyclecounter", b.i64)


# ---- operands ------------------------------------------------------------------------------------


def kernel_operands(kernel: KernelSummary, mapping: KernelMapping) -> Operands:
    """Random operands in the form of the kernel's, the same ones every time."""
    rng = np.random.default_rng(0)
    if kernel.kind == "matmul":
        return _matmul_operands(kernel, rng)
    if kernel.kind == "attention":
        return _attention_operands(kernel, mapping, rng)
    raise InternalError(f"kernels of kind {kernel.kind!r} are not measured alone")


def _matmul_operands(kernel: KernelSummary, rng: np.random.Generator) -> Operands:
    spec, rows = matmul_spec(kernel), kernel.typical_rows
    x = rng.standard_normal((rows, spec.k), dtype=np.float32)
    forms = {"a8": quantize_a8, "abf16": to_abf16}
    given = forms[spec.activation](x) if spec.activation in forms else x
    outs = (np.zeros(storage_bytes(spec.out, (rows, n)), np.uint8) for n in spec.outputs)
    cold = tuple(
        _packed(segment.layout, storage, n, k, rng)
        for segment, (n, k, storage) in zip(spec.segments, kernel.matrices, strict=True)
    )
    hot = (_bytes(given), *outs)
    return Operands(_matmul_order(spec), rows, hot, cold, outputs=len(hot) - 1)


def _packed(
    layout: PackedLayout, storage_name: str, n: int, k: int, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """A packed matrix of a few random panels."""
    storage, sample = STORAGE_TYPES[storage_name], min(panels_of(n), _SAMPLE_PANELS)
    shape = (sample * 16, k)
    source: Codes | NDArray[np.float32]
    if storage.is_float:
        source = rng.standard_normal(shape, dtype=np.float32)
    else:
        codes = rng.integers(0, 1 << storage.bits, shape, dtype=np.uint8)
        scales = rng.uniform(0.005, 0.01, (shape[0], -(-k // storage.group))).astype(np.float32)
        minima = -scales if storage.has_min else None
        source = Codes(codes, storage.zero_point, scales, minima, storage.group, storage.codebook)
    packed = np.zeros(HEADER_BYTES + sample * layout.panel_bytes(k), np.uint8)
    pack(layout, [source], shape[0], k, packed)
    times = -(-panels_of(n) // sample)
    panels = np.tile(packed[HEADER_BYTES:], times)[: panels_of(n) * layout.panel_bytes(k)]
    return np.concatenate([packed[:HEADER_BYTES], panels])


def _attention_operands(
    kernel: KernelSummary, mapping: KernelMapping, rng: np.random.Generator
) -> Operands:
    """In prefill the first rows of a sequence; else one row of each sequence, at the end."""
    spec, chosen = attention_of(kernel, mapping)
    kv, rows, context = spec.kv, kernel.typical_rows, kernel.shapes["context"]
    first = kernel.phase == "prefill"
    slots, held = (1, rows) if first else (rows, context)
    layout = KVLayout(kv.kv_heads, kv.head_dim, (kv.capacity,), slots, kv.dtype)
    cache = np.zeros(layout.total_bytes, np.uint8)
    stored = range(max(0, held - kv.capacity), held)
    for slot in range(slots):
        keys, values = rng.standard_normal(
            (2, len(stored), kv.kv_heads, kv.head_dim), dtype=np.float32
        )
        layout.import_positions(cache, 0, slot, stored, keys, values)
    width = spec.heads * kv.head_dim
    q = rng.standard_normal((rows, width), dtype=np.float32)
    numbers = np.arange(rows, dtype=np.int32)
    positions = numbers if first else np.full(rows, held - 1, np.int32)
    owners = np.zeros(rows, np.int32) if first else numbers
    out = np.zeros(storage_bytes(spec.out, (rows, width)), np.uint8)
    hot = [_bytes(q), out, _bytes(positions), _bytes(owners)]
    if chosen.parts > 1:
        hot.append(np.zeros(attention_shared_bytes(spec, chosen), np.uint8))
        hot.append(np.zeros(4 * spec.max_rows * kv.kv_heads, np.uint8))
    scratch = -(-attention_scratch_bytes(spec, chosen) // 64) * 64
    return Operands(_attention_order(chosen), rows, tuple(hot), (cache,), scratch)


def _bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def laid_out(sizes: Sequence[int]) -> list[int]:
    """Offsets of parts one after the other, each at a line's start; the last one is the end."""
    offsets = [0]
    for size in sizes:
        offsets.append(offsets[-1] + -(-size // 64) * 64)
    return offsets
