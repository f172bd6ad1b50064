"""A tiny deterministic model behind the Runnable contract, for tests of the runtime and the CLI.

Its logits depend on everything a query may see and on nothing else: attention over all keys of a
full layer and over the window of a sliding layer, which lives in a ring as real backends keep it.
Places of the cache that nothing was written to are NaN, so a session that reads what it must not
read is found out.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray

from infc.diagnostics import Code, UserError
from infc.runtime.tokenizer import Tokenizer
from infc.target.runnable import Call, KVBlock, KVCache, KVShape, Limits, OutputKind, Phase

HEAD_DIM = 4
BYTES = 256
BOS, EOS, USER = 256, 257, 258
VOCAB = 259


class FakeKV:
    """`[slot][layer]` arrays `[capacity, 1, HEAD_DIM]`; position p is at place p % capacity."""

    def __init__(self, shape: KVShape, slots: int) -> None:
        self.shape = shape
        self.layers = [
            [np.full((2, capacity, 1, HEAD_DIM), np.nan, np.float32) for capacity in shape.capacity]
            for _ in range(slots)
        ]

    def kv_export(self, slot: int, start: int, stop: int) -> KVBlock:
        starts = [max(start, stop - capacity) for capacity in self.shape.capacity]
        parts = [
            stored[:, np.arange(first, stop) % stored.shape[1]]
            for stored, first in zip(self.layers[slot], starts, strict=True)
        ]
        keys, values = [part[0] for part in parts], [part[1] for part in parts]
        return KVBlock(start, stop, tuple(starts), keys, values)

    def kv_import(self, slot: int, block: KVBlock) -> None:
        for layer, stored in enumerate(self.layers[slot]):
            places = np.arange(block.layer_starts[layer], block.stop) % stored.shape[1]
            stored[0, places] = block.keys[layer]
            stored[1, places] = block.values[layer]

    def copy(self) -> KVCache:
        return copy.deepcopy(self)


class FakeRunnable:
    """See the module. `during(phase, call, cancel)` runs after a call has written its keys."""

    def __init__(
        self,
        *,
        max_context: int = 128,
        chunk: int = 6,
        logit_rows: int = 4,
        window: int = 5,
        max_threads: int = 4,
    ) -> None:
        self.vocab_size = VOCAB
        self.limits = Limits((chunk, 2), (logit_rows, 2), max_context, 1, max_threads)
        ring = min(window + chunk - 1, max_context)
        windows, capacity = (window, None), (ring, max_context)
        self.kv_shape = KVShape(2, 1, HEAD_DIM, windows, capacity, "f32", max_context)
        self.planned_bytes = 4096
        self.calls: list[tuple[Phase, Call, int]] = []
        self.during: Callable[[Phase, Call, threading.Event | None], None] = lambda *_: None
        random = np.random.default_rng(7)
        self.embedding = random.normal(size=(VOCAB, HEAD_DIM)).astype(np.float32)
        self.weights = random.normal(size=(2, 2, HEAD_DIM, HEAD_DIM)).astype(np.float32)
        self.closed = False
        self.running = False

    def new_kv(self) -> FakeKV:
        return FakeKV(self.kv_shape, self.limits.max_slots)

    def run(
        self,
        phase: Phase,
        call: Call,
        kv: KVCache,
        *,
        threads: int,
        cancel: threading.Event | None = None,
    ) -> NDArray[np.float32] | NDArray[np.int32]:
        assert isinstance(kv, FakeKV)
        self._check(phase, call)
        self.calls.append((phase, call, threads))
        assert not self.running, "two calls share one arena"
        self.running = True
        try:
            return self._run(phase, call, kv, cancel)
        finally:
            self.running = False

    def _run(
        self, phase: Phase, call: Call, kv: FakeKV, cancel: threading.Event | None
    ) -> NDArray[np.float32] | NDArray[np.int32]:
        hidden = self.embedding[call.tokens]  # [t, HEAD_DIM]
        stores = kv.layers[int(call.slots[0])]
        for layer, stored in enumerate(stores):
            for row, position in enumerate(call.positions):
                for part in range(2):
                    made = hidden[row] @ self.weights[layer, part]
                    stored[part, position % stored.shape[1], 0] = made * np.cos(
                        0.3 * position + part
                    )
            if layer == 0:
                self.during(phase, call, cancel)
            if cancel is not None and cancel.is_set():
                raise UserError(Code.CANCELLED, "the call was cancelled")
            hidden = np.stack(
                [
                    x + self._attend(stored, layer, x, int(position))
                    for x, position in zip(hidden, call.positions, strict=True)
                ]
            )
        # Row by row: products of several rows at once round differently.
        rows = [self.embedding @ hidden[row] for row in call.logit_rows]
        logits = np.array(rows, np.float32).reshape(-1, VOCAB)
        assert np.isfinite(logits).all(), "read a place of the cache that was never written"
        if call.output == OutputKind.ARGMAX:
            return np.argmax(logits, axis=1).astype(np.int32)
        return logits

    def _attend(
        self, stored: NDArray[np.float32], layer: int, x: NDArray[np.float32], position: int
    ) -> NDArray[np.float32]:
        window = self.kv_shape.windows[layer]
        first = 0 if window is None else max(0, position - window + 1)
        places = np.arange(first, position + 1) % stored.shape[1]
        weights = np.exp(stored[0, places, 0] @ x * np.float32(0.1))  # [keys]
        mixed: NDArray[np.float32] = weights @ stored[1, places, 0] / weights.sum()
        return mixed

    def _check(self, phase: Phase, call: Call) -> None:
        assert 1 <= len(call.tokens) <= self.limits.max_tokens[phase]
        assert 0 <= len(call.logit_rows) <= self.limits.max_logit_rows[phase]
        assert call.positions[-1] < self.limits.max_context
        assert call.row_offsets.tolist() == [0, len(call.tokens)]
        assert call.slots.tolist() == [0]
        for array in (call.tokens, call.row_offsets, call.slots, call.positions, call.logit_rows):
            assert array.dtype == np.int32

    def close(self) -> None:
        self.closed = True


class FakeTokenizer:
    """Bytes are tokens; `<bos>`, `<eos>` and `<user>` are special."""

    bos_id: int | None = BOS
    bos_token, eos_token = "<bos>", "<eos>"
    eos_ids: frozenset[int] = frozenset({EOS})
    specials = (("<bos>", BOS), ("<eos>", EOS), ("<user>", USER))

    def __init__(
        self, chat_template: str | None = None, *, strips_leading_space: bool = False
    ) -> None:
        self.chat_template = chat_template
        self.strips_leading_space = strips_leading_space

    def encode(
        self, text: str, *, add_special: bool = True, parse_special: bool = False
    ) -> list[int]:
        ids = [BOS] if add_special else []
        while text:
            name, token = next(
                (s for s in self.specials if parse_special and text.startswith(s[0])), ("", 0)
            )
            ids += [token] if name else list(text[0].encode())
            text = text[len(name) or 1 :]
        return ids

    def token_bytes(self, token: int) -> bytes:
        return bytes([token]) if token < BYTES else self.specials[token - BYTES][0].encode()

    def is_special(self, token: int) -> bool:
        return token >= BYTES


def make_tokenizer(
    chat_template: str | None = None, *, strips_leading_space: bool = False
) -> Tokenizer:
    """The fake, as the type that sessions take."""
    return cast(Tokenizer, FakeTokenizer(chat_template, strips_leading_space=strips_leading_space))


class ScriptedRunnable(FakeRunnable):
    """Says a fixed text: after the prompt the greedy tokens are `script`, then end of sequence."""

    def __init__(self, prompt_tokens: int, script: Sequence[int], **limits: int) -> None:
        super().__init__(**limits)
        self.prompt_tokens = prompt_tokens
        self.script = [*script, EOS]

    def run(
        self,
        phase: Phase,
        call: Call,
        kv: KVCache,
        *,
        threads: int,
        cancel: threading.Event | None = None,
    ) -> NDArray[np.float32] | NDArray[np.int32]:
        super().run(phase, call, kv, threads=threads, cancel=cancel)
        steps = call.positions[call.logit_rows] + 1 - self.prompt_tokens
        tokens = np.array([self.script[step] if step >= 0 else 0 for step in steps], np.int32)
        if call.output == OutputKind.ARGMAX:
            return tokens
        logits = np.zeros((len(tokens), VOCAB), np.float32)
        logits[np.arange(len(tokens)), tokens] = 10.0
        return logits
