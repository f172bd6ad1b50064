"""How a benchmark talks to an engine: one JSON object a line, over the engine's stdin and stdout.

An engine is a process of its own that stays alive, so that both sides of a comparison stay warm
while one of them is idle, and so that each can live in its own Python environment. Requests are
`{"op": NAME, ...arguments}`; the answer is the operation's result, or `{"error": TEXT}`. Every
engine's command takes `--threads N`.

| operation | arguments | result |
|---|---|---|
| hello | | engine, version, threads, system; load_seconds, without Python's imports |
| tokenize | text | ids, with the model's beginning-of-text token |
| prefill | ids | seconds from an empty cache to the first token, token |
| decode | ids, tokens | seconds for so many further greedy tokens, token |
| logits | ids, path, stepwise | writes float32 `[len(ids), vocab]` to a .npy file; shape |

`stepwise` appends the ids one at a time, as decoding does: engines may compute in other forms then.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, Protocol


class Engine(Protocol):
    """What a server offers; see the table above."""

    def hello(self) -> dict[str, Any]: ...
    def tokenize(self, text: str) -> dict[str, Any]: ...
    def prefill(self, ids: list[int]) -> dict[str, Any]: ...
    def decode(self, ids: list[int], tokens: int) -> dict[str, Any]: ...
    def logits(self, ids: list[int], path: str, stepwise: bool) -> dict[str, Any]: ...


class Stopwatch:
    """Wall seconds of a `with` block."""

    seconds: float

    def __enter__(self) -> Stopwatch:
        self._start = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._start


def serve(build: Callable[[], Engine]) -> None:
    """Answer requests until stdin ends; what the engine itself prints goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with Stopwatch() as loading:
        engine = build()
    operations = ("hello", "tokenize", "prefill", "decode", "logits")
    for line in sys.stdin:
        request = json.loads(line)
        op = request.pop("op")
        if op in operations:
            answer = getattr(engine, op)(**request)
        else:
            answer = {"error": f"unknown operation {op}"}
        if op == "hello":
            answer["load_seconds"] = loading.seconds
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


class EngineError(Exception):
    """An engine died or refused; the text is its own."""


class Client:
    """Starts an engine and calls it; a context manager that ends it."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = list(command)
        self._log = os.memfd_create("engine-log")
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Of the engine's process."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the engine's process runs."""
        return self._process.poll() is None

    def close(self) -> None:
        """End the engine's process."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it died with a request unread
            self._process.stdin.close()
        self._process.wait(30)
        os.close(self._log)

    def call(self, op: str, **arguments: Any) -> dict[str, Any]:
        """One request.

        Raises:
            EngineError: with the engine's own words.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"op": op, **arguments}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self._give_up(op)
        line = self._process.stdout.readline()
        if not line:
            self._give_up(op)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise EngineError(f"{self._command[0]}: {answer['error']}")
        return answer

    def peak_resident_bytes(self) -> int:
        """The most memory the engine's process has held, pages of files that it maps included."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024

    def _give_up(self, op: str) -> NoReturn:
        self._process.wait(30)
        log = os.pread(self._log, os.fstat(self._log).st_size, 0).decode(errors="replace")
        said = "\n".join(log.splitlines()[-20:])
        raise EngineError(f"{shlex.join(self._command)} died in {op}:\n{said}")
