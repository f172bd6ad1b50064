"""Operations on rows are too short to be timed alone: they are timed inside of a small model.

The model has one layer of the usual sort, with random weights, and is made, compiled and thrown
away. A kernel's time is its share of a call, the wait for the threads before it included.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from infc.artifact import Artifact
from infc.cost.roofline import Work
from infc.driver.compilation import compile
from infc.driver.explanation import trace_call
from infc.driver.loading import load_runnable
from infc.driver.prediction import Turns, greedy_kernels, sized_work
from infc.target.runnable import Phase

_VOCABULARY: Final = 512
_CONTEXT: Final = 1024
_PROMPTS: Final = (96, 224, 448)
_TRACES: Final = 24
_SHAPES: Final = ((768, 6, 2, 128, 1536), (1792, 28, 4, 64, 2048))
"""`(hidden, heads, kv heads, head_dim, feed-forward)` of the models."""


@dataclass(frozen=True)
class Traced:
    """A kernel in a call of a program on so many threads, with the seconds of each call."""

    work: Work
    threads: int
    seconds: Sequence[float]


def trace_rows(target: str, counts: Sequence[int]) -> Iterator[Traced]:
    """Row kernels and rotations of the models, on each number of threads.

    Raises:
        UserError: as `infc.compile`.
    """
    with tempfile.TemporaryDirectory(prefix="infc-calibrate-") as folder:
        for number, shape in enumerate(_SHAPES):
            model, output = Path(folder, f"{number}.gguf"), Path(folder, f"{number}.infc")
            write_model(model, *shape)
            artifact = compile(model, target=target, output=output, max_context=_CONTEXT)
            for threads in counts:
                yield from _trace(artifact, threads)


def _trace(artifact: Artifact, threads: int) -> Iterator[Traced]:
    runnable = load_runnable(artifact)
    kv = runnable.new_kv()
    for phase in Phase:
        name = phase.name.lower()
        known = {kernel["kernel"]: kernel for kernel in greedy_kernels(artifact, name)}
        order = artifact.manifest.memory_plan[name]["order"]
        for prompt in _PROMPTS:
            call, turn = trace_call(phase, prompt, prompt), Turns(1, prompt, prompt)
            if phase is Phase.DECODE:
                turn = Turns(1, 1, prompt + 1)
            runs = [runnable.trace(phase, call, kv, threads=threads) for _ in range(_TRACES)]
            if any(run is None for run in runs):
                return
            times = np.array(runs)
            for kernel, column in zip(order, times.T, strict=True):
                described = known.get(kernel)
                if described is not None and described.get("class") in ("rows", "rotary"):
                    work = sized_work(described, name, turn)
                    yield Traced(work, threads, [float(s) for s in column])


def write_model(
    path: Path, hidden: int, heads: int, kv_heads: int, head_dim: int, inner: int
) -> None:
    """A GGUF file with one layer of Llama's sort; matrices in Q8_0, norms in float32."""
    import gguf

    rng, kind = np.random.default_rng(0), gguf.GGMLQuantizationType.Q8_0
    matrices = {
        "token_embd": (_VOCABULARY, hidden),
        "output": (_VOCABULARY, hidden),
        "blk.0.attn_q": (heads * head_dim, hidden),
        "blk.0.attn_k": (kv_heads * head_dim, hidden),
        "blk.0.attn_v": (kv_heads * head_dim, hidden),
        "blk.0.attn_output": (hidden, heads * head_dim),
        "blk.0.ffn_gate": (inner, hidden),
        "blk.0.ffn_up": (inner, hidden),
        "blk.0.ffn_down": (hidden, inner),
    }
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(_CONTEXT)
    writer.add_embedding_length(hidden)
    writer.add_block_count(1)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(_VOCABULARY)
    for name, (rows, columns) in matrices.items():
        values = rng.standard_normal((rows, columns), np.float32) / np.float32(columns**0.5)
        writer.add_tensor(f"{name}.weight", gguf.quants.quantize(values, kind), raw_dtype=kind)
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(hidden, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
