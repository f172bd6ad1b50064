"""The threads of a call: the caller's own and helpers that wait in native code between calls.

The caller leads: it runs thread 0 inside one native call that returns when all threads are done
with the call's memory. A signal handler of Python's runs before or after such a call, never in it,
so KeyboardInterrupt cannot leave a program running behind the caller's back.
"""

from __future__ import annotations

import ctypes
import os
import threading
import weakref

from infc.backends.cpu.guarded_memory import GuardedMemory
from infc.backends.cpu.lowering.team import DISMISS, TEAM_BYTES
from infc.diagnostics import Code, UserError


class Team:
    """Runs calls on a fixed number of threads, one call at a time.

    Helpers are daemon threads: they hold nothing that must be given back, and a process may end
    while they wait.

    Raises:
        UserError: the system cannot start so many threads; none is left then.
    """

    def __init__(self, library: ctypes.CDLL, threads: int) -> None:
        self.threads = threads
        self._process = os.getpid()
        self._lead = library.infc_lead
        self._lead.argtypes = [ctypes.c_void_p, ctypes.c_int32, ctypes.c_void_p, ctypes.c_int32]
        self._lead.restype = ctypes.c_int32
        serve = library.infc_help
        serve.argtypes = [ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32]
        serve.restype = None
        self._state = GuardedMemory(TEAM_BYTES)
        muster = _Muster()
        self._end = weakref.finalize(
            self, _dismiss, self._lead, self._state, threads, muster, self._process
        )
        # Helpers sleep through the end of the process; nothing has to wake them for it.
        self._end.atexit = False
        try:
            for thread in range(1, threads):
                threading.Thread(
                    target=_help,
                    args=(serve, self._state, thread, threads, muster),
                    name=f"infc-helper-{thread}",
                    daemon=True,
                ).start()
            muster.complete = True
        except RuntimeError as error:
            raise UserError(
                Code.OPTION,
                f"the system cannot start {threads} threads",
                hint="choose fewer (--threads)",
            ) from error
        finally:
            muster.over.set()

    def fits(self, threads: int) -> bool:
        """Whether it can run a call on so many threads: a forked process has no helpers."""
        return self.threads == threads and self._process == os.getpid()

    def run(self, phase: int, call: int) -> int:
        """Run a program on what is at an address, an `infc_call`; its status.

        `phase` is its number among the functions that the library's `infc_lead` runs.
        """
        return int(self._lead(self._state.address, phase, call, self.threads))

    def dismiss(self) -> None:
        """End the helpers; no call may be under way, and none may follow."""
        self._end()


class _Muster:
    """Helpers wait until it is `over`; they serve if it is then `complete`: all of them or none.

    A program waits for all of its threads, so some of them alone would wait for ever.
    """

    def __init__(self) -> None:
        self.over = threading.Event()
        self.complete = False


def _help(
    serve: ctypes._NamedFuncPointer,
    state: GuardedMemory,
    thread: int,
    threads: int,
    muster: _Muster,
) -> None:
    """A helper thread; it keeps the team's memory alive."""
    muster.over.wait()
    if muster.complete:
        serve(state.address, thread, threads)


def _dismiss(
    lead: ctypes._NamedFuncPointer,
    state: GuardedMemory,
    threads: int,
    muster: _Muster,
    process: int,
) -> None:
    if muster.complete and process == os.getpid():
        lead(state.address, DISMISS, None, threads)
