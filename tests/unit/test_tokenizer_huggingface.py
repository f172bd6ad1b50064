"""Hugging Face tokenizers: the same ids as the `tokenizers` library's, and the configs' say."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
import tokenizers
from tokenizers import (
    AddedToken,
    Regex,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from infc.frontends.source import TokenizerSource
from infc.runtime.tokenizer import Tokenizer

TRAINING = [
    "Hello world, it's 1234 tokens!! DON'T we'll naïve Zürich 你好世界 שלום 👩‍👩‍👧 e\u0301",
    "def f(x):\n    return x + 1\n\n\n\tfoo(bar)  == 'baz'  # the end of the line\r\n",
    "the quick brown fox and the other things that there are in the world",
] * 3
PIECES = ["a", "the ", "Hello", " ", "   ", "\t", "\n\n", "\r\n", "12", "é", "e\u0301", "你", "▁"]
PIECES += ["\U00020000", "ש", "👩", "\u200d", "\x00", "'ll", "!", "<s>", "<tool>", "<wide>", "ﬁ"]
QWEN = r"(?i:'s|'ll)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+(?!\S)|\s+"


def _train(normalizer: Any, pre_tokenizer: Any, decoder: Any, **model: Any) -> tokenizers.Tokenizer:
    library = tokenizers.Tokenizer(models.BPE(**model))
    if normalizer is not None:
        library.normalizer = normalizer
    if pre_tokenizer is not None:
        library.pre_tokenizer = pre_tokenizer
    library.decoder = decoder
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)] if model.get("byte_fallback") else []
    alphabet = [] if byte_tokens else pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        show_progress=False,
        special_tokens=["<unk>", "<s>", "</s>", *byte_tokens],
        initial_alphabet=alphabet,
    )
    library.train_from_iterator(TRAINING, trainer)
    if byte_tokens:  # a model's byte tokens are in its vocabulary, but no added tokens
        description = json.loads(library.to_str())
        description["added_tokens"] = description["added_tokens"][:3]
        library = tokenizers.Tokenizer.from_str(json.dumps(description))
    library.add_tokens(["<tool>", AddedToken("<wide>", lstrip=True, rstrip=True, normalized=False)])
    return library


def _sentencepiece_decoder(strip: bool) -> Any:
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strip else steps)


def _byte_level(*splits: Any) -> Any:
    return pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )


LIBRARY = {
    "qwen": lambda: _train(
        normalizers.NFC(),
        _byte_level(pre_tokenizers.Split(Regex(QWEN), "isolated")),
        decoders.ByteLevel(),
    ),
    "llama3": lambda: _train(
        None,
        _byte_level(pre_tokenizers.Split(Regex(QWEN), "isolated")),
        decoders.ByteLevel(),
        ignore_merges=True,
    ),
    "gpt2": lambda: _train(None, pre_tokenizers.ByteLevel(False), decoders.ByteLevel()),
    "llama2": lambda: _train(
        normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
        None,
        _sentencepiece_decoder(strip=True),
        byte_fallback=True,
        fuse_unk=True,
        unk_token="<unk>",
    ),
    "gemma": lambda: _train(
        normalizers.Replace(" ", "▁"),
        pre_tokenizers.Split(" ", "merged_with_previous"),
        _sentencepiece_decoder(strip=False),
        byte_fallback=True,
        fuse_unk=True,
        unk_token="<unk>",
    ),
    "metaspace": lambda: _train(
        None,
        pre_tokenizers.Metaspace("▁", "first", False),
        decoders.Metaspace("▁", "first", False),
        fuse_unk=True,
        unk_token="<unk>",
    ),
}


def _source(data: str, **files: object) -> TokenizerSource:
    fields = {f"{name}.json": value for name, value in files.items()}
    return TokenizerSource("huggingface", fields, data.encode(), "{{ messages }}")


@pytest.mark.parametrize("kind", LIBRARY)
def test_ids_equal_the_library(kind: str) -> None:
    library = LIBRARY[kind]()
    library.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    made = Tokenizer.from_source(_source(library.to_str()))
    ours = Tokenizer.from_files(made.to_files())
    assert ours.vocab_size == library.get_vocab_size()
    rng = random.Random(7)
    texts = ["".join(rng.choices(PIECES, k=rng.randrange(25))) for _ in range(300)]
    for text in [*TRAINING, *texts, " " * 200]:
        assert ours.encode(text, parse_special=True) == library.encode(text).ids, text


@pytest.mark.parametrize("kind", ["qwen", "llama2", "gemma"])
def test_text_equals_the_library(kind: str) -> None:
    library = LIBRARY[kind]()
    ours = Tokenizer.from_source(_source(library.to_str()))
    for text in TRAINING:
        ids = library.encode(text).ids
        assert ours.decode(ids) == library.decode(ids)


def test_configs_name_the_special_tokens() -> None:
    data = LIBRARY["qwen"]().to_str()
    config: dict[str, object] = {"bos_token": None, "eos_token": {"content": "</s>"}}
    tokenizer = Tokenizer.from_source(
        _source(data, tokenizer_config=config, generation_config={"eos_token_id": [2, 5]})
    )
    assert (tokenizer.bos_id, tokenizer.eos_token, tokenizer.eos_ids) == (None, "</s>", {2, 5})
    assert not tokenizer.add_bos
    assert tokenizer.chat_template == "{{ messages }}"
    config |= {"bos_token": "<s>", "add_bos_token": True}
    tokenizer = Tokenizer.from_source(_source(data, tokenizer_config=config))
    assert tokenizer.add_bos
    assert tokenizer.encode("")[0] == tokenizer.bos_id == 1


def test_a_config_can_forbid_the_beginning_token() -> None:
    library = LIBRARY["qwen"]()
    library.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    config = {"bos_token": "<s>", "add_bos_token": False}
    tokenizer = Tokenizer.from_source(_source(library.to_str(), tokenizer_config=config))
    assert not tokenizer.add_bos
    assert tokenizer.encode("") == []


def test_special_tokens_in_text_need_parsing() -> None:
    tokenizer = Tokenizer.from_source(_source(LIBRARY["qwen"]().to_str()))
    assert 1 not in tokenizer.encode("a<s>b")
    assert 1 in tokenizer.encode("a<s>b", parse_special=True)
    tool = tokenizer.encode("<tool>", add_special=False)
    assert len(tool) == 1


def test_a_lone_surrogate_is_a_replacement_character() -> None:
    tokenizer = Tokenizer.from_source(_source(LIBRARY["qwen"]().to_str()))
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"


def test_files_are_deterministic() -> None:
    data = LIBRARY["llama3"]().to_str()
    first = Tokenizer.from_source(_source(data)).to_files()
    assert Tokenizer.from_source(_source(data)).to_files() == first
    assert Tokenizer.from_files(first).to_files() == first
