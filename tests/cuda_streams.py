"""Runs streamed products in lockstep: a ring, the warps that work, the warp that fetches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from infc.backends.cuda.codegen.builder import WARP, GpuBuilder, Value
from infc.backends.cuda.codegen.ptx import new_gpu_module
from infc.backends.cuda.kernels.frame import THREADS, WARPS, WORK_OFFSET
from infc.backends.cuda.kernels.packing import layout_for, unpack
from infc.backends.cuda.kernels.product_spec import ProductArguments, ProductSpec, Segment
from infc.backends.cuda.kernels.ring import Ring
from infc.backends.cuda.kernels.stream import emit_stream
from infc.backends.cuda.kernels.stream_shape import StreamShape
from infc.backends.cuda.lockstep import Device, launch
from infc.ir.mlir import ir
from infc.reference.abf16 import from_abf16, to_abf16
from tests.cuda_weights import packed_weights

CTAS = 3


@dataclass
class Operands:
    """What a product is of.

    Attributes:
        x: [rows, k].
        packed, weights: of each segment, as kernels read them.
        biases: of each segment, or None.
    """

    x: NDArray[np.float32]
    packed: list[NDArray[np.uint8]]
    weights: list[NDArray[np.float32]]
    biases: list[NDArray[np.float32] | None]


def stream_spec(k: int, segments: Sequence[tuple[str, int]], **rest: object) -> ProductSpec:
    """A specification; `segments` are storage types and n; `bias=True` gives biases to all."""
    bias = bool(rest.pop("bias", False))
    made = tuple(Segment(n, layout_for(name).name, bias) for name, n in segments)
    return ProductSpec(k, made, **rest)  # type: ignore[arg-type]


def operands(
    k: int, segments: Sequence[tuple[str, int]], rows: int, *, bias: bool = False, seed: int = 0
) -> Operands:
    """Random operands, of a magnitude that makes outputs of about 1."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, k), np.float32)
    made = Operands(x, [], [], [])
    for number, (name, n) in enumerate(segments):
        layout, packed, _ = packed_weights(name, n, k, seed + number)
        made.packed.append(packed)
        made.weights.append(unpack(layout, packed, n, k))
        made.biases.append(rng.standard_normal(n, np.float32) if bias else None)
    return made


def emit_entry(b: GpuBuilder, spec: ProductSpec, slots: int, slot_bytes: int) -> Ring:
    """Define `entry(x, weights..., biases..., outputs..., rows, first)`: the product, twice, as two
    kernels of a program: the ring goes on from the first into the second."""
    offset = -(-(WORK_OFFSET + StreamShape(spec).work_bytes) // 128) * 128
    ring = Ring(slots, slot_bytes, offset)
    panels = emit_stream(b, "product", spec, ring).panels
    weights = len(spec.segments)
    with b.kernel("entry", ProductArguments.types(b, spec, 2), threads=THREADS + WARP) as values:
        *pointers, rows, first = values
        ring.emit_init(b)
        b.sync(THREADS + WARP)

        def twice(name: str, given: Sequence[Value]) -> None:
            numbers = [rows, b.cta(), b.ctas()]
            (count,) = b.call(name, [*given, *numbers, first, b.idx(0)], [b.i32])
            if name == "product":
                b.sync(THREADS, 1)
            b.call(name, [*given, *numbers, b.add(first, panels), count], [b.i32])

        b.when(
            b.cmp("eq", b.warp(), WARPS),
            lambda: twice("product_produce", pointers[1 : 1 + weights]),
            lambda: twice("product", pointers),
        )
    return ring


def run_stream(
    spec: ProductSpec,
    given: Operands,
    arch: str = "sm_90a",
    *,
    ctas: int = CTAS,
    first: int = 0,
    slots: int = 2,
    slot_bytes: int = 16384,
    seed: int | None = None,
) -> list[NDArray[np.float32]]:
    """The outputs [rows, n] of a product."""
    rows = len(given.x)
    device = Device()

    def put(array: NDArray[np.generic]) -> int:
        address = device.allocate(array.nbytes)
        device.write(address, array)
        return address

    with ir.Context(), ir.Location.unknown():
        whole = ir.Module.create()
        module = new_gpu_module(whole, "programs")
        b = GpuBuilder(module, arch)
        b.declare_shared_memory()
        ring = emit_entry(b, spec, slots, slot_bytes)
        outs = [rows * spec.out_row_bytes(output) for output in range(len(spec.outputs))]
        addresses = [device.allocate(size) for size in outs]
        inputs = [to_abf16(given.x), *given.packed, *(v for v in given.biases if v is not None)]
        launch(
            module,
            "entry",
            grid=ctas,
            threads=THREADS + WARP,
            shared_bytes=ring.end,
            arguments=[*map(put, inputs), *addresses, rows, first],
            device=device,
            seed=seed,
        )
    made = []
    for output, (n, address) in enumerate(zip(spec.outputs, addresses, strict=True)):
        if spec.out == "f32":
            made.append(device.read(address, np.float32, (rows, n)))
            continue
        row_bytes = spec.out_row_bytes(output)
        columns = spec.stored_columns(output)
        stored = [
            device.read(address + row * row_bytes, np.uint8, (2 * columns,)) for row in range(rows)
        ]
        values = from_abf16(np.stack(stored), columns)
        assert not values[:, n:].any()
        made.append(values[:, :n])
    return made
