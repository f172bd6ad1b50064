"""Tokenizers of GGUF files: SentencePiece BPE (`llama`) and byte-level BPE (`gpt2`).

The keys are those of the GGUF specification (`tokenizer.ggml.*`); the defaults where a file says
nothing are llama.cpp's. Two differences from llama.cpp are on purpose. Merges never produce
control, unknown or byte tokens, as in SentencePiece: text that spells `<eos>` is text, unless
special tokens are parsed. And a token has the type the file gives it: llama.cpp makes control
tokens of all that look like an end (`</s>`, which is HTML in Gemma's vocabulary).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from infc.runtime.tokenizer.bpe import GPT2_ALPHABET, gpt2_bytes
from infc.runtime.tokenizer.definition import (
    EMPTY,
    END_TOKENS,
    SPACE_MARK,
    AddedToken,
    Definition,
    MergeTable,
    TokenType,
    Vocabulary,
    glued_characters,
    refuse,
)
from infc.runtime.tokenizer.pretokenizers import PRE_TOKENIZERS, PreTokenizer
from infc.runtime.tokenizer.splits import every_split

if TYPE_CHECKING:
    from infc.frontends.source import TokenizerSource

LOCATION = "GGUF metadata tokenizer.ggml"
MERGEABLE = (TokenType.NORMAL, TokenType.USER_DEFINED, TokenType.UNUSED)
BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass
class _Fields:
    """The metadata under `tokenizer.ggml.`, checked as it is read; findings add up."""

    values: Mapping[str, object]
    problems: list[str] = field(default_factory=list)

    def text(self, key: str, default: str) -> str:
        value = self.values.get(f"tokenizer.ggml.{key}", default)
        if isinstance(value, str):
            return value
        self.problems.append(f"{key}: expected a string, got {type(value).__name__}")
        return default

    def flag(self, key: str, default: bool) -> bool:
        value = self.values.get(f"tokenizer.ggml.{key}", default)
        if isinstance(value, bool):
            return value
        self.problems.append(f"{key}: expected true or false, got {value!r}")
        return default

    def token_id(self, key: str, default: int | None, vocab_size: int) -> int | None:
        value = self.values.get(f"tokenizer.ggml.{key}")
        if value is None:
            return default if default is not None and default < vocab_size else None
        if isinstance(value, int) and 0 <= value < vocab_size:
            return value
        self.problems.append(f"{key}: expected a token id in 0..{vocab_size - 1}, got {value!r}")
        return None

    def texts(self, key: str) -> list[str]:
        """A required list of strings."""
        values = self.values.get(f"tokenizer.ggml.{key}")
        if isinstance(values, list) and values and set(map(type, values)) == {str}:
            return values
        self.problems.append(f"{key}: expected a list of strings, got {_kind(values)}")
        return []

    def numbers(self, key: str, count: int) -> NDArray[np.float64] | None:
        """An optional list of `count` finite numbers."""
        values = self.values.get(f"tokenizer.ggml.{key}")
        if values is None:
            return None
        if not isinstance(values, list) or not set(map(type, values)) <= {bool, int, float}:
            self.problems.append(f"{key}: expected a list of numbers, got {_kind(values)}")
            return None
        if len(values) != count:
            self.problems.append(f"{key}: expected {count} values, one a token, got {len(values)}")
            return None
        numbers = np.array(values, np.float64)
        if not np.isfinite(numbers).all():
            at = int(np.flatnonzero(~np.isfinite(numbers))[0])
            self.problems.append(f"{key}: expected finite numbers, got {numbers[at]} at {at}")
            return None
        return numbers


def define_from_gguf(source: TokenizerSource) -> Definition:
    """Read the fields of a GGUF file. UserError TOKENIZER_FORMAT lists all that is wrong."""
    fields = _Fields(source.fields)
    model = fields.text("model", "")
    if model not in ("llama", "gpt2"):
        message = f"model: expected llama or gpt2, got {model or 'nothing'}"
        raise refuse([*fields.problems, message], LOCATION)
    tokens = fields.texts("tokens")
    types = _types(fields, tokens)
    tokens = _without_duplicates(fields, tokens)
    if model == "llama":
        definition = _sentencepiece(fields, tokens, types, source.chat_template)
    else:
        definition = _byte_level(fields, tokens, types, source.chat_template)
    if fields.problems or definition is None:
        raise refuse(fields.problems, LOCATION)
    return definition


def _sentencepiece(
    fields: _Fields, tokens: list[str], types: list[int], chat_template: str | None
) -> Definition | None:
    scores = fields.numbers("scores", len(tokens))
    if scores is None and not fields.problems:
        fields.problems.append("scores: expected one number a token, got nothing")
    byte_ids = _byte_ids(fields, tokens, types)
    special = _special(fields, tokens, types, bos=1, eos=2, unknown=0, add_bos=True)
    space = fields.flag("add_space_prefix", True)
    if fields.problems or scores is None:
        return None
    raw = [_sentencepiece_bytes(text, kind) for text, kind in zip(tokens, types, strict=True)]
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE_MARK}
    prepend = {"type": "Prepend", "prepend": SPACE_MARK}
    mergeable = [text for text, kind in zip(tokens, types, strict=True) if kind in MERGEABLE]
    return Definition(
        vocabulary=Vocabulary.build(raw, types),
        merges=_merges_from_scores(tokens, types, scores),
        added=_added(tokens, types),
        normalizer={"type": "Sequence", "normalizers": [prepend, replace]} if space else replace,
        pre_tokenizer=None,
        text_order=None,
        byte_level=False,
        byte_ids=byte_ids,
        unknown_id=special.unknown_id,
        fuse_unknown=False,
        glued=glued_characters(mergeable),
        bos_id=special.bos_id,
        eos_id=special.eos_id,
        eos_ids=special.eos_ids,
        prefix=special.prefix,
        suffix=special.suffix,
        strip_space=space,
        chat_template=chat_template,
    )


def _byte_level(
    fields: _Fields, tokens: list[str], types: list[int], chat_template: str | None
) -> Definition | None:
    name = fields.text("pre", "default")
    entry = PRE_TOKENIZERS.get(name)
    if entry is None:
        known = ", ".join(sorted(PRE_TOKENIZERS))
        fields.problems.append(f"pre: expected one of {known}; got {name}")
        entry = PreTokenizer(())
    ids = {text: id for id, text in enumerate(tokens)}
    merges = _merges_from_pairs(fields, ids)
    special = _special(
        fields, tokens, types, bos=None, eos=None, unknown=None, add_bos=entry.add_bos
    )
    raw = _byte_level_bytes(fields, tokens, types)
    if fields.problems:
        return None
    alphabet = {character: ids[character] for character in GPT2_ALPHABET if character in ids}
    vocabulary = Vocabulary.build(raw, types)
    return Definition(
        vocabulary=vocabulary,
        merges=MergeTable.build(merges, len(tokens), alphabet),
        added=_added(tokens, types),
        normalizer=None,
        pre_tokenizer=entry.describe(),
        text_order=vocabulary.text_order() if entry.whole_words else None,
        byte_level=True,
        byte_ids=(),
        unknown_id=special.unknown_id,
        fuse_unknown=False,
        glued="",
        bos_id=special.bos_id,
        eos_id=special.eos_id,
        eos_ids=special.eos_ids,
        prefix=special.prefix,
        suffix=special.suffix,
        strip_space=False,
        chat_template=chat_template,
    )


@dataclass(frozen=True)
class _Special:
    bos_id: int | None
    eos_id: int | None
    unknown_id: int | None
    eos_ids: frozenset[int]
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]


def _special(
    fields: _Fields,
    tokens: list[str],
    types: list[int],
    *,
    bos: int | None,
    eos: int | None,
    unknown: int | None,
    add_bos: bool,
) -> _Special:
    """The special ids; the arguments are what holds where the file does not say."""
    size = len(tokens)
    bos = fields.token_id("bos_token_id", bos, size)
    eos = fields.token_id("eos_token_id", eos, size)
    ends = {eos, *(fields.token_id(f"{key}_token_id", None, size) for key in ("eot", "eom"))}
    marked = (TokenType.CONTROL, TokenType.USER_DEFINED)
    ends |= {id for id, text in enumerate(tokens) if text in END_TOKENS and types[id] in marked}
    prefix: tuple[int, ...] = ()
    if fields.flag("add_bos_token", add_bos and bos is not None):
        if bos is None:
            fields.problems.append("add_bos_token: expected a bos_token_id beside it, got none")
        else:
            prefix = (bos,)
    suffix: tuple[int, ...] = ()
    if fields.flag("add_eos_token", False):
        if eos is None:
            fields.problems.append("add_eos_token: expected an eos_token_id beside it, got none")
        else:
            suffix = (eos,)
    return _Special(
        bos,
        eos,
        fields.token_id("unknown_token_id", unknown, size),
        frozenset(id for id in ends if id is not None),
        prefix,
        suffix,
    )


def _types(fields: _Fields, tokens: list[str]) -> list[int]:
    numbers = fields.numbers("token_type", len(tokens))
    if numbers is None:
        return [int(TokenType.NORMAL)] * len(tokens)
    known = {float(kind) for kind in TokenType}
    for id, number in enumerate(numbers.tolist()):
        if number not in known:
            fields.problems.append(f"token_type: expected 1 to 6, got {number:g} at {id}")
    return [int(number) for number in numbers.tolist()]


def _without_duplicates(fields: _Fields, tokens: list[str]) -> list[str]:
    """The tokens; empty ones get names of their own, which no text can contain."""
    first: dict[str, int] = {}
    named = []
    for id, text in enumerate(tokens):
        if not text:
            text = f"{EMPTY}{id}]"
        if text in first:
            fields.problems.append(f"tokens: {text!r} is both {first[text]} and {id}")
        first.setdefault(text, id)
        named.append(text)
    return named


def _byte_ids(fields: _Fields, tokens: list[str], types: list[int]) -> tuple[int, ...]:
    """The 256 byte tokens, or none where the model has no byte tokens."""
    found: dict[int, int] = {}
    for id, (text, kind) in enumerate(zip(tokens, types, strict=True)):
        if kind == TokenType.BYTE:
            match = BYTE_TOKEN.fullmatch(text)
            if match is None:
                fields.problems.append(
                    f"tokens: expected a byte token <0x..> at {id}, got {text!r}"
                )
            else:
                found[int(match[1], 16)] = id
    if found and len(found) != 256:
        fields.problems.append(f"tokens: expected 256 byte tokens or none, got {len(found)}")
    return tuple(found[byte] for byte in sorted(found))


def _sentencepiece_bytes(text: str, kind: int) -> bytes:
    if text.startswith(EMPTY):
        return b""
    if kind == TokenType.BYTE:
        return bytes.fromhex(text[3:5])
    if kind in (TokenType.NORMAL, TokenType.UNUSED):
        text = text.replace(SPACE_MARK, " ")
    return text.encode("utf-8")


def _byte_level_bytes(fields: _Fields, tokens: list[str], types: list[int]) -> list[bytes]:
    raw = []
    for id, (text, kind) in enumerate(zip(tokens, types, strict=True)):
        if kind in (TokenType.NORMAL, TokenType.BYTE) and not text.startswith(EMPTY):
            try:
                raw.append(gpt2_bytes(text))
            except UnicodeEncodeError:
                fields.problems.append(f"tokens: {text!r} at {id} is not written in GPT-2's bytes")
        else:
            raw.append(b"" if text.startswith(EMPTY) else text.encode("utf-8"))
    return raw


def _added(tokens: list[str], types: list[int]) -> tuple[AddedToken, ...]:
    added = (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.USER_DEFINED)
    return tuple(
        AddedToken(id, text, special=kind != TokenType.USER_DEFINED)
        for id, (text, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in added and text
    )


def _merges_from_scores(
    tokens: list[str], types: list[int], scores: NDArray[np.float64]
) -> MergeTable:
    """Every way to put a token together from two others, ranked by the token's score.

    SentencePiece has no list of merges: two neighbours join whenever their text is a token, the
    highest score first. Single characters that are no tokens get symbols after the vocabulary.
    """
    mergeable = {text: id for id, text in enumerate(tokens) if types[id] in MERGEABLE}
    ends = {character for text in mergeable for character in (text[0], text[-1])}
    extra = sorted(ends - mergeable.keys())
    symbols = mergeable | {character: len(tokens) + i for i, character in enumerate(extra)}
    alphabet = {text: id for text, id in symbols.items() if len(text) == 1}
    ids = np.array(list(symbols.values()), np.int64)
    merges = np.stack([ids[part] for part in every_split(list(symbols))], axis=1)
    _, ranks = np.unique(-scores, return_inverse=True)
    table = np.insert(merges, 2, ranks[merges[:, 2]], axis=1)
    return MergeTable.build(table, len(tokens) + len(extra), alphabet)


def _merges_from_pairs(fields: _Fields, ids: Mapping[str, int]) -> NDArray[np.int64]:
    """The `merges` of a byte-level model, `left right` each, in order of rank."""
    rows: dict[tuple[int, int], tuple[int, int]] = {}
    for rank, merge in enumerate(fields.texts("merges")):
        left, _, right = merge.partition(" ")
        unknown = [text for text in (left, right, left + right) if text not in ids]
        if unknown:
            fields.problems.append(f"merges: {merge!r} at {rank} names unknown {unknown[0]!r}")
        else:
            rows.setdefault((ids[left], ids[right]), (rank, ids[left + right]))
    return np.array([(*pair, *rest) for pair, rest in rows.items()], np.int64).reshape(-1, 4)


def _kind(value: object) -> str:
    if isinstance(value, list):
        return "an empty list" if not value else "a list of something else"
    return "nothing" if value is None else type(value).__name__
