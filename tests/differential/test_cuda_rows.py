"""CUDA's kernels on rows, rotary append and elementary functions, in lockstep, against NumPy."""

from collections.abc import Callable

import numpy as np
import pytest
from cuda_functions import DeviceFunction, put
from cuda_weights import packed_weights
from numpy.typing import NDArray

from infc.backends.cuda.codegen.builder import GpuBuilder, Value
from infc.backends.cuda.kernels import vmath
from infc.backends.cuda.kernels.frame import Emitted
from infc.backends.cuda.kernels.kv_layout import KVLayout
from infc.backends.cuda.kernels.rotary import RotarySpec, emit_rotary
from infc.backends.cuda.kernels.rows import (
    Activation,
    Embed,
    Load,
    Norm,
    Pairwise,
    RowsSpec,
    Softcap,
    Step,
    Store,
    emit_rows,
)
from infc.backends.cuda.lockstep import Device
from infc.backends.cuda.lowering.forms import Form
from infc.backends.cuda.lowering.row_forms import rows_form
from infc.ir.context import context, parse
from infc.ir.kv_storage import LIMITS, load_kv, store_kv
from infc.ir.types import BufferType
from infc.passes.codegen.kernel_body import KernelBody
from infc.reference import ops
from infc.reference.abf16 import abf16_padded, abf16_row_bytes, from_abf16, to_abf16
from infc.reference.buffer import Buffer
from infc.reference.interpreter import Interpreter

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]

# ---- elementary functions ----------------------------------------------------------------------

