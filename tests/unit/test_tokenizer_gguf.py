"""GGUF tokenizers against brute force and the `tokenizers` library, on tiny vocabularies."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from infc.frontends.source import TokenizerSource
from infc.runtime.tokenizer import Tokenizer
from infc.runtime.tokenizer.pretokenizers import PRE_TOKENIZERS

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
TRAINING = [
    "Hello world, it's 1234 tokens!! DON'T we'll naïve Zürich 你好世界 שלום 👩‍👩‍👧 e\u0301",
    "def f(x):\n    return x + 1\n\n\n\tfoo(bar)  == 'baz'  # the end of the line\r\n",
    "the quick brown fox and the other things that there are in the world",
] * 3
PIECES = [
    *["a", "the ", "Hello", "World", "tHe", "'ll", "'T", "!", "?!", "(", "/", "\\", "_", "x1"],
    *[" ", "  ", "     ", "\t", "\n", "\r\n", "\n\n", "\u00a0", "\u3000", "0", "12", "345", "٣"],
    *[
        "é",
        "e\u0301",
        "你好",
        "世",
        "\U00020000",
        "ש",
        "👩",
        "\u200d",
        "\x00",
        "\x7f",
        "ǅ",
        "ʰ",
        "Ⅷ",
    ],
]


def _random_texts(seed: int, count: int) -> list[str]:
    rng = random.Random(seed)
    return ["".join(rng.choices(PIECES, k=rng.randrange(20))) for _ in range(count)]


def _gguf(model: str, tokens: list[str], types: list[int], **fields: object) -> Tokenizer:
    prefix = "tokenizer.ggml."
    values = {"model": model, "tokens": tokens, "token_type": types, **fields}
    return Tokenizer.from_source(
        TokenizerSource("gguf", {prefix + key: value for key, value in values.items()}, None, None)
    )


def _sentencepiece(words: list[str], scores: list[float], **fields: object) -> Tokenizer:
    tokens = ["<unk>", "<s>", "</s>", *BYTES, *words]
    types = [2, 3, 3, *[6] * 256, *[1] * len(words)]
    return _gguf("llama", tokens, types, scores=[0.0] * 259 + scores, **fields)


def _brute_force(text: str, words: Mapping[str, float]) -> list[str | int]:
    """SentencePiece's BPE, literally: join the best-scored neighbours, the leftmost of equals."""
    symbols = list(text)
    while True:
        joins = [(-words[a + b], i) for i, (a, b) in enumerate(pairwise(symbols)) if a + b in words]
        if not joins:
            break
        at = min(joins)[1]
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
    ids: list[str | int] = []
    for symbol in symbols:
        ids.extend([symbol] if symbol in words else symbol.encode())
    return ids


@pytest.mark.parametrize("seed", range(12))
def test_sentencepiece_is_bpe_by_score(seed: int) -> None:
    rng = random.Random(seed)
    words: dict[str, float] = {}
    while len(words) < 40:
        word = "".join(rng.choices("ab▁c>é", k=rng.randint(1, 5)))
        words[word] = -float(rng.randint(0, 15))
    prefix = seed % 2 == 0
    tokenizer = _sentencepiece(list(words), list(words.values()), add_space_prefix=prefix)
    order = list(words)
    for _ in range(60):
        text = "".join(rng.choices("ab c>éz", k=rng.randint(0, 25)))
        marked = ("▁" if prefix and text else "") + text.replace(" ", "▁")
        expected = [
            259 + order.index(part) if isinstance(part, str) else 3 + part
            for part in _brute_force(marked, words)
        ]
        assert tokenizer.encode(text, add_special=False) == expected, text


def test_space_prefix_follows_every_special_token_and_is_dropped_once() -> None:
    tokenizer = _sentencepiece(["▁", "▁a", "a", "b"], [-4.0, -1.0, -2.0, -3.0])
    ids = tokenizer.encode("a</s>a b", parse_special=True)
    assert [tokenizer.token_bytes(id) for id in ids] == [
        b"<s>", b" a", b"</s>", b" a", b" ", b"b",
    ]  # fmt: skip
    assert tokenizer.decode(ids) == "a a b"
    assert tokenizer.decode(ids[1:], skip_special=False) == "a</s> a b"
    assert tokenizer.decode(ids[3:], continues=True) == " a b"


