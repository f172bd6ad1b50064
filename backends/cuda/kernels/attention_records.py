"""Parts of the keys of rows as they wait in global memory to be merged."""

from __future__ import annotations

from dataclasses import dataclass

from infc.backends.cuda.kernels.attention_spec import (
    F32_BYTES,
    PART_ROWS,
    STEP_KEYS,
    AttentionMapping,
    AttentionSpec,
)

_RECORD_ALIGN = 128


@dataclass(frozen=True)
class Records:
    """Parts of all rows in global memory: `[row, kv_head, tile, part]` records.

    A record is f32: sums `[rows of the tile, head_dim]`, maxima and terms `[rows of the tile]`.
    """

    spec: AttentionSpec
    mapping: AttentionMapping

    @property
    def limit(self) -> int:
        """Parts a row has at most: no more than its keys can be divided into."""
        return min(self.mapping.parts, most_parts(self.spec, self.mapping.streams))

    @property
    def tiles(self) -> int:
        """Tiles of the heads that share a kv head."""
        return -(-self.spec.group // PART_ROWS)

    @property
    def tile_rows(self) -> int:
        """Heads of a tile; the last one may have fewer."""
        return -(-self.spec.group // self.tiles)

    @property
    def count(self) -> int:
        """Records' owners that are counted for themselves: of all rows the tiles."""
        return self.spec.max_rows * self.spec.kv.kv_heads * self.tiles

    @property
    def maxima_offset(self) -> int:
        """Where maxima begin in a record."""
        return self.tile_rows * self.spec.kv.head_dim * F32_BYTES

    @property
    def terms_offset(self) -> int:
        """Where terms begin in a record."""
        return self.maxima_offset + self.tile_rows * F32_BYTES

    @property
    def record_bytes(self) -> int:
        """Bytes from one record to the next."""
        size = self.terms_offset + self.tile_rows * F32_BYTES
        return -(-size // _RECORD_ALIGN) * _RECORD_ALIGN

    @property
    def size_bytes(self) -> int:
        """Bytes of all records; none where a row has but one part."""
        return self.count * self.limit * self.record_bytes if self.limit > 1 else 0


def most_parts(spec: AttentionSpec, streams: int) -> int:
    """Parts that a row can have: rounds, of a step of each stream, that its keys touch."""
    seen = spec.kv.capacity if spec.window is None else min(spec.window, spec.kv.capacity)
    touched = -(-seen // (STEP_KEYS * streams))
    return touched if spec.window is None else touched + 1
