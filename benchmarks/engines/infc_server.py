"""infc behind the protocol of `protocol.py`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from protocol import Stopwatch, serve

import infc
from infc.runtime.sampling import Sampler, SamplingOptions


class Infc:
    """One session on one artifact, compiled beforehand or here.

    With `full_head`, each step makes all logits and chooses outside the program, as a sampler
    without a limit does; else the program chooses, and may skip rows of the head that cannot win.
    """

    def __init__(
        self, model: str, threads: int, target: str, max_context: int, full_head: bool
    ) -> None:
        self._threads = threads
        self._full_head = full_head
        artifact: Any = model
        if not model.endswith(".infc"):
            artifact = infc.compile(Path(model), target=target, max_context=max_context)
        self._session = infc.load(artifact, threads=threads)
        self._target = target
        self._greedy = Sampler(SamplingOptions(temperature=0.0))

    def hello(self) -> dict[str, Any]:
        return {
            "engine": "infc",
            "version": f"infc {infc.__version__}",
            "threads": self._threads,
            "system": f"target {self._target}{', full head' if self._full_head else ''}",
        }

    def tokenize(self, text: str) -> dict[str, Any]:
        return {"ids": self._session.tokenizer.encode(text)}

    def prefill(self, ids: list[int]) -> dict[str, Any]:
        self._session.reset()
        with Stopwatch() as watch:
            token = self._first(ids)
        return {"seconds": watch.seconds, "token": token}

    def decode(self, ids: list[int], tokens: int) -> dict[str, Any]:
        self._session.reset()
        token = self._first(ids)
        with Stopwatch() as watch:
            for _ in range(tokens):
                token = self._next(token)
        return {"seconds": watch.seconds, "token": token}

    def _first(self, ids: list[int]) -> int:
        if self._full_head:
            return int(self._session.prefill(ids).argmax())
        return self._session.prefill_next(ids, self._greedy)

    def _next(self, token: int) -> int:
        if self._full_head:
            return int(self._session.decode(token).argmax())
        return self._session.next_token(self._greedy)

    def logits(self, ids: list[int], path: str, stepwise: bool) -> dict[str, Any]:
        self._session.reset()
        if stepwise:
            rows = np.stack([self._session.prefill(ids[:1]), *map(self._session.decode, ids[1:])])
        else:
            rows = self._session.prefill(ids, all_logits=True)
        np.save(path, rows)
        return {"shape": list(rows.shape)}


def main() -> None:
    """Serve one model on stdin and stdout."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--target", default="cpu")
    parser.add_argument("--max-context", type=int, default=1024)
    parser.add_argument("--full-head", action="store_true")
    arguments = parser.parse_args()
    serve(
        lambda: Infc(
            arguments.model,
            arguments.threads,
            arguments.target,
            arguments.max_context,
            arguments.full_head,
        )
    )


if __name__ == "__main__":
    main()
