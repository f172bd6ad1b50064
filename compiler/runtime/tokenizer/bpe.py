"""Byte-pair encoding over flat merge tables.

The algorithm is that of SentencePiece's BPE and of the `tokenizers` library: start with single
characters, repeatedly join the adjacent pair with the lowest rank, the leftmost of equals.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from heapq import heappop, heappush

from infc.runtime.tokenizer.definition import SPACE_MARK, Definition

CACHE_WORDS = 1 << 16
"""Words whose ids are kept; the cache is emptied when full."""

CACHE_CHARACTERS = 64
"""Longer words are not kept: they hardly come again."""

NO_SYMBOL = -1
JOINED = -2


class BytePairEncoder:
    """Turns normalised pieces of text into ids. Thread-safe: its only state is a cache."""

    def __init__(self, definition: Definition) -> None:
        merges = definition.merges
        # memoryviews index to Python integers several times faster than arrays do
        self._starts = merges.starts.data
        self._right = merges.right.data
        self._rank = merges.rank.data
        self._merged = merges.merged.data
        codes = merges.characters.astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")
        self._alphabet = dict(zip(codes, merges.character_symbols.tolist(), strict=True))
        self._definition = definition
        self._vocab_size = definition.vocabulary.size
        self._cache: dict[str, tuple[int, ...]] = {}
        glued = re.escape(definition.glued)
        self._cut = re.compile(f"(?<=[^{glued}])(?={SPACE_MARK})" if glued else f"(?={SPACE_MARK})")

    def encode(self, piece: str) -> list[int]:
        """The ids of a piece of text."""
        ids: list[int] = []
        for word in self._cut.split(piece) if SPACE_MARK in piece else (piece,):
            known = self._cache.get(word)
            if known is None:
                known = tuple(self._encode_word(word))
                self._remember(word, known)
            ids.extend(known)
        return ids

    def _remember(self, word: str, ids: tuple[int, ...]) -> None:
        if len(word) <= CACHE_CHARACTERS:
            if len(self._cache) >= CACHE_WORDS:
                self._cache.clear()
            self._cache[word] = ids

    def _encode_word(self, word: str) -> list[int]:
        whole = self._whole_word(word)
        if whole is not None:
            return [whole]
        alphabet = self._alphabet
        symbols = [alphabet.get(character, NO_SYMBOL) for character in word]
        self._join(symbols)
        ids: list[int] = []
        unknown_id, fuse = self._definition.unknown_id, self._definition.fuse_unknown
        unknown_before = False
        for position, symbol in enumerate(symbols):
            if symbol == JOINED:
                continue
            if 0 <= symbol < self._vocab_size:
                ids.append(symbol)
                unknown_before = False
                continue
            fallback = self._bytes_of(word[position])
            ids.extend(fallback)
            if not fallback and unknown_id is not None and not (unknown_before and fuse):
                ids.append(unknown_id)
            unknown_before = not fallback
        return ids

    def _join(self, symbols: list[int]) -> None:
        """Apply all merges in place; a symbol joined to one on its left becomes `JOINED`."""
        count = len(symbols)
        following = list(range(1, count + 1))
        previous = list(range(-1, count - 1))
        queue: list[tuple[int, int, int, int, int]] = []
        for position in range(count - 1):
            self._propose(queue, symbols, position, position + 1)
        while queue:
            _, position, left, right, merged = heappop(queue)
            after = following[position]
            if symbols[position] != left or after == count or symbols[after] != right:
                continue
            symbols[position] = merged
            symbols[after] = JOINED
            after = following[position] = following[after]
            if after < count:
                previous[after] = position
                self._propose(queue, symbols, position, after)
            if previous[position] >= 0:
                self._propose(queue, symbols, previous[position], position)

    def _propose(
        self, queue: list[tuple[int, int, int, int, int]], symbols: list[int], at: int, after: int
    ) -> None:
        left, right = symbols[at], symbols[after]
        if left == NO_SYMBOL or right == NO_SYMBOL:
            return
        end = self._starts[left + 1]
        found = bisect_left(self._right, right, self._starts[left], end)
        if found < end and self._right[found] == right:
            heappush(queue, (self._rank[found], at, left, right, self._merged[found]))

    def _bytes_of(self, character: str) -> list[int]:
        """The byte tokens of a character that is no token; empty where there are none."""
        byte_ids = self._definition.byte_ids
        return [byte_ids[b] for b in character.encode("utf-8")] if byte_ids else []

    def _whole_word(self, word: str) -> int | None:
        """The token that is exactly this word, where the tokenizer ignores merges for those."""
        order = self._definition.text_order
        if order is None:
            return None
        text = gpt2_bytes(word)
        vocabulary = self._definition.vocabulary
        blob, offsets = vocabulary.blob, vocabulary.offsets.data

        def token(position: int) -> bytes:
            return blob[offsets[position] : offsets[position + 1]].tobytes()

        ids = order.data
        found = bisect_left(ids, text, key=token)
        return ids[found] if found < len(ids) and token(ids[found]) == text else None


def _gpt2_alphabet() -> dict[str, int]:
    """GPT-2's printable character of each byte, to the byte.

    Printable Latin-1 characters stand for themselves, the others for U+0100 and on, in order
    (openai/gpt-2, `bytes_to_unicode`).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    shifted = {chr(0x100 + n): byte for n, byte in enumerate(others)}
    return {chr(byte): byte for byte in printable} | shifted


GPT2_ALPHABET = _gpt2_alphabet()
_TO_LATIN1 = str.maketrans({character: chr(byte) for character, byte in GPT2_ALPHABET.items()})


def gpt2_bytes(text: str) -> bytes:
    """The bytes that GPT-2's printable characters stand for; ValueError for any other."""
    return text.translate(_TO_LATIN1).encode("latin-1")
