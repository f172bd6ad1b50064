"""Who else is in the batch, in which slot, on how many threads: no bit of the logits changes."""

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from oracle.families import FAMILY_NAMES, WINDOW
from small_models import CHUNK, SmallModels, feed, make_call, random_tokens, relative_error

from infc.target.runnable import Call, KVCache, OutputKind, Phase, Runnable

# One model stands for all in the fast run: compiling takes seconds.
CASES = [
    pytest.param(("gemma2", "F32", {"num_hidden_layers": 2}), id="gemma2-two-layers"),
    *(pytest.param((name, "F32", {}), id=name, marks=pytest.mark.slow) for name in FAMILY_NAMES),
    pytest.param(("gemma3", "BF16", {}), id="gemma3-bf16", marks=pytest.mark.slow),
    pytest.param(
        ("qwen3", "Q4_K", {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64}),
        id="qwen3-q4_k",
        marks=pytest.mark.slow,
    ),
]


@pytest.fixture(scope="module", params=CASES)
def cpu(small_models: SmallModels, request: pytest.FixtureRequest) -> Runnable:
    family, storage, changes = request.param
    return small_models.runnable(small_models.model(family, storage, **changes), "cpu")


def alone(
    cpu: Runnable, tokens: Sequence[int], prompt: int, pieces: Sequence[int]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Logits of a sequence by itself: prefilled in pieces, then decoded token by token."""
    kv = cpu.new_kv()
    rows, at = [], 0
    for piece in pieces:
        rows.append(feed(cpu, kv, tokens[at : at + piece], start=at))
        at += piece
    assert at == prompt
    return np.concatenate(rows), feed(cpu, kv, tokens[prompt:], start=prompt, phase=Phase.DECODE)


def run(cpu: Runnable, phase: Phase, call: Call, kv: KVCache, threads: int) -> list[NDArray]:  # type: ignore[type-arg]
    """The logits of a call, one array a sequence."""
    logits = cpu.run(phase, call, kv, threads=threads)
    return np.split(logits, call.row_offsets[1:-1])


@pytest.mark.parametrize("slots", [(0, 1), (2, 0), (0, 1, 2), (2, 0, 1)], ids=str)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_company_changes_no_bit(cpu: Runnable, slots: tuple[int, ...], threads: int) -> None:
    """Three prefill calls: different lengths, then one sequence crosses the window; then decode."""
    pieces = [(5, 7, 9), (3, 2, 7), (8, 6, 0)][: len(slots)]
    prompts = [sum(piece) for piece in pieces]
    assert prompts[0] > WINDOW + 2
    sequences = [random_tokens(cpu.vocab_size, n + 4, seed) for seed, n in enumerate(prompts)]
    expected = [
        alone(cpu, tokens, prompt, [n for n in piece if n])
        for tokens, prompt, piece in zip(sequences, prompts, pieces, strict=True)
    ]
    kv = cpu.new_kv()
    at = [0] * len(slots)
    for lengths in zip(*pieces, strict=True):
        members = [i for i, n in enumerate(lengths) if n]
        call = make_call(
            [sequences[i][at[i] : at[i] + lengths[i]] for i in members],
            slots=[slots[i] for i in members],
            starts=[at[i] for i in members],
        )
        for i, got in zip(members, run(cpu, Phase.PREFILL, call, kv, threads), strict=True):
            np.testing.assert_array_equal(got, expected[i][0][at[i] : at[i] + len(got)])
            at[i] += len(got)
    for step in range(4):
        order = np.roll(np.arange(len(slots)), step)
        call = make_call(
            [[sequences[i][at[i]]] for i in order],
            slots=[slots[i] for i in order],
            starts=[at[i] for i in order],
        )
        for i, got in zip(order, run(cpu, Phase.DECODE, call, kv, threads), strict=True):
            np.testing.assert_array_equal(got[0], expected[i][1][step])
            at[i] += 1


def test_decode_rows_equal_prefill_rows_of_the_same_model(cpu: Runnable) -> None:
    """The two programs may round differently: 8 bits in one, bf16 in the other, at most."""
    tokens = random_tokens(cpu.vocab_size, 20)
    prefilled = feed(cpu, cpu.new_kv(), tokens)
    decoded = feed(cpu, cpu.new_kv(), tokens, phase=Phase.DECODE)
    assert relative_error(decoded, prefilled) <= 2e-2


def test_a_call_may_ask_for_some_rows_or_for_indices(cpu: Runnable) -> None:
    tokens = random_tokens(cpu.vocab_size, CHUNK)
    whole = feed(cpu, cpu.new_kv(), tokens)
    call = make_call([tokens[:9], tokens[9:]])
    both = cpu.run(Phase.PREFILL, call, cpu.new_kv(), threads=2)
    np.testing.assert_array_equal(both[:9], whole[:9])
    wanted = np.array([15, 3, 8, 3], np.int32)
    some = Call(call.tokens, call.row_offsets, call.slots, call.positions, wanted)
    np.testing.assert_array_equal(
        cpu.run(Phase.PREFILL, some, cpu.new_kv(), threads=3), both[wanted]
    )
    best = Call(
        call.tokens, call.row_offsets, call.slots, call.positions, wanted, OutputKind.ARGMAX
    )
    np.testing.assert_array_equal(
        cpu.run(Phase.PREFILL, best, cpu.new_kv(), threads=2), both[wanted].argmax(axis=1)
    )


@pytest.mark.parametrize("storage", ["Q4_K", "F16"])
def test_many_sequences_decode_together(small_models: SmallModels, storage: str) -> None:
    """A batch as large as a tile of rows, for which the cost model may choose other arithmetic."""
    sizes = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64}
    model = small_models.model("qwen3", storage if storage == "Q4_K" else "GGUF-F16", **sizes)
    count = 20
    logits = []
    for target in ("cpu", "reference"):
        runnable = small_models.runnable(model, target, max_batch=count, batch=count)
        sequences = [random_tokens(runnable.vocab_size, 3, seed) for seed in range(count)]
        kv = runnable.new_kv()
        for slot, tokens in enumerate(sequences):
            call = make_call([tokens[:2]], slots=[slot], starts=[0])
            runnable.run(Phase.PREFILL, call, kv, threads=2)
        last = [tokens[2:] for tokens in sequences]
        call = make_call(last, slots=list(range(count)), starts=[2] * count)
        logits.append(runnable.run(Phase.DECODE, call, kv, threads=2))
    assert relative_error(logits[0], logits[1]) <= 2e-2
