"""Calls that Ctrl-C can stop.

Python delivers KeyboardInterrupt to the main thread between bytecodes, so a program that runs in
the main thread cannot be interrupted and a backend would have to survive an exception anywhere.
Here the program runs in a thread of its own and the main thread waits: an interrupt sets the
program's cancel flag, and is raised once the program has come back.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

from infc.target.runnable import Cancellation

Result = TypeVar("Result")

_LOOKS_SECONDS = 0.1
"""How late an interrupt may be noticed at worst."""


class InterruptibleCalls:
    """Runs one call after another in one kept thread (about 20 us a call)."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._process = 0

    def run(self, call: Callable[[Cancellation], Result]) -> Result:
        """`call(cancel)`; only the main thread gets KeyboardInterrupt, others call directly."""
        cancel = Cancellation()
        if threading.current_thread() is not threading.main_thread():
            return call(cancel)
        if self._pool is None or self._process != os.getpid():
            # A forked process has the pool's object and not its thread.
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="infc-call")
            self._process = os.getpid()
        try:
            future = self._pool.submit(call, cancel)
            # A signal that comes just before a wait begins does not end it: look again soon.
            while not future.done():
                wait([future], _LOOKS_SECONDS)
            return future.result()
        except KeyboardInterrupt:
            cancel.set()
            self._wait_until_idle()
            raise

    def _wait_until_idle(self) -> None:
        """Wait for the call under way, whether or not the interrupt left us its future.

        A second interrupt must not leave while the program still writes to the KV cache.
        """
        assert self._pool is not None
        idle = threading.Event()
        self._pool.submit(idle.set)
        while not idle.is_set():
            try:
                idle.wait()
            except KeyboardInterrupt:
                continue
