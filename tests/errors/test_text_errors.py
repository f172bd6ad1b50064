"""What the user reads when a tokenizer, a chat template or a sampling option is wrong."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np
import pytest

from infc.diagnostics import UserError
from infc.frontends.source import TokenizerSource
from infc.runtime.chat import render_chat
from infc.runtime.sampling import Sampler, SamplingOptions
from infc.runtime.stream import TextStream
from infc.runtime.tokenizer import Tokenizer


def _rendered(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    return str(caught.value)


def _from_gguf(**fields: object) -> str:
    values = {f"tokenizer.ggml.{key}": value for key, value in fields.items()}
    source = TokenizerSource("gguf", values, None, None)
    return _rendered(lambda: Tokenizer.from_source(source))


def _from_json(description: object) -> str:
    data = description if isinstance(description, bytes) else json.dumps(description).encode()
    source = TokenizerSource("huggingface", {}, data, None)
    return _rendered(lambda: Tokenizer.from_source(source))


def test_no_tokenizer() -> None:
    assert _rendered(lambda: Tokenizer.from_source(None)) == (
        "error[INF1101]: the model has no tokenizer\n"
        "   = hint: give token ids instead of text, or add the tokenizer's files to the model"
    )
    source = TokenizerSource("huggingface", {}, None, None)
    assert _rendered(lambda: Tokenizer.from_source(source)) == (
        "error[INF1101]: the model folder has no tokenizer.json\n"
        "   = hint: save the tokenizer with transformers' save_pretrained"
    )


def test_all_that_is_wrong_with_gguf_fields_is_one_report() -> None:
    text = _from_gguf(
        model="gpt2",
        pre="gpt-2",
        tokens=["a", "b", "a", "世"],
        token_type=[1, 1, 9, 1],
        merges=["a b", "a"],
        bos_token_id=7,
        add_bos_token=1,
    )
    assert text == (
        "error[INF1102]: the tokenizer cannot be used: 7 problems\n"
        "  --> GGUF metadata tokenizer.ggml\n"
        "   - token_type: expected 1 to 6, got 9 at 2\n"
        "   - tokens: 'a' is both 0 and 2\n"
        "   - merges: 'a b' at 0 names unknown 'ab'\n"
        "   - merges: 'a' at 1 names unknown ''\n"
        "   - bos_token_id: expected a token id in 0..3, got 7\n"
        "   - add_bos_token: expected true or false, got 1\n"
        "   - tokens: '世' at 3 is not written in GPT-2's bytes"
    )


def test_a_long_report_is_cut() -> None:
    text = _from_gguf(model="llama", tokens=["a"] * 20, scores=[0.0] * 20)
    assert text.startswith("error[INF1102]: the tokenizer cannot be used: 19 problems\n")
    assert text.endswith("   - tokens: 'a' is both 0 and 8\n   - and 11 more")


def test_arrays_of_other_lengths_and_kinds() -> None:
    tokens = ["<unk>", "<s>", "</s>", "a"]
    assert _from_gguf(model="llama", tokens=tokens, scores=[0.0], token_type=[1, 2]) == (
        "error[INF1102]: the tokenizer cannot be used: 2 problems\n"
        "  --> GGUF metadata tokenizer.ggml\n"
        "   - token_type: expected 4 values, one a token, got 2\n"
        "   - scores: expected 4 values, one a token, got 1"
    )
    assert _from_gguf(model="llama", tokens=tokens, scores=[0.0, math.nan, 0.0, 0.0]) == (
        "error[INF1102]: the tokenizer cannot be used: 1 problem\n"
        "  --> GGUF metadata tokenizer.ggml\n"
        "   - scores: expected finite numbers, got nan at 1"
    )
    assert _from_gguf(model="llama", tokens=[1, 2]) == (
        "error[INF1102]: the tokenizer cannot be used: 1 problem\n"
        "  --> GGUF metadata tokenizer.ggml\n"
        "   - tokens: expected a list of strings, got a list of something else"
    )


def test_byte_tokens_that_are_none() -> None:
    tokens = ["<unk>", "<s>", "</s>", "<0x00>", "<0xZZ>"]
    text = _from_gguf(model="llama", tokens=tokens, scores=[0.0] * 5, token_type=[2, 3, 3, 6, 6])
    assert text == (
        "error[INF1102]: the tokenizer cannot be used: 2 problems\n"
        "  --> GGUF metadata tokenizer.ggml\n"
        "   - tokens: expected a byte token <0x..> at 4, got '<0xZZ>'\n"
        "   - tokens: expected 256 byte tokens or none, got 1"
    )


def test_unknown_kinds_of_tokenizers() -> None:
    assert _from_gguf(model="rwkv", tokens=["a"]) == (
        "error[INF1102]: the tokenizer cannot be used: 1 problem\n"
        "  --> GGUF metadata tokenizer.ggml\n"
        "   - model: expected llama or gpt2, got rwkv"
    )
    assert _from_gguf(model="gpt2", pre="strange", tokens=["a", "b", "ab"], merges=["a b"]) == (
        "error[INF1102]: the tokenizer cannot be used: 1 problem\n"
        "  --> GGUF metadata tokenizer.ggml\n"
        "   - pre: expected one of chatglm-bpe, command-r, dbrx, deepseek-coder, deepseek-r1-qwen, "
        "deepseek-v3, default, falcon3, gpt-2, llama-bpe, llama-v3, llama3, megrez, mpt, olmo, "
        "phi-2, pixtral, qwen2, refact, smaug-bpe, smollm, stablelm2, starcoder, tekken; got "
        "strange"
    )


def test_tokenizer_json_that_cannot_be_used() -> None:
    assert _from_json(b"{") == (
        "error[INF1102]: the tokenizer cannot be used: 1 problem\n"
        "  --> tokenizer.json\n"
        "   - expected JSON, got Expecting property name enclosed in double quotes: "
        "line 1 column 2 (char 1)"
    )
    assert _from_json({"model": {"type": "Unigram", "vocab": [["a", 0.0]]}}) == (
        "error[INF1102]: the tokenizer cannot be used: 2 problems\n"
        "  --> tokenizer.json\n"
        "   - model.type: expected BPE, got Unigram\n"
        "   - model.vocab: expected tokens, got none"
    )
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 1}, "merges": [["a", "b"], 3]}
    added = [{"id": "x", "content": "<s>"}]
    assert _from_json({"model": model, "added_tokens": added}) == (
        "error[INF1102]: the tokenizer cannot be used: 2 problems\n"
        "  --> tokenizer.json\n"
        "   - added_tokens: expected an id and a content, got {'id': 'x', 'content': '<s>'}\n"
        "   - model.vocab: 'b' and 'c' are both 1"
    )
    model["vocab"] = {"a": 0, "b": 1}
    assert _from_json({"model": model}) == (
        "error[INF1102]: the tokenizer cannot be used: 2 problems\n"
        "  --> tokenizer.json\n"
        "   - model.merges: ['a', 'b'] at 0 names unknown 'ab'\n"
        "   - model.merges: expected two tokens at 1, got 3"
    )


def test_pipelines_the_library_does_not_know() -> None:
    model = {"type": "BPE", "vocab": {"a": 0}, "merges": []}
    text = _from_json(
        {"model": model, "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "("}}}
    )
    assert text.startswith(
        "error[INF1102]: the tokenizers library refuses the normalizer or pre-tokenizer: "
    )
    assert text.endswith("\n  --> tokenizer.json")


def test_damaged_files() -> None:
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}
    source = TokenizerSource("huggingface", {}, json.dumps({"model": model}).encode(), None)
    files = Tokenizer.from_source(source).to_files()
    for name, data in files.items():
        for damaged in (b"", data[: len(data) // 2], data + b"x"):
            text = _rendered(lambda f=files | {name: damaged}: Tokenizer.from_files(f))
            assert text.startswith("error[INF4003]: the artifact's tokenizer cannot be read: ")
            assert text.endswith("   = hint: compile the model again")
    assert _rendered(lambda: Tokenizer.from_files({})) == (
        "error[INF4003]: the artifact's tokenizer cannot be read: 'tokenizer.meta.json'\n"
        "   = hint: compile the model again"
    )


def test_token_ids_out_of_range() -> None:
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}
    source = TokenizerSource("huggingface", {}, json.dumps({"model": model}).encode(), None)
    tokenizer = Tokenizer.from_source(source)
    for id in (2, -1):
        text = f"error[INF5002]: expected a token id in 0..1, got {id}"
        assert _rendered(lambda id=id: tokenizer.decode([0, id])) == text
        assert _rendered(lambda id=id: TextStream(tokenizer).push(id)) == text


def test_chat_templates_name_their_line() -> None:
    def render(template: str) -> str:
        messages = [{"role": "user", "content": "x"}]
        return _rendered(lambda: render_chat(template, messages, bos="", eos=""))

    assert render("a\n{% for %}\n") == (
        "error[INF1103]: the chat template has an error: "
        "Expected an expression, got 'end of statement block'\n"
        "  --> chat template, line 2"
    )
    assert render("a\n\n{{ raise_exception('roles must alternate') }}") == (
        "error[INF1103]: the chat template fails: roles must alternate\n  --> chat template, line 3"
    )
    assert render("{{ a.b.c }}") == (
        "error[INF1103]: the chat template fails: 'a' is undefined\n  --> chat template, line 1"
    )
    assert render("x" * 2_000_000) == (
        "error[INF1103]: expected a chat template of at most 1048576 bytes, got 2000000\n"
        "  --> chat template"
    )


def test_sampling_options_out_of_range() -> None:
    text = _rendered(
        lambda: SamplingOptions(
            temperature=-0.5,
            top_k=-1,
            top_p=0.0,
            min_p=1.5,
            repetition_penalty=math.inf,
            repetition_window=True,
            seed=1 << 64,
        )
    )
    assert text == (
        "error[INF5001]: the sampling options are out of range\n"
        "   - temperature: expected a finite number of 0 or more, got -0.5\n"
        "   - top_k: expected a whole number of 0 or more, got -1\n"
        "   - top_p: expected a number above 0, up to 1, got 0.0\n"
        "   - min_p: expected a number from 0 to 1, got 1.5\n"
        "   - repetition_penalty: expected a finite number above 0, got inf\n"
        "   - repetition_window: expected a whole number of 0 or more, got True\n"
        "   - seed: expected a whole number from 0 to 2**64 - 1, got 18446744073709551616"
    )


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers(temperature: float) -> None:
    sampler = Sampler(SamplingOptions(temperature=temperature, top_k=2))
    logits = np.array([0.0, np.nan, 1.0], np.float32)
    assert _rendered(lambda: sampler.sample(logits, [])) == (
        "error[INF5008]: expected finite logits, got nan for token 1\n"
        "   = hint: the model's weights may be damaged, or its numbers too large for its dtype"
    )
    logits = np.full(3, -np.inf, np.float32)
    assert "got -inf for token 0" in _rendered(lambda: sampler.sample(logits, []))


def test_an_empty_stop_string() -> None:
    model = {"type": "BPE", "vocab": {"a": 0}, "merges": []}
    source = TokenizerSource("huggingface", {}, json.dumps({"model": model}).encode(), None)
    tokenizer = Tokenizer.from_source(source)
    assert _rendered(lambda: TextStream(tokenizer, ["a", ""])) == (
        "error[INF5001]: expected stop strings with text, got an empty one"
    )
