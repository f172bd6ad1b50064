"""The best and the top tokens of a call are those of its logits, however they were found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_models import SLOTS, SmallModels, make_call, random_tokens

import infc
from infc.artifact import open_artifact
from infc.driver.loading import load, load_runnable
from infc.reference import ops
from infc.runtime.sampling import Sampler, SamplingOptions
from infc.target.runnable import OutputKind, Phase

WIDE = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64, "num_hidden_layers": 1}
MODELS = {
    "tied": ("gemma3", "Q8_0", {"hidden_size": 64, "num_hidden_layers": 1}, True),
    "untied": ("qwen3", "Q6_K", {**WIDE, "tie_word_embeddings": False, "vocab_size": 333}, True),
    "capped": ("gemma2", "Q8_0", {"num_hidden_layers": 1}, False),
    "float": ("qwen3", "F32", {"num_hidden_layers": 1}, True),
    "half": ("gemma3", "BF16", {"num_hidden_layers": 1}, True),
}
"""name -> family, storage, changes, and whether its head is split."""
FAST = ("tied", "capped", "half")
CASES = [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in MODELS]


@pytest.mark.parametrize("target", ["cpu", "reference"])
@pytest.mark.parametrize("name", CASES)
def test_outputs_of_a_call_agree(small_models: SmallModels, name: str, target: str) -> None:
    family, storage, changes, _ = MODELS[name]
    model = small_models.model(family, storage, **changes)
    runnable = small_models.runnable(model, target)
    most = runnable.limits.max_top_k
    assert most == 64
    tokens = random_tokens(runnable.vocab_size, SLOTS)
    for phase, sequences in (
        (Phase.PREFILL, [tokens]),
        (Phase.DECODE, [tokens[:1]]),
        (Phase.DECODE, [[token] for token in tokens]),
    ):
        for threads in (1, 3):
            call = make_call(sequences)
            logits = runnable.run(phase, call, runnable.new_kv(), threads=threads)
            asked = replace(call, output=OutputKind.ARGMAX)
            best = runnable.run(phase, asked, runnable.new_kv(), threads=threads)
            np.testing.assert_array_equal(best, ops.argmax(logits))
            for count in (1, 7, most):
                asked = replace(call, output=OutputKind.TOP_K, top_k=count)
                top = runnable.run(phase, asked, runnable.new_kv(), threads=threads)
                values, ids = ops.top_k(logits, count)
                np.testing.assert_array_equal(top["id"], ids)
                np.testing.assert_array_equal(top["logit"], values)


@pytest.mark.parametrize("name", CASES)
def test_text_is_the_text_of_all_logits(small_models: SmallModels, name: str) -> None:
    family, storage, changes, _ = MODELS[name]
    artifact = small_models.artifact(small_models.model(family, storage, **changes), "cpu")
    for options in (
        SamplingOptions(),
        SamplingOptions(temperature=1.5, top_k=5, seed=3),
        SamplingOptions(temperature=2.0, top_k=64, top_p=0.9, min_p=0.01, seed=4),
        SamplingOptions(temperature=1.0, top_k=65, seed=5),
        SamplingOptions(temperature=1.0, top_k=9, repetition_penalty=1.3, seed=6),
    ):
        session, whole = (load(open_artifact(artifact), threads=2) for _ in range(2))
        sampler, of_all = Sampler(options), Sampler(options)
        prompt = random_tokens(session.vocab_size, 9)
        token = session.prefill_next(prompt, sampler)
        logits = whole.prefill(prompt)
        for _ in range(20):
            assert token == of_all.sample(logits, whole.tokens)
            logits = whole.decode(token)
            token = session.next_token(sampler)


@pytest.mark.parametrize("name", CASES)
def test_only_heads_that_can_be_are_split(small_models: SmallModels, name: str) -> None:
    family, storage, changes, split = MODELS[name]
    artifact = open_artifact(
        small_models.artifact(small_models.model(family, storage, **changes), "cpu")
    )
    kernels = artifact.manifest.cost_estimate["decode"]
    outputs = {k["kind"]: k["outputs"] for k in kernels if k["kind"] in ("head", "argmax")}
    assert outputs["argmax"] == ["argmax"]
    assert ("head" in outputs) == split
    # The last product makes the logits; where the head is split nothing else reads them.
    product = [k["outputs"] for k in kernels if k["kind"] == "matmul"][-1]
    assert product == (["logits"] if split else ["argmax", "logits", "top_k"])
    head = [sum(k["bytes"].values()) for k in kernels if k["kind"] == "head"]
    assert all(moved > 0 for moved in head)


def test_a_call_cannot_ask_for_more_than_the_program_has_room_for(
    small_models: SmallModels,
) -> None:
    family, storage, changes, _ = MODELS["tied"]
    artifact = small_models.artifact(small_models.model(family, storage, **changes), "cpu")
    runnable = load_runnable(open_artifact(artifact))
    call = make_call([random_tokens(runnable.vocab_size, 2)])
    for count in (0, 65):
        asked = replace(call, output=OutputKind.TOP_K, top_k=count)
        with pytest.raises(Exception, match="refused the call: status 2"):
            runnable.run(Phase.PREFILL, asked, runnable.new_kv(), threads=1)


def test_dumps_of_a_split_head_lead_to_the_same_bytes(
    small_models: SmallModels, tmp_path: Path
) -> None:
    family, storage, changes, _ = MODELS["tied"]
    model = small_models.model(family, storage, **changes)
    once, options = tmp_path / "once.infc", {"max_context": 32, "chunk": 8}
    infc.compile(model, target="cpu", output=once, dump=tmp_path / "dump", **options)
    for name in ("005-schedule-split-head", "008-memory-bufferize"):
        again = tmp_path / "again.infc"
        infc.compile(model, resume_from=tmp_path / "dump" / f"{name}.mlir", output=again)
        assert again.read_bytes() == once.read_bytes(), name
        again.unlink()
