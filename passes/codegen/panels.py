"""Weights in panels of 16 rows: what the packed layouts of all backends have in common.

Scales of any magnitude are stored as f16 beside one multiplier of the matrix, an f32 and a power of
two, in the first four bytes of a packed matrix.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from infc.diagnostics import InternalError
from infc.ir.storage import Codes, StorageType

PANEL_ROWS = 16

_LARGEST_SCALE_EXPONENT = 15
"""Scales are multiplied up to at most 2**15: below the largest f16, far above the subnormals."""
_CHUNK_CODES = 1 << 18
"""Numbers packed at a time: the temporaries then stay in the cache."""


def panels_of(n: int) -> int:
    """Panels that `n` rows fill."""
    return -(-n // PANEL_ROWS)


def row_chunks(
    storage: StorageType, raw: NDArray[np.uint8], n: int, k: int
) -> Iterator[Codes | NDArray[np.float32]]:
    """The rows of a stored matrix [n, k] in order, a few panels at a time: what is packed.

    Args:
        storage: how `raw` holds the numbers.
        raw: 1-D, `storage.size_bytes((n, k))` long; may be memory-mapped.
    """
    row_bytes = storage.size_bytes((1, k))
    rows = max(1, _CHUNK_CODES // (k * PANEL_ROWS)) * PANEL_ROWS
    for start in range(0, n, rows):
        stop = min(start + rows, n)
        part = raw[start * row_bytes : stop * row_bytes]
        take = storage.dequantize if storage.is_float else storage.unpack
        yield take(part, (stop - start, k))


def multiplier_of(packed: NDArray[np.uint8]) -> np.float32:
    """The multiplier in a packed matrix's header."""
    return np.float32(packed[:4].view("<f4")[0])


class Scales:
    """Scales and minima of a whole matrix, kept until their common multiplier is known.

    Attributes:
        parts: float32 [rows, groups] by name, `scales` and where there are any `mins`; rows up to a
            whole panel, those beyond the matrix zeros.
    """

    def __init__(self, n: int, k: int, group: int, *, has_min: bool) -> None:
        shape = (panels_of(n) * PANEL_ROWS, k // group)
        names = ("scales", "mins") if has_min else ("scales",)
        self.parts = {name: np.zeros(shape, np.float32) for name in names}

    def take(self, source: Codes, row: int) -> None:
        """Keep those of the rows from `row` on."""
        for name, kept in self.parts.items():
            kept[row : row + len(source.codes)] = getattr(source, name)

    def divide(self) -> np.float32:
        """Divide all by the multiplier, in place, and return it."""
        largest = max(float(max(part.max(), -part.min())) for part in self.parts.values())
        if not np.isfinite(largest):
            raise InternalError("a weight has a scale that is not finite")
        exponent = int(np.frexp(largest)[1]) - _LARGEST_SCALE_EXPONENT if largest else 0
        multiplier = np.float32(2.0 ** max(exponent, -126))
        for part in self.parts.values():
            part /= multiplier
        return multiplier
