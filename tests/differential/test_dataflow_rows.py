"""Kernels on rows of the dataflow backend, executed by the simulator, against the reference."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from infc.backends.dataflow.backend import BACKEND
from infc.backends.dataflow.codegen.builder import Area
from infc.backends.dataflow.codegen.values import Argument, Codes, Halves, Rows
from infc.backends.dataflow.machine import Machine
from infc.ir.context import context
from infc.reference import ops
from infc.reference.a8 import a8_offsets, quantize_a8
from infc.reference.abf16 import round_bf16
from tests.dataflow_kernels import KernelRun, arguments, functions

MACHINE = replace(Machine.of(BACKEND.resolve("dataflow:test")), sram_bytes=1 << 20)
# Rows are longer than a vector: 1056 = 1024 + 32.
WIDTH = 1056
AREAS = {1: Area(0, 1, 0, 0, 1, 1), 4: Area(0, 1, 0, 0, 2, 2)}
F32 = NDArray[np.float32]
T = f'tensor<?x{WIDTH}xf32, ["t", {WIDTH}]>'
R = f'tensor<?x{WIDTH}xf32, ["r", {WIDTH}]>'
GAIN, IDS = f"tensor<{WIDTH}xf32>", 'tensor<?xi32, ["r"]>'

TEXT = f"""
func.func private @residual(%x: {T}, %g: {GAIN}, %y: {T}) -> ({T}, {T})
    attributes {{infc.kernel = "rows"}} {{
  %n = "infc.rms_norm"(%x, %g) {{eps = 1.0e-06 : f32, offset = 1.0 : f32}} : ({T}, {GAIN}) -> {T}
  %s = "infc.add"(%y, %n) : ({T}, {T}) -> {T}
  %a = "infc.activation"(%s) {{kind = "gelu_tanh"}} : ({T}) -> {T}
  %m = "infc.mul"(%a, %y) : ({T}, {T}) -> {T}
  %c = "infc.softcap"(%m) {{cap = 3.0 : f32}} : ({T}) -> {T}
  return %s, %c : {T}, {T}
}}
func.func private @a8(%x: {T}) -> tensor<?x{WIDTH}x!infc.storage<"a8">, ["t", {WIDTH}]>
    attributes {{infc.kernel = "rows"}} {{
  %q = "infc.quantize"(%x) : ({T}) -> tensor<?x{WIDTH}x!infc.storage<"a8">, ["t", {WIDTH}]>
  return %q : tensor<?x{WIDTH}x!infc.storage<"a8">, ["t", {WIDTH}]>
}}
func.func private @abf16(%x: {T}) -> tensor<?x{WIDTH}x!infc.storage<"abf16">, ["t", {WIDTH}]>
    attributes {{infc.kernel = "rows"}} {{
  %q = "infc.quantize"(%x) : ({T}) -> tensor<?x{WIDTH}x!infc.storage<"abf16">, ["t", {WIDTH}]>
  return %q : tensor<?x{WIDTH}x!infc.storage<"abf16">, ["t", {WIDTH}]>
}}
func.func private @select(%x: {T}, %rows: {IDS}) -> {R} attributes {{infc.kernel = "rows"}} {{
  %s = "infc.select_rows"(%x, %rows) : ({T}, {IDS}) -> {R}
  return %s : {R}
}}
"""

# Cores, rows of the call, most rows, whether cores share them.
SPREADS = {
    "one core": (1, 3, 3, False),
    "all rows on every core": (4, 3, 3, False),
    "shared": (4, 7, 8, True),
    "fewer rows than cores": (4, 2, 8, True),
}


def numbers(rows: int, seed: int) -> F32:
    """Rows of random numbers."""
    return np.random.default_rng(seed).standard_normal((rows, WIDTH), np.float32)


@pytest.mark.parametrize("name", SPREADS)
def test_norms_residuals_and_functions(name: str) -> None:
    cores, rows, most, shared = SPREADS[name]
    x, y, gain = numbers(rows, 1), numbers(rows, 2), numbers(1, 3)[0]
    with context():
        found = functions(TEXT)
        run = KernelRun(MACHINE, AREAS[cores], most, rows, shared)
        weights = run.vectors({"gain": gain})
        operands = [run.columns("x", x), weights["gain"], run.by_rows("y", y)]
        total, capped = run.kernel(found["residual"], operands, "0.")
        assert isinstance(total, Rows)
        assert isinstance(capped, Rows)
        run.keep(total.buffer, capped.buffer)
        memory = run.run(arguments(rows, 0, most=most))
    wanted = y + ops.rms_norm(x, gain, 1e-6, 1.0, None)
    np.testing.assert_allclose(run.read(memory, total, rows), wanted, rtol=1e-5, atol=1e-5)
    wanted = ops.softcap(ops.activation(wanted, "gelu_tanh") * y, 3.0)
    np.testing.assert_allclose(run.read(memory, capped, rows), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SPREADS)
def test_quantised_rows_are_the_references_on_every_core(name: str) -> None:
    cores, rows, most, shared = SPREADS[name]
    x = numbers(rows, 4)
    with context():
        found = functions(TEXT)
        run = KernelRun(MACHINE, AREAS[cores], most, rows, shared)
        given = run.by_rows("x", x)
        (codes,) = run.kernel(found["a8"], [given], "0.")
        (halves,) = run.kernel(found["abf16"], [given], "1.")
        assert isinstance(codes, Codes)
        assert isinstance(halves, Halves)
        run.keep(codes.codes, codes.scales, halves.buffer)
        memory = run.run(arguments(rows, 0, most=most))
    wanted, offsets = quantize_a8(x), a8_offsets(WIDTH)
    for core in range(cores):
        made = run.array(memory, core, codes.codes, (rows, WIDTH), "u1")
        np.testing.assert_array_equal(made, wanted[:, :WIDTH])
        scales = run.array(memory, core, codes.scales, (rows, WIDTH // 8), "u1")
        np.testing.assert_array_equal(scales, wanted[:, offsets.scales : offsets.sums])
        bits = run.array(memory, core, halves.buffer, (rows, WIDTH), "<u2")
        rounded = (bits.astype(np.uint32) << 16).view(np.float32)
        np.testing.assert_array_equal(rounded, round_bf16(x))


@pytest.mark.parametrize("name", SPREADS)
def test_wanted_rows_reach_every_core(name: str) -> None:
    cores, rows, most, shared = SPREADS[name]
    x, wanted = numbers(rows, 5), [rows - 1, 0]
    with context():
        found = functions(TEXT)
        run = KernelRun(MACHINE, AREAS[cores], most, rows, shared, logit_rows=2)
        operands = [run.by_rows("x", x), Argument("rows")]
        (selected,) = run.kernel(found["select"], operands, "0.")
        assert isinstance(selected, Rows)
        run.keep(selected.buffer)
        args = arguments(rows, 0, most=most, logit_rows=2)
        args[8 + most :] = wanted
        memory = run.run(args)
    for core in range(cores):
        made = run.array(memory, core, selected.buffer, (2, WIDTH))
        np.testing.assert_array_equal(made, x[wanted])
