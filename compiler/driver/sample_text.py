"""The text that models read where something is to be learnt of them.

What the search of the best token reads of a vocabulary head depends on the text: behind arbitrary
tokens models repeat themselves, and read more of it than in natural text.
"""

from __future__ import annotations

from importlib.resources import files

from infc.diagnostics import Code, UserError
from infc.runtime.measure import arbitrary_tokens
from infc.runtime.session import Session


def sample_text() -> str:
    """A page of prose, numbers and code, written for this."""
    return files("infc.driver").joinpath("sample_text.txt").read_text(encoding="utf-8")


def sample_tokens(session: Session, count: int, start: int = 0) -> list[int]:
    """So many tokens of the page from a place on, over and over; arbitrary ones where the model has
    no tokenizer."""
    try:
        text = session.tokenizer.encode(sample_text())
    except UserError as error:
        if error.diagnostic.code is not Code.TOKENIZER_MISSING:
            raise
        return [int(token) for token in arbitrary_tokens(session.vocab_size, count)]
    return [text[(start + i) % len(text)] for i in range(count)]
