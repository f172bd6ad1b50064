"""The CPU's row operations, argmax, rotary append and barrier against NumPy."""

import ctypes
import functools
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import llvmlite.binding as llvm_binding
import numpy as np
import pytest

from infc.backends.cpu.codegen.builder import Builder, Value
from infc.backends.cpu.codegen.isa import Isa
from infc.backends.cpu.codegen.linking import link_shared
from infc.backends.cpu.codegen.toolchain import emit_object, lower_to_llvm
from infc.backends.cpu.kernels import rows
from infc.backends.cpu.kernels.dealing import DEAL_BYTES
from infc.backends.cpu.kernels.kv_layout import KVLayout
from infc.backends.cpu.kernels.rotary import RotarySpec, emit_rotary_append
from infc.backends.cpu.kernels.sync import BARRIER_BYTES, BARRIER_NAME, emit_barrier
from infc.ir.kv_storage import LIMITS, load_kv, store_kv
from infc.ir.mlir import ir

TRIPLE = llvm_binding.get_default_triple()
HOST = llvm_binding.get_host_cpu_features()
ISAS = {}
if HOST.get("avx2") and HOST.get("fma") and HOST.get("f16c"):
    ISAS["avx2"] = Isa(TRIPLE, "x86-64-v3", "", 32, 16, "avx2", False)
if HOST.get("avx512vl") and HOST.get("avx512bw"):
    ISAS["avx512"] = Isa(TRIPLE, "x86-64-v4", "", 64, 32, "avx512-vnni", False)
if not ISAS:
    pytest.skip("needs an x86 processor with AVX2", allow_module_level=True)

DIMS = (1, 15, 16, 100, 640)
GUARD = np.float32(-7.5)
"""Written behind a row, to see that it stays."""


