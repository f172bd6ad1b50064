"""Models that were compiled elsewhere, on a device: programs, weights made here, and times."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infc.backends.cuda.kernels.packing import HEADER_BYTES, layout_named
from infc.backends.cuda.runnable import CudaRunnable
from infc.backends.cuda.runtime.driver import Device
from infc.diagnostics import Code, UserError
from infc.runtime.sampling import Sampler, SamplingOptions
from infc.runtime.session import Session
from infc.target.backend import LoadedPrograms
from infc.target.runnable import Call, OutputKind, Phase, Runnable
from infc.target.schema import Target

PATTERN = 1_048_573
"""Numbers of random weights before they repeat: a prime, so that rows begin everywhere in it."""
WARMUP = 10
"""Steps that are not counted."""


class PreparedModel:
    """A folder that `gpu_prepare.py` wrote.

    Attributes:
        facts: name, shape, matrices, predictions; see `gpu_prepare.py`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.facts: dict[str, Any] = json.loads((folder / "model.json").read_text())
        self.signature: dict[str, Any] = self.facts["signature"]

    @property
    def name(self) -> str:
        """What it is called in results."""
        return str(self.facts["name"])

    def weights(self, real: Path | None = None) -> tuple[NDArray[np.uint8], str]:
        """The packed weights and where they are from: the folder, pieces in `real`, or chance."""
        own = self.folder / "weights.bin"
        if own.exists():
            return np.fromfile(own, np.uint8), "the model's"
        pieces = sorted(real.glob(f"{self.name}.bin.*")) if real is not None else []
        if pieces:
            joined = np.concatenate([np.fromfile(piece, np.uint8) for piece in pieces])
            if len(joined) == self.facts["weight_bytes"]:
                return joined, "the model's"
        return self._random_weights(), "random, of the same shapes and types"

    def _random_weights(self) -> NDArray[np.uint8]:
        out = np.zeros(self.facts["weight_bytes"], np.uint8)
        rng = np.random.default_rng(0)
        normal = rng.standard_normal(PATTERN).astype(np.float32)
        codes = rng.integers(0, 256, PATTERN, np.uint8)
        with np.load(self.folder / "rows.npz") as rows:
            for number, entry in enumerate(self.facts["weights"]):
                part = out[entry["offset"] :][: entry["size_bytes"]]
                if entry["layout"] == "rows":
                    part[:] = rows[str(number)]
                else:
                    _fill_matrix(part, entry, normal, codes)
        return out

    def open(self, device: Device, weights: NDArray[np.uint8], **changes: Any) -> CudaRunnable:
        """The programs on a device; `changes` are fields of each phase in the signature."""
        phases = {name: {**phase, **changes} for name, phase in self.signature["phases"].items()}

        def member(name: str) -> memoryview:
            path = self.folder / name
            if not path.exists():
                raise UserError(Code.ARTIFACT_FORMAT, f"there is no {name}")
            return memoryview(path.read_bytes())

        return CudaRunnable(
            LoadedPrograms(
                member=member,
                extract=lambda name: self.folder / name,
                weights=memoryview(weights),
                weights_file=(self.folder / "weights.bin", 0),
                signature={**self.signature, "phases": phases},
                target=Target.model_validate(self.facts["target"]),
                check=lambda: None,
            ),
            device,
        )


def _fill_matrix(
    part: NDArray[np.uint8],
    entry: dict[str, Any],
    normal: NDArray[np.float32],
    codes: NDArray[np.uint8],
) -> None:
    """Random weights of variance 1 / k, packed."""
    layout, k = layout_named(entry["layout"]), entry["k"]
    part[:4] = np.float32(1.0).reshape(1).view(np.uint8)
    body = part[HEADER_BYTES:]
    size = np.float32(k**-0.5)
    if layout.is_float:
        if layout.kind == "bf16":
            raw = ((normal * size).view(np.uint32) >> 16).astype(np.uint16)
        else:
            raw = (normal * size).astype({"f16": np.float16, "f32": np.float32}[layout.kind])
        body[:] = np.resize(raw.view(np.uint8), len(body))
        return
    blocks = body.reshape(-1, layout.block_bytes)
    blocks[:, : layout.scales_offset] = np.resize(codes, (len(blocks), layout.scales_offset))
    # Codes are spread evenly over their range.
    step = float(size) * 12**0.5 / (1 << layout.bits)
    blocks[:, layout.scales_offset :] = _scales_and_minima(layout, step).view(np.uint8)


