"""What an artifact's record says that each kernel moves and does."""

from __future__ import annotations

from typing import Any

from small_models import SmallModels

from infc.artifact import open_artifact


def prefill_kernels(small_models: SmallModels, prompt: int) -> list[dict[str, Any]]:
    model = small_models.model("gemma2", num_hidden_layers=2)
    path = small_models.artifact(model, "cpu:x86-64-v3", chunk=64, prompt_tokens=prompt)
    with open_artifact(path) as artifact:
        return list(artifact.manifest.cost_estimate["prefill"])


def test_a_kernel_that_selects_rows_reads_those_alone(small_models: SmallModels) -> None:
    """The vocabulary head is given the last position of a prompt, however long the prompt is."""
    selecting, others = [], []
    for prompt in (16, 64):
        rows = [k for k in prefill_kernels(small_models, prompt) if k["kind"] == "rows"]
        selecting.append([k["sizes"]["row_bytes"] for k in rows if k["rows"] == 1])
        others.append([k["sizes"]["row_bytes"] for k in rows if k["rows"] == prompt])
    assert len(selecting[0]) == 1
    assert selecting[0] == selecting[1]
    assert others[0]
    # A row's share of what all rows read once, its weights, is smaller where there are more.
    assert all(long <= short for short, long in zip(*others, strict=True))
