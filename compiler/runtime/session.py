"""A session: one sequence on a loaded model, the token chosen next, and one user at a time.

A session never knows which backend it drives, and it keeps one promise whatever happens inside a
call: when a method raises, the session is as it was before (same position, same tokens, usable).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from infc.diagnostics import Code, UserError
from infc.runtime.cached_sequence import CachedSequence
from infc.runtime.generate import Generation, generate
from infc.runtime.sampling import Sampler, SamplingOptions
from infc.runtime.state_file import SavedState, read_state, write_state
from infc.runtime.token_checks import check_room, check_tokens
from infc.runtime.tokenizer import Tokenizer
from infc.target.runnable import Limits, OutputKind, Runnable

Result = TypeVar("Result")


class Session:
    """One sequence on a loaded model.

    The cache holds `position` tokens. `prefill` and `decode` append exactly the tokens they are
    given. `next_token` appends the token it chose the time before: a token just chosen is not yet
    in the cache, and a `prefill` or `decode` that comes next may put another in its place.

    A session is for one thread at a time (INF5005 otherwise); `fork` makes another.

    Args:
        runnable: the loaded programs; forks share them.
        tokenizer: None where the model carries none.
        threads: threads every call is run by, 1 to `runnable.limits.max_threads`.
        digest: identity of the artifact, which a saved state is tied to.
    """

    def __init__(
        self,
        runnable: Runnable,
        tokenizer: Tokenizer | None,
        *,
        threads: int,
        digest: str = "",
    ) -> None:
        runnable.limits.check_threads(threads)
        self.threads = threads
        self.digest = digest
        self._runnable = runnable
        self._tokenizer = tokenizer
        self._users: dict[str, int] = {}  # empty, or the "thread" that a method runs in
        # Forks share the programs and so their arena: one call at a time, in whatever thread.
        self._sequence = CachedSequence(
            runnable, runnable.new_kv(), threads=threads, device=threading.Lock()
        )
        self._logits: NDArray[np.float32] | None = None  # [vocab], of the last position
        self._chosen: int | None = None  # by next_token, not yet in the cache

    # What the session is

    @property
    def position(self) -> int:
        """Tokens in the cache; the position the next token will take."""
        return self._sequence.position

    @property
    def tokens(self) -> tuple[int, ...]:
        """The tokens in the cache, oldest first."""
        return tuple(self._sequence.tokens)

    @property
    def chosen(self) -> int | None:
        """The token `next_token` returned last, while it is not in the cache yet."""
        return self._chosen

    @property
    def limits(self) -> Limits:
        """The bounds the programs were compiled for."""
        return self._runnable.limits

    @property
    def vocab_size(self) -> int:
        """Number of token ids the model knows."""
        return self._runnable.vocab_size

    @property
    def runnable(self) -> Runnable:
        """The loaded programs, which forks share."""
        return self._runnable

    @property
    def planned_memory_bytes(self) -> int:
        """Bytes of arena the memory plan takes, for one thread."""
        return self._runnable.planned_bytes

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer; INF1101 where it has none."""
        if self._tokenizer is None:
            raise UserError(
                Code.TOKENIZER_MISSING,
                "the artifact holds no tokenizer",
                hint="pass token ids instead of text, or compile a model that has a tokenizer",
            )
        return self._tokenizer

    # Appending tokens

    def prefill(
        self, token_ids: Sequence[int] | NDArray[np.integer], all_logits: bool = False
    ) -> NDArray[np.float32]:
        """Append tokens, in as many chunks as it takes.

        Args:
            token_ids: `[n]`, n >= 1.
            all_logits: return the logits of every token instead of the last.

        Returns:
            float32 `[vocab]`, the last position's logits, or `[n, vocab]`; read-only.

        Raises:
            UserError: INF5002, INF5003, INF5004, INF5005. KeyboardInterrupt cancels.
        """

        def append(tokens: NDArray[np.int32]) -> NDArray[np.float32]:
            if all_logits:
                rows = self._sequence.prefill_all(tokens)
                self._set_next(rows[-1].copy(), None)
                return rows
            logits: NDArray[np.float32] = self._sequence.prefill(tokens, OutputKind.LOGITS)
            self._set_next(logits, None)
            return logits

        with self._exclusive():
            return self._append(token_ids, append)

    def decode(self, token_id: int) -> NDArray[np.float32]:
        """Append one token; float32 `[vocab]`, the logits of what comes after it; read-only."""

        def append(tokens: NDArray[np.int32]) -> NDArray[np.float32]:
            logits: NDArray[np.float32] = self._sequence.decode(tokens, OutputKind.LOGITS)
            self._set_next(logits, None)
            return logits

        with self._exclusive():
            return self._append([token_id], append)

    def next_token(self, sampler: Sampler) -> int:
        """Append the token chosen last, if there is one, and choose the next.

        A greedy sampler takes the index from the program, one that looks at few of the largest
        logits takes those: the others are not made.

        Raises:
            UserError: INF5003 where nothing was prefilled; INF5004, INF5005.
        """
        output, top_k = self._output(sampler)

        def append(tokens: NDArray[np.int32]) -> int:
            return self._choose(self._sequence.decode(tokens, output, top_k), output, sampler)

        with self._exclusive():
            if self._chosen is not None:
                return self._append([self._chosen], append)
            if self._logits is None:
                raise UserError(
                    Code.EMPTY_PROMPT,
                    "expected a token to continue from, got none since the session was made, "
                    "reset or truncated",
                    hint="call prefill with the prompt's token ids first",
                )
            token = sampler.sample(self._logits, self._sequence.tokens)
            self._set_next(self._logits, token)
            return token

    def prefill_next(self, token_ids: Sequence[int], sampler: Sampler) -> int:
        """Append tokens and choose the next: `prefill` then `next_token`, without the logits."""
        output, top_k = self._output(sampler)

        def append(tokens: NDArray[np.int32]) -> int:
            return self._choose(self._sequence.prefill(tokens, output, top_k), output, sampler)

        with self._exclusive():
            return self._append(token_ids, append)

    def _output(self, sampler: Sampler) -> tuple[OutputKind, int]:
        """The least that a sampler needs of a call, and how many top tokens that is."""
        if sampler.greedy:
            return OutputKind.ARGMAX, 0
        if 0 < sampler.top <= self.limits.max_top_k:
            return OutputKind.TOP_K, sampler.top
        return OutputKind.LOGITS, 0

    def _choose(self, made: NDArray[Any], output: OutputKind, sampler: Sampler) -> int:
        """The next token, of one row of what a call made."""
        if output is OutputKind.ARGMAX:
            token = int(made)
        elif output is OutputKind.TOP_K:
            token = sampler.sample_top(made)
        else:
            token = sampler.sample(made, self._sequence.tokens)
        self._set_next(None, token)
        return token

    def _set_next(self, logits: NDArray[np.float32] | None, chosen: int | None) -> None:
        if logits is not None:
            # What was returned is also what next_token samples from.
            logits.setflags(write=False)
        self._logits, self._chosen = logits, chosen

    # Moving back, copying, keeping

    def truncate(self, n: int) -> None:
        """Forget all but the first `n` tokens.

        A sliding-window layer keeps a ring of positions only; what it has overwritten is gone.

        Raises:
            UserError: INF5007 where a layer no longer holds the window before `n`, or the session
                is shorter than `n`.
        """
        with self._exclusive():
            self._sequence.check_truncation(n)
            if n < self.position:
                self._sequence.forget_after(n)
                self._set_next(None, None)

    def reset(self) -> None:
        """Forget everything; keeps the memory."""
        with self._exclusive():
            self._sequence.forget_after(0)
            self._set_next(None, None)

    def fork(self) -> Session:
        """An independent session in the same state; programs and weights are shared.

        Forks may be used in threads of their own; their calls take turns.
        """
        with self._exclusive():
            other = Session(
                self._runnable, self._tokenizer, threads=self.threads, digest=self.digest
            )
            other._sequence = self._sequence.copy()
            other._set_next(self._logits, self._chosen)
            return other

    def save(self, path: str | Path) -> None:
        """Write tokens and KV cache to a file, whole or not at all; INF4006 where that fails."""
        with self._exclusive():
            block = self._sequence.export()
            state = SavedState(self.digest, self.tokens, block, self._logits, self._chosen)
            write_state(Path(path), state, self._runnable.kv_shape.dtype)

    def restore(self, path: str | Path) -> None:
        """Become what was saved by a session of the same artifact.

        Raises:
            UserError: INF4001 no such file, INF4003 damaged, INF4004 saved by another artifact.
        """
        with self._exclusive():
            state = read_state(Path(path), self.digest)
            self._sequence.become(state.tokens, state.block)
            self._set_next(state.logits, state.chosen)

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        seed: int = 0,
        stop: Sequence[str] = (),
        chat: bool = False,
    ) -> Generation:
        """Append a prompt and stream the text that follows.

        On a session that has generated before, the prompt continues that text, its last token
        included.

        Args:
            prompt: text, or token ids.
            max_new_tokens: upper bound of the tokens chosen, an end-of-sequence token included.
            temperature, top_k, top_p, min_p, repetition_penalty, seed: see `SamplingOptions`.
            stop: the text ends before any of these.
            chat: put the text into the model's chat template, as the user's first message.

        Returns:
            An iterator over pieces of text; whole characters only.

        Raises:
            UserError: at once where the request is wrong (INF1101, INF1103, INF5001 to INF5004),
                INF5005 while iterating where the session was moved in between.
        """
        options = SamplingOptions(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
        )
        return generate(
            self, prompt, max_new_tokens=max_new_tokens, options=options, stop=stop, chat=chat
        )

    # One user at a time, and nothing half done

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        # A thread that an interrupt kept from giving the session back may take it again.
        me = threading.get_ident()
        try:
            if self._users.setdefault("thread", me) != me:
                raise UserError(
                    Code.SESSION_BUSY,
                    "the session is in use by another thread",
                    hint="give each thread its own session: fork() copies one",
                )
            yield
        finally:
            if self._users.get("thread") == me:
                del self._users["thread"]

    def _append(
        self,
        token_ids: Sequence[int] | NDArray[np.integer],
        append: Callable[[NDArray[np.int32]], Result],
    ) -> Result:
        """`append` of the checked tokens, `[n]` int32; takes back what it did where it fails.

        No context manager: an interrupt on the way out of one would leave it half done.
        """
        tokens = self._checked(token_ids)
        start, following = self.position, (self._logits, self._chosen)
        lost = self._sequence.about_to_be_lost(start + len(tokens))
        try:
            return append(tokens)
        except BaseException:
            self._sequence.forget_after(start)
            self._set_next(*following)
            if lost is not None:
                self._sequence.give_back(lost)
            raise

    def _checked(self, token_ids: Sequence[int] | NDArray[np.integer]) -> NDArray[np.int32]:
        tokens = check_tokens(token_ids, self.vocab_size)
        check_room(self.position, len(tokens), self.limits.max_context)
        return tokens