def load(isa: str, emit: Callable[[Builder], None]) -> ctypes.CDLL:
    with ir.Context(), ir.Location.unknown():
        module = ir.Module.create()
        emit(Builder(module, ISAS[isa]))
        lower_to_llvm(module)
        shared = link_shared(emit_object(module, ISAS[isa]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rows.so")
        path.write_bytes(shared)
        return ctypes.CDLL(str(path))


def export(b: Builder, name: str, pointers: int, integers: int, dealt: bool = False) -> None:
    """A public function `run_NAME` that calls the private one."""
    types = [b.ptr] * pointers + [b.i64] * integers + [b.ptr] * dealt
    with b.function(f"run_{name}", types, private=False) as arguments:
        b.call(name, arguments)
        b.ret()


def pointer(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


# ---- rows --------------------------------------------------------------------------------------

OPERATIONS: dict[str, Callable[[Builder, Value, Value, Value, int], None]] = {
    "rms_norm": lambda b, x, y, out, d: rows.emit_rms_norm_row(b, x, y, out, d, 1e-6, 1.0),
    "add": lambda b, x, y, out, d: rows.emit_add_row(b, x, y, out, d),
    "scale": lambda b, x, y, out, d: rows.emit_scale_row(b, x, 0.37, out, d),
    "softcap": lambda b, x, y, out, d: rows.emit_softcap_row(b, x, 1.5, out, d),
    "copy": lambda b, x, y, out, d: rows.emit_copy_row(b, x, out, d),
    "silu": lambda b, x, y, out, d: rows.emit_activation_mul_row(b, "silu", x, y, out, d),
    "gelu_tanh": lambda b, x, y, out, d: rows.emit_activation_mul_row(b, "gelu_tanh", x, y, out, d),
}


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


MEANINGS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "rms_norm": lambda x, y: x / np.sqrt(np.mean(x * x) + 1e-6) * (y + 1),
    "add": lambda x, y: x + y,
    "scale": lambda x, y: x * 0.37,
    "softcap": lambda x, y: 1.5 * np.tanh(x / 1.5),
    "copy": lambda x, y: x,
    "silu": lambda x, y: x / (1 + np.exp(-x)) * y,
    "gelu_tanh": lambda x, y: gelu_tanh(x) * y,
}


@functools.cache
def row_library(isa: str) -> ctypes.CDLL:
    def emit(b: Builder) -> None:
        for d in DIMS:
            for name, operation in OPERATIONS.items():
                types = [b.ptr] * 3
                with b.function(f"{name}_{d}", types, private=False) as (x, y, out):
                    operation(b, x, y, out, d)
                    b.ret()

    return load(isa, emit)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", OPERATIONS)
def test_row_operations_match_numpy_and_stay_inside_the_row(isa: str, name: str) -> None:
    rng = np.random.default_rng(1)
    for d in DIMS:
        x, y = 2 * rng.standard_normal((2, d), dtype=np.float32)
        out = np.full(d + 16, GUARD)
        getattr(row_library(isa), f"{name}_{d}")(pointer(x), pointer(y), pointer(out))
        want = MEANINGS[name](x.astype(np.float64), y.astype(np.float64))
        np.testing.assert_allclose(out[:d], want, rtol=2e-6, atol=1e-6)
        assert (out[d:] == GUARD).all()


# ---- argmax ------------------------------------------------------------------------------------

ARGMAX_DIMS = (3, 64, 1000)


@functools.cache
def argmax_library(isa: str) -> ctypes.CDLL:
    def emit(b: Builder) -> None:
        for n in ARGMAX_DIMS:
            rows.emit_argmax(b, f"argmax_{n}", n)
            export(b, f"argmax_{n}", 2, 3)

    return load(isa, emit)


def argmax(isa: str, logits: np.ndarray, threads: int) -> list[int]:
    count, n = logits.shape
    out = np.full(count, -1, dtype=np.int32)
    function = getattr(argmax_library(isa), f"run_argmax_{n}")
    for thread in range(threads):
        arguments = map(ctypes.c_int64, (count, thread, threads))
        function(pointer(logits), pointer(out), *arguments)
    return out.tolist()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("n", ARGMAX_DIMS)
def test_argmax_takes_the_lowest_of_equals(isa: str, n: int) -> None:
    rng = np.random.default_rng(2)
    logits = rng.integers(-3, 4, (40, n)).astype(np.float32)  # many ties
    assert argmax(isa, logits, 1) == logits.argmax(axis=1).tolist()
    assert argmax(isa, logits, 3) == logits.argmax(axis=1).tolist()


@pytest.mark.parametrize("isa", ISAS)
def test_argmax_of_extremes(isa: str) -> None:
    logits = np.full((4, 1000), -np.inf, dtype=np.float32)
    logits[1, 999] = -3e38
    logits[2, :] = np.nan
    logits[2, 70] = -1
    logits[3, [5, 900]] = np.inf
    assert argmax(isa, logits, 1) == [0, 999, 70, 5]


# ---- rotary ------------------------------------------------------------------------------------

# name -> heads, kv_heads, head_dim, rope_pairs, interleaved, norm, cache
ROTARIES = {
    "halves": (4, 1, 256, 128, False, True, "f32"),
    "partial": (2, 2, 80, 20, False, False, "f16"),
    "interleaved": (3, 1, 24, 12, True, True, "f16"),
    "interleaved-partial": (1, 1, 64, 21, True, False, "f32"),
    "none": (2, 1, 10, 0, False, False, "f16"),
    "pairs": (2, 2, 80, 40, False, True, "bf16"),
    "pairs-odd": (2, 3, 10, 5, True, False, "bf16"),
    "codes": (2, 2, 128, 64, False, True, "int8"),
    "codes-odd": (2, 3, 42, 0, False, False, "int8"),
}
CAPACITY, SLOTS, CONTEXT, EPS, OFFSET = 32, 2, 64, 1e-5, 1.0


def rotary_spec(name: str) -> tuple[RotarySpec, KVLayout]:
    heads, kv_heads, head_dim, pairs, interleaved, norm, dtype = ROTARIES[name]
    layout = KVLayout(kv_heads, head_dim, (CAPACITY,), SLOTS, dtype)
    return RotarySpec(heads, layout.layer(0), pairs, interleaved, norm, EPS, OFFSET), layout


@functools.cache
def rotary_library(isa: str) -> ctypes.CDLL:
    def emit(b: Builder) -> None:
        for i, name in enumerate(ROTARIES):
            spec, _ = rotary_spec(name)
            emit_rotary_append(b, f"rotary_{i}", spec)
            export(b, f"rotary_{i}", 10 if spec.norm else 8, 3, dealt=True)

    return load(isa, emit)


def rotate(spec: RotarySpec, x: np.ndarray, gain: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """`x` `[m, heads, head_dim]`, `angles` `[m, pairs]`, in float64."""
    x = x.astype(np.float64)
    if spec.norm:
        x = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + EPS) * (gain + OFFSET)
    pairs = spec.rope_pairs
    first, second = slice(0, pairs), slice(pairs, 2 * pairs)
    if spec.interleaved:
        first, second = slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    out = x.copy()
    out[..., first] = x[..., first] * cos - x[..., second] * sin
    out[..., second] = x[..., second] * cos + x[..., first] * sin
    return out


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ROTARIES)
@pytest.mark.parametrize(("m", "threads"), [(1, 1), (1, 3), (9, 2)])
def test_rotary_append_matches_numpy(isa: str, name: str, m: int, threads: int) -> None:
    spec, layout = rotary_spec(name)
    kv, rng = spec.kv, np.random.default_rng(3)
    q = rng.standard_normal((m, spec.heads, kv.head_dim), dtype=np.float32)
    k, v = rng.standard_normal((2, m, kv.kv_heads, kv.head_dim), dtype=np.float32)
    gains = rng.standard_normal((2, kv.head_dim), dtype=np.float32)
    angles = rng.uniform(0, 6, (CONTEXT, spec.rope_pairs))
    table = np.stack([np.cos(angles), np.sin(angles)], axis=-1).astype(np.float32)
    positions = np.arange(27, 27 + m, dtype=np.int32)  # the ring wraps at 32
    slots = np.ones(m, dtype=np.int32)
    want_q = rotate(spec, q, gains[0], angles[positions])
    want_k = rotate(spec, k, gains[1], angles[positions])

    cache = np.zeros(layout.total_bytes, dtype=np.uint8)
    out = q if name == "halves" else np.full_like(q, np.nan)  # in place, and apart
    operands = [q, k, v, out, *(gains if spec.norm else ()), table, cache, positions, slots]
    deal = np.zeros(DEAL_BYTES, np.uint8)
    for thread in range(threads):
        getattr(rotary_library(isa), f"run_rotary_{list(ROTARIES).index(name)}")(
            *map(pointer, operands), *map(ctypes.c_int64, (m, thread, threads)), pointer(deal)
        )
    assert not deal.any()
    np.testing.assert_allclose(out, want_q, rtol=0, atol=2e-6)
    got_k, got_v = layout.export_positions(cache, 0, 1, positions.tolist())
    np.testing.assert_allclose(k, want_k, rtol=2e-6, atol=2e-6)  # rotated in place
    stored_k, stored_v = load_kv(store_kv(k, v, kv.dtype))
    np.testing.assert_array_equal(got_k, stored_k)
    np.testing.assert_array_equal(got_v, stored_v)

    zeros = np.zeros((m, kv.kv_heads, kv.head_dim), dtype=np.float32)
    layout.import_positions(cache, 0, 1, positions.tolist(), zeros, zeros)
    assert not cache.any(), "something else in the cache was written"


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ["none", "interleaved-partial", "pairs-odd", "codes-odd"])
def test_an_append_of_what_is_not_finite_poisons_its_own_key(isa: str, name: str) -> None:
    """One row each: fine, too large, infinite value, value not a number, infinite key."""
    spec, layout = rotary_spec(name)
    kv, m = spec.kv, 5
    k, v = np.ones((2, m, kv.kv_heads, kv.head_dim), dtype=np.float32)
    v[1, :, 3] = -3e38
    v[2, 0, 4], v[3, 0, 9], k[4, 0, 2] = np.inf, np.nan, -np.inf
    q = np.zeros((m, spec.heads, kv.head_dim), dtype=np.float32)
    table = np.tile(np.float32([1, 0]), (CONTEXT, spec.rope_pairs, 1))
    positions, slots = np.arange(m, dtype=np.int32), np.zeros(m, dtype=np.int32)
    cache = np.zeros(layout.total_bytes, dtype=np.uint8)
    getattr(rotary_library(isa), f"run_rotary_{list(ROTARIES).index(name)}")(
        *map(pointer, (q, k, v, q, table, cache, positions, slots)),
        *map(ctypes.c_int64, (m, 0, 1)),
        pointer(np.zeros(DEAL_BYTES, np.uint8)),
    )
    got_k, got_v = layout.export_positions(cache, 0, 0, positions.tolist())
    assert np.isnan(got_k).all(axis=-1)[:, 0].tolist() == [False, False, True, True, True]
    assert not np.isnan(got_k[:, 1:]).any()
    assert np.isfinite(got_v).all()
    largest = min(3e38, LIMITS[kv.dtype])
    np.testing.assert_allclose(got_v[1, :, 3], -largest, rtol=2**-8)