def test_text_makes_no_control_byte_or_unknown_token() -> None:
    parts = [
        "<",
        "<s",
        "s",
        ">",
        "</",
        "/",
        "</s",
        "0",
        "x",
        "4",
        "1",
        "<0",
        "<0x",
        "<0x4",
        "<0x41",
    ]
    tokenizer = _sentencepiece([*parts, "▁"], [-float(n) for n in range(len(parts) + 1)])
    for text in ("<s>", "</s>", "<0x41>", "<unk>"):
        ids = tokenizer.encode(text, add_special=False)
        assert not {0, 1, 2, 3 + 0x41} & set(ids)
        assert tokenizer.decode(ids) == text
    assert tokenizer.encode("<s></s>", parse_special=True) == [1, 1, 2]


def test_user_defined_tokens_match_leftmost_then_longest_without_parsing_specials() -> None:
    tokens = ["<unk>", "<s>", "</s>", *BYTES, "a", "b", "c", "d", "ab", "bcd", "abc", "▁"]
    types = [2, 3, 3, *[6] * 256, 1, 1, 1, 1, 4, 4, 4, 1]
    tokenizer = _gguf("llama", tokens, types, scores=[0.0] * len(tokens), add_space_prefix=False)
    shown = [tokens[id] for id in tokenizer.encode("abcdab<s>", add_special=False)]
    assert shown[:3] == ["abc", "d", "ab"]
    assert "<s>" not in shown


def test_an_empty_text_is_only_the_beginning_token() -> None:
    tokenizer = _sentencepiece(["a", "▁"], [0.0, 0.0])
    assert tokenizer.encode("") == [1]
    assert tokenizer.encode("", add_special=False) == []
    assert tokenizer.decode([]) == ""


@pytest.fixture(scope="module", params=sorted(PRE_TOKENIZERS))
def byte_level(request: pytest.FixtureRequest) -> tuple[tokenizers.Tokenizer, Tokenizer]:
    """A byte-level tokenizer trained by the library, and ours of the same as GGUF fields."""
    name = request.param
    entry = PRE_TOKENIZERS[name]
    library = tokenizers.Tokenizer(models.BPE(ignore_merges=entry.whole_words))
    splits: list[Any] = [
        pre_tokenizers.Split(tokenizers.Regex(expression), "isolated")
        for expression in entry.expressions
    ]
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        show_progress=False,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    library.train_from_iterator(TRAINING, trainer)
    library.add_tokens(["<tool>"])
    vocabulary = library.get_vocab()
    tokens = sorted(vocabulary, key=lambda token: vocabulary[token])
    types = [{"<s>": 3, "</s>": 3, "<tool>": 4}.get(token, 1) for token in tokens]
    merges = json.loads(library.to_str())["model"]["merges"]
    ours = _gguf(
        "gpt2",
        tokens,
        types,
        pre=name,
        merges=[" ".join(merge) for merge in merges],
        bos_token_id=0,
        eos_token_id=1,
        add_bos_token=False,
    )
    return library, ours


def test_byte_level_ids_and_text_equal_the_library(
    byte_level: tuple[tokenizers.Tokenizer, Tokenizer],
) -> None:
    library, ours = byte_level
    for text in [*_random_texts(3, 150), *TRAINING, "x<tool>y</s>z", " " * 500, "\n" * 70]:
        expected = library.encode(text).ids
        assert ours.encode(text, parse_special=True) == expected, text
        assert ours.decode(expected) == text.replace("</s>", "")
    assert ours.eos_ids == {1}


def test_whole_words_ignore_merges() -> None:
    base = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*base, "abc", "<s>"]
    types = [*[1] * 257, 3]
    fields: dict[str, object] = {"merges": ["a b"], "bos_token_id": 257}
    with pytest.raises(Exception, match="names unknown 'ab'"):
        _gguf("gpt2", tokens, types, pre="llama-bpe", **fields)
    tokens.append("ab")
    types.append(1)
    whole = _gguf("gpt2", tokens, types, pre="llama-bpe", **fields)
    assert whole.add_bos
    assert whole.encode("abc") == [257, 256]
    merged = _gguf("gpt2", tokens, types, pre="smaug-bpe", **fields)
    assert merged.encode("abc") == [258, base.index("c")]


def test_the_expressions_are_those_of_the_models() -> None:
    qwen2 = pytest.importorskip("transformers.models.qwen2.tokenization_qwen2")
    assert PRE_TOKENIZERS["qwen2"].expressions == (qwen2.PRETOKENIZE_REGEX,)
    slow = pytest.importorskip("transformers.convert_slow_tokenizer")
    llama3 = slow.TikTokenConverter.__init__.__defaults__[1]
    assert PRE_TOKENIZERS["llama-bpe"].expressions == (llama3,)
