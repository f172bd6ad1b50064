"""Tokens to text while they are made: whole characters only, and nothing of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Protocol

from infc.diagnostics import Code, UserError


class TokenText(Protocol):
    """What a stream asks of a tokenizer."""

    @property
    def strips_leading_space(self) -> bool:
        """Whether decoding drops a space in front of the whole text."""

    def token_bytes(self, id: int) -> bytes:
        """The bytes of a token."""

    def is_special(self, id: int) -> bool:
        """Whether a token is no text."""


class TextStream:
    """Turns pushed token ids into text.

    All pieces together are `tokenizer.decode` of all ids, cut before the stop string that is
    completed first (the longest of those completed at once).
    """

    def __init__(
        self, tokenizer: TokenText, stop: Sequence[str] = (), *, continues: bool = False
    ) -> None:
        """Start a text.

        Args:
            tokenizer: says what the ids mean.
            stop: texts that end the stream; UserError OPTION for an empty one.
            continues: the ids go on from a text, so a leading space belongs to them.
        """
        if not all(stop):
            raise UserError(Code.OPTION, "expected stop strings with text, got an empty one")
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self._strip = tokenizer.strips_leading_space and not continues
        self._finished = False

    @property
    def finished(self) -> bool:
        """Whether a stop string was met or the stream was flushed: no text follows."""
        return self._finished

    def push(self, id: int) -> str:
        """Take one more token; the text that can be shown now, maybe empty."""
        if self._finished or self._tokenizer.is_special(id):
            return ""
        data = self._tokenizer.token_bytes(id)
        if self._strip and data:
            data = data.removeprefix(b" ")
            self._strip = False
        return self._show(self._decoder.decode(data))

    def flush(self) -> str:
        """End the text; what was held back, with U+FFFD for an incomplete character."""
        if self._finished:
            return ""
        shown = self._show(self._decoder.decode(b"", final=True))
        if not self._finished:
            shown += self._held
        self._held = ""
        self._finished = True
        return shown

    def _show(self, text: str) -> str:
        """Add text; what of it can neither be nor become part of a stop string."""
        text = self._held + text
        matches = [(at + len(stop), at) for stop in self._stop if (at := text.find(stop)) >= 0]
        if matches:
            self._finished = True
            self._held = ""
            return text[: min(matches)[1]]
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that begins `stop` without being all of it."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[len(text) - length :]):
            return length
    return 0
