"""transformers on a GPU: static cache, the decoding step compiled and captured as a CUDA graph.

    python engines/transformers_gpu.py CONFIG.json --prompt 512 --new 128

The model has CONFIG's shape and random weights in bfloat16. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any


def main() -> None:
    """Measure prefill and greedy decoding."""
    import torch
    import transformers

    parser = argparse.ArgumentParser()
    parser.add_argument("config", type=Path)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--batch", type=int, default=1)
    asked = parser.parse_args()

    text = json.loads(asked.config.read_text())
    config = transformers.AutoConfig.for_model(**text)
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.eval()
    prompt = torch.randint(0, text["vocab_size"], (asked.batch, asked.prompt), device="cuda")

    def seconds(new: int) -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=False,
            cache_implementation="static",
            pad_token_id=0,
        )
        torch.cuda.synchronize()
        return time.perf_counter() - start

    # A static cache of a length is compiled for once: the first calls are not counted.
    begin = time.perf_counter()
    few, many = 8, 8 + asked.new
    for new in (many, many, few, few):
        seconds(new)
    warmup = time.perf_counter() - begin
    difference = statistics.median(seconds(many) - seconds(few) for _ in range(5))
    result: dict[str, Any] = {
        "engine": f"transformers {transformers.__version__}, torch {torch.__version__}, "
        "bfloat16, static cache, compiled",
        "batch": asked.batch,
        "prompt": asked.prompt,
        "decode_tokens_per_s": asked.batch * asked.new / difference,
        "warmup_seconds": warmup,
    }
    with torch.inference_mode():
        times = []
        for _ in range(8):
            torch.cuda.synchronize()
            start = time.perf_counter()
            model(prompt, use_cache=False, logits_to_keep=1)
            torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
    result["prefill_tokens_per_s"] = asked.batch * asked.prompt / statistics.median(times[3:])
    print(json.dumps(result))


if __name__ == "__main__":
    main()
