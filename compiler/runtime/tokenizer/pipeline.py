"""Normalising and splitting text as a tokenizer.json describes it.

The two normalisers of SentencePiece models are done here, so that those tokenizers start without
importing the `tokenizers` library; all others, and every pre-tokenizer, are the library's.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

from infc.diagnostics import Code, UserError

if TYPE_CHECKING:
    import tokenizers

Normalize = Callable[[str], str]
Split = Callable[[str, bool], list[str]]


def make_normalizer(description: object) -> Normalize:
    """The function of a `normalizer` description (None: the identity)."""
    if description is None:
        return lambda text: text
    if isinstance(description, dict):
        kind = description.get("type")
        if kind == "Prepend" and isinstance(prefix := description.get("prepend"), str):
            return lambda text: prefix + text if text else text
        if kind == "Replace" and isinstance(pattern := description.get("pattern"), dict):
            old, new = pattern.get("String"), description.get("content")
            if isinstance(old, str) and old and isinstance(new, str):
                return lambda text: text.replace(old, new)
        if kind == "Sequence" and isinstance(steps := description.get("normalizers"), list):
            functions = [make_normalizer(step) for step in steps]
            return lambda text: _apply_all(functions, text)
    normalizer = _library_tokenizer(normalizer=description).normalizer
    return lambda text: str(normalizer.normalize_str(text))


def make_splitter(description: object) -> Split:
    """The function of a `pre_tokenizer` description (None: one piece).

    It takes a text and whether the text is the very beginning of the input, and answers with
    its pieces; byte-level pieces are in GPT-2's printable characters.
    """
    if description is None:
        return lambda text, first: [text]
    at_start = _library_tokenizer(pre_tokenizer=description).pre_tokenizer
    later = _library_tokenizer(pre_tokenizer=_never_first(description)).pre_tokenizer

    def split(text: str, first: bool) -> list[str]:
        chosen = at_start if first else later
        return [piece for piece, _ in chosen.pre_tokenize_str(text)]

    return split


def check_pipeline(normalizer: object, pre_tokenizer: object) -> None:
    """Build both with the library. UserError: TOKENIZER_FORMAT where it refuses them."""
    _library_tokenizer(normalizer, pre_tokenizer)


def _apply_all(functions: list[Normalize], text: str) -> str:
    for function in functions:
        text = function(text)
    return text


def _never_first(description: object) -> object:
    """The same description for text that is not at the start: a `first` prefix is not put."""
    if isinstance(description, dict):
        return {
            key: "never" if (key, value) == ("prepend_scheme", "first") else _never_first(value)
            for key, value in description.items()
        }
    if isinstance(description, list):
        return [_never_first(value) for value in description]
    return description


def _library_tokenizer(
    normalizer: object = None, pre_tokenizer: object = None
) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer as LibraryTokenizer  # the import takes as long as a load

    model = {"type": "BPE", "vocab": {}, "merges": []}
    description = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "model": model,
    }
    try:
        return LibraryTokenizer.from_str(json.dumps(description))
    except Exception as error:  # the library raises plain Exception
        raise UserError(
            Code.TOKENIZER_FORMAT,
            f"the tokenizers library refuses the normalizer or pre-tokenizer: {error}",
            location="tokenizer.json",
        ) from error
