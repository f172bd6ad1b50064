"""llama.cpp behind the protocol of `protocol.py`; runs in a Python that has llama-cpp-python.

It calls the C interface directly and samples greedily in C, so that no more Python stands between
tokens than llama.cpp's own tools would have.
"""

from __future__ import annotations

import argparse
import ctypes
from typing import Any

import llama_cpp
import numpy as np
from protocol import Stopwatch, serve

BATCH = 512
"""Tokens that llama.cpp takes in one call."""


class LlamaCpp:
    """One model and one context, with llama.cpp's defaults."""

    def __init__(self, model: str, threads: int, max_context: int) -> None:
        llama_cpp.llama_backend_init()
        model_params = llama_cpp.llama_model_default_params()
        model_params.n_gpu_layers = 0
        self._threads = threads
        self._model = llama_cpp.llama_model_load_from_file(model.encode(), model_params)
        if not self._model:
            raise SystemExit(f"llama.cpp cannot load {model}")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = max_context
        params.n_batch = params.n_ubatch = BATCH
        params.n_threads = params.n_threads_batch = threads
        params.no_perf = True
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        self._size = llama_cpp.llama_vocab_n_tokens(self._vocab)
        self._greedy = llama_cpp.llama_sampler_init_greedy()

    def hello(self) -> dict[str, Any]:
        system = llama_cpp.llama_print_system_info().decode()
        return {
            "engine": "llama.cpp",
            "version": f"llama-cpp-python {llama_cpp.__version__}",
            "threads": self._threads,
            "system": system,
        }

    def tokenize(self, text: str) -> dict[str, Any]:
        data = text.encode()
        ids = (ctypes.c_int32 * (len(data) + 8))()
        count = llama_cpp.llama_tokenize(self._vocab, data, len(data), ids, len(ids), True, False)
        return {"ids": list(ids[:count])}

    def prefill(self, ids: list[int]) -> dict[str, Any]:
        self._clear()
        with Stopwatch() as watch:
            self._decode(ids)
            token = self._sample()
        return {"seconds": watch.seconds, "token": token}

    def decode(self, ids: list[int], tokens: int) -> dict[str, Any]:
        self._clear()
        self._decode(ids)
        token = self._sample()
        with Stopwatch() as watch:
            for _ in range(tokens):
                self._decode([token])
                token = self._sample()
        return {"seconds": watch.seconds, "token": token}

    def logits(self, ids: list[int], path: str, stepwise: bool) -> dict[str, Any]:
        self._clear()
        # The rows of one call are all that the library keeps.
        size = 1 if stepwise else BATCH
        pieces = [ids[start : start + size] for start in range(0, len(ids), size)]
        rows = np.concatenate([self._rows(piece) for piece in pieces])
        np.save(path, rows)
        return {"shape": list(rows.shape)}

    def _rows(self, ids: list[int]) -> Any:
        self._decode(ids, all_logits=True)
        rows = llama_cpp.llama_get_logits(self._context)
        # A copy: the next call writes into the same memory.
        return np.ctypeslib.as_array(rows, (len(ids), self._size)).copy()

    def _clear(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        self._position = 0

    def _decode(self, ids: list[int], all_logits: bool = False) -> None:
        for start in range(0, len(ids), BATCH):
            self._decode_batch(ids[start : start + BATCH], all_logits)

    def _decode_batch(self, ids: list[int], all_logits: bool) -> None:
        # The batch points into this array and does not keep it alive.
        tokens = (ctypes.c_int32 * len(ids))(*ids)
        batch = llama_cpp.llama_batch_get_one(tokens, len(ids))
        if all_logits:
            wanted = (ctypes.c_int8 * len(ids))(*[1] * len(ids))
            batch.logits = ctypes.cast(wanted, ctypes.POINTER(ctypes.c_int8))
        status = llama_cpp.llama_decode(self._context, batch)
        if status != 0:
            raise RuntimeError(f"llama_decode returned {status}")
        # Evaluation is asynchronous: without this the clock would stop too early.
        llama_cpp.llama_synchronize(self._context)

    def _sample(self) -> int:
        return int(llama_cpp.llama_sampler_sample(self._greedy, self._context, -1))


def main() -> None:
    """Serve one model on stdin and stdout."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--max-context", type=int, default=1024)
    arguments = parser.parse_args()
    serve(lambda: LlamaCpp(arguments.model, arguments.threads, arguments.max_context))


if __name__ == "__main__":
    main()
