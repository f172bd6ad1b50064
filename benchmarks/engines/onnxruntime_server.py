"""ONNX Runtime GenAI behind the protocol of `protocol.py`; needs onnxruntime-genai.

Its generator shows the logits of the last position alone, so those of all positions come from the
same ONNX file in ONNX Runtime itself.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import onnxruntime_genai
from protocol import Stopwatch, serve


class OnnxRuntime:
    """One model in a folder that ONNX Runtime GenAI's model builder wrote."""

    def __init__(self, model: str, threads: int) -> None:
        self._folder = Path(model)
        self._threads = threads
        config = onnxruntime_genai.Config(model)
        options = {"intra_op_num_threads": threads}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        self._model = onnxruntime_genai.Model(config)
        self._logits: Any = None

    def hello(self) -> dict[str, Any]:
        return {
            "engine": "ONNX Runtime GenAI",
            "version": f"onnxruntime-genai {onnxruntime_genai.__version__}",
            "threads": self._threads,
            "system": "CPU execution provider",
        }

    def tokenize(self, text: str) -> dict[str, Any]:
        return {"ids": onnxruntime_genai.Tokenizer(self._model).encode(text).tolist()}

    def prefill(self, ids: list[int]) -> dict[str, Any]:
        generator = self._generator(len(ids) + 1)
        with Stopwatch() as watch:
            generator.append_tokens(np.array(ids, np.int32))
            generator.generate_next_token()
        return {"seconds": watch.seconds, "token": int(generator.get_next_tokens()[0])}

    def decode(self, ids: list[int], tokens: int) -> dict[str, Any]:
        # It stops at an end-of-text token, so it is told to expect none before the last.
        generator = self._generator(len(ids) + tokens + 1)
        generator.append_tokens(np.array(ids, np.int32))
        generator.generate_next_token()
        with Stopwatch() as watch:
            for _ in range(tokens):
                generator.generate_next_token()
        return {"seconds": watch.seconds, "token": int(generator.get_next_tokens()[0])}

    def logits(self, ids: list[int], path: str, stepwise: bool) -> dict[str, Any]:
        if self._logits is None:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = self._threads
            self._logits = onnxruntime.InferenceSession(self._folder / "model.onnx", options)
        cache = {
            past.name: np.zeros((1, past.shape[1], 0, past.shape[3]), np.float32)
            for past in self._logits.get_inputs()
            if past.name.startswith("past_key_values.")
        }
        size = 1 if stepwise else len(ids)
        rows = []
        for stop in range(size, len(ids) + 1, size):
            feeds = {
                "input_ids": np.array([ids[stop - size : stop]], np.int64),
                "attention_mask": np.ones((1, stop), np.int64),
            }
            wanted = ["logits", *(name.replace("past_key_values", "present") for name in cache)]
            piece, *present = self._logits.run(wanted, feeds | cache)
            cache = dict(zip(cache, present, strict=True))
            rows.append(piece[0])
        np.save(path, np.concatenate(rows).astype(np.float32))
        return {"shape": [len(ids), rows[0].shape[-1]]}

    def _generator(self, length: int) -> Any:
        settings = onnxruntime_genai.GeneratorParams(self._model)
        settings.set_search_options(max_length=length, min_length=length, do_sample=False)
        return onnxruntime_genai.Generator(self._model, settings)


def main() -> None:
    """Serve one model on stdin and stdout."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    serve(lambda: OnnxRuntime(arguments.model, arguments.threads))


if __name__ == "__main__":
    main()
