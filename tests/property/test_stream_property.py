"""Whatever the tokens, streamed pieces are the decoded text cut at the stop string."""

from __future__ import annotations

from dataclasses import dataclass

import hypothesis.strategies as st
from hypothesis import given, settings

from infc.frontends.source import TokenizerSource
from infc.runtime.stream import TextStream
from infc.runtime.tokenizer import Tokenizer

_PARTS = st.one_of(
    st.text("ab <é👍", min_size=1, max_size=4).map(str.encode),
    st.binary(min_size=1, max_size=3),
    st.sampled_from([b"\xf0\x9f", b"\x91\x8d", b"\xe2", b"\x96\x81", b"\xef\xbb\xbf", b"\x00"]),
)
_STOPS = st.lists(st.text("ab <é👍\ufffd", min_size=1, max_size=4), max_size=3)


@dataclass
class _Tokens:
    tokens: list[bytes]
    strips_leading_space: bool

    def token_bytes(self, id: int) -> bytes:
        return self.tokens[id]

    def is_special(self, id: int) -> bool:
        return False


def _cut(text: str, stops: list[str]) -> str:
    """Before the stop string whose end comes first, the longest of those: by brute force."""
    for end in range(len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)]
    return text


@settings(deadline=None)
@given(st.lists(_PARTS, max_size=12), _STOPS, st.booleans())
def test_pieces_are_the_cut_text(parts: list[bytes], stops: list[str], strip: bool) -> None:
    stream = TextStream(_Tokens(parts, strip), stops)
    pieces = []
    for id in range(len(parts)):
        pieces.append(stream.push(id))
        shown = "".join(pieces)
        assert stream.finished or not any(shown.endswith(stop) for stop in stops)
    pieces.append(stream.flush())
    joined = b"".join(parts)
    text = (joined.removeprefix(b" ") if strip else joined).decode("utf-8", "replace")
    assert "".join(pieces) == _cut(text, stops)
    assert stream.finished


def _tokenizer(prefix: bool) -> Tokenizer:
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words = ["▁", "a", "b", "▁a", "ab", "▁ab", "é"]
    fields: dict[str, object] = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens + words,
        "tokenizer.ggml.scores": [0.0] * 259 + [-float(n) for n in range(len(words))],
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * len(words),
        "tokenizer.ggml.add_space_prefix": prefix,
    }
    return Tokenizer.from_source(TokenizerSource("gguf", fields, None, None))


_TOKENIZERS = {prefix: _tokenizer(prefix) for prefix in (False, True)}


@settings(deadline=None)
@given(st.lists(st.integers(0, 265), max_size=30), _STOPS, st.booleans())
def test_pieces_are_what_decode_says(ids: list[int], stops: list[str], prefix: bool) -> None:
    tokenizer = _TOKENIZERS[prefix]
    stream = TextStream(tokenizer, stops)
    pieces = [*map(stream.push, ids), stream.flush()]
    assert "".join(pieces) == _cut(tokenizer.decode(ids), stops)


@settings(deadline=None)
@given(st.text(), st.booleans())
def test_any_text_survives_encoding(text: str, prefix: bool) -> None:
    tokenizer = _TOKENIZERS[prefix]
    assert tokenizer.decode(tokenizer.encode(text)) == text.replace("▁", " ")
