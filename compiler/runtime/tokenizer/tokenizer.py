"""The tokenizer a session uses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING

from infc.diagnostics import Code, UserError
from infc.runtime.tokenizer.added import AddedTokenMatcher
from infc.runtime.tokenizer.bpe import BytePairEncoder
from infc.runtime.tokenizer.definition import AddedToken, Definition, TokenType
from infc.runtime.tokenizer.gguf import define_from_gguf
from infc.runtime.tokenizer.huggingface import define_from_huggingface
from infc.runtime.tokenizer.pipeline import Normalize, Split, make_normalizer, make_splitter
from infc.runtime.tokenizer.storage import read_definition, write_definition

if TYPE_CHECKING:
    from infc.frontends.source import TokenizerSource


class Tokenizer:
    """Text to token ids and back. Immutable and safe to share between threads."""

    def __init__(self, definition: Definition) -> None:
        self._definition = definition
        self._blob = definition.vocabulary.blob.tobytes()
        self._offsets = definition.vocabulary.offsets.data
        self._types = definition.vocabulary.types.tobytes()
        self._matchers: dict[tuple[bool, bool], AddedTokenMatcher] = {}

    @staticmethod
    def from_source(source: TokenizerSource | None) -> Tokenizer:
        """Make the tokenizer a model file describes.

        Raises:
            UserError: TOKENIZER_MISSING where there is none, TOKENIZER_FORMAT with all that is
                wrong with it.
        """
        if source is None:
            raise UserError(
                Code.TOKENIZER_MISSING,
                "the model has no tokenizer",
                hint="give token ids instead of text, or add the tokenizer's files to the model",
            )
        if source.kind == "gguf":
            return Tokenizer(define_from_gguf(source))
        return Tokenizer(define_from_huggingface(source))

    @staticmethod
    def from_files(files: Mapping[str, bytes]) -> Tokenizer:
        """Read what `to_files` wrote. UserError: ARTIFACT_DAMAGED where it does not fit."""
        return Tokenizer(read_definition(files))

    def to_files(self) -> dict[str, bytes]:
        """Files that hold this tokenizer; the same tokenizer gives the same bytes."""
        return write_definition(self._definition)

    def encode(
        self, text: str, *, add_special: bool = True, parse_special: bool = False
    ) -> list[int]:
        """The token ids of `text`.

        Args:
            text: any text; a lone surrogate counts as U+FFFD.
            add_special: put the beginning (and end) tokens of the model around it.
            parse_special: control tokens written in the text become those tokens; without it
                no text can make a control token.
        """
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        ids = list(self._definition.prefix) if add_special else []
        first = True
        matcher = self._matcher(normalized=False, parse_special=parse_special)
        for part in matcher.split(text):
            if isinstance(part, AddedToken):
                ids.append(part.id)
            else:
                self._encode_fragment(part, first, parse_special, ids)
            first = False
        if add_special:
            ids.extend(self._definition.suffix)
        return ids

    def decode(
        self, ids: Iterable[int], *, skip_special: bool = True, continues: bool = False
    ) -> str:
        """The text of token ids; bytes that are no UTF-8 become U+FFFD.

        Args:
            ids: in order. UserError TOKEN_RANGE for an id outside the vocabulary.
            skip_special: leave control tokens out.
            continues: the ids go on from earlier ones, so a leading space is text.
        """
        shown = b"".join(
            self.token_bytes(id) for id in ids if not (skip_special and self.is_special(id))
        )
        if self.strips_leading_space and not continues:
            shown = shown.removeprefix(b" ")
        return shown.decode("utf-8", "replace")

    def token_bytes(self, id: int) -> bytes:
        """The bytes of one token, maybe an incomplete character. UserError: TOKEN_RANGE."""
        self._check(id)
        return self._blob[self._offsets[id] : self._offsets[id + 1]]

    def is_special(self, id: int) -> bool:
        """Whether a token is a control token or the unknown one, which are no text."""
        self._check(id)
        return self._types[id] in (TokenType.CONTROL, TokenType.UNKNOWN)

    @property
    def vocab_size(self) -> int:
        """The number of tokens."""
        return len(self._types)

    @property
    def bos_id(self) -> int | None:
        """The token a text begins with, if the model has one."""
        return self._definition.bos_id

    @property
    def eos_ids(self) -> frozenset[int]:
        """All tokens that end a generation."""
        return self._definition.eos_ids

    @property
    def add_bos(self) -> bool:
        """Whether `encode` puts the beginning token first."""
        return self.bos_id is not None and self.bos_id in self._definition.prefix

    @property
    def bos_token(self) -> str:
        """The text of the beginning token, as chat templates want it; empty for none."""
        return "" if self.bos_id is None else self._text(self.bos_id)

    @property
    def eos_token(self) -> str:
        """The text of the model's own end token, as chat templates want it; empty for none."""
        eos = self._definition.eos_id
        return "" if eos is None else self._text(eos)

    @property
    def chat_template(self) -> str | None:
        """The Jinja text of the model's chat template."""
        return self._definition.chat_template

    @property
    def strips_leading_space(self) -> bool:
        """Whether encoding puts a space in front, which decoding must drop."""
        return self._definition.strip_space

    def _check(self, id: int) -> None:
        if not 0 <= id < len(self._types):
            raise UserError(
                Code.TOKEN_RANGE, f"expected a token id in 0..{len(self._types) - 1}, got {id}"
            )

    def _text(self, id: int) -> str:
        return self.token_bytes(id).decode("utf-8", "replace")

    def _encode_fragment(self, text: str, first: bool, parse_special: bool, ids: list[int]) -> None:
        matcher = self._matcher(normalized=True, parse_special=parse_special)
        for part in matcher.split(self._normalize(text)):
            if isinstance(part, AddedToken):
                ids.append(part.id)
            else:
                for piece in self._split(part, first):
                    ids.extend(self._encoder.encode(piece))
            first = False

    def _matcher(self, *, normalized: bool, parse_special: bool) -> AddedTokenMatcher:
        key = (normalized, parse_special)
        if key not in self._matchers:
            self._matchers[key] = AddedTokenMatcher(
                {
                    self._normalize(token.content) if normalized else token.content: token
                    for token in self._definition.added
                    if token.normalized == normalized and (parse_special or not token.special)
                }
            )
        return self._matchers[key]

    @cached_property
    def _encoder(self) -> BytePairEncoder:
        return BytePairEncoder(self._definition)

    @cached_property
    def _normalize(self) -> Normalize:
        return make_normalizer(self._definition.normalizer)

    @cached_property
    def _split(self) -> Split:
        return make_splitter(self._definition.pre_tokenizer)
