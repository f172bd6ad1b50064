"""Kernels of the dataflow backend, executed by the simulator, against the reference's meaning."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from infc.backends.dataflow.backend import BACKEND
from infc.backends.dataflow.codegen.builder import Area
from infc.backends.dataflow.codegen.kv_home import KVHome
from infc.backends.dataflow.codegen.values import Appended, Argument, Cache, RopeTable
from infc.backends.dataflow.machine import Machine
from infc.ir.context import context
from infc.ir.types import KVType
from infc.reference import ops
from infc.reference.kv import LayerCache
from tests.dataflow_kernels import KernelRun, arguments, functions

# All inputs of a test lie in SRAM for good: they need more than the small machine has.
MACHINE = replace(Machine.of(BACKEND.resolve("dataflow:test")), sram_bytes=1 << 21)
AREAS = {1: Area(0, 1, 0, 0, 1, 1), 2: Area(0, 1, 0, 0, 1, 2), 4: Area(0, 1, 0, 0, 2, 2)}
F32 = NDArray[np.float32]


@dataclass(frozen=True)
class Case:
    """One layer's attention."""

    cores: int = 4
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    capacity: int = 1600
    window: int = 0
    start: int = 0
    rows: int = 1
    most: int = 1
    shared: bool = False
    pairs: int = 0
    interleaved: bool = False
    norms: bool = False
    softcap: float = 0.0
    far: bool = False


def layer(case: Case) -> str:
    """The kernels of a case, as the schedule level has them."""
    q, k = case.heads * case.head_dim, case.kv_heads * case.head_dim
    pairs = case.pairs or case.head_dim // 2
    cache = (
        f'!infc.kv<"f16", {case.kv_heads} : i64, {case.head_dim} : i64, {case.capacity} : i64, '
        f"{case.window} : i64>"
    )
    wide, narrow, ints = (
        f'tensor<?x{q}xf32, ["t", {q}]>',
        f'tensor<?x{k}xf32, ["t", {k}]>',
        'tensor<?xi32, ["t"]>',
    )
    gain, table = f"tensor<{case.head_dim}xf32>", f"tensor<512x{pairs}x2xf32>"
    head = f"head_dim = {case.head_dim} : i64"
    norm = f"{{eps = 1.0e-06 : f32, {head}, offset = 1.0 : f32}}"
    rope = f"{{{head}, interleaved = {str(case.interleaved).lower()}}}"
    lines = []
    names = ("%q", "%k")
    if case.norms:
        lines += [
            f'%nq = "infc.rms_norm"(%q, %gq) {norm} : ({wide}, {gain}) -> {wide}',
            f'%nk = "infc.rms_norm"(%k, %gk) {norm} : ({narrow}, {gain}) -> {narrow}',
        ]
        names = ("%nq", "%nk")
    lines += [
        f'%rq = "infc.rope"({names[0]}, %p, %t) {rope} : ({wide}, {ints}, {table}) -> {wide}',
        f'%rk = "infc.rope"({names[1]}, %p, %t) {rope} : ({narrow}, {ints}, {table}) -> {narrow}',
        f'%c = "infc.kv_append"(%cache, %rk, %v, %p, %s) : '
        f"({cache}, {narrow}, {narrow}, {ints}, {ints}) -> {cache}",
    ]
    body = "\n".join(lines)
    attend = f"heads = {case.heads} : i64, scale = 0.125 : f32, softcap = {case.softcap} : f32"
    return f"""
    func.func private @rotary(%q: {wide}, %gq: {gain}, %k: {narrow}, %gk: {gain}, %p: {ints},
        %t: {table}, %cache: {cache}, %v: {narrow}, %s: {ints}) -> ({wide}, {cache})
        attributes {{infc.kernel = "rotary"}} {{
      {body}
      return %rq, %c : {wide}, {cache}
    }}
    func.func private @attention(%q: {wide}, %c: {cache}, %p: {ints}, %s: {ints}) -> {wide}
        attributes {{infc.kernel = "attention"}} {{
      %a = "infc.kv_attention"(%q, %c, %p, %s) {{{attend}}} :
          ({wide}, {cache}, {ints}, {ints}) -> {wide}
      return %a : {wide}
    }}
    """


