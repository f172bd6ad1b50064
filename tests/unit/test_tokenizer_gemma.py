"""The demo model's tokenizer against llama.cpp's ids of the corpus (tests/corpus)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from infc.frontends import open_model
from infc.runtime.tokenizer import Tokenizer

CORPUS = Path(__file__).parents[1] / "corpus"
TEXTS = json.loads((CORPUS / "texts.json").read_text())
GOLDEN = json.loads((CORPUS / "gemma3_golden.json").read_text())
HTML_END = "</s>"
"""A user-defined token of Gemma (the end of a struck-out passage). llama.cpp takes any token with
this text for a control token, and so for the end of a generation too; the file does not say so,
and SentencePiece and transformers know it as text."""


@pytest.fixture(scope="module")
def gemma(gemma_path: Path) -> Tokenizer:
    """From the GGUF, through its stored form."""
    source = open_model(gemma_path)
    try:
        return Tokenizer.from_files(Tokenizer.from_source(source.tokenizer).to_files())
    finally:
        source.close()


@pytest.mark.parametrize("group", TEXTS)
def test_ids_equal_llama_cpp(gemma: Tokenizer, group: str) -> None:
    for text, expected in zip(TEXTS[group], GOLDEN["plain"][group], strict=True):
        if HTML_END not in text:
            assert gemma.encode(text, add_special=False) == expected, text


def test_parsed_special_tokens_equal_llama_cpp(gemma: Tokenizer) -> None:
    for text, expected in zip(TEXTS["spelled"], GOLDEN["parsed"], strict=True):
        assert gemma.encode(text, add_special=False, parse_special=True) == expected, text


def test_text_survives(gemma: Tokenizer) -> None:
    for text in (text for texts in TEXTS.values() for text in texts):
        ids = gemma.encode(text)
        assert ids[0] == gemma.bos_id
        assert gemma.decode(ids) == text.replace("▁", " ")
        assert b"".join(map(gemma.token_bytes, ids[1:])).decode() == text.replace("▁", " ")


def test_special_tokens(gemma: Tokenizer) -> None:
    assert gemma.vocab_size == 262144
    assert (gemma.bos_token, gemma.eos_token) == ("<bos>", "<eos>")
    assert {gemma.token_bytes(id) for id in gemma.eos_ids} == {b"<eos>", b"<end_of_turn>"}
    assert gemma.add_bos
    assert gemma.encode(HTML_END, add_special=False) == [212]
