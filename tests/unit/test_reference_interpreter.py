"""The interpreter against NumPy written out: each op, calls, buffers, and how it fails."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from infc.diagnostics import InternalError
from infc.ir.context import context, parse
from infc.ir.types import BufferType, KVType, TensorType
from infc.reference.a8 import dequantize_a8, quantize_a8
from infc.reference.buffer import Buffer
from infc.reference.interpreter import Interpreter
from infc.reference.kv import LayerCache, ReferenceKV

F32 = NDArray[np.float32]
RANDOM = np.random.default_rng(3)
X = RANDOM.standard_normal((3, 64)).astype(np.float32)
Y = RANDOM.standard_normal((3, 64)).astype(np.float32)
WEIGHTS = {
    "w": RANDOM.standard_normal((32, 64)).astype(np.float32),
    "gain": RANDOM.standard_normal(64).astype(np.float32),
    "head_gain": RANDOM.standard_normal(16).astype(np.float32),
    "bias": RANDOM.standard_normal(32).astype(np.float32),
}
IDS = np.array([4, 5, 6], np.int32)


def raw(name: str) -> NDArray[np.uint8]:
    return WEIGHTS[name].reshape(-1).view(np.uint8)


def run(body: str, result: str = "!x") -> F32:
    """Run the operations that make `%0` of `%x`, `%y` (f32 [t, 64]) and `%i` (i32 [t])."""
    text = f"""
      !x = tensor<?x64xf32, ["t", 64]>
      !i = tensor<?xi32, ["t"]>
      module {{
        "infc.dim"() {{sym_name = "t", min = 1 : i64, max = 8 : i64}} : () -> ()
        func.func @f(%x: !x, %y: !x, %i: !i) -> {result} {{
          %w = "infc.weight"() {{source = "w"}} : () -> tensor<32x64xf32>
          %gain = "infc.weight"() {{source = "gain"}} : () -> tensor<64xf32>
          %head_gain = "infc.weight"() {{source = "head_gain"}} : () -> tensor<16xf32>
          %bias = "infc.weight"() {{source = "bias"}} : () -> tensor<32xf32>
          {body}
          return %0 : {result}
        }}
      }}"""
    with context():
        module = parse(text)
        (made,) = Interpreter(module, raw).run("f", [X, Y, IDS])
    return np.asarray(made)


def softmax(scores: F32) -> F32:
    weights = np.exp(scores - scores.max())
    return np.asarray(weights / weights.sum(), np.float32)


def close(made: F32, expected: F32) -> None:
    np.testing.assert_allclose(made, expected, rtol=2e-5, atol=2e-6)


NARROW = 'tensor<?x32xf32, ["t", 32]>'


def test_sums_products_and_caps() -> None:
    close(run('%0 = "infc.add"(%x, %y) : (!x, !x) -> !x'), X + Y)
    close(run('%0 = "infc.mul"(%x, %y) : (!x, !x) -> !x'), X * Y)
    close(run('%0 = "infc.softcap"(%x) {cap = 1.5 : f32} : (!x) -> !x'), 1.5 * np.tanh(X / 1.5))


def test_activations() -> None:
    silu = run('%0 = "infc.activation"(%x) {kind = "silu"} : (!x) -> !x')
    close(silu, X / (1 + np.exp(-X)))
    gelu = run('%0 = "infc.activation"(%x) {kind = "gelu_tanh"} : (!x) -> !x')
    exact = np.vectorize(lambda v: 0.5 * v * (1 + math.erf(v / math.sqrt(2))))(X)
    np.testing.assert_allclose(gelu, exact, atol=2e-3)


def test_embed_looks_up_and_scales() -> None:
    body = '%0 = "infc.embed"(%i, %w) {scale = 2.0 : f32} : (!i, tensor<32x64xf32>) -> !x'
    close(run(body), 2 * WEIGHTS["w"][IDS])


def test_norms_of_rows_and_of_heads() -> None:
    body = (
        '%0 = "infc.rms_norm"(%x, %gain) {eps = 0.5 : f32, offset = 1.0 : f32}'
        " : (!x, tensor<64xf32>) -> !x"
    )
    rows = [x / math.sqrt((x * x).mean() + 0.5) * (WEIGHTS["gain"] + 1) for x in X]
    close(run(body), np.stack(rows))
    body = (
        '%0 = "infc.rms_norm"(%x, %head_gain) {eps = 0.5 : f32, offset = 0.0 : f32, '
        "head_dim = 16 : i64} : (!x, tensor<16xf32>) -> !x"
    )
    heads = X.reshape(-1, 16)
    normed = [h / math.sqrt((h * h).mean() + 0.5) * WEIGHTS["head_gain"] for h in heads]
    close(run(body), np.stack(normed).reshape(X.shape))


def test_products_with_and_without_bias() -> None:
    body = f'%0 = "infc.linear"(%x, %w) : (!x, tensor<32x64xf32>) -> {NARROW}'
    close(run(body, NARROW), X @ WEIGHTS["w"].T)
    body = (
        f'%0 = "infc.linear"(%x, %w, %bias) : (!x, tensor<32x64xf32>, tensor<32xf32>) -> {NARROW}'
    )
    close(run(body, NARROW), X @ WEIGHTS["w"].T + WEIGHTS["bias"])


def test_a_product_of_quantised_rows_is_that_of_the_rounded_ones() -> None:
    a8 = 'tensor<?x64x!infc.storage<"a8">, ["t", 64]>'
    body = (
        f'%a = "infc.quantize"(%x) : (!x) -> {a8}\n'
        f'%0 = "infc.linear"(%a, %w) : ({a8}, tensor<32x64xf32>) -> {NARROW}'
    )
    rounded = dequantize_a8(quantize_a8(X), 64)
    assert 0 < np.abs(rounded - X).max() < np.abs(X).max() / 100
    close(run(body, NARROW), rounded @ WEIGHTS["w"].T)


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotation_turns_pairs_and_leaves_the_rest(interleaved: bool) -> None:
    """Three pairs of a head of 16, against complex numbers."""
    body = (
        '%r = "infc.rope_table"() {inverse_frequencies = array<f32: 1.0, 0.3, 0.1>, '
        "magnitude = 1.5 : f32} : () -> tensor<8x3x2xf32>\n"
        '%0 = "infc.rope"(%x, %i, %r) {head_dim = 16 : i64, '
        f"interleaved = {str(interleaved).lower()}}} : (!x, !i, tensor<8x3x2xf32>) -> !x"
    )
    expected = X.reshape(3, 4, 16).copy()
    for row, position in enumerate(IDS):
        for pair, frequency in enumerate((1.0, 0.3, 0.1)):
            a, b = (2 * pair, 2 * pair + 1) if interleaved else (pair, pair + 3)
            turned = (expected[row, :, a] + 1j * expected[row, :, b]) * (
                1.5 * np.exp(1j * float(position) * frequency)
            )
            expected[row, :, a], expected[row, :, b] = turned.real, turned.imag
    close(run(body), expected.reshape(X.shape))


def attended(window: int, softcap: float) -> F32:
    """Four heads of 16 that read two heads of keys, written out."""
    keys = Y[:, :32].reshape(3, 2, 16)
    out = np.zeros((3, 4, 16), np.float32)
    for row in range(3):
        first = max(0, row - window + 1) if window else 0
        for head in range(4):
            query = X[row, 16 * head : 16 * head + 16]
            scores = np.array([0.5 * query @ keys[p, head // 2] for p in range(first, row + 1)])
            if softcap:
                scores = softcap * np.tanh(scores / softcap)
            weights = softmax(scores)
            for weight, p in zip(weights, range(first, row + 1), strict=True):
                out[row, head] += weight * keys[p, head // 2]
    return out.reshape(3, 64)


KEYS = (
    '%s = "infc.weight"() {source = "select"} : () -> tensor<32x64xf32>\n'
    f'%k = "infc.linear"(%y, %s) : (!x, tensor<32x64xf32>) -> {NARROW}\n'
)
"""The first half of the columns of `%y`."""
WEIGHTS["select"] = np.eye(32, 64, dtype=np.float32)


@pytest.mark.parametrize(("window", "softcap"), [(0, 0.0), (2, 0.0), (0, 1.5), (1, 3.0)])
def test_attention(window: int, softcap: float) -> None:
    body = KEYS + (
        f'%0 = "infc.attention"(%x, %k, %k, %i) {{heads = 4 : i64, head_dim = 16 : i64, '
        f"scale = 0.5 : f32, window = {window} : i64, softcap = {softcap} : f32}} "
        f": (!x, {NARROW}, {NARROW}, !i) -> !x"
    )
    close(run(body), attended(window, softcap))


@pytest.mark.parametrize(("window", "softcap"), [(0, 0.0), (2, 1.5)])
def test_attention_through_a_cache_is_the_same(window: int, softcap: float) -> None:
    kind = KVType("f32", 2, 16, 8, window)
    kv = f'!infc.kv<"f32", 2 : i64, 16 : i64, 8 : i64, {window} : i64>'
    body = KEYS + (
        f'%c = "infc.kv_cache"() {{index = 0 : i64}} : () -> {kv}\n'
        f'%u = "infc.kv_append"(%c, %k, %k, %i, %j) : ({kv}, {NARROW}, {NARROW}, !i, !i) -> {kv}\n'
        f'%0 = "infc.kv_attention"(%x, %u, %i, %j) {{heads = 4 : i64, scale = 0.5 : f32, '
        f"softcap = {softcap} : f32}} : (!x, {kv}, !i, !i) -> !x"
    )
    cache = LayerCache(kind, slots=2)
    ids = np.array([0, 1, 2], np.int32)
    with context():
        module = parse(
            '!x = tensor<?x64xf32, ["t", 64]>\n!i = tensor<?xi32, ["t"]>\n'
            'module { "infc.dim"() {sym_name = "t", min = 1 : i64, max = 8 : i64} : () -> ()\n'
            "func.func @f(%x: !x, %y: !x, %i: !i, %j: !i) -> !x {\n"
            f"{body}\nreturn %0 : !x }} }}"
        )
        slots = np.ones(3, np.int32)  # the second of two
        (made,) = Interpreter(module, raw, [cache]).run("f", [X, Y, ids, slots])
    close(made, attended(window, softcap))
    assert not cache.keys[0].any()
    np.testing.assert_array_equal(cache.keys[1, :3], Y[:, :32].reshape(3, 2, 16))


def test_argmax_and_chosen_rows() -> None:
    ids = 'tensor<?xi32, ["t"]>'
    same = np.array([[1, 3, 3], [2, 2, 1]], np.float32)
    with context():
        module = parse(
            '!y = tensor<?x3xf32, ["t", 3]>\n!z = tensor<?x3xf32, ["r", 3]>\n'
            'module { func.func @f(%x: !y, %r: tensor<?xi32, ["r"]>) -> '
            f"({ids}, !z) {{\n"
            f'%0 = "infc.argmax"(%x) : (!y) -> {ids}\n'
            '%1 = "infc.select_rows"(%x, %r) : (!y, tensor<?xi32, ["r"]>) -> !z\n'
            f"return %0, %1 : {ids}, !z }} }}"
        )
        best, rows = Interpreter(module, raw).run("f", [same, np.array([1, 1, 0], np.int32)])
    # The lowest of equals.
    assert best.tolist() == [1, 0]
    assert best.dtype == np.int32
    np.testing.assert_array_equal(rows, same[[1, 1, 0]])


BUFFERS = """
!a = !infc.buffer<tensor<?x64xf32, ["t", 64]>, "rows", "arena">
!c = !infc.buffer<tensor<?x64xf32, ["t", 64]>, "rows", "call">
!f = !infc.buffer<tensor<0xi8>, "frame", "arena">
!x = tensor<?x64xf32, ["t", 64]>
module {
  func.func @main(%x: !c, %y: !c, %out: !c) {
    %f = "infc.space"() {size_bytes = 4096 : i64} : () -> !f
    %a = "infc.alloc"(%f) {offset = 0 : i64, size_bytes = 2048 : i64} : (!f) -> !a
    %b = "infc.alloc"(%f) {offset = OFFSET : i64, size_bytes = 2048 : i64} : (!f) -> !a
    call @put(%x, %a) : (!c, !a) -> ()
    call @put(%y, %b) : (!c, !a) -> ()
    call @sum(%a, %b, %out) : (!a, !a, !c) -> ()
    return
  }
  func.func private @put(%x: !c, %y: !a) {
    %0 = "infc.read"(%x) : (!c) -> !x
    "infc.write"(%0, %y) : (!x, !a) -> ()
    return
  }
  func.func private @sum(%x: !a, %y: !a, %out: !c) {
    %0 = "infc.read"(%x) : (!a) -> !x
    %1 = "infc.read"(%y) : (!a) -> !x
    %2 = "infc.add"(%0, %1) : (!x, !x) -> !x
    "infc.write"(%2, %out) : (!x, !c) -> ()
    return
  }
}
"""


def summed(offset: int) -> F32:
    with context():
        interpreter = Interpreter(parse(BUFFERS.replace("OFFSET", str(offset))), raw)
        kind = BufferType(TensorType(("t", 64), "f32"), "rows", "call")
        buffers = [Buffer(kind, content=value) for value in (X, Y, None)]
        assert interpreter.run("main", buffers) == []
    return np.asarray(buffers[2].content)


@pytest.mark.parametrize("offset", [2048, -1])
def test_buffers_hold_what_was_written(offset: int) -> None:
    np.testing.assert_array_equal(summed(offset), X + Y)


def test_a_plan_that_overlaps_gives_wrong_numbers() -> None:
    np.testing.assert_array_equal(summed(0), Y + Y)
    assert np.abs(summed(256) - (X + Y)).max() > 0.1


def test_what_has_no_meaning_is_named() -> None:
    with pytest.raises(InternalError) as caught:
        run('%0 = "arith.negf"(%x) : (!x) -> !x loc("layers.3.q")')
    assert str(caught.value) == (
        'error[INF9001]: the reference has no meaning for arith.negf\n  --> loc("layers.3.q")'
    )


def test_a_ring_keeps_the_latest_positions() -> None:
    kind = KVType("f16", 1, 4, 4, 3)
    cache = LayerCache(kind, slots=1)
    rows = (np.arange(24).reshape(6, 1, 4) / 3).astype(np.float32)
    for start in (0, 3):
        positions = np.arange(start, start + 3, dtype=np.int32)
        written = rows[start : start + 3]
        cache.append(0, positions, written, -written)
    keys, values = cache.read(0, 2, 6)
    np.testing.assert_array_equal(keys, rows[2:].astype(np.float16).astype(np.float32))
    np.testing.assert_array_equal(values, -keys)
    kv = ReferenceKV([cache])
    block = kv.kv_export(0, 0, 6)
    assert block.layer_starts == (2,)
    other = ReferenceKV([LayerCache(kind, slots=1)])
    other.kv_import(0, block)
    np.testing.assert_array_equal(other.layers[0].read(0, 2, 6)[0], keys)
    copied = kv.copy()
    cache.keys[:] = 0
    np.testing.assert_array_equal(copied.layers[0].read(0, 2, 6)[0], keys)
