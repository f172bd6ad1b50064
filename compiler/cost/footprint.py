"""Bytes that a model takes on the fullest of its devices, and how many requests fit beside it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from infc.cost.engine import EngineProfile
from infc.cost.kernels.queries import DTYPE_BYTES
from infc.cost.model_shape import ModelShape
from infc.cost.programs import ProgramBytes, Programs
from infc.cost.transformer import ACTIVATION_BYTES, Split
from infc.cost.workload import Workload
from infc.memory.fit import FitReport, fit_report, largest_batch
from infc.target.schema import Target


@dataclass(frozen=True)
class MemoryUse:
    """Bytes of the fullest device.

    Attributes:
        weights: of its share of the model.
        kv_cache: of all requests that run at a time, each at its full length, or with half of its
            output where others wait for room.
        activations: of the largest step.
        reserved: that the engine keeps for other things.
    """

    weights: int
    kv_cache: int
    activations: int
    reserved: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.kv_cache + self.activations + self.reserved


@dataclass(frozen=True)
class Footprint:
    """What a workload takes of the memory, and what fits.

    Attributes:
        use: of the requests that run at a time.
        fit: of all requests of the workload at a time, at their full length.
        room: requests that run at a time when they come one after the other and each has half of
            its output in the cache on average; 0 where the weights leave no room for a whole one.
    """

    use: MemoryUse
    fit: FitReport
    room: int


def footprint(
    shape: ModelShape,
    split: Split,
    workload: Workload,
    target: Target,
    engine: EngineProfile | None,
    programs: Programs | None = None,
) -> Footprint:
    """The memory of a workload; `programs` say themselves what they take."""
    requests = workload.at_once
    length = workload.context + workload.prompt + workload.new_tokens
    held = _bytes(shape, split, workload, length) if programs is None else programs.memory
    weights = held.weights
    memory = target.holding_memory()
    capacity, kept = memory.size_bytes * memory.count, 0
    if engine is not None:
        capacity = max(1, math.floor(capacity * engine.values["memory_share"]))
        kept = round(engine.values["reserved_bytes"])

    def beside(batch: int) -> int:
        """What an engine reserves, where the activations lie, or more where they need it."""
        return max(kept, held.activations(batch))

    position, ring = held.position, held.sequence
    trained = shape.context_length
    fit = fit_report(capacity, weights, position, ring, length, requests, trained, beside)
    whole = ring + position * length
    on_average = whole - position * (workload.new_tokens // 2)
    room = 0
    if weights + beside(1) + whole <= capacity:
        most = largest_batch(capacity - weights, Fraction(on_average), beside)
        room = requests if most is None else most
    running, each = requests, whole
    if not fit.fits and workload.concurrency > 1:
        running, each = max(1, min(requests, room)), on_average
    cache, activations = math.ceil(running * each), held.activations(running)
    reserved = beside(running) - activations
    return Footprint(MemoryUse(weights, cache, activations, reserved), fit, room)


def _bytes(shape: ModelShape, split: Split, workload: Workload, length: int) -> ProgramBytes:
    """What the fullest of several devices takes."""
    prompt = activation_bytes(shape, split, workload.prompt, 1)
    # A batch is prefilled in one call; users come one at a time, among the others' decoding.
    users = workload.concurrency > 1
    share = kv_share(shape, split)
    position, ring = shape.kv_bytes(length, split.kv_dtype)
    return ProgramBytes(
        weights=weight_bytes(shape, split),
        prefill=prompt,
        decode=activation_bytes(shape, split, 1, 1) if users else prompt,
        position=share * position,
        sequence=share * ring,
    )


def weight_bytes(shape: ModelShape, split: Split) -> int:
    """Weights of the fullest device: its blocks, and the larger of embedding and head with them.

    A device of a pipeline's first stage has the embedding, one of its last the head; of a single
    stage both.
    """
    blocks, held = math.ceil(shape.layers / split.pipeline), shape.weights
    vectors = (blocks * shape.vector_parameters + shape.hidden) * ACTIVATION_BYTES
    if held is None:
        matrices = blocks * shape.matrix_parameters * DTYPE_BYTES[split.dtype]
        tables = [shape.embedding_parameters * ACTIVATION_BYTES] * (1 if shape.tied else 2)
    else:
        matrices = sum(sorted((block.total for block in held.blocks), reverse=True)[:blocks])
        tables = [held.embedding] if shape.tied else [held.embedding, held.head]
    table = sum(tables) if split.pipeline == 1 else max(tables)
    return math.ceil(vectors + (matrices + table) / split.tensor)


def kv_share(shape: ModelShape, split: Split) -> float:
    """Share of a sequence's KV cache that lies on the fullest device."""
    heads = max(1 / shape.kv_heads, 1 / split.tensor)
    return heads * math.ceil(shape.layers / split.pipeline) / shape.layers


def activation_bytes(shape: ModelShape, split: Split, tokens: int, logit_rows: int) -> int:
    """The most that is alive in a step of so many tokens: two of the hidden width, and either what
    the feed-forward part or what the attention makes of them, or the logits in f32."""
    inner = 3 * shape.inner / split.tensor
    attention = 2 * (shape.query_width + 2 * shape.kv_width) / split.tensor
    block = tokens * (2 * shape.hidden + max(inner, attention)) * ACTIVATION_BYTES
    logits = logit_rows * shape.vocabulary * 4 / split.tensor
    return math.ceil(max(block, logits))
