"""Branches, loops and calls, for threads that may not all go the same way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from infc.backends.cuda.lockstep.memory import Array
from infc.backends.cuda.lockstep.reading import FunctionReader, Region, Step, Waits
from infc.backends.cuda.lockstep.threads import (
    Registers,
    Running,
    Threads,
    Where,
    narrow,
    spread,
    together,
)
from infc.ir.mlir import ir


def _finished(go: Callable[[Registers, Threads], Running], waiting: bool) -> Step | Waits:
    """A step of what may wait, or of what never does."""
    if waiting:
        return Waits(go)

    def step(r: Registers, t: Threads) -> None:
        for _ in go(r, t):
            pass

    return step


def _run(region: Region, r: Registers, t: Threads) -> Running:
    if region.waiting:
        yield from region.go(r, t)
    else:
        region.run(r, t)


def _set(r: Registers, slots: list[int], values: list[Any]) -> None:
    for slot, value in zip(slots, values, strict=True):
        r[slot] = value


# ---- if ------------------------------------------------------------------------------------------


def _if(fn: FunctionReader, op: Any, where: Where) -> Step | Waits:
    (c,) = fn.operands(op)
    then = fn.region(op.regions[0])
    other = fn.region(op.regions[1]) if len(op.regions[1].blocks) else Region(fn)
    slots = fn.results(op)
    waiting = then.waiting or other.waiting

    def go(r: Registers, t: Threads) -> Running:
        condition = r[c]
        true = np.count_nonzero(condition)
        if true in (0, len(condition)):
            side = then if true else other
            if side.waiting:
                yield from side.go(r, t)
            else:
                side.run(r, t)
            _set(r, slots, side.results(r))
            return
        sides = [
            (region, part, region.enter(r, part))
            for region, part in ((then, t.part(condition)), (other, t.part(~condition)))
            if region.steps or slots
        ]
        if waiting:
            yield from together(t.machine, [_run(region, i, part) for region, part, i in sides])
        else:
            for region, part, inner in sides:
                region.run(inner, part)
        for place, slot in enumerate(slots):
            values = [(inner[region.yields[place]], part.places) for region, part, inner in sides]
            r[slot] = spread(values, t.count)

    return _finished(go, waiting)


# ---- for -----------------------------------------------------------------------------------------


def _for(fn: FunctionReader, op: Any, where: Where) -> Step | Waits:
    low, high, by, *start = fn.operands(op)
    dtype = fn.kind(op.operands[0]).dtype
    body = fn.region(op.regions[0])
    slots = fn.results(op)
    counter, *carried = body.arguments

    def go(r: Registers, t: Threads) -> Running:
        first, last, step = r[low], r[high], r[by]
        values = [r[slot] for slot in start]
        if len(first) == len(last) == len(step) == 1:
            for i in range(int(first[0]), int(last[0]), int(step[0])):
                r[counter] = np.array([i], dtype)
                _set(r, carried, values)
                if body.waiting:
                    yield from body.go(r, t)
                else:
                    body.run(r, t)
                values = body.results(r)
        else:
            trips = np.maximum((last.astype(np.int64) - first + step - 1) // step, 0)
            yield from _uneven(r, t, trips, first, step, values)
        _set(r, slots, values)

    def _uneven(
        r: Registers, t: Threads, trips: Array, first: Array, step: Array, values: list[Any]
    ) -> Running:
        """Threads with other counts; `values` is what they carry, changed in place."""
        done = 0
        for until in np.unique(trips):
            if until == done:
                continue
            mask = trips > done
            everybody = bool(mask.all())
            part = t if everybody else t.part(mask)
            index = np.arange(t.count) if everybody else part.places
            inner = r if everybody else body.enter(r, part)
            own = [narrow(value, index) for value in values]
            at, stride = narrow(first, index), narrow(step, index)
            for i in range(done, int(until)):
                inner[counter] = (at + i * stride).astype(dtype)
                _set(inner, carried, own)
                if body.waiting:
                    yield from body.go(inner, part)
                else:
                    body.run(inner, part)
                own = body.results(inner)
            others = np.flatnonzero(~mask)
            for place, value in enumerate(own):
                if everybody:
                    values[place] = value
                else:
                    old = narrow(values[place], others)
                    values[place] = spread([(old, others), (value, index)], t.count)
            done = int(until)

    return _finished(go, body.waiting)


def _differ(a: Any, b: Any) -> bool:
    return a is not b and not np.array_equal(a, b)


# ---- while ---------------------------------------------------------------------------------------


def _while(fn: FunctionReader, op: Any, where: Where) -> Step | Waits:
    start = fn.operands(op)
    before, after = fn.region(op.regions[0]), fn.region(op.regions[1])
    slots = fn.results(op)
    c, *handed = before.yields
    spins = before.looks or after.looks
    waiting = spins or before.waiting or after.waiting

    def go(r: Registers, t: Threads) -> Running:
        machine = t.machine
        part, inner, index = t, r, np.arange(t.count)
        values: list[Any] = [r[slot] for slot in start]
        ended: list[tuple[list[Any], Array]] = []
        while True:
            _set(inner, before.arguments, values)
            yield from _run(before, inner, part)
            condition = inner[c]
            values = [inner[slot] for slot in handed]
            true = np.count_nonzero(condition)
            if true < len(condition):
                if true == 0:
                    ended.append((values, index))
                    break
                out = np.flatnonzero(~condition)
                ended.append(([narrow(value, out) for value in values], index[out]))
                smaller = part.part(condition)
                fresh = fn.constants.copy()
                for slot in {*before.outer, *after.outer}:
                    fresh[slot] = narrow(inner[slot], smaller.places)
                values = [narrow(value, smaller.places) for value in values]
                part, inner, index = smaller, fresh, index[smaller.places]
            _set(inner, after.arguments, values)
            yield from _run(after, inner, part)
            before_it, values = values, after.results(inner)
            if spins:
                machine.progress += any(map(_differ, before_it, values))
                machine.waiting[part] = (where, lambda: "goes round")
                yield
                machine.waiting.pop(part, None)
        if len(ended) == 1:
            _set(r, slots, ended[0][0])
            return
        for place, slot in enumerate(slots):
            r[slot] = spread([(handed[place], which) for handed, which in ended], t.count)

    return _finished(go, waiting)


# ---- call ----------------------------------------------------------------------------------------


def _call(fn: FunctionReader, op: Any, where: Where) -> Step | Waits:
    slots = fn.operands(op)
    callee = fn.program.function(ir.FlatSymbolRefAttr(op.attributes["callee"]).value)
    fn.looks(callee.body.looks)
    results = fn.results(op)
    body = callee.body

    def go(r: Registers, t: Threads) -> Running:
        inner = callee.constants.copy()
        _set(inner, body.arguments, [r[slot] for slot in slots])
        if body.waiting:
            yield from body.go(inner, t)
        else:
            body.run(inner, t)
        _set(r, results, body.results(inner))

    return _finished(go, body.waiting)


READERS: dict[str, Callable[[FunctionReader, Any, Where], Step | Waits | None]] = {
    "scf.if": _if,
    "scf.for": _for,
    "scf.while": _while,
    "func.call": _call,
}
