"""Finding added tokens in text: the leftmost match, the longest of those.

That is what SentencePiece's prefix matcher and the `tokenizers` library do. llama.cpp looks for the
longest token first instead, which differs only where two added tokens overlap in the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from infc.runtime.tokenizer.definition import AddedToken


class AddedTokenMatcher:
    """Splits text at added tokens."""

    def __init__(self, tokens: Mapping[str, AddedToken]) -> None:
        """`tokens`: by the text to look for; empty texts never match."""
        self._tokens = tokens
        lengths: dict[str, set[int]] = {}
        for text in tokens:
            if text:
                lengths.setdefault(text[0], set()).add(len(text))
        self._lengths = {first: sorted(found, reverse=True) for first, found in lengths.items()}
        firsts = "".join(re.escape(first) for first in self._lengths)
        self._first = re.compile(f"[{firsts}]") if firsts else None

    def split(self, text: str) -> Iterator[str | AddedToken]:
        """The parts of `text` in order; its other text in non-empty strings."""
        done = 0
        at = 0
        while self._first is not None and (match := self._first.search(text, at)):
            at = match.start()
            token, length = self._longest_at(text, at)
            if token is None:
                at += 1
                continue
            end = at + length
            if token.lstrip:
                at = done + len(text[done:at].rstrip())
            if token.rstrip:
                end = len(text) - len(text[end:].lstrip())
            if at > done:
                yield text[done:at]
            yield token
            done = at = end
        if done < len(text):
            yield text[done:]

    def _longest_at(self, text: str, at: int) -> tuple[AddedToken | None, int]:
        for length in self._lengths[text[at]]:
            token = self._tokens.get(text[at : at + length])
            if token is not None:
                return token, length
        return None, 0
