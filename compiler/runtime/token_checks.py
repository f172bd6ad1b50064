"""What a session asks of the tokens it is given."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from infc.diagnostics import Code, UserError


def check_tokens(
    token_ids: Sequence[int] | NDArray[np.integer], vocab_size: int
) -> NDArray[np.int32]:
    """The ids as int32 `[n]`.

    Raises:
        UserError: INF5003 where there are none, INF5002 where one is no id of the vocabulary.
    """
    one = isinstance(token_ids, list) and len(token_ids) == 1 and type(token_ids[0]) is int
    if one and 0 <= token_ids[0] < vocab_size:
        # A step of decoding: what the checks below take is seen in its time.
        return np.array(token_ids, np.int32)
    ids = np.asarray(token_ids)
    if ids.size == 0:
        raise UserError(
            Code.EMPTY_PROMPT,
            "expected at least one token, got an empty prompt",
            hint="pass a text or token ids; a model predicts what follows something",
        )
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise UserError(
            Code.TOKEN_RANGE,
            f"expected a list of integer token ids, got {ids.dtype} of shape {ids.shape}",
        )
    outside = np.flatnonzero((ids < 0) | (ids >= vocab_size))
    if outside.size:
        at = int(outside[0])
        raise UserError(
            Code.TOKEN_RANGE,
            f"expected token ids from 0 to {vocab_size - 1}, got {ids[at]} at index {at}",
            hint="the ids may come from the tokenizer of another model",
        )
    return ids.astype(np.int32)


def check_room(position: int, count: int, max_context: int) -> None:
    """INF5004 unless `count` more tokens fit behind `position` others."""
    needed = position + count
    if needed > max_context:
        raise UserError(
            Code.CONTEXT_OVERFLOW,
            f"the context holds {max_context} positions, {needed} are needed "
            f"({position} in the session and {count} more)",
            hint=f"compile with --max-context {needed} or more, or shorten the prompt; reset() "
            "starts a session again",
        )
