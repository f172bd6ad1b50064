"""Tiny models and their artifacts, each made once for all tests that ask for the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from oracle.families import make_family
from oracle.files import BLOCK_STORAGE, write_gguf, write_huggingface

import infc
from infc.artifact import open_artifact
from infc.driver.loading import load_runnable
from infc.target.runnable import Call, KVCache, Phase, Runnable

MAX_CONTEXT, CHUNK, SLOTS = 64, 16, 3

GGUF = (*BLOCK_STORAGE, "GGUF-F16")
"""Storage types that need a GGUF file; `F32`, `F16` and `BF16` make a Hugging Face folder."""


class SmallModels:
    """Files of tiny families, and artifacts of them, in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: dict[str, Path] = {}

    def model(self, family: str, storage: str = "F32", **changes: object) -> Path:
        """The file or folder of a family; `changes` are entries of its configuration."""
        key = f"{family} {storage} {changes}"
        if key not in self._made:
            config, tensors = make_family(family, **changes)
            path = self._folder / f"model{len(self._made)}"
            if storage in GGUF:
                path = path.with_suffix(".gguf")
                write_gguf(path, config, tensors, storage.removeprefix("GGUF-"))
            else:
                path.mkdir()
                write_huggingface(path, config, tensors, storage)
            self._made[key] = path
        return self._made[key]

    def artifact(self, model: Path, target: str, **options: object) -> Path:
        """The artifact of a model: a context of 64, chunks of 16, three slots unless said."""
        asked = {"max_context": MAX_CONTEXT, "chunk": CHUNK, "max_batch": SLOTS, **options}
        key = f"{model} {target} {asked}"
        if key not in self._made:
            path = self._folder / f"artifact{len(self._made)}.infc"
            infc.compile(model, target=target, output=path, **asked)  # type: ignore[arg-type]
            self._made[key] = path
        return self._made[key]

    def runnable(self, model: Path, target: str, **options: object) -> Runnable:
        """The loaded programs of `artifact`."""
        return load_runnable(open_artifact(self.artifact(model, target, **options)))


def make_call(
    sequences: Sequence[Sequence[int]],
    *,
    slots: Sequence[int] | None = None,
    starts: Sequence[int] | None = None,
) -> Call:
    """A call that appends tokens to sequences and asks for the logits of every token."""
    lengths = [len(sequence) for sequence in sequences]
    starts = starts or [0] * len(sequences)
    positions = [np.arange(s, s + n) for s, n in zip(starts, lengths, strict=True)]
    return Call(
        tokens=np.concatenate([np.array(s) for s in sequences]).astype(np.int32),
        row_offsets=np.cumsum([0, *lengths]).astype(np.int32),
        slots=np.array(slots or range(len(sequences)), np.int32),
        positions=np.concatenate(positions).astype(np.int32),
        logit_rows=np.arange(sum(lengths), dtype=np.int32),
    )


def feed(
    runnable: Runnable,
    kv: KVCache,
    tokens: Sequence[int],
    *,
    start: int = 0,
    slot: int = 0,
    phase: Phase = Phase.PREFILL,
    threads: int = 1,
) -> NDArray[np.float32]:
    """Append tokens to one slot in full calls; the logits of every token, `[n, vocab]`."""
    step = runnable.limits.max_tokens[Phase.PREFILL] if phase is Phase.PREFILL else 1
    rows = []
    for at in range(0, len(tokens), step):
        call = make_call([tokens[at : at + step]], slots=[slot], starts=[start + at])
        rows.append(np.asarray(runnable.run(phase, call, kv, threads=threads), np.float32))
    return np.concatenate(rows)


def random_tokens(vocab: int, count: int, seed: int = 0) -> list[int]:
    """Tokens spread over the vocabulary."""
    return [int(t) for t in np.random.default_rng(seed).integers(0, vocab, count)]


def relative_error(got: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """The largest difference as a part of the range of what was expected."""
    return float(np.abs(got - expected).max() / np.ptp(expected))
