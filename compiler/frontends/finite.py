"""NaN and infinity in weights: found before they are packed, by looking at exponents only."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from infc.diagnostics import Code, Problem, UserError
from infc.frontends.source import ModelSource
from infc.ir.storage import E4M3, STORAGE_TYPES, StorageType

# A float is NaN or infinite when all bits of its exponent are set.
_EXPONENTS = {"f32": 0x7F800000, "f16": 0x7C00, "bf16": 0x7F80}
_CHUNK_BYTES = 1 << 20  # temporaries stay in the cache


_DAMAGED = "the file is damaged or was converted wrongly: get it again"


def check_finite(source: ModelSource, names: Iterable[str], *, hint: str = _DAMAGED) -> None:
    """Raises INF1008, listing the tensors, where a weight is NaN or infinite.

    A quantised block can only be so through its float16 fields, so only those are read. Of 8-bit
    floats the codes are: whoever reads the model has seen their scales.

    Args:
        source: an opened model.
        names: tensors to look at; each is read once.
        hint: what the user may do.
    """
    problems = []
    for name in names:
        info = source.tensors[name]
        storage = STORAGE_TYPES[info.storage]
        if storage.codebook is None:
            count = _count_not_finite(source.data(name), storage)
        else:
            count = _count_not_codes(source.data(name), storage, info.shape)
        if count:
            what = "scales" if not storage.is_float and storage.codebook is None else "numbers"
            problems.append(Problem(f"{count} {what} are NaN or infinite", info.location))
    if problems:
        raise UserError(
            Code.MODEL_NUMERIC,
            f"expected finite weights, got others in {len(problems)} tensors",
            location=str(source.path),
            problems=problems,
            hint=hint,
        )


def _count_not_finite(raw: NDArray[np.uint8], storage: StorageType) -> int:
    blocks = raw.reshape(-1, storage.block_bytes)
    step = max(1, _CHUNK_BYTES // storage.block_bytes)
    count = 0
    for start in range(0, len(blocks), step):
        part = blocks[start : start + step]
        if storage.is_float:
            count += _count_words(part.view(f"<u{storage.bits // 8}"), _EXPONENTS[storage.name])
        else:
            for offset in storage.half_offsets:
                halves = part[:, offset : offset + 2].view("<u2")
                count += _count_words(halves, _EXPONENTS["f16"])
    return count


def _count_not_codes(raw: NDArray[np.uint8], storage: StorageType, shape: tuple[int, ...]) -> int:
    """How many of the codes stand for no number."""
    numberless = np.isnan(E4M3)
    rows = storage.unpack(raw, shape).codes
    step = max(1, _CHUNK_BYTES // rows.shape[1])
    return sum(
        int(np.count_nonzero(numberless[rows[at : at + step]])) for at in range(0, len(rows), step)
    )


def _count_words(words: NDArray[np.unsignedinteger], exponent: int) -> int:
    """How many of the words have all exponent bits set."""
    mask = words.dtype.type(exponent)
    return int(np.count_nonzero((words & mask) == mask))
