"""The sums of a panel in TensorIR, and its schedules.

    x f32[rows, k], panel [k, 16] (f32, f16, or the bits of bf16) -> sums f32[rows, 16]

Four parts by k modulo 4, each in order of k, then `(p0 + p1) + (p2 + p3)`: the computation says so
itself, in two blocks, and no schedule may change it. Tiling along k keeps its order; what must not
be used is `rfactor`, and LLVM is not told that it may reassociate. TVM makes a product and a sum
into a fused multiply-add.
"""

from __future__ import annotations

from typing import Any

from infc.backends.tvm.records import find_record
from infc.diagnostics import InternalError
from infc.target.schema import Target

PANEL_ROWS, PARTS = 16, 4
_DTYPES = {"f32": "float32", "f16": "float16", "bf16": "uint16"}


def panel_sums(rows: int, k: int, kind: str) -> Any:
    """The computation, a `tvm.tirx.PrimFunc` of x, panel and sums; blocks `parts` and `sums`."""
    from tvm import te

    x = te.placeholder((rows, k), "float32", "x")
    panel = te.placeholder((k, PANEL_ROWS), _DTYPES[kind], "panel")
    turn = te.reduce_axis((0, k // PARTS), "turn")
    parts = te.compute(
        (rows, PARTS, PANEL_ROWS),
        lambda row, part, column: te.sum(
            x[row, PARTS * turn + part] * _wide(panel[PARTS * turn + part, column], kind),
            axis=turn,
        ),
        "parts",
    )
    sums = te.compute(
        (rows, PANEL_ROWS),
        lambda row, column: (
            (parts[row, 0, column] + parts[row, 1, column])
            + (parts[row, 2, column] + parts[row, 3, column])
        ),
        "sums",
    )
    return te.create_prim_func([x, panel, sums])


def _wide(weight: Any, kind: str) -> Any:
    """A weight as float32, exactly."""
    if kind != "bf16":
        return weight.astype("float32")
    from tvm import tirx

    high = weight.astype("uint32") << tirx.const(16, "uint32")
    return tirx.op.reinterpret("float32", high)


def scheduled(name: str, rows: int, k: int, kind: str, target: Target) -> Any:
    """A `tvm.s_tir.Schedule` of the computation.

    Args:
        name: `default` (loops as they are), `registers` (by hand), or `tuned` (a record of
            MetaSchedule's).
        rows, k, kind: of the computation.
        target: whose record is meant.
    """
    from tvm.s_tir import Schedule

    schedule = Schedule(panel_sums(rows, k, kind))
    if name == "registers":
        _into_registers(schedule)
    elif name == "tuned":
        from tvm.s_tir.schedule import Trace

        Trace.apply_json_to_schedule(find_record(rows, k, kind, target), schedule)
    elif name != "default":
        raise InternalError(f"TVM has no schedule {name!r} for the sums of a panel")
    return schedule


def _into_registers(schedule: Any) -> None:
    """One loop along k; all sums of the tile stay in registers around it."""
    parts = schedule.get_sblock("parts")
    row, part, column, turn = schedule.get_loops(parts)
    schedule.reorder(turn, part, row, column)
    _flat(schedule, [part, row], column)
    first = schedule.decompose_reduction(parts, turn)
    *loops, lanes = schedule.get_loops(first)
    _flat(schedule, loops, lanes)
    *loops, lanes = schedule.get_loops(schedule.get_sblock("sums"))
    _flat(schedule, loops, lanes)


def _flat(schedule: Any, loops: list[Any], lanes: Any) -> None:
    """No loops left: some are unrolled, the last one is a vector."""
    for loop in loops:
        schedule.unroll(loop)
    schedule.vectorize(lanes)