# ---- barrier -----------------------------------------------------------------------------------


@functools.cache
def barrier_library(isa: str) -> ctypes.CDLL:
    """`race(state, cells, misses, thread, threads, rounds)` and `meet(state, thread, threads)`.

    In every round of a race a thread writes its cell, waits, and counts the cells of others that
    lag.
    """

    def emit(b: Builder) -> None:
        emit_barrier(b)
        with b.function("meet", [b.ptr, b.i64, b.i64], private=False) as arguments:
            b.call(BARRIER_NAME, arguments)
            b.ret()
        types = [*[b.ptr] * 3, *[b.i64] * 3]
        with b.function("race", types, private=False) as values:
            state, cells, misses, thread, threads, rounds = values

            def cell(index: Value) -> Value:
                return b.at(cells, b.mul(index, 64))

            def one_round(i: Value, missed: Value) -> Value:
                b.store(i, cell(thread), 8)
                b.call(BARRIER_NAME, [state, thread, threads])

                def look(other: Value, missed: Value) -> Value:
                    lags = b.cmp("ne", b.load(cell(other), b.i64, 8), i)
                    return b.add(missed, b.ext_u(lags, b.i64))

                (missed,) = b.loop(0, threads, 1, [missed], body=look)
                b.call(BARRIER_NAME, [state, thread, threads])
                return missed

            (missed,) = b.loop(0, rounds, 1, [b.idx(0)], body=one_round)
            b.store(missed, b.at(misses, b.mul(thread, 8)), 8)
            b.ret()

    return load(isa, emit)


