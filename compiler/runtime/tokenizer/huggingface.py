"""Tokenizers of Hugging Face folders: a tokenizer.json with a BPE model, and its configs.

tokenizer.json decides how text becomes ids; tokenizer_config.json, special_tokens_map.json and
generation_config.json say which tokens begin and end a text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from infc.diagnostics import Code, UserError
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
from infc.runtime.tokenizer.pipeline import check_pipeline

if TYPE_CHECKING:
    from infc.frontends.source import TokenizerSource

LOCATION = "tokenizer.json"
Json = Mapping[str, object]


def define_from_huggingface(source: TokenizerSource) -> Definition:
    """Read a tokenizer.json and its configs.

    Raises:
        UserError: TOKENIZER_MISSING without a tokenizer.json, TOKENIZER_FORMAT with all that is
            wrong with it.
    """
    if source.data is None:
        raise UserError(
            Code.TOKENIZER_MISSING,
            "the model folder has no tokenizer.json",
            hint="save the tokenizer with transformers' save_pretrained",
        )
    try:
        root = _mapping(json.loads(source.data))
    except (ValueError, RecursionError) as error:
        raise refuse([f"expected JSON, got {error}"], LOCATION) from error
    problems: list[str] = []
    model = _mapping(root.get("model"))
    _check_model(model, problems)
    added = _added_tokens(root.get("added_tokens"), problems)
    tokens = _tokens(model, added, problems)
    if problems:
        raise refuse(problems, LOCATION)
    ids = {text: id for id, text in enumerate(tokens)}
    merges = _merges(model, ids, problems)
    configs = _Configs(source.fields, ids)
    byte_level = any(part.get("type") == "ByteLevel" for part in _parts(root.get("pre_tokenizer")))
    types = _types(tokens, added, byte_fallback=model.get("byte_fallback") is True)
    raw = _raw_bytes(tokens, types, byte_level=byte_level, problems=problems)
    bos, eos, ends = configs.bos_id(), configs.eos_id(), configs.end_ids()
    ends |= {ids[text] for text in END_TOKENS if text in ids and types[ids[text]] != 1}
    prefix, suffix = _around(_mapping(root.get("post_processor")), len(tokens), problems)
    prefix = _forced(prefix, bos, configs.flag("add_bos_token"), "add_bos_token", problems)
    suffix = _forced(suffix, eos, configs.flag("add_eos_token"), "add_eos_token", problems)
    whole_words = model.get("ignore_merges") is True
    if whole_words and not byte_level:
        problems.append("model.ignore_merges: expected false without a ByteLevel pre-tokenizer")
    if problems:
        raise refuse(problems, LOCATION)
    check_pipeline(root.get("normalizer"), root.get("pre_tokenizer"))
    unknown = model.get("unk_token")
    vocabulary = Vocabulary.build(raw, types)
    alphabet = {text: id for text, id in ids.items() if len(text) == 1 and types[id] == 1}
    byte_ids = tuple(ids[f"<0x{byte:02X}>"] for byte in range(256) if TokenType.BYTE in types)
    return Definition(
        vocabulary=vocabulary,
        merges=MergeTable.build(merges, len(tokens), alphabet),
        added=tuple(added.values()),
        normalizer=root.get("normalizer"),
        pre_tokenizer=root.get("pre_tokenizer"),
        text_order=vocabulary.text_order() if whole_words else None,
        byte_level=byte_level,
        byte_ids=byte_ids,
        unknown_id=ids.get(unknown) if isinstance(unknown, str) else None,
        fuse_unknown=model.get("fuse_unk") is True,
        glued=glued_characters(tokens),
        bos_id=bos,
        eos_id=eos,
        eos_ids=frozenset(ends if eos is None else ends | {eos}),
        prefix=prefix,
        suffix=suffix,
        strip_space=_strips_space(root.get("decoder")),
        chat_template=source.chat_template,
    )


class _Configs:
    """The three small JSON files beside a tokenizer.json."""

    def __init__(self, files: Mapping[str, object], ids: Mapping[str, int]) -> None:
        self._config = _mapping(files.get("tokenizer_config.json"))
        self._map = _mapping(files.get("special_tokens_map.json"))
        self._generation = _mapping(files.get("generation_config.json"))
        self._ids = ids

    def bos_id(self) -> int | None:
        """The beginning token; a model may have none."""
        return self._token("bos_token")

    def eos_id(self) -> int | None:
        """The end token of the tokenizer, or the first of the generation config."""
        eos = self._token("eos_token")
        ends = self._listed("eos_token_id")
        return eos if eos is not None or not ends else ends[0]

    def end_ids(self) -> set[int]:
        """The end tokens of the generation config."""
        return set(self._listed("eos_token_id"))

    def flag(self, key: str) -> bool | None:
        """True or false where tokenizer_config.json says so."""
        value = self._config.get(key)
        return value if isinstance(value, bool) else None

    def _token(self, key: str) -> int | None:
        for file in (self._config, self._map):
            value = file.get(key)
            text = _mapping(value).get("content", value)
            if isinstance(text, str) and text in self._ids:
                return self._ids[text]
        return None

    def _listed(self, key: str) -> list[int]:
        value = self._generation.get(key)
        values = value if isinstance(value, list) else [value]
        size = len(self._ids)
        return [id for id in values if isinstance(id, int) and 0 <= id < size]


def _check_model(model: Json, problems: list[str]) -> None:
    kind = model.get("type", "BPE")
    if kind != "BPE":
        problems.append(f"model.type: expected BPE, got {kind}")
        return
    for key in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if model.get(key):
            problems.append(f"model.{key}: expected none, got {model[key]!r}")


def _added_tokens(values: object, problems: list[str]) -> dict[int, AddedToken]:
    """By id."""
    added: dict[int, AddedToken] = {}
    for value in values if isinstance(values, list) else []:
        token = _mapping(value)
        id, content = token.get("id"), token.get("content")
        if not isinstance(id, int) or isinstance(id, bool) or not isinstance(content, str):
            problems.append(f"added_tokens: expected an id and a content, got {value!r}")
            continue
        if token.get("single_word"):
            problems.append(f"added_tokens: expected single_word false for {content!r}")
        flags = {
            key: token.get(key) is True for key in ("special", "normalized", "lstrip", "rstrip")
        }
        added[id] = AddedToken(id, content, **flags)
    return added


def _tokens(model: Json, added: Mapping[int, AddedToken], problems: list[str]) -> list[str]:
    """All tokens in order of id; ids that nothing has are empty tokens with names of their own."""
    vocab = _mapping(model.get("vocab"))
    named: dict[int, str] = {}
    for text, id in [*vocab.items(), *((token.content, token.id) for token in added.values())]:
        if not isinstance(id, int) or isinstance(id, bool) or id < 0:
            problems.append(f"model.vocab: expected an id for {text!r}, got {id!r}")
        elif named.setdefault(id, text) != text:
            problems.append(f"model.vocab: {named[id]!r} and {text!r} are both {id}")
    if not named:
        problems.append("model.vocab: expected tokens, got none")
        return []
    size = max(named) + 1
    if size > 2 * len(named) + 1024:
        problems.append(f"model.vocab: expected ids without gaps, got {len(named)} below {size}")
        return []
    texts = [named.get(id, f"{EMPTY}{id}]") for id in range(size)]
    if len(set(texts)) != size:
        problems.append("model.vocab: expected one id a token, got several")
    return texts


def _merges(model: Json, ids: Mapping[str, int], problems: list[str]) -> NDArray[np.int64]:
    """int64 [merges, 4]: left, right, rank, merged; of repeated pairs the last one counts."""
    rows: dict[tuple[int, int], tuple[int, int]] = {}
    merges = model.get("merges")
    for rank, merge in enumerate(merges if isinstance(merges, list) else []):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not _is_pair(pair):
            problems.append(f"model.merges: expected two tokens at {rank}, got {merge!r}")
            continue
        left, right = pair
        unknown = [text for text in (left, right, left + right) if text not in ids]
        if unknown:
            problems.append(f"model.merges: {merge!r} at {rank} names unknown {unknown[0]!r}")
        else:
            rows[ids[left], ids[right]] = (rank, ids[left + right])
    return np.array([(*pair, *rest) for pair, rest in rows.items()], np.int64).reshape(-1, 4)


def _is_pair(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(v, str) for v in value)


def _types(
    tokens: Sequence[str], added: Mapping[int, AddedToken], *, byte_fallback: bool
) -> list[int]:
    types = [int(TokenType.NORMAL)] * len(tokens)
    byte_tokens = {f"<0x{byte:02X}>" for byte in range(256)}
    if byte_fallback and byte_tokens <= set(tokens):
        types = [TokenType.BYTE if text in byte_tokens else TokenType.NORMAL for text in tokens]
    for id, token in added.items():
        types[id] = TokenType.CONTROL if token.special else TokenType.USER_DEFINED
    return types


def _raw_bytes(
    tokens: Sequence[str], types: Sequence[int], *, byte_level: bool, problems: list[str]
) -> list[bytes]:
    raw = []
    for id, (text, kind) in enumerate(zip(tokens, types, strict=True)):
        if text.startswith(EMPTY):
            raw.append(b"")
        elif kind == TokenType.BYTE:
            raw.append(bytes.fromhex(text[3:5]))
        elif kind != TokenType.NORMAL:
            raw.append(text.encode("utf-8", "replace"))
        elif not byte_level:
            raw.append(text.replace(SPACE_MARK, " ").encode("utf-8", "replace"))
        elif all(character in GPT2_ALPHABET for character in text):
            raw.append(gpt2_bytes(text))
        else:
            problems.append(f"model.vocab: {text!r} at {id} is not written in GPT-2's bytes")
    return raw


def _around(
    processor: Json, size: int, problems: list[str]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids a TemplateProcessing puts before and after a single text."""
    before: list[int] = []
    after: list[int] = []
    for part in _parts(processor):
        if part.get("type") != "TemplateProcessing":
            continue
        known = _mapping(part.get("special_tokens"))
        side = before
        pieces = part.get("single")
        for piece in pieces if isinstance(pieces, list) else []:
            if "Sequence" in _mapping(piece):
                side = after
                continue
            name = _mapping(_mapping(piece).get("SpecialToken")).get("id")
            ids = _mapping(known.get(str(name))).get("ids")
            for id in ids if isinstance(ids, list) else [None]:
                if isinstance(id, int) and 0 <= id < size:
                    side.append(id)
                else:
                    problems.append(f"post_processor: {name!r} is no token")
    return tuple(before), tuple(after)


def _forced(
    ids: tuple[int, ...], token: int | None, wanted: bool | None, key: str, problems: list[str]
) -> tuple[int, ...]:
    """The ids with or without one token, as a config that speaks of it wants."""
    if wanted and token is None:
        problems.append(f"{key}: expected a token to add, got none")
    if not wanted or token is None:
        return tuple(id for id in ids if id != token) if wanted is False else ids
    return ids if token in ids else (token, *ids)


def _strips_space(decoder: object) -> bool:
    """Whether the decoder drops a space from the beginning of a text."""
    for part in _parts(decoder):
        if part.get("type") == "Strip" and part.get("content") == " " and part.get("start"):
            return True
        if part.get("type") == "Metaspace" and part.get("prepend_scheme", "always") != "never":
            return True
    return False


def _parts(component: object) -> Iterator[Json]:
    """A component and all inside its sequences."""
    part = _mapping(component)
    yield part
    for key in ("pretokenizers", "processors", "decoders", "normalizers"):
        inner = part.get(key)
        for value in inner if isinstance(inner, list) else []:
            yield from _parts(value)


def _mapping(value: object) -> Json:
    return value if isinstance(value, dict) else {}
