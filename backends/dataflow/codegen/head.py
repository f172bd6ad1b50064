"""The best token: each core's best column, then the best of those on the first core."""

from __future__ import annotations

from infc.backends.dataflow.codegen.builder import CoreProgram
from infc.backends.dataflow.codegen.exchange import exchange
from infc.backends.dataflow.codegen.memory import Buffer
from infc.backends.dataflow.codegen.scope import Scope
from infc.backends.dataflow.codegen.stream import Count
from infc.backends.dataflow.codegen.values import Columns

PAIR_BYTES = 8
"""An f32 and its i32 index."""


def emit_best(scope: Scope, logits: Columns) -> Buffer:
    """(value, index) of the largest logit of each row, on the first core: `[rows][2]`."""
    space = logits.space
    row_bytes = space.most * PAIR_BYTES
    best = scope.group.buffer("best", row_bytes, forever=True)
    found = scope.buffer("best.of", len(scope.cores) * row_bytes)
    there = [core for core, (first, stop) in enumerate(logits.slices) if stop > first]
    for core in scope.cores:
        first, stop = logits.slices[core.index]
        v = core.vector
        with v.stepping(scope.total(v, space), logits.row_bytes, PAIR_BYTES) as (row, pair):
            for at, count in scope.group.pieces(stop - first):
                place = logits.buffer.at(4 * at, row)
                v.v_argmax(best.at(0, pair), place, count, first=first + at, acc=at > 0)

    def sender(core: CoreProgram, arrived: str, sent: str) -> Count:
        if core.index not in there:
            return 0
        core.send.send(
            found.at(core.index * row_bytes), best, PAIR_BYTES, scope.total(core.send, space),
            scope.group.area.one(0), stride_d=PAIR_BYTES, stride_a=PAIR_BYTES,
            signal=arrived, sent=sent,
        )  # fmt: skip
        return 1

    exchange(scope, sender, lambda core: 0 if core.index else len(there), [found])
    v = scope.cores[0].vector
    with v.stepping(scope.total(v, space), PAIR_BYTES) as (pair,):
        for number in there:
            v.v_merge(best.at(0, pair), found.at(number * row_bytes, pair))
    return best
