"""transformers on PyTorch behind the protocol of `protocol.py`; needs torch and transformers."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
import transformers
from protocol import Stopwatch, serve


class Transformers:
    """A Hugging Face folder, eager or with the decoding step through `torch.compile`.

    Prompts stay eager, as in transformers' own `generate`. The step is compiled once for a cache of
    any length: a static cache keeps the length of its sliding windows as a Python number, which
    would compile the step anew for every position.
    """

    def __init__(self, model: str, threads: int, dtype: str, compiled: bool) -> None:
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self._threads = threads
        self._dtype = dtype
        self._folder = model
        self._model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            model, dtype=getattr(torch, dtype), attn_implementation="sdpa"
        ).eval()
        self._compiled = compiled
        forward = self._model.forward
        self._step: Any = torch.compile(forward, dynamic=True) if compiled else forward

    def hello(self) -> dict[str, Any]:
        return {
            "engine": "transformers",
            "version": f"transformers {transformers.__version__}, torch {torch.__version__}",
            "threads": self._threads,
            "system": f"{self._dtype}, {'compiled decoding' if self._compiled else 'eager'}",
        }

    def tokenize(self, text: str) -> dict[str, Any]:
        return {"ids": transformers.AutoTokenizer.from_pretrained(self._folder)(text).input_ids}

    def prefill(self, ids: list[int]) -> dict[str, Any]:
        cache = transformers.DynamicCache(config=self._model.config)
        with Stopwatch() as watch:
            token = self._run(self._model.forward, ids, 0, cache)
        return {"seconds": watch.seconds, "token": token}

    def decode(self, ids: list[int], tokens: int) -> dict[str, Any]:
        cache = transformers.DynamicCache(config=self._model.config)
        token = self._run(self._model.forward, ids, 0, cache)
        with Stopwatch() as watch:
            for position in range(len(ids), len(ids) + tokens):
                token = self._run(self._step, [token], position, cache)
        return {"seconds": watch.seconds, "token": token}

    def logits(self, ids: list[int], path: str, stepwise: bool) -> dict[str, Any]:
        cache = transformers.DynamicCache(config=self._model.config)
        pieces = [[token] for token in ids] if stepwise else [ids]
        rows = [
            self._model(torch.tensor([piece]), past_key_values=cache).logits[0].float().numpy()
            for piece in pieces
        ]
        np.save(path, np.concatenate(rows))
        return {"shape": [len(ids), rows[0].shape[-1]]}

    def _run(self, forward: Any, ids: list[int], position: int, cache: Any) -> int:
        logits = forward(
            input_ids=torch.tensor([ids]),
            past_key_values=cache,
            cache_position=torch.arange(position, position + len(ids)),
            logits_to_keep=1,
            use_cache=True,
        ).logits
        return int(logits[0, -1].argmax())


def main() -> None:
    """Serve one model on stdin and stdout."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--compile", action="store_true")
    arguments = parser.parse_args()
    serve(
        lambda: Transformers(arguments.model, arguments.threads, arguments.dtype, arguments.compile)
    )


if __name__ == "__main__":
    main()
