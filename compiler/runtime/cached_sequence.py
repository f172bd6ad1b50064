"""One sequence of tokens in a KV cache: calls of the programs extend both, and both can go back."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infc.diagnostics import Code, UserError
from infc.runtime.interrupt import InterruptibleCalls
from infc.runtime.rings import Rings
from infc.runtime.state_file import trimmed
from infc.target.runnable import Call, Cancellation, KVBlock, KVCache, OutputKind, Phase, Runnable

SLOT = 0
"""One sequence uses one slot of its own KV cache."""


class CachedSequence:
    """Tokens, and what a cache of their own holds of them.

    A call that fails leaves tokens and cache as far as it came: `forget_after` and `give_back` are
    the way back.

    Args:
        runnable: the loaded programs; sequences share them.
        kv: a cache of theirs, of this sequence alone and empty.
        threads: threads every call is run by.
        device: held in every call; one for all sequences of these programs.

    Attributes:
        tokens: those in the cache, oldest first.
    """

    def __init__(
        self, runnable: Runnable, kv: KVCache, *, threads: int, device: threading.Lock
    ) -> None:
        self._runnable = runnable
        self._threads = threads
        self._device = device
        self._calls = InterruptibleCalls()
        self._kv = kv
        self._rings = Rings(runnable.kv_shape)
        self.tokens: list[int] = []

    @property
    def position(self) -> int:
        """Tokens in the cache; the position the next token will take."""
        return len(self.tokens)

    # Forwards

    def prefill(
        self, tokens: NDArray[np.int32], output: OutputKind, top_k: int = 0
    ) -> NDArray[Any]:
        """Append `[n]` tokens, in as many chunks as it takes; the output of the last."""
        chunk = self._runnable.limits.max_tokens[Phase.PREFILL]
        *pieces, last = [tokens[i : i + chunk] for i in range(0, len(tokens), chunk)]
        for piece in pieces:
            # Only the last piece's logits are wanted.
            self._run(Phase.PREFILL, piece, 0, output, top_k)
        row: NDArray[Any] = self._run(Phase.PREFILL, last, 1, output, top_k)[0]
        return row

    def prefill_all(self, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
        """Append `[n]` tokens; float32 `[n, vocab]`, in pieces no longer than the logit rows."""
        phase, limits = Phase.PREFILL, self._runnable.limits
        chunk = min(limits.max_tokens[phase], limits.max_logit_rows[phase])
        rows = np.empty((len(tokens), self._runnable.vocab_size), np.float32)
        for i in range(0, len(tokens), chunk):
            piece = tokens[i : i + chunk]
            rows[i : i + len(piece)] = self._run(phase, piece, len(piece), OutputKind.LOGITS)
        rows.setflags(write=False)
        return rows

    def decode(self, tokens: NDArray[np.int32], output: OutputKind, top_k: int = 0) -> NDArray[Any]:
        """Append one token, `[1]`; its output."""
        row: NDArray[Any] = self._run(Phase.DECODE, tokens, 1, output, top_k)[0]
        return row

    def _run(
        self,
        phase: Phase,
        tokens: NDArray[np.int32],
        last_rows: int,
        output: OutputKind,
        top_k: int = 0,
    ) -> NDArray[Any]:
        """One call of a program: append `[t]` tokens, return the output of the last few rows."""
        start, count = self.position, len(tokens)
        # Before the call, which may fail halfway through writing.
        self._rings.write(start + count)
        call = Call(
            tokens=tokens,
            row_offsets=np.array([0, count], np.int32),
            slots=np.array([SLOT], np.int32),
            positions=np.arange(start, start + count, dtype=np.int32),
            logit_rows=np.arange(count - last_rows, count, dtype=np.int32),
            output=output,
            top_k=top_k,
        )
        if phase is Phase.DECODE:
            # Over sooner than anybody could notice: an interrupt is raised behind it.
            result = self._run_alone(phase, call, None)
        else:
            result = self._calls.run(lambda cancel: self._run_alone(phase, call, cancel))
        self.tokens.extend(tokens.tolist())
        return result

    def _run_alone(self, phase: Phase, call: Call, cancel: Cancellation | None) -> NDArray[Any]:
        with self._device:
            return self._runnable.run(phase, call, self._kv, threads=self._threads, cancel=cancel)

    # Backwards

    def check_truncation(self, n: int) -> None:
        """Refuse a length that is not, or no longer, one of the sequence's own.

        Raises:
            UserError: INF5007 where a layer no longer holds the window before `n`, or the sequence
                is shorter than `n`.
        """
        if not 0 <= n <= self.position:
            raise UserError(
                Code.TRUNCATE,
                f"expected a length from 0 to the session's {self.position}, got {n}",
            )
        missing = self._rings.missing(n)
        if missing is not None:
            raise UserError(
                Code.TRUNCATE,
                f"a session at position {self.position} can be truncated to "
                f"{self._rings.lowest_truncation()} or more, or to 0, got {n}",
                notes=[missing],
                hint="fork or save a session before it moves on, or reset it and prefill again",
            )

    def forget_after(self, n: int) -> None:
        """Forget all but the first `n` tokens."""
        del self.tokens[n:]
        if n == 0:
            self._rings.clear()

    def about_to_be_lost(self, stop: int) -> KVBlock | None:
        """What sliding layers hold, where writing up to `stop` leaves no way back to here."""
        if not self._rings.would_lose(self.position, stop):
            return None
        return self._export(self._rings.oldest_sliding())

    def give_back(self, lost: KVBlock) -> None:
        """Put what was about to be lost into its place again, of a sequence that went back."""
        self._kv.kv_import(SLOT, lost)
        self._rings.restore(lost.layer_starts)

    # Elsewhere

    def copy(self) -> CachedSequence:
        """The same tokens in a cache of their own."""
        kv = self._kv.copy()
        other = CachedSequence(self._runnable, kv, threads=self._threads, device=self._device)
        other.tokens = list(self.tokens)
        other._rings = Rings(self._rings.shape, self._rings.oldest)
        return other

    def export(self) -> KVBlock:
        """All that the cache holds."""
        return self._export(0)

    def _export(self, start: int) -> KVBlock:
        return trimmed(self._kv.kv_export(SLOT, start, self.position), self._rings.oldest)

    def become(self, tokens: Sequence[int], block: KVBlock) -> None:
        """Hold other tokens, of which a cache of the same programs held `block`."""
        kv = self._runnable.new_kv()
        kv.kv_import(SLOT, block)
        self._kv, self.tokens = kv, list(tokens)
        self._rings = Rings(self._rings.shape, block.layer_starts)