def test_barrier_keeps_threads_together_whatever_their_number() -> None:
    isa = next(iter(ISAS))
    race = barrier_library(isa).race
    state = np.zeros(BARRIER_BYTES, dtype=np.uint8)
    for threads in (2, 1, 5, 2, 3):  # more than the machine has, and fewer again
        cells, misses = np.zeros(8 * threads, dtype=np.int64), np.full(threads, -1)
        running = [
            threading.Thread(
                target=race,
                args=(
                    *map(pointer, (state, cells, misses)),
                    *map(ctypes.c_int64, (thread, threads, 200)),
                ),
            )
            for thread in range(threads)
        ]
        for one in running:
            one.start()
        for one in running:
            one.join()
        assert misses.tolist() == [0] * threads


@pytest.mark.parametrize(("fewer", "slept"), [(0, 2048), (2048, 3072), (3072, 3584), (3584, 3584)])
def test_threads_that_slept_at_a_barrier_spin_half_as_long_at_the_next(
    fewer: int, slept: int
) -> None:
    meet = barrier_library(next(iter(ISAS))).meet
    state = np.zeros(BARRIER_BYTES // 4, dtype=np.int32)
    arrived, generation, sleepers, fewer_spins = 0, 16, 17, 18
    state[fewer_spins] = fewer
    waiting = threading.Thread(target=meet, args=(pointer(state), *map(ctypes.c_int64, (1, 2))))
    waiting.start()
    while not state[sleepers]:
        time.sleep(0.001)
    assert (state[arrived], state[generation], state[fewer_spins]) == (1, 0, slept)
    meet(pointer(state), ctypes.c_int64(0), ctypes.c_int64(2))
    waiting.join()
    assert state[[arrived, generation, sleepers, fewer_spins]].tolist() == [0, 1, 0, slept - 16]


def test_a_meeting_lets_threads_spin_a_little_longer_up_to_the_most() -> None:
    meet = barrier_library(next(iter(ISAS))).meet
    state = np.zeros(BARRIER_BYTES // 4, dtype=np.int32)
    state[18] = 40
    for left in (24, 8, 0, 0):
        state[0] = 1  # as if the other thread had arrived
        meet(pointer(state), ctypes.c_int64(0), ctypes.c_int64(2))
        assert state[18] == left


# ---- stack -------------------------------------------------------------------------------------


def test_room_on_the_stack_is_taken_once_a_call_and_not_once_a_turn() -> None:
    """A turn's room is the same as the last one's: a thousand megabytes otherwise."""

    def emit(b: Builder) -> None:
        with b.function("turns", [b.ptr, b.i64], private=False) as (out, turns):

            def turn(index: Value) -> None:
                room = b.stack(1 << 20, 64)
                last = b.load(room, b.i64, 8)
                b.store(b.select(b.cmp("eq", index, 0), b.idx(1), b.add(last, 1)), room, 8)
                b.store(b.load(room, b.i64, 8), out, 8)

            b.loop(0, turns, body=turn)
            b.ret()

    out = np.zeros(1, np.int64)
    load(next(iter(ISAS)), emit).turns(pointer(out), ctypes.c_int64(1000))
    assert out[0] == 1000
