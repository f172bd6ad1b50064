"""Computes the golden logits of the tiny families with transformers, in float32.

Run by hand, `python tests/oracle/make_golden.py`, where torch and transformers are installed; the
tests read the stored results and need neither. One file a family, `golden/<family>.npz`:

- `ids`: int64 `[45]`, the prompt; shorter prompts are its beginnings.
- `positions`: int64 `[p]`, at which logits are kept.
- `logits`: float32 `[p, vocab]`. Attention is causal, so they hold for every prompt that is long
  enough; this script checks that they do.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from oracle.families import FAMILY_NAMES, make_family
from oracle.files import write_huggingface

GOLDEN = Path(__file__).resolve().parent / "golden"
LENGTHS = (1, 2, 7, 33, 45)
# Beginnings and ends of every prompt, both sides of the window (12) and of the chunks (16).
POSITIONS = (0, 1, 2, 6, 10, 11, 12, 13, 15, 16, 17, 23, 24, 31, 32, 33, 40, 44)


def main() -> None:
    """Write one file a family and print how the logits spread."""
    GOLDEN.mkdir(exist_ok=True)
    for name in FAMILY_NAMES:
        config, tensors = make_family(name)
        rng = np.random.default_rng(45)
        ids = rng.integers(3, config["vocab_size"], LENGTHS[-1])
        with tempfile.TemporaryDirectory() as folder:
            write_huggingface(Path(folder), config, tensors, "F32")
            model = transformers.AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, attn_implementation="eager"
            )
        with torch.no_grad():
            by_length = {n: model(torch.tensor(ids[None, :n])).logits[0].numpy() for n in LENGTHS}
        full = by_length[LENGTHS[-1]]
        for length, logits in by_length.items():
            np.testing.assert_allclose(logits, full[:length], atol=2e-5, rtol=0)
        kept = full[list(POSITIONS)].astype(np.float32)
        np.savez_compressed(
            GOLDEN / f"{name}.npz", ids=ids, positions=np.array(POSITIONS), logits=kept
        )
        print(f"{name}: logits std {kept.std():.2f}, from {kept.min():.2f} to {kept.max():.2f}")


if __name__ == "__main__":
    main()
