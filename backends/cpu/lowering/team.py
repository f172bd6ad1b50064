"""The exported functions of a team: helper threads that stay in native code between calls.

    caller:  infc_lead(team, phase, call, threads)     meets, runs as thread 0, meets again
    helper:  infc_help(team, thread, threads)          the same for every call, until dismissed

A helper that waits for its next call waits as at any barrier: it spins, then sleeps. So a
call that follows soon after another one finds its threads awake and starts within a microsecond.
"""

from __future__ import annotations

from collections.abc import Sequence

from infc.backends.cpu.codegen.builder import Builder, Value
from infc.backends.cpu.kernels.sync import BARRIER_BYTES, BARRIER_NAME
from infc.backends.cpu.lowering import abi

_CALL_OFFSET = BARRIER_BYTES
_PHASE_OFFSET = BARRIER_BYTES + 8
TEAM_BYTES = BARRIER_BYTES + 64
"""State of a team: a barrier, then what its helpers run next; 64-byte aligned, zeroed once."""

DISMISS = -1
"""The phase that ends the helpers instead of running a program."""


def emit_team(b: Builder, programs: Sequence[str]) -> None:
    """Define `infc_lead` and `infc_help`; `programs` are exported functions, by phase."""
    _emit_lead(b, programs)
    _emit_help(b, programs)


def _emit_lead(b: Builder, programs: Sequence[str]) -> None:
    arguments = [b.ptr, b.i32, b.ptr, b.i32]
    with b.function("infc_lead", arguments, [b.i32], private=False) as values:
        team, phase, call, threads = values
        # The helpers are behind the second meeting of the call before: none reads these any more.
        b.store(call, b.at(team, _CALL_OFFSET), 8)
        b.store(phase, b.at(team, _PHASE_OFFSET), 4)
        _meet(b, team, b.const(0, b.i32), threads)
        status = _run(b, programs, phase, call, b.const(0, b.i32), threads)
        # Whatever the program returned early for: the caller may take `call` back now.
        _meet(b, team, b.const(0, b.i32), threads)
        b.ret(status)


def _emit_help(b: Builder, programs: Sequence[str]) -> None:
    with b.function("infc_help", [b.ptr, b.i32, b.i32], private=False) as values:
        team, thread, threads = values

        def is_called() -> Value:
            _meet(b, team, thread, threads)
            return b.cmp("ne", b.load(b.at(team, _PHASE_OFFSET), b.i32, 4), DISMISS)

        def serve() -> list[Value]:
            phase = b.load(b.at(team, _PHASE_OFFSET), b.i32, 4)
            call = b.load(b.at(team, _CALL_OFFSET), b.ptr, 8)
            _run(b, programs, phase, call, thread, threads)
            _meet(b, team, thread, threads)
            return []

        b.loop_while([], is_called, serve)
        _meet(b, team, thread, threads)
        b.ret()


def _meet(b: Builder, team: Value, thread: Value, threads: Value) -> None:
    b.call(BARRIER_NAME, [team, b.as_i64(thread), b.as_i64(threads)])


def _run(
    b: Builder, programs: Sequence[str], phase: Value, call: Value, thread: Value, threads: Value
) -> Value:
    """The status of the program of a phase; a phase that there is none of is out of range."""
    status = b.const(abi.OUT_OF_RANGE, b.i32)
    for number, name in enumerate(programs):

        def run(name: str = name) -> list[Value]:
            return b.call(name, [call, thread, threads], [b.i32])

        def skip(status: Value = status) -> list[Value]:
            return [status]

        (status,) = b.when(b.cmp("eq", phase, number), run, skip, [b.i32])
    return status
