"""OpenVINO GenAI behind the protocol of `protocol.py`; runs in a Python that has openvino-genai.

Speed is that of `LLMPipeline`, the interface its users call; it gives no logits, so those come from
the same model compiled with the same properties by OpenVINO itself.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino_genai
from protocol import Stopwatch, serve


class OpenVino:
    """One pipeline on a folder that optimum-cli exported."""

    def __init__(self, model: str, threads: int, properties: dict[str, str]) -> None:
        self._model = model
        self._threads = threads
        self._properties = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": str(threads),
            **properties,
        }
        # The prompt's work must be done each time: the paged pipeline would remember its prefix.
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.enable_prefix_caching = False
        self._pipeline = openvino_genai.LLMPipeline(
            model, "CPU", scheduler_config=scheduler, **self._properties
        )
        self._logits: Any = None

    def hello(self) -> dict[str, Any]:
        return {
            "engine": "OpenVINO GenAI",
            "version": f"openvino-genai {openvino_genai.__version__}",
            "threads": self._threads,
            "system": ", ".join(f"{key}={value}" for key, value in self._properties.items()),
        }

    def tokenize(self, text: str) -> dict[str, Any]:
        ids = self._pipeline.get_tokenizer().encode(text).input_ids
        return {"ids": ids.data[0].tolist()}

    def prefill(self, ids: list[int]) -> dict[str, Any]:
        with Stopwatch() as watch:
            result = self._generate(ids, 1)
        return {"seconds": watch.seconds, "token": int(result.tokens[0][-1])}

    def decode(self, ids: list[int], tokens: int) -> dict[str, Any]:
        result = self._generate(ids, tokens + 1)
        times = result.perf_metrics.raw_metrics.m_new_token_times
        if len(times) != tokens + 1:
            raise RuntimeError(f"asked for {tokens + 1} tokens, got {len(times)}")
        # The pipeline's own clock, in milliseconds: from the first new token to the last.
        return {"seconds": (times[-1] - times[0]) / 1e3, "token": int(result.tokens[0][-1])}

    def logits(self, ids: list[int], path: str, stepwise: bool) -> dict[str, Any]:
        if self._logits is None:
            xml = Path(self._model) / "openvino_model.xml"
            compiled = openvino.Core().compile_model(xml, "CPU", self._properties)
            self._logits = compiled.create_infer_request()
        self._logits.reset_state()
        size = 1 if stepwise else len(ids)
        rows = np.concatenate([self._rows(ids, i, i + size) for i in range(0, len(ids), size)])
        np.save(path, rows)
        return {"shape": list(rows.shape)}

    def _rows(self, ids: list[int], start: int, stop: int) -> Any:
        inputs = {
            "input_ids": np.array([ids[start:stop]], np.int64),
            "attention_mask": np.ones((1, stop), np.int64),
            "position_ids": np.arange(start, stop, dtype=np.int64)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        return self._logits.infer(inputs)["logits"][0].astype(np.float32)

    def _generate(self, ids: list[int], tokens: int) -> Any:
        settings = openvino_genai.GenerationConfig()
        settings.max_new_tokens = tokens
        settings.ignore_eos = True
        settings.do_sample = False
        shape = (1, len(ids))
        inputs = openvino_genai.TokenizedInputs(
            openvino.Tensor(np.array(ids, np.int64).reshape(shape)),
            openvino.Tensor(np.ones(shape, np.int64)),
        )
        return self._pipeline.generate(inputs, settings)


def main() -> None:
    """Serve one model on stdin and stdout."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--set", action="append", default=[], metavar="PROPERTY=VALUE")
    arguments = parser.parse_args()
    properties = dict(item.split("=", 1) for item in arguments.set)
    serve(lambda: OpenVino(arguments.model, arguments.threads, properties))


if __name__ == "__main__":
    main()