def _scales_and_minima(layout: Any, step: float) -> NDArray[np.float16]:
    """What lies behind the codes of a block: for each r scales `[group][2]`, then minima alike."""
    per_r = np.full(layout.scales_bytes // 2, step, np.float16)
    if layout.has_min:
        per_r[len(per_r) // 2 :] = -step * ((1 << layout.bits) - 1) / 2
    return np.tile(per_r, 8)


# ---- calls -----------------------------------------------------------------------------------


def call_of(
    tokens: NDArray[np.int32],
    position: int,
    *,
    rows: int = 1,
    output: OutputKind = OutputKind.ARGMAX,
    slot: int = 0,
) -> Call:
    """A call that appends tokens `[t]` to one sequence and asks for its last rows."""
    count = len(tokens)
    return Call(
        tokens=tokens,
        row_offsets=np.array([0, count], np.int32),
        slots=np.array([slot], np.int32),
        positions=np.arange(position, position + count, dtype=np.int32),
        logit_rows=np.arange(count - rows, count, dtype=np.int32),
        output=output,
    )


def step_of(tokens: NDArray[np.int32], position: int) -> Call:
    """A call that appends a token to each of the first sequences, `[b]`, all at one position."""
    count = len(tokens)
    return Call(
        tokens=tokens,
        row_offsets=np.arange(count + 1, dtype=np.int32),
        slots=np.arange(count, dtype=np.int32),
        positions=np.full(count, position, np.int32),
        logit_rows=np.arange(count, dtype=np.int32),
        output=OutputKind.ARGMAX,
    )


def random_tokens(vocab: int, count: int, seed: int = 0) -> NDArray[np.int32]:
    """Tokens spread over the vocabulary."""
    return np.random.default_rng(seed).integers(0, vocab, count).astype(np.int32)


def prefill(runnable: Runnable, kv: Any, tokens: NDArray[np.int32], slot: int = 0) -> None:
    """Append a prompt in full calls."""
    chunk = runnable.limits.max_tokens[Phase.PREFILL]
    for start in range(0, len(tokens), chunk):
        piece = tokens[start : start + chunk]
        runnable.run(Phase.PREFILL, call_of(piece, start, slot=slot), kv, threads=1)


def time_decode(runnable: Runnable, *, batch: int, position: int, steps: int) -> dict[str, float]:
    """Greedy decoding of `batch` sequences behind prompts of `position` random tokens.

    Returns:
        seconds of a step on the host's clock: median, lowest, 90th percentile.
    """
    kv = runnable.new_kv()
    for slot in range(batch):
        prefill(runnable, kv, random_tokens(runnable.vocab_size, position, slot), slot)
    tokens = random_tokens(runnable.vocab_size, batch)
    seconds = []
    for number in range(WARMUP + steps):
        call = step_of(tokens, position + number)
        start = time.perf_counter()
        tokens = runnable.run(Phase.DECODE, call, kv, threads=1)
        seconds.append(time.perf_counter() - start)
    return spread(seconds[WARMUP:])


def time_session(runnable: Runnable, *, position: int, steps: int) -> dict[str, float]:
    """Greedy decoding of one sequence as a user does it: seconds of `Session.next_token`."""
    session = Session(runnable, None, threads=1)
    session.prefill(random_tokens(runnable.vocab_size, position))
    sampler = Sampler(SamplingOptions(temperature=0.0))
    seconds = []
    for _ in range(WARMUP + steps):
        start = time.perf_counter()
        session.next_token(sampler)
        seconds.append(time.perf_counter() - start)
    return spread(seconds[WARMUP:])


def time_prefill(runnable: Runnable, *, tokens: int, repeats: int) -> dict[str, float]:
    """Prompts of so many random tokens, from an empty cache; seconds of a whole prompt."""
    kv = runnable.new_kv()
    seconds = []
    for number in range(repeats + 2):
        prompt = random_tokens(runnable.vocab_size, tokens, number)
        start = time.perf_counter()
        prefill(runnable, kv, prompt)
        seconds.append(time.perf_counter() - start)
    return spread(seconds[2:])


def spread(seconds: list[float]) -> dict[str, float]:
    """What many times say together."""
    ordered = sorted(seconds)
    return {
        "median": statistics.median(ordered),
        "low": ordered[0],
        "p90": ordered[min(len(ordered) - 1, len(ordered) * 9 // 10)],
    }


def kernel_times(
    runnable: CudaRunnable, phase: Phase, call: Call, *, repeats: int = 5
) -> dict[str, float]:
    """Seconds of all launches of each kernel in one call, medians."""
    kv = runnable.new_kv()
    runs = [runnable.trace(phase, call, kv, threads=1) for _ in range(repeats)]
    names = runnable.kernel_names(phase)
    totals: dict[str, float] = {}
    for name, seconds in zip(names, np.median(runs, axis=0), strict=True):
        totals[name] = totals.get(name, 0.0) + float(seconds)
    return dict(sorted(totals.items(), key=lambda item: -item[1]))


# ---- what must come out ------------------------------------------------------------------------


def check_logits(model: PreparedModel, runnable: Runnable) -> Iterator[str]:
    """Compare with logits that another backend made: prefill at once, and step by step."""
    with np.load(model.folder / "expected.npz") as arrays:
        tokens, expected = arrays["tokens"], arrays["logits"]
    size = float(np.linalg.norm(expected))
    runs: dict[str, Callable[[Any], NDArray[Any]]] = {
        "prefill": lambda kv: _prefill_logits(runnable, kv, tokens),
        "decode": lambda kv: _decode_logits(runnable, kv, tokens),
    }
    for name, run in runs.items():
        error = float(np.linalg.norm(run(runnable.new_kv()) - expected)) / size
        if not error <= model.facts["tolerance"]:
            yield f"{model.name} {name}: relative error {error:.2e}"


def _prefill_logits(runnable: Runnable, kv: Any, tokens: NDArray[np.int32]) -> NDArray[Any]:
    limits = runnable.limits
    chunk = min(limits.max_tokens[Phase.PREFILL], limits.max_logit_rows[Phase.PREFILL])
    made = []
    for start in range(0, len(tokens), chunk):
        piece = tokens[start : start + chunk]
        call = call_of(piece, start, rows=len(piece), output=OutputKind.LOGITS)
        made.append(runnable.run(Phase.PREFILL, call, kv, threads=1))
    return np.concatenate(made)


def _decode_logits(runnable: Runnable, kv: Any, tokens: NDArray[np.int32]) -> NDArray[Any]:
    made = []
    for position in range(len(tokens)):
        call = call_of(tokens[position : position + 1], position, output=OutputKind.LOGITS)
        made.append(runnable.run(Phase.DECODE, call, kv, threads=1))
    return np.concatenate(made)


def check_greedy(model: PreparedModel, runnable: Runnable) -> dict[str, int]:
    """Follow another backend's greedy text: at how many tokens the choice is the same, at how many
    others that backend's two best logits were closer than `tie`."""
    with np.load(model.folder / "greedy.npz") as arrays:
        prompt, chosen, gaps = arrays["prompt"], arrays["chosen"], arrays["gaps"]
    kv = runnable.new_kv()
    best = runnable.run(Phase.PREFILL, call_of(prompt, 0), kv, threads=1)
    same = ties = 0
    for number, token in enumerate(chosen):
        same += int(best[0] == token)
        ties += int(best[0] != token and gaps[number] < model.facts["tie"])
        call = call_of(np.array([token], np.int32), len(prompt) + number)
        best = runnable.run(Phase.DECODE, call, kv, threads=1)
    return {"tokens": len(chosen), "same": same, "ties": ties}