@dataclass(frozen=True)
class Inputs:
    """Random numbers for a case."""

    q: F32
    k: F32
    v: F32
    gains: tuple[F32, F32]
    table: F32
    old: LayerCache

    @classmethod
    def of(cls, case: Case) -> Inputs:
        """The same for the same case."""
        rng = np.random.default_rng(7)
        kind = KVType("f16", case.kv_heads, case.head_dim, case.capacity, case.window)
        old = LayerCache(kind, 1)
        if case.start:
            at = np.arange(max(0, case.start - case.capacity), case.start, dtype=np.int32)
            shape = (len(at), case.kv_heads, case.head_dim)
            keys, values = (rng.standard_normal(shape, np.float32) for _ in range(2))
            old.append(0, at, keys, values)
        q, k, v = (
            rng.standard_normal((case.rows, heads * case.head_dim), np.float32)
            for heads in (case.heads, case.kv_heads, case.kv_heads)
        )
        gains = tuple(rng.uniform(-0.5, 0.5, case.head_dim).astype(np.float32) for _ in range(2))
        pairs = case.pairs or case.head_dim // 2
        frequencies = 10000.0 ** -(np.arange(pairs) / pairs)
        table = ops.rope_table(list(frequencies), 1.0, case.start + case.rows)
        return cls(q, k, v, (gains[0], gains[1]), table, old)


def expected(case: Case, inputs: Inputs) -> F32:
    """What the reference computes; its cache is appended to."""
    q, k = inputs.q, inputs.k
    e, positions = case.head_dim, np.arange(case.rows, dtype=np.int32) + case.start
    if case.norms:
        q = ops.rms_norm(q, inputs.gains[0], 1e-6, 1.0, e)
        k = ops.rms_norm(k, inputs.gains[1], 1e-6, 1.0, e)
    q = ops.rope(q, positions, inputs.table, e, case.interleaved)
    k = ops.rope(k, positions, inputs.table, e, case.interleaved)
    shape = (case.rows, -1, e)
    inputs.old.append(0, positions, k.reshape(shape), inputs.v.reshape(shape))
    stop = case.start + case.rows
    first = max(0, case.start - case.window + 1) if case.window else 0
    keys, values = inputs.old.read(0, first, stop)
    seen = np.arange(first, stop, dtype=np.int32)
    out = ops.attend(
        q.reshape(shape), keys, values, positions, seen, 0.125, case.window, case.softcap
    )
    return out.reshape(case.rows, -1)


