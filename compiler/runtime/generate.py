"""Text in, text out: a prompt is appended to a session and its continuation is streamed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from infc.diagnostics import Code, UserError
from infc.runtime.chat import render_chat
from infc.runtime.sampling import Sampler, SamplingOptions
from infc.runtime.stream import TextStream

if TYPE_CHECKING:
    from infc.runtime.session import Session


class Generation(Iterator[str]):
    """The pieces of a continuation, and how it went so far.

    Attributes:
        prompt_tokens: tokens of the prompt.
        new_tokens: tokens chosen so far, an end-of-sequence token included.
        prefill_seconds: time of the prefill, 0.0 before it.
        decode_seconds: time of all later steps so far.
    """

    def __init__(
        self,
        session: Session,
        prompt: Sequence[int],
        *,
        max_new_tokens: int,
        options: SamplingOptions,
        stop: Sequence[str],
        new_text: bool,
    ) -> None:
        self.prompt_tokens = len(prompt)
        self.new_tokens = 0
        self.prefill_seconds = 0.0
        self.decode_seconds = 0.0
        self._session = session
        self._sampler = Sampler(options)
        self._max_new_tokens = max_new_tokens
        stops = [stop] if isinstance(stop, str) else stop
        self._stream = TextStream(session.tokenizer, stops, continues=not new_text)
        self._pieces = self._run(prompt)

    def __next__(self) -> str:
        return next(self._pieces)

    def _run(self, prompt: Sequence[int]) -> Iterator[str]:
        token = self._first(prompt)
        end = self._session.tokenizer.eos_ids
        while token not in end:
            piece = self._stream.push(token)
            if piece:
                yield piece
            if self._stream.finished or self.new_tokens == self._max_new_tokens:
                break
            token = self._next(token)
        rest = self._stream.flush()
        if rest:
            yield rest

    def _first(self, prompt: Sequence[int]) -> int:
        start = time.perf_counter()
        token = self._session.prefill_next(prompt, self._sampler)
        self.prefill_seconds = time.perf_counter() - start
        self.new_tokens = 1
        self._length = self._session.position
        return token

    def _next(self, token: int) -> int:
        # Between two pieces the caller had the session, and may have moved it.
        if self._session.position != self._length or self._session.chosen != token:
            raise UserError(
                Code.SESSION_BUSY,
                f"expected the session where the text ended, at position {self._length}, got it "
                f"changed, at position {self._session.position}",
                hint="finish or drop the text before using the session, or use a fork() of it",
            )
        start = time.perf_counter()
        token = self._session.next_token(self._sampler)
        self.decode_seconds += time.perf_counter() - start
        self.new_tokens += 1
        self._length = self._session.position
        return token


def generate(
    session: Session,
    prompt: str | Sequence[int],
    *,
    max_new_tokens: int,
    options: SamplingOptions,
    stop: Sequence[str],
    chat: bool,
) -> Generation:
    """Check a request and start it; see `Session.generate`."""
    if max_new_tokens < 1:
        raise UserError(Code.OPTION, f"max_new_tokens must be 1 or more, got {max_new_tokens}")
    ids = _prompt_ids(session, prompt, chat)
    if session.chosen is not None:
        # It was the last token of the text before: what comes now continues that text.
        ids = [session.chosen, *ids]
    # The last new token is chosen, not appended.
    needed = session.position + len(ids) + max_new_tokens - 1
    most = session.limits.max_context
    if needed > most:
        raise UserError(
            Code.CONTEXT_OVERFLOW,
            f"the context holds {most} positions, {needed} are needed ({session.position} in the "
            f"session, {len(ids)} of the prompt and {max_new_tokens - 1} new)",
            hint=f"ask for fewer new tokens, shorten the prompt, or compile with --max-context "
            f"{needed} or more",
        )
    # A chat template ends where a new text begins; otherwise the prompt itself goes on.
    return Generation(
        session, ids, max_new_tokens=max_new_tokens, options=options, stop=stop, new_text=chat
    )


def _prompt_ids(session: Session, prompt: str | Sequence[int], chat: bool) -> list[int]:
    if chat:
        return _chat_ids(session, prompt)
    if not isinstance(prompt, str):
        return list(prompt)
    # Only a sequence that starts here starts with the beginning-of-sequence token.
    return session.tokenizer.encode(prompt, add_special=session.position == 0, parse_special=True)


def _chat_ids(session: Session, prompt: str | Sequence[int]) -> list[int]:
    """A template renders a whole conversation, so one message can only be the first."""
    if not isinstance(prompt, str):
        raise UserError(Code.OPTION, "chat expects the prompt as text, got token ids")
    if session.position:
        raise UserError(
            Code.OPTION,
            f"chat expects a session at position 0, got one at {session.position}",
            hint="reset() the session, or pass further turns as token ids of the whole template",
        )
    tokenizer = session.tokenizer
    if tokenizer.chat_template is None:
        raise UserError(
            Code.CHAT_TEMPLATE,
            "the model has no chat template",
            hint="it is probably a base model: leave out chat and pass a text to continue",
        )
    text = render_chat(
        tokenizer.chat_template,
        [{"role": "user", "content": prompt}],
        bos=tokenizer.bos_token,
        eos=tokenizer.eos_token,
    )
    # The template writes the special tokens itself.
    return tokenizer.encode(text, add_special=False, parse_special=True)
