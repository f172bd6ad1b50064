"""Whole models on simulated dataflow machines: their logits against the reference's, and every
mapping against the default one."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from dataflow_models import DataflowModel, load_dataflow
from numpy.typing import NDArray
from small_models import SmallModels, feed, make_call, random_tokens, relative_error

from infc.backends.dataflow.mappings import default_mapping
from infc.backends.dataflow.partition import stages_of
from infc.diagnostics import UserError
from infc.target.runnable import OutputKind, Phase, Runnable

TOKENS = random_tokens(300, 26)
FIRST_DECODED = 20
WIDE = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64, "num_hidden_layers": 1}

# As in docs/numerics.md: activations of 8 bits, and a cache in f16.
LARGEST = {"a8": 1e-1, "float": 5e-3}

MODELS = [
    ("llama2", "Q8_0", "dataflow:test", {}),
    ("mistral", "Q5_1", "dataflow:test-sram", {}),
    ("qwen2", "Q4_1", "dataflow:test", {}),
    ("gemma2", "Q4_0", "dataflow:test-sram", {}),
    ("gemma3", "Q5_0", "dataflow:test", {}),
    ("qwen3", "Q4_K", "dataflow:test", WIDE),
    ("qwen3", "Q6_K", "dataflow:test-sram", WIDE),
    ("llama3", "GGUF-F16", "dataflow:test", {}),
    ("gemma3", "BF16", "dataflow:test", {}),
]
SLOW = [
    ("qwen3", "Q2_K", "dataflow:test", WIDE),
    ("qwen3", "Q3_K", "dataflow:test-sram", WIDE),
    ("qwen3", "Q5_K", "dataflow:test", WIDE),
    ("gemma3", "GGUF-F16", "dataflow:test-sram", {}),
    ("llama3", "BF16", "dataflow:test-sram", {}),
]


def logits(runnable: Runnable) -> NDArray[np.float32]:
    """Of every token: some prefilled in two calls, the others decoded."""
    kv = runnable.new_kv()
    first = feed(runnable, kv, TOKENS[:FIRST_DECODED])
    rest = TOKENS[FIRST_DECODED:]
    return np.concatenate(
        [first, feed(runnable, kv, rest, start=FIRST_DECODED, phase=Phase.DECODE)]
    )


@pytest.mark.parametrize(
    ("family", "storage", "target", "changes"),
    [*MODELS, *(pytest.param(*model, marks=pytest.mark.slow) for model in SLOW)],
)
def test_logits_are_the_references(
    small_models: SmallModels, family: str, storage: str, target: str, changes: dict[str, int]
) -> None:
    path = small_models.model(family, storage, **changes)
    reference = small_models.runnable(path, "reference", max_batch=1)
    allowed = LARGEST["float" if storage.endswith("F16") else "a8"]
    if storage == "BF16":
        allowed = 4e-2
    found = logits(load_dataflow(path, target).runnable)
    assert relative_error(found, logits(reference)) <= allowed


@pytest.fixture(scope="module")
def whole(small_models: SmallModels) -> DataflowModel:
    return load_dataflow(small_models.model("gemma3", "Q5_0"), "dataflow:test")


@pytest.mark.parametrize("stages", [1, 2])
@pytest.mark.parametrize("change", ["none", "no prefetch", "far channels", "few rows"])
def test_every_mapping_gives_the_same_logits(
    small_models: SmallModels, whole: DataflowModel, stages: int, change: str
) -> None:
    machine = whole.machine
    mapping = default_mapping(machine, stages_of(machine, 6, stages), 16, 1)
    if change == "no prefetch":
        mapping = dataclasses.replace(mapping, prefetch=False, ring_slots=1)
    elif change == "far channels":
        mapping = dataclasses.replace(mapping, near=False)
    elif change == "few rows":
        mapping = dataclasses.replace(mapping, max_tokens=8)
    model = load_dataflow(small_models.model("gemma3", "Q5_0"), "dataflow:test", mapping)
    model.check("decode", 1, 5, 1)
    model.check("prefill", 7, 3, 1)
    model.check("prefill", 8, 0, 0)
    assert relative_error(logits(model.runnable), logits(whole.runnable)) <= 2e-2


def test_programs_are_in_order_without_far_memory(small_models: SmallModels) -> None:
    model = load_dataflow(small_models.model("gemma2", "Q4_0"), "dataflow:test-sram")
    model.check("decode", 1, 40, 1)
    model.check("prefill", 16, 0, 1)
    model.check("prefill", 3, 17, 1)


def test_the_best_tokens_are_those_of_the_logits(
    small_models: SmallModels, whole: DataflowModel
) -> None:
    runnable = whole.runnable
    call = make_call([TOKENS[:12]])
    every = runnable.run(Phase.PREFILL, call, runnable.new_kv(), threads=1)
    best = runnable.run(
        Phase.PREFILL,
        dataclasses.replace(call, output=OutputKind.ARGMAX),
        runnable.new_kv(),
        threads=1,
    )
    top = runnable.run(
        Phase.PREFILL,
        dataclasses.replace(call, output=OutputKind.TOP_K, top_k=5),
        runnable.new_kv(),
        threads=1,
    )
    assert np.array_equal(best, every.argmax(axis=1))
    assert np.array_equal(top["id"][:, 0], best)
    assert np.array_equal(top["logit"], -np.sort(-every, axis=1)[:, :5])


def test_rows_of_logits_come_in_the_order_asked_for(whole: DataflowModel) -> None:
    runnable = whole.runnable
    call = make_call([TOKENS[:12]])
    every = runnable.run(Phase.PREFILL, call, runnable.new_kv(), threads=1)
    wanted = np.array([7, 2, 7, 11], np.int32)
    some = runnable.run(
        Phase.PREFILL,
        dataclasses.replace(call, logit_rows=wanted),
        runnable.new_kv(),
        threads=1,
    )
    # Calls are cut elsewhere, so keys may be summed in another order.
    assert relative_error(some, every[wanted]) <= 2e-2


def test_a_cache_goes_out_and_back(small_models: SmallModels, whole: DataflowModel) -> None:
    runnable = whole.runnable
    kv = runnable.new_kv()
    feed(runnable, kv, TOKENS[:FIRST_DECODED])
    moved = runnable.new_kv()
    moved.kv_import(0, kv.kv_export(0, 0, FIRST_DECODED))
    rest = TOKENS[FIRST_DECODED:]
    options = {"start": FIRST_DECODED, "phase": Phase.DECODE}
    assert np.array_equal(
        feed(runnable, moved, rest, **options), feed(runnable, kv, rest, **options)
    )
    reference = small_models.runnable(
        small_models.model("gemma3", "Q5_0"), "reference", max_batch=1
    )
    other = reference.new_kv()
    feed(reference, other, TOKENS[:FIRST_DECODED])
    theirs, ours = other.kv_export(0, 0, FIRST_DECODED), kv.kv_export(0, 0, FIRST_DECODED)
    assert theirs.layer_starts == ours.layer_starts
    for a, b in zip(ours.keys, theirs.keys, strict=True):
        assert relative_error(a, b) <= 1e-1


def test_the_same_model_gives_the_same_programs(small_models: SmallModels) -> None:
    path = small_models.model("llama2", "Q8_0")
    one, two = (load_dataflow(path, "dataflow:test").images for _ in range(2))
    assert one == two


def test_several_sequences_are_refused(small_models: SmallModels) -> None:
    with pytest.raises(UserError) as caught:
        load_dataflow(small_models.model("llama2", "Q8_0"), "dataflow:test", max_batch=3)
    assert caught.value.diagnostic.message == (
        "expected a max-batch of 1 on a dataflow target, got 3"
    )


def test_a_model_larger_than_the_machine_is_refused(small_models: SmallModels) -> None:
    path = small_models.model("qwen3", "Q8_0", hidden_size=256, intermediate_size=2048)
    with pytest.raises(UserError) as caught:
        load_dataflow(path, "dataflow:test-sram")
    assert caught.value.diagnostic.code.value == "INF2101"
    assert "bytes in a part of sram that holds 262144" in caught.value.diagnostic.message