def home_halves(case: Case, home: KVHome, cache: LayerCache, stop: int) -> list[Any]:
    """The homes of a cache that holds positions up to `stop`, by core; masked elsewhere."""
    found = [np.ma.masked_all(home.layer_bytes // 2, "<f2") for _ in range(case.cores)]
    for position in range(max(0, stop - case.capacity), stop):
        keys, values = cache.read(0, position, position + 1)
        for head in range(case.kv_heads):
            core, at = home.place(head, position)
            for part, offset in ((keys, 0), (values, home.value_offset)):
                first = (at + offset) // 2
                found[core][first : first + case.head_dim] = part[0, head].astype("<f2")
    return found


def attend(case: Case) -> tuple[F32, KernelRun, Any, KVHome]:
    """Run a case on the simulator."""
    inputs = Inputs.of(case)
    kind = inputs.old.kind
    with context():
        found = functions(layer(case))
        run = KernelRun(MACHINE, AREAS[case.cores], case.most, case.rows, case.shared)
        home = KVHome.of(kind, case.cores, MACHINE)
        held = home_halves(case, home, inputs.old, case.start)
        slot = home.tile * home.row_bytes if case.far else 0
        run.cache(home.layer_bytes, lambda core: held[core].filled(0), slot_bytes=slot)
        weights = run.vectors({"gq": inputs.gains[0], "gk": inputs.gains[1]})
        pairs = inputs.table.shape[1]
        table = inputs.table[case.start :]
        rope = run.filled("rope", run.space.owned * 8 * pairs, lambda core: run.own(core, table))
        operands = [
            run.columns("in.q", inputs.q),
            weights["gq"],
            run.columns("in.k", inputs.k),
            weights["gk"],
            Argument("positions"),
            RopeTable(rope, run.space, pairs),
            Cache((0,), kind),
            run.columns("in.v", inputs.v),
            Argument("slots"),
        ]
        q, cache = run.kernel(found["rotary"], operands, "0.")
        assert isinstance(cache, Appended)
        (out,) = run.kernel(
            found["attention"], [q, cache, Argument("positions"), Argument("slots")], "1."
        )
        run.keep(out.buffer)
        memory = run.run(arguments(case.rows, case.start, most=case.most))
        return run.read(memory, out, case.rows), run, memory, home


CASES = {
    "first token": Case(),
    "one core": Case(cores=1, capacity=256),
    "as many groups as heads": Case(cores=2),
    "one kv head": Case(kv_heads=1),
    "later token": Case(start=200),
    "much later token": Case(start=1500),
    "stripes without columns": Case(kv_heads=1, heads=2, head_dim=32, start=1500, capacity=4000),
    "more cores than stripes": Case(kv_heads=1, capacity=256, start=200),
    "one stripe of four": Case(kv_heads=1, capacity=128, start=100),
    "stripes of a window": Case(kv_heads=1, window=1200, capacity=1216, start=3000),
    "stripes, several rows": Case(kv_heads=1, rows=3, most=4, start=1033),
    "two kv heads a core": Case(cores=2, kv_heads=4, heads=8, start=50),
    "three kv heads": Case(kv_heads=3, heads=6, start=77),
    "norms": Case(norms=True, start=40),
    "interleaved": Case(interleaved=True, start=40),
    "part of the head rotated": Case(pairs=16, start=3),
    "softcap": Case(softcap=5.0, start=100),
    "head of 80": Case(head_dim=80, start=70),
    "head of 128": Case(head_dim=128, start=33),
    "head of 256": Case(head_dim=256, kv_heads=1, start=130, capacity=200),
    "window": Case(window=40, capacity=64, start=100),
    "ring that wraps": Case(window=100, capacity=128, start=1000),
    "ring of one core": Case(cores=1, window=100, capacity=128, start=1000),
    "window within a block": Case(window=7, capacity=32, start=65),
    "several rows": Case(rows=5, most=8, start=60),
    "several rows, window": Case(rows=8, most=8, start=60, window=20, capacity=32),
    "far, first token": Case(far=True),
    "far, later token": Case(far=True, start=200),
    "far, one core": Case(far=True, cores=1, start=250, capacity=256),
    "far, several tiles": Case(far=True, cores=2, start=900, capacity=1024),
    "far, head of 80": Case(far=True, head_dim=80, start=130),
    "far, two kv heads a core": Case(far=True, cores=2, kv_heads=4, heads=8, start=50),
    "far, ring that wraps": Case(far=True, window=100, capacity=128, start=1000),
    "far, ring of one core": Case(far=True, cores=1, window=300, capacity=320, start=2000),
    "far, several rows": Case(far=True, rows=5, most=8, start=61, window=40, capacity=64),
    "far, prefill": Case(far=True, rows=40, most=64, shared=True),
    "far, prefill, later": Case(far=True, rows=50, most=64, shared=True, start=70),
    "far, prefill, ring": Case(
        far=True, cores=2, rows=60, most=64, shared=True, start=700, window=100, capacity=192
    ),
    "prefill": Case(rows=40, most=64, shared=True),
    "prefill of one row": Case(rows=1, most=64, shared=True),
    "prefill, all rows": Case(rows=64, most=64, shared=True, norms=True),
    "prefill, window": Case(rows=64, most=64, shared=True, window=9, capacity=96),
    "prefill, one kv head": Case(rows=50, most=64, shared=True, kv_heads=1),
    "prefill, head of 80": Case(rows=30, most=32, shared=True, head_dim=80),
    "prefill, two cores": Case(cores=2, rows=50, most=64, shared=True),
    "prefill, two kv heads a core": Case(
        cores=2, capacity=256, rows=50, most=64, shared=True, kv_heads=4, heads=8
    ),
    "prefill, later": Case(cores=2, rows=50, most=64, shared=True, start=70),
    "prefill, stripes, later": Case(rows=50, most=64, shared=True, start=70),
    "prefill, stripes, much later": Case(rows=64, most=64, shared=True, start=180),
    "prefill, one stripe of four": Case(
        rows=50, most=64, shared=True, start=70, kv_heads=1, capacity=128
    ),
    "prefill, stripes, ring": Case(
        rows=60, most=64, shared=True, start=700, window=100, capacity=192
    ),
    "prefill, stripes, one kv head": Case(
        rows=33, most=64, shared=True, start=33, kv_heads=1, softcap=3.0
    ),
    "prefill, stripes, small window": Case(
        rows=60, most=64, shared=True, start=100, window=5, capacity=96
    ),
    "prefill on one core": Case(cores=1, capacity=256, rows=30, most=32),
    "prefill on one core, later": Case(
        cores=1, capacity=256, rows=30, most=32, start=100, kv_heads=1, heads=3
    ),
    "prefill on one core, ring": Case(cores=1, rows=30, most=32, start=500, window=50, capacity=96),
}


@pytest.mark.parametrize("name", CASES)
def test_attention_is_the_references(name: str) -> None:
    case = CASES[name]
    inputs = Inputs.of(case)
    wanted = expected(case, inputs)
    made, run, memory, home = attend(case)
    np.testing.assert_allclose(made, wanted, atol=4e-3, rtol=4e-3)
    held = home_halves(case, home, inputs.old, case.start + case.rows)
    for core in range(case.cores):
        kept = run.cached(memory, core, home.layer_bytes).view("<f2")
        np.testing.assert_allclose(
            kept[~held[core].mask].astype(np.float32),
            held[core].compressed().astype(np.float32),
            atol=4e-3,
        )
