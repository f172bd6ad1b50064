"""Streaming: whole characters, stop strings, the space of SentencePiece."""

from __future__ import annotations

from dataclasses import dataclass

from infc.runtime.stream import TextStream


@dataclass
class Pieces:
    """A tokenizer of given tokens; empty ones are special."""

    tokens: list[bytes]
    strips_leading_space: bool = False

    def token_bytes(self, id: int) -> bytes:
        return self.tokens[id]

    def is_special(self, id: int) -> bool:
        return not self.tokens[id]


def _pushed(
    tokens: list[bytes], *stop: str, strip: bool = False, continues: bool = False
) -> tuple[list[str], str]:
    stream = TextStream(Pieces(tokens, strip), stop, continues=continues)
    return [stream.push(id) for id in range(len(tokens))], stream.flush()


def test_a_character_in_parts_is_shown_when_complete() -> None:
    assert _pushed([b"\xf0", b"\x9f\x91", b"\x8d!", b"e"]) == (["", "", "👍!", "e"], "")


def test_incomplete_bytes_become_replacement_characters() -> None:
    assert _pushed([b"a\xe4\xbd"]) == (["a"], "\ufffd")
    assert _pushed([b"\xff", b"\xe4", b"b"]) == (["\ufffd", "", "\ufffdb"], "")


def test_text_before_a_stop_string_is_shown_and_nothing_after() -> None:
    stream = TextStream(Pieces([b"one\n", b"\n", b"two"]), ["\n\n"])
    assert stream.push(0) == "one"
    assert not stream.finished
    assert stream.push(1) == ""
    assert stream.finished
    assert stream.push(2) == ""
    assert stream.flush() == ""


def test_what_could_begin_a_stop_string_is_held_back_only_so_long() -> None:
    assert _pushed([b"a<", b"/", b"b</", b"s"], "</s>") == (["a", "", "</b", ""], "</s")


def test_the_stop_string_completed_first_wins_however_tokens_are_cut() -> None:
    for tokens in ([b"xabcd"], [b"x", b"a", b"b", b"c", b"d"], [b"xab", b"cd"]):
        assert "".join(_pushed(tokens, "abcd", "bc", "c")[0]) == "xa"


def test_a_stop_string_of_several_bytes() -> None:
    assert _pushed(["ab終".encode()[:4], "終".encode()[2:]], "終") == (["ab", ""], "")


def test_special_tokens_are_no_text() -> None:
    assert _pushed([b"", b" a", b"", b" b"], strip=True) == (["", "a", "", " b"], "")


def test_a_continuing_stream_keeps_its_leading_space() -> None:
    assert _pushed([b" a", b" b"], strip=True, continues=True) == ([" a", " b"], "")
    assert _pushed([b" ", b" b"], strip=True) == (["", " b"], "")
