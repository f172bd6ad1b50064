"""What is measured of one prepared model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpu_models import (
    PreparedModel,
    call_of,
    check_greedy,
    check_logits,
    kernel_times,
    random_tokens,
    step_of,
    time_decode,
    time_prefill,
    time_session,
)

from infc.backends.cuda.runnable import CudaRunnable
from infc.backends.cuda.runtime.driver import Device
from infc.target.runnable import Phase

PROMPTS = (512, 2048)
POSITION = 512
"""Tokens in front of those that are decoded."""
STEPS = 100
BATCHES = (1, 8, 32)


def measure_model(
    model: PreparedModel, open_device: Callable[[], Device], real: Path | None = None
) -> dict[str, Any]:
    """Correctness and speed; of a tiny model whether its logits are right.

    Args:
        open_device: gives a device for each loaded model, which closes it.
        real: where the packed weights of real models are, if they are anywhere.
    """
    weights, origin = model.weights(real)
    runnable = model.open(open_device(), weights)
    found: dict[str, Any] = {"weights": origin, "allocated_bytes": runnable.allocated_bytes}
    found["persistent"] = runnable.is_persistent(Phase.DECODE)
    found["reason"] = model.signature["phases"]["decode"]["reason"]
    if (model.folder / "expected.npz").exists():
        found["problems"] = list(check_logits(model, runnable))
        separate = model.open(open_device(), weights, persistent=None)
        found["problems"] += [f"{problem} (separate)" for problem in check_logits(model, separate)]
        return found
    if (model.folder / "greedy.npz").exists() and origin == "the model's":
        found["greedy"] = check_greedy(model, runnable)
    found["prefill"] = [
        _prefill(model, runnable, tokens)
        for tokens in PROMPTS
        if tokens < runnable.limits.max_context
    ]
    batches = [b for b in BATCHES if b <= runnable.limits.max_slots]
    found["decode"] = [_decode(model, runnable, batch) for batch in batches]
    seconds = time_session(runnable, position=POSITION, steps=STEPS)
    found["session"] = {"seconds": seconds, "tokens_per_s": 1 / seconds["median"]}
    token = random_tokens(runnable.vocab_size, 1)
    prompt = random_tokens(runnable.vocab_size, min(2048, runnable.limits.max_tokens[0]))
    found["kernels"] = {
        "prefill": kernel_times(runnable, Phase.PREFILL, call_of(prompt, 0)),
        "decode": kernel_times(runnable, Phase.DECODE, step_of(token, POSITION)),
    }
    if runnable.is_persistent(Phase.DECODE):
        runnable.close()
        separate = model.open(open_device(), weights, persistent=None)
        found["decode"] += [_decode(model, separate, batch) for batch in batches[:1]]
        decode = kernel_times(separate, Phase.DECODE, step_of(token, POSITION))
        found["kernels"]["decode, separate"] = decode
    return found


def _prefill(model: PreparedModel, runnable: CudaRunnable, tokens: int) -> dict[str, Any]:
    seconds = time_prefill(runnable, tokens=tokens, repeats=10)
    row: dict[str, Any] = {
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_s": tokens / seconds["median"],
        "predicted_seconds": _predicted(model, "prefill", tokens),
    }
    library = _library_seconds(model, runnable, tokens)
    if library is not None:
        row |= {"library_seconds": library, "library_share": library / seconds["median"]}
    return row


def _decode(model: PreparedModel, runnable: CudaRunnable, batch: int) -> dict[str, Any]:
    seconds = time_decode(runnable, batch=batch, position=POSITION, steps=STEPS)
    moved = step_bytes(model, batch)
    new = _predicted(model, "decode", POSITION)
    return {
        "kind": "persistent" if runnable.is_persistent(Phase.DECODE) else "graph",
        "batch": batch,
        "seconds": seconds,
        "tokens_per_s": batch / seconds["median"],
        "bytes": moved,
        "bytes_per_s": moved / seconds["median"],
        "predicted_seconds": new if batch == 1 else None,
    }


def step_bytes(model: PreparedModel, batch: int) -> int:
    """Bytes that a step must read: each matrix once, the cache of each sequence."""
    signature = model.signature
    matrices = sum(e["size_bytes"] for e in model.facts["weights"] if e["layout"] != "rows")
    held = [min(capacity, POSITION) for capacity in signature["capacity"]]
    cache = 4 * signature["kv_heads"] * signature["head_dim"] * sum(held)
    return int(matrices + batch * cache)


def _predicted(model: PreparedModel, phase: str, prompt: int) -> float | None:
    """Seconds of a prompt, or of a token behind one, as the cost model says."""
    for use in model.facts["predicted"]:
        if use["prompt_tokens"] == prompt and use[phase]:
            each = use["new_tokens"] if phase == "decode" else 1
            return float(use[phase]["seconds"]) / each
    return None


def _library_seconds(model: PreparedModel, runnable: CudaRunnable, tokens: int) -> float | None:
    """What the matrix library takes for the products of a prompt; of the vocabulary one row."""
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    from gpu_ceilings import library_seconds

    return library_seconds(
        [
            (1 if e["n"] == runnable.vocab_size else tokens, e["n"], e["k"])
            for e in model.facts["weights"]
            if e["layout"] != "rows"
        ]
    )
