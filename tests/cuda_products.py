"""Products of the CUDA backend in lockstep, against NumPy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from cuda_weights import packed_weights
from numpy.typing import NDArray

from infc.backends.cuda.codegen.builder import GpuBuilder
from infc.backends.cuda.codegen.ptx import new_gpu_module
from infc.backends.cuda.kernels.frame import WORK_OFFSET, Emitted
from infc.backends.cuda.kernels.packing import unpack
from infc.backends.cuda.kernels.product_spec import ProductArguments, ProductSpec, Segment
from infc.backends.cuda.lockstep import Device, launch
from infc.ir.mlir import ir
from infc.reference.abf16 import abf16_padded, abf16_row_bytes, from_abf16, round_bf16, to_abf16

F32 = NDArray[np.float32]
Emit = Callable[[GpuBuilder, str, ProductSpec], Emitted]


@dataclass(frozen=True)
class Case:
    """A product with random weights.

    Attributes:
        storages: of each segment.
        ns: rows of each matrix.
        max_rows: that the kernel is made for, if more than `rows`.
    """

    storages: tuple[str, ...]
    ns: tuple[int, ...]
    k: int
    rows: int
    bias: bool = False
    combine: str | None = None
    softcap: float | None = None
    out: str = "f32"
    max_rows: int = 1


def check_product(case: Case, emit: Emit, *, ctas: int, arch: str, seed: int | None = None) -> None:
    """Run a product that rounds weights to bf16 and compare it with NumPy."""
    rng = np.random.default_rng(case.k + case.rows)
    packed = [
        packed_weights(storage, n, case.k, seed=i)
        for i, (storage, n) in enumerate(zip(case.storages, case.ns, strict=True))
    ]
    segments = tuple(
        Segment(n, layout.name, case.bias)
        for (layout, _, _), n in zip(packed, case.ns, strict=True)
    )
    spec = ProductSpec(
        case.k, segments, case.combine, case.softcap, max(case.rows, case.max_rows), case.out
    )
    x = to_abf16(rng.standard_normal((case.rows, case.k)).astype(np.float32))
    biases = [rng.standard_normal(n).astype(np.float32) for n in case.ns] if case.bias else []

    device = Device()
    pointers = []
    for data in (x, *(raw for _, raw, _ in packed), *biases):
        pointers.append(device.allocate(data.nbytes))
        device.write(pointers[-1], data)
    sizes = [case.rows * spec.out_row_bytes(output) for output in range(len(spec.outputs))]
    outs = [device.allocate(size) for size in sizes]
    with ir.Context(), ir.Location.unknown():
        host = ir.Module.create()
        module = new_gpu_module(host, "programs")
        b = GpuBuilder(module, arch)
        b.declare_shared_memory()
        emitted = emit(b, "product", spec)
        kinds = ProductArguments.types(b, spec, 1)
        with b.kernel("main", kinds, threads=emitted.threads) as arguments:
            b.call("product", [*arguments, b.cta(), b.ctas()])
        launch(
            module,
            "main",
            grid=ctas,
            threads=emitted.threads,
            arguments=[*pointers, *outs, case.rows],
            device=device,
            shared_bytes=WORK_OFFSET + emitted.work_bytes,
            seed=seed,
        )

    weights = [
        unpack(layout, raw, n, case.k) for (layout, raw, _), n in zip(packed, case.ns, strict=True)
    ]
    expected, slack = _expected(case, from_abf16(x, case.k), weights, biases)
    for output, (n, pointer) in enumerate(zip(spec.outputs, outs, strict=True)):
        if case.out == "f32":
            got = device.read(pointer, np.float32, (case.rows, n))
            allowed = slack[output]
        else:
            got = _rows(device, pointer, case.rows, n)
            allowed = slack[output] + 2.0**-8 * np.abs(expected[output])

        assert (np.abs(got - expected[output]) <= allowed).all(), (output, case)


def _rows(device: Device, pointer: int, rows: int, n: int) -> F32:
    """abf16 rows, of which everything up to the zeros' end was written."""
    size, used = abf16_row_bytes(n), 2 * abf16_padded(n)
    raw = np.stack([device.read(pointer + i * size, np.uint8, used) for i in range(rows)])
    assert not raw[:, 2 * n :].any()
    assert not device.written(pointer, rows * size).reshape(rows, size)[:, used:].any()
    return from_abf16(raw, n)


def _expected(
    case: Case, x: F32, weights: list[F32], biases: list[F32]
) -> tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]]:
    """Each output, and by how much it may be off: sums are made in f32, and weights with a minimum
    may be rounded to the neighbour of the nearest bf16."""
    sums, slack = [], []
    for i, w in enumerate(weights):
        rounded = round_bf16(w).astype(np.float64)
        value = x.astype(np.float64) @ rounded.T
        room = np.abs(x) @ np.abs(rounded).T
        slack.append(1e-5 * room + 2.0**-8 * np.abs(x).max(initial=0.0) * np.abs(w).max(axis=1))
        sums.append(value + biases[i] if biases else value)
    if case.combine is not None:
        gate, up = sums
        inner = gate
        if case.combine == "gelu_tanh":
            inner = 2 * np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)
        sigmoid = 0.5 + 0.5 * np.tanh(inner / 2)
        # The slope of both activations is below 1.2.
        slack = [1.2 * slack[0] * np.abs(up) + slack[1] * np.abs(gate) + slack[0] * slack[1]]
        sums = [gate * sigmoid * up]
    if case.softcap is not None:
        sums = [case.softcap * np.tanh(value / case.softcap) for value in sums]
        slack = [room + 1e-6 * case.softcap for room in slack]
    return sums, slack