FUNCTIONS: dict[str, tuple[Callable[[GpuBuilder, Value], Value], Callable[[F32], F32]]] = {
    "exp": (vmath.emit_exp, np.exp),
    "tanh": (vmath.emit_tanh, np.tanh),
    "silu": (vmath.emit_silu, lambda x: x / (1 + np.exp(-x))),
    "gelu_tanh": (
        vmath.emit_gelu_tanh,
        lambda x: x / (1 + np.exp(-2 * np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    ),
    "softcap": (lambda b, x: vmath.emit_softcap(b, x, 30.0), lambda x: 30 * np.tanh(x / 30)),
}


def of_each(function: Callable[[GpuBuilder, Value], Value], x: F32) -> F32:
    """A function of 256 numbers, one a thread."""

    def emit(b: GpuBuilder) -> Emitted:
        with b.function("each", [b.ptr, b.ptr, b.i32, b.i32, b.i32]) as (source, target, *_):
            offset = b.mul(b.thread(), 4)
            y = function(b, b.load(b.at(source, offset), b.f32, 4))
            b.store(y, b.at(target, offset), 4)
            b.ret()
        return Emitted("each")

    device = Device()
    out = device.allocate(x.nbytes)
    DeviceFunction(emit, 2).run(device, [put(device, x), out, 1], grid=1)
    return device.read(out, np.float32, x.shape)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_elementary_functions_are_within_a_few_ulp(name: str) -> None:
    function, meaning = FUNCTIONS[name]
    x = np.concatenate([np.linspace(-30, 30, 200), np.geomspace(1e-6, 80, 28)])
    x = np.concatenate([x, -np.geomspace(1e-6, 80, 28)]).astype(np.float32)
    with np.errstate(over="ignore"):
        want = meaning(x.astype(np.float64))
    got = of_each(function, x)
    # What goes into the exponential of GELU is rounded: far out that is as many ulp.
    np.testing.assert_allclose(got, want, rtol=6e-7 if name != "gelu_tanh" else 6e-6, atol=1e-37)


def test_elementary_functions_are_exact_in_their_limits() -> None:
    ends = np.array([np.inf, -np.inf, np.nan, 3e38, -3e38, 0.0, -0.0, 1e-40], np.float32)
    x = np.resize(ends, 256).astype(np.float32)
    got = {name: of_each(function, x)[:8] for name, (function, _) in FUNCTIONS.items()}
    np.testing.assert_array_equal(got["exp"][:5], [np.inf, 0, np.nan, np.inf, 0])
    np.testing.assert_array_equal(got["tanh"][:5], [1, -1, np.nan, 1, -1])
    np.testing.assert_array_equal(got["softcap"][:5], [30, -30, np.nan, 30, -30])
    for name in ("silu", "gelu_tanh"):
        np.testing.assert_array_equal(got[name][[0, 2, 3]], [np.inf, np.nan, np.float32(3e38)])
        np.testing.assert_array_equal(got[name][4:7], 0)


# ---- rows --------------------------------------------------------------------------------------


def run_rows(
    spec: RowsSpec, arrays: list[F32 | I32], rows: int, *, grid: int = 2, seed: int | None = None
) -> list[NDArray[np.generic]]:
    """What a kernel stores; the first arguments are `arrays`, the others what it stores."""
    device = Device()
    function = DeviceFunction(lambda b: emit_rows(b, "rows", spec), spec.arguments)
    inputs = [put(device, array) for array in arrays]
    sizes = [abf16_row_bytes(spec.d) if s.rounded else 4 * spec.d for s in spec.stores]
    outputs = [device.allocate(rows * size) for size in sizes]
    for address, size in zip(outputs, sizes, strict=True):
        device.fill(address, rows * size, 0xEE)
    function.run(device, [*inputs, *outputs, rows], grid=grid, seed=seed)
    return [
        device.read(address, np.uint8, (rows, size))
        if store.rounded
        else device.read(address, np.float32, (rows, spec.d))
        for address, size, store in zip(outputs, sizes, spec.stores, strict=True)
    ]


def assert_rounded(rows: NDArray[np.generic], numbers: NDArray[np.generic], d: int) -> None:
    """Rows are the bits that NumPy makes of the same numbers, and nothing behind is written."""
    size = 2 * abf16_padded(d)
    np.testing.assert_array_equal(rows[:, :size], to_abf16(numbers.astype(np.float32))[:, :size])
    assert (rows[:, size:] == 0xEE).all()


def close(got: NDArray[np.generic], want: F32) -> None:
    np.testing.assert_allclose(got, want, rtol=3e-6, atol=3e-6)


# Shared by a block, taken by warps, in chunks of 4, 2 and 1, with zeros behind, in several rounds.
@pytest.mark.parametrize(
    ("d", "rows", "replicated"),
    [
        (640, 1, True),
        (4096, 1, True),
        (33, 1, True),
        (96, 11, False),
        (1024, 3, True),
        (1026, 3, True),
        (2304, 6, True),
        (2304, 2, False),
    ],
)
def test_the_norms_between_two_layers(d: int, rows: int, replicated: bool) -> None:
    """`y = x + norm(a)`, kept; `norm(y)` for the next product."""
    spec = RowsSpec(
        d,
        (Load(0), Load(1), Norm(1, 2, 1e-6, 1.0), Pairwise("add", 0, 2), Norm(3, 3, 1e-5, 0.0)),
        (Store(3, 4), Store(4, 5), Store(4, 6, rounded=True)),
        arguments=7,
        max_rows=rows,
        replicated=replicated,
    )
    rng = np.random.default_rng(d)
    x, a = rng.standard_normal((2, rows, d), np.float32)
    gains = list(rng.standard_normal((2, d), np.float32))
    grid, seed = (1 if replicated else 2), (1 if d == 96 else None)
    y, normed, rounded = run_rows(spec, [x, a, *gains], rows, grid=grid, seed=seed)
    want = x + ops.rms_norm(a, gains[0], 1e-6, 1.0, None)
    close(y, want)
    close(normed, ops.rms_norm(want, gains[1], 1e-5, 0.0, None))
    assert_rounded(rounded, normed, d)


def test_neither_blocks_nor_other_rows_change_a_bit() -> None:
    rng = np.random.default_rng(0)
    for d, rows, replicated in ((100, 20, False), (1200, 3, False), (2500, 7, True)):
        steps = (Load(0), Norm(0, 1, 1e-6, 0.0))
        spec = RowsSpec(d, steps, (Store(1, 2),), 3, max_rows=rows, replicated=replicated)
        arrays = [rng.standard_normal((rows, d), np.float32), np.ones(d, np.float32)]
        (one,) = run_rows(spec, arrays, rows, grid=1)
        (many,) = run_rows(spec, arrays, rows, grid=7, seed=3)
        (fewer,) = run_rows(spec, [arrays[0][1:], arrays[1]], rows - 1, grid=2)
        np.testing.assert_array_equal(one, many)
        np.testing.assert_array_equal(one[1:], fewer)


@pytest.mark.parametrize("d", [48, 1100, 7])
@pytest.mark.parametrize("rows", [1, 3])
def test_columns_without_norms_are_dealt_in_pieces(d: int, rows: int) -> None:
    """`softcap(silu(x) * y) + gelu(z)`, of rows that another argument chooses."""
    steps: tuple[Step, ...] = (
        *(Load(0), Load(1), Load(2, chosen=3)),
        Activation("silu", 0),
        Pairwise("mul", 3, 1),
        Softcap(4, 1.5),
        Activation("gelu_tanh", 2),
        Pairwise("add", 5, 6),
    )
    spec = RowsSpec(d, steps, (Store(7, 4), Store(7, 5, rounded=True)), 6, max_rows=rows)
    rng = np.random.default_rng(1)
    x, y, z = 2 * rng.standard_normal((3, rows, d), np.float32)
    chosen = rng.permutation(rows).astype(np.int32)
    out, rounded = run_rows(spec, [x, y, z, chosen], rows)
    want = ops.softcap(ops.activation(x, "silu") * y, 1.5) + ops.activation(z[chosen], "gelu_tanh")
    close(out, want)
    assert_rounded(rounded, out, d)


KERNEL = """
!b = !infc.buffer<tensor<?x64xf32, ["t", 64]>, "rows", "arena">
!q = !infc.buffer<tensor<?x64x!infc.storage<"abf16">, ["t", 64]>, "rows", "arena">
!i = !infc.buffer<tensor<?xi32, ["t"]>, "rows", "call">
!g = !infc.buffer<tensor<64xf32>, "rows", "weights">
!x = tensor<?x64xf32, ["t", 64]>
!a = tensor<?x64x!infc.storage<"abf16">, ["t", 64]>
!w = tensor<64xf32>
!n = tensor<?xi32, ["t"]>
func.func private @kernel(%x: !b, %y: !b, %chosen: !i, %gain: !g, %kept: !b, %sum: !b, %out: !q)
    attributes {infc.kernel = "rows", infc.mapping = {partition = "rows"}} {
  %0 = "infc.read"(%x) : (!b) -> !x
  %1 = "infc.read"(%y) : (!b) -> !x
  %2 = "infc.read"(%chosen) : (!i) -> !n
  %3 = "infc.read"(%gain) : (!g) -> !w
  %4 = "infc.activation"(%0) {kind = "silu"} : (!x) -> !x
  %5 = "infc.mul"(%4, %1) : (!x, !x) -> !x
  "infc.write"(%5, %kept) : (!x, !b) -> ()
  %6 = "infc.select_rows"(%1, %2) : (!x, !n) -> !x
  %7 = "infc.add"(%6, %5) : (!x, !x) -> !x
  "infc.write"(%7, %sum) : (!x, !b) -> ()
  %8 = "infc.rms_norm"(%7, %3) {eps = 1.0e-06 : f32, offset = 1.0 : f32} : (!x, !w) -> !x
  %9 = "infc.softcap"(%8) {cap = 2.0 : f32} : (!x) -> !x
  %10 = "infc.quantize"(%9) : (!x) -> !a
  "infc.write"(%10, %out) : (!a, !q) -> ()
  return
}
"""


def test_operations_are_read_as_the_reference_means_them() -> None:
    rng = np.random.default_rng(9)
    x, y = rng.standard_normal((2, 3, 64), np.float32)
    chosen, gain = np.array([2, 0, 2], np.int32), rng.standard_normal(64, np.float32)
    with context():
        module = parse(KERNEL)
        (kernel,) = module.body.operations
        kinds = [BufferType.of(a.type) for a in kernel.regions[0].blocks[0].arguments]
        contents = [x, y, chosen, gain, None, None, None]
        buffers = [Buffer(k, content=c) for k, c in zip(kinds, contents, strict=True)]
        Interpreter(module, lambda name: np.empty(0, np.uint8)).run("kernel", buffers)
        body = KernelBody(kernel)
        forms: list[Form] = []

        def emit(b: GpuBuilder) -> Emitted:
            forms.append(rows_form(b, "rows", body, 3))
            return forms[0].emitted

        function = DeviceFunction(emit, 7)
    assert forms[0].arguments == (0, 1, 2, 3, 4, 5, 6, "rows", "cta", "ctas")
    assert forms[0].symbol == "t"
    device = Device()
    outs = [device.allocate(size) for size in (x.nbytes, x.nbytes, 3 * abf16_row_bytes(64))]
    device.fill(outs[2], 3 * abf16_row_bytes(64), 0)
    inputs = [put(device, array) for array in (x, y, chosen, gain)]
    function.run(device, [*inputs, *outs, 3], grid=2)
    for address, buffer in zip(outs[:2], buffers[4:], strict=False):
        close(device.read(address, np.float32, x.shape), np.asarray(buffer.content))
    rounded = device.read(outs[2], np.uint8, (3, abf16_row_bytes(64)))
    want = from_abf16(np.asarray(buffers[6].content), 64)
    np.testing.assert_allclose(from_abf16(rounded, 64), want, rtol=2**-7)


# ---- embedding ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("storage", "d", "rows", "norm"),
    [
        ("q4_0", 96, 3, True),
        ("q6_k", 256, 1, True),
        ("q8_0", 544, 2, False),
        ("f16", 70, 2, True),
        ("bf16", 33, 2, False),
        ("f32", 1100, 1, True),
    ],
)
def test_an_embedding_is_the_table_times_its_scale(
    storage: str, d: int, rows: int, norm: bool
) -> None:
    layout, table, numbers = packed_weights(storage, 50, d)
    steps: tuple[Step, ...] = (Embed(0, 1, layout.name, 3.5),)
    if norm:
        steps += (Norm(0, 2, 1e-6, 0.0),)
    last = len(steps) - 1
    spec = RowsSpec(
        d, steps, (Store(0, 3), Store(last, 4), Store(last, 5, rounded=True)), 6, max_rows=rows
    )
    rng = np.random.default_rng(2)
    tokens = rng.integers(0, 50, rows).astype(np.int32)
    gain = rng.standard_normal(d, np.float32)
    x, y, rounded = run_rows(spec, [table.view(np.uint8), tokens, gain], rows)
    # Codes with their scales are rounded once more where they are packed.
    np.testing.assert_allclose(x, ops.embed(tokens, numbers, 3.5), rtol=2e-3, atol=2e-3)
    want = np.asarray(x, np.float32)
    close(y, ops.rms_norm(want, gain, 1e-6, 0.0, None) if norm else want)
    assert_rounded(rounded, y, d)


# ---- rotary ------------------------------------------------------------------------------------

SLOTS = 3


@pytest.mark.parametrize(
    ("head_dim", "pairs", "interleaved", "norm", "dtype"),
    [
        (16, 8, False, True, "f16"),
        (16, 4, True, False, "bf16"),
        (128, 64, False, True, "bf16"),
        (128, 64, True, True, "f16"),
        (256, 128, False, False, "f16"),
        (96, 24, False, True, "f16"),
        (32, 0, False, False, "bf16"),
    ],
)
def test_heads_are_normed_turned_and_appended(
    head_dim: int, pairs: int, interleaved: bool, norm: bool, dtype: str
) -> None:
    layout = KVLayout(2, head_dim, (70,), SLOTS, dtype)
    rows, heads = 3, 4
    spec = RotarySpec(heads, layout.layer(0), pairs, interleaved, norm, 1e-6, 1.0)
    rng = np.random.default_rng(head_dim)
    q = 2 * rng.standard_normal((rows, heads * head_dim), np.float32)
    k, v = 2 * rng.standard_normal((2, rows, 2 * head_dim), np.float32)
    gains = list(rng.standard_normal((2, head_dim), np.float32))
    table = ops.rope_table(list(0.7 ** np.arange(pairs)), 1.0, 200)
    # Two sequences; one comes round the end of its ring of 128.
    positions, slots = np.array([127, 128, 5], np.int32), np.array([2, 2, 0], np.int32)
    device = Device()
    cache = device.allocate(layout.total_bytes)
    device.fill(cache, layout.total_bytes, 0)
    out = device.allocate(q.nbytes)
    function = DeviceFunction(lambda b: emit_rotary(b, "rotary", spec), 8 + 2 * norm)
    turned = [put(device, x) for x in (q, k, v)]
    weights = [put(device, gain) for gain in gains] if norm else []
    rest = [put(device, table) if pairs else turned[0], cache]
    rest += [put(device, positions), put(device, slots), rows]
    function.run(device, [*turned, out, *weights, *rest], grid=2, seed=4)

    def want(x: F32, gain: F32) -> F32:
        x = ops.rms_norm(x, gain, 1e-6, 1.0, head_dim) if norm else x
        return ops.rope(x, positions, table, head_dim, interleaved) if pairs else x

    close(device.read(out, np.float32, q.shape), want(q, gains[0]))
    keys, values = want(k, gains[1]), v
    stored = load_kv(store_kv(*(x.reshape(rows, 2, head_dim) for x in (keys, values)), dtype))
    memory = device.read(cache, np.uint8, (layout.total_bytes,))

    def held(slot: int, start: int, stop: int) -> tuple[F32, F32]:
        block = layout.export_block(lambda at, size: memory[at : at + size], slot, start, stop)
        return block.keys[0], block.values[0]

    tolerance = 2e-3 if dtype == "f16" else 1e-2
    for rows_of, place in ((slice(0, 2), (2, 127, 129)), (slice(2, 3), (0, 5, 6))):
        got_k, got_v = held(*place)
        np.testing.assert_allclose(got_k, stored[0][rows_of], rtol=tolerance, atol=1e-5)
        np.testing.assert_array_equal(got_v, stored[1][rows_of])
    written = 3 * 2 * 2 * head_dim
    assert np.count_nonzero(memory.view(np.uint16)) == written, "something else was written"


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_what_is_not_finite_stays_with_its_position(dtype: str) -> None:
    layout = KVLayout(3, 16, (64,), 1, dtype)
    spec = RotarySpec(1, layout.layer(0), 8, False)
    q, k, v = np.ones((1, 16), np.float32), *np.ones((2, 2, 3, 16), np.float32)
    k[1, 0, 3], v[1, 1, 9], v[0, 2, 0] = np.nan, -np.inf, -3.4e38
    table = ops.rope_table([0.0] * 8, 1.0, 64)
    device = Device()
    cache, out = device.allocate(layout.total_bytes), device.allocate(128)
    device.fill(cache, layout.total_bytes, 0)
    numbers = np.array([[0, 1], [0, 0]], np.int32)
    arguments = [put(device, x) for x in (np.repeat(q, 2, 0), k, v)]
    arguments += [out, put(device, table), cache, *(put(device, x) for x in numbers), 2]
    DeviceFunction(lambda b: emit_rotary(b, "rotary", spec), 8).run(device, arguments, grid=1)
    memory = device.read(cache, np.uint8, (layout.total_bytes,))
    block = layout.export_block(lambda at, size: memory[at : at + size], 0, 0, 2)
    assert np.isnan(block.keys[0][1, :2]).all()
    assert (np.delete(block.keys[0].reshape(6, 16), (3, 4), 0) == 1).all()
    assert np.isfinite(block.values[0]).all()
    assert block.values[0][0, 2, 0] == -np.float32(LIMITS[dtype])
