"""Work that is dealt: every piece is done once, and the deal is left as it was found."""

from __future__ import annotations

import ctypes
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infc.backends.cpu.codegen.builder import Builder, Value
from infc.backends.cpu.codegen.linking import link_shared
from infc.backends.cpu.codegen.toolchain import emit_object, lower_to_llvm
from infc.backends.cpu.kernels.dealing import (
    DEAL_BYTES,
    Team,
    Turns,
    emit_dealt,
    emit_dealt_items,
)
from infc.backends.cpu.target import isa_of, resolve_cpu
from infc.ir.mlir import ir

MOST = 3000


def _count(b: Builder, counts: Value, index: Value) -> None:
    place = b.at(counts, b.mul(index, 4))
    b.store(b.add(b.load(place, b.i32, 4), 1), place, 4)


def _emit(b: Builder) -> None:
    """`NAME(deal, counts, sums, thread, threads, total, even, piece)` counts each index it does;
    `sums[thread]` is how many they were."""
    types = [b.ptr, b.ptr, b.ptr, *[b.i64] * 5]

    def define(name: str, body: Callable[[Team, Value, Value, Value, Value], Value]) -> None:
        with b.function(name, types, private=False) as values:
            deal, counts, sums, thread, threads, total, even, piece = values
            done = body(Team(thread, threads, deal), counts, total, even, piece)
            b.store(done, b.at(sums, b.mul(thread, 64)), 8)
            b.ret()

    def pieces(team: Team, counts: Value, total: Value, even: Value, piece: Value) -> Value:
        def part(start: Value, stop: Value, done: Value) -> list[Value]:
            b.loop(start, stop, body=lambda index: _count(b, counts, index))
            return [b.add(done, b.sub(stop, start))]

        return emit_dealt(b, team, total, even, piece, [b.idx(0)], part)[0]

    def items(team: Team, counts: Value, total: Value, _even: Value, _piece: Value) -> Value:
        emit_dealt_items(b, team, total, lambda index: _count(b, counts, index))
        return b.idx(0)

    def turns(team: Team, counts: Value, total: Value, _even: Value, _piece: Value) -> Value:
        own = Turns(b, team)
        b.loop(0, total, body=lambda i: own.when_own(i, lambda: _count(b, counts, i)))
        own.end(total)
        return b.idx(0)

    define("pieces", pieces)
    define("items", items)
    define("turns", turns)


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    with ir.Context(), ir.Location.unknown():
        module = ir.Module.create()
        isa = isa_of(resolve_cpu("cpu"))
        _emit(Builder(module, isa))
        lower_to_llvm(module)
        shared = link_shared(emit_object(module, isa))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "dealing.so")
        path.write_bytes(shared)
        return ctypes.CDLL(str(path))


def _run(
    library: ctypes.CDLL, name: str, threads: int, total: int, even: int, piece: int
) -> np.ndarray:
    """Run all threads at the same time; what each index was counted, and what each thread did."""
    deal, counts = np.zeros(DEAL_BYTES, np.uint8), np.zeros(MOST + 8, np.int32)
    sums = np.zeros(8 * threads, np.int64)
    pointers = [ctypes.c_void_p(a.ctypes.data) for a in (deal, counts, sums)]

    def run(thread: int) -> None:
        library[name](*pointers, *map(ctypes.c_int64, (thread, threads, total, even, piece)))

    running = [threading.Thread(target=run, args=(t,)) for t in range(threads)]
    for one in running:
        one.start()
    for one in running:
        one.join()
    assert not deal.any()
    assert (counts[:total] == 1).all()
    assert not counts[total:].any()
    return sums[::8]


@given(
    threads=st.integers(1, 5),
    total=st.integers(0, MOST),
    share=st.floats(0, 1),
    piece=st.integers(1, 400),
)
def test_pieces_cover_everything_once(
    library: ctypes.CDLL, threads: int, total: int, share: float, piece: int
) -> None:
    done = _run(library, "pieces", threads, total, int(total * share), piece)
    assert done.sum() == total


@given(threads=st.integers(1, 5), total=st.integers(0, 300))
def test_items_and_turns_cover_everything_once(
    library: ctypes.CDLL, threads: int, total: int
) -> None:
    for name in ("items", "turns"):
        _run(library, name, threads, total, 0, 1)


def test_a_thread_that_is_alone_does_what_the_others_leave(library: ctypes.CDLL) -> None:
    """One of two has not come yet: the first does its half and all that is dealt."""
    deal, counts, sums = np.zeros(64, np.uint8), np.zeros(100, np.int32), np.zeros(16, np.int64)
    pointers = [ctypes.c_void_p(a.ctypes.data) for a in (deal, counts, sums)]
    library.pieces(*pointers, *map(ctypes.c_int64, (0, 2, 100, 40, 7)))
    assert sums[0] == 80
    assert counts.tolist() == [1] * 20 + [0] * 20 + [1] * 60
    library.pieces(*pointers, *map(ctypes.c_int64, (1, 2, 100, 40, 7)))
    assert sums[8] == 20
    assert (counts == 1).all()
    assert not deal.any()
