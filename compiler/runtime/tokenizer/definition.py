"""What a tokenizer is, as plain data: all that encoding and decoding need, and nothing parsed.

The long parts are flat arrays, so that an artifact's tokenizer is usable without parsing: a JSON
description of 262 144 tokens takes the `tokenizers` library more than a second to load.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from infc.diagnostics import Code, Problem, UserError

SPACE_MARK = "\u2581"
"""SentencePiece writes a space as this character."""


EMPTY = "\0[EMPTY_"
"""Begins the name, unique by its id, of a token that stands for nothing."""


class TokenType(IntEnum):
    """The kinds of tokens, with the numbers of GGUF's `tokenizer.ggml.token_type`."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Vocabulary:
    """The bytes and the type of every token.

    Attributes:
        blob: uint8, the raw bytes of all tokens, in order of id.
        offsets: uint32 [vocab + 1], where each begins in `blob`.
        types: uint8 [vocab], `TokenType` numbers.
    """

    blob: NDArray[np.uint8]
    offsets: NDArray[np.uint32]
    types: NDArray[np.uint8]

    @property
    def size(self) -> int:
        """The number of tokens."""
        return len(self.types)

    def text_order(self) -> NDArray[np.uint32]:
        """The ids of normal tokens, sorted by their bytes."""
        raw, offsets = self.blob.tobytes(), self.offsets.tolist()
        normal = np.flatnonzero(self.types == TokenType.NORMAL).tolist()
        return np.array(sorted(normal, key=lambda i: raw[offsets[i] : offsets[i + 1]]), np.uint32)

    @staticmethod
    def build(tokens: list[bytes], types: list[int]) -> Vocabulary:
        """Join the tokens' bytes."""
        lengths = np.fromiter((len(token) for token in tokens), np.uint32, len(tokens))
        offsets = np.zeros(len(tokens) + 1, np.uint32)
        np.cumsum(lengths, out=offsets[1:])
        return Vocabulary(
            np.frombuffer(b"".join(tokens), np.uint8), offsets, np.array(types, np.uint8)
        )


@dataclass(frozen=True)
class MergeTable:
    """The merges of a byte-pair encoding, as rows compressed by their left symbol.

    A symbol is a token id, or, from `vocab size` on, a character that is no token itself but
    begins or ends one. Merges of the left symbol `l` are at `starts[l] : starts[l + 1]`.

    Attributes:
        starts: uint32 [symbols + 1].
        right: uint32 [merges], ascending in each row.
        rank: uint32 [merges]; the lowest rank is merged first, equal ones from left to right.
        merged: uint32 [merges], the resulting token.
        characters: uint32 [alphabet], the code points that text is first split into.
        character_symbols: uint32 [alphabet], their symbols.
    """

    starts: NDArray[np.uint32]
    right: NDArray[np.uint32]
    rank: NDArray[np.uint32]
    merged: NDArray[np.uint32]
    characters: NDArray[np.uint32]
    character_symbols: NDArray[np.uint32]

    @staticmethod
    def build(merges: NDArray[np.int64], symbols: int, alphabet: dict[str, int]) -> MergeTable:
        """Sort `merges`, int64 [n, 4]: left, right, rank, merged; pairs are unique."""
        merges = merges[np.lexsort((merges[:, 1], merges[:, 0]))].astype(np.uint32)
        starts = np.zeros(symbols + 1, np.uint32)
        np.cumsum(np.bincount(merges[:, 0], minlength=symbols), out=starts[1:])
        characters = sorted(alphabet)
        return MergeTable(
            starts,
            np.ascontiguousarray(merges[:, 1]),
            np.ascontiguousarray(merges[:, 2]),
            np.ascontiguousarray(merges[:, 3]),
            np.array([ord(c) for c in characters], np.uint32),
            np.array([alphabet[c] for c in characters], np.uint32),
        )


@dataclass(frozen=True)
class AddedToken:
    """A token that is found in text before anything else happens to it.

    Attributes:
        id: its id.
        content: the text it stands for.
        special: found only where special tokens are parsed.
        normalized: looked for in normalised text.
        lstrip, rstrip: also takes the white space on its left or right.
    """

    id: int
    content: str
    special: bool
    normalized: bool = False
    lstrip: bool = False
    rstrip: bool = False


@dataclass(frozen=True)
class Definition:
    """A whole tokenizer.

    Attributes:
        vocabulary, merges: the long tables.
        added: the added tokens.
        normalizer, pre_tokenizer: as in a tokenizer.json of the `tokenizers` library.
        text_order: uint32, the normal tokens sorted by their bytes, where a word that is a token
            is taken whole (`ignore_merges` of a byte-level tokenizer.json); None otherwise.
        byte_level: pieces are bytes written as the printable characters of GPT-2.
        byte_ids: the token of each byte, for characters without a token; empty for none.
        unknown_id: for characters that have not even bytes; None drops them.
        fuse_unknown: a run of unknown characters is one token.
        glued: the characters that some token has right before a space mark: text may be cut
            before any other mark without changing the result.
        bos_id: beginning of sequence.
        eos_id: the model's own end of sequence.
        eos_ids: all tokens that end a generation.
        prefix, suffix: ids around a text with `add_special`.
        strip_space: decoding drops the one space that encoding put in front.
        chat_template: the Jinja text.
    """

    vocabulary: Vocabulary
    merges: MergeTable
    added: tuple[AddedToken, ...]
    normalizer: object
    pre_tokenizer: object
    text_order: NDArray[np.uint32] | None
    byte_level: bool
    byte_ids: tuple[int, ...]
    unknown_id: int | None
    fuse_unknown: bool
    glued: str
    bos_id: int | None
    eos_id: int | None
    eos_ids: frozenset[int]
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    strip_space: bool
    chat_template: str | None


END_TOKENS = (
    "<end_of_turn>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|endoftext|>",
)
"""Special tokens that end a turn or a text in the supported families, whatever a config says."""

MAX_PROBLEMS = 8
"""A report lists this many findings and counts the rest."""


def refuse(problems: list[str], location: str, *, hint: str | None = None) -> UserError:
    """One report of all that is wrong with a tokenizer."""
    shown = [Problem(message) for message in problems[:MAX_PROBLEMS]]
    if len(problems) > MAX_PROBLEMS:
        shown.append(Problem(f"and {len(problems) - MAX_PROBLEMS} more"))
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return UserError(
        Code.TOKENIZER_FORMAT,
        f"the tokenizer cannot be used: {count}",
        location=location,
        problems=shown,
        hint=hint,
    )


def glued_characters(texts: list[str]) -> str:
    """The characters that come right before a space mark inside any of the texts, sorted."""
    found: set[str] = set()
    for text in texts:
        at = text.find(SPACE_MARK, 1)
        while at >= 0:
            found.add(text[at - 1])
            at = text.find(SPACE_MARK, at + 1)
    return "".join(sorted(found))
