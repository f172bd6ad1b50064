"""Where the keys and values of a layer lie: heads in groups, positions in stripes.

The cores of a stage form groups of `span` cores. Core `h * span + s` keeps the heads of group h at
the positions whose block of 32 is s modulo `stripes`, one after the other: its *local* positions.
They are a ring where the layer has a window. With few positions the last cores of a group keep
none: to merge what many found takes longer than to look at more positions.

A position of a head is a *row*: f16 keys, then f16 values, each padded to a line, so that one
transfer moves both. A layer on a core is `[head of the group][local position][row]`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import gcd

from infc.backends.dataflow.machine import LINE_BYTES, Machine
from infc.ir.types import KVType

BLOCK_POSITIONS = 32
"""Consecutive positions that one core keeps."""
_MOST_TILE = 512
"""Local positions of a tile at most: longer vectors save little more."""
_FEWEST_TILES = 2
"""Of a stripe, where there are several and the cache is in SRAM."""
_FEWEST_BLOCKS = 4
"""The same where there is far memory: each stripe has a channel's bandwidth."""
_SRAM_SHARE = 16
"""The part of SRAM that a tile may take: there are some of them, and much else."""


@dataclass(frozen=True)
class KVHome:
    """The homes of one layer's cache.

    Attributes:
        kind: the cache.
        groups: of kv heads; they divide the heads.
        span: cores of a group.
        stripes: how many of them keep positions.
        tile: local positions that attention takes at a time where it goes by them.
        tiles: of a core: no two positions that a call may need share a place.
    """

    kind: KVType
    groups: int
    span: int
    stripes: int
    tile: int
    tiles: int

    @classmethod
    def of(cls, kind: KVType, cores: int, machine: Machine) -> KVHome:
        """Spread a cache over the cores of a stage."""
        groups = gcd(kind.kv_heads, cores)
        span = cores // groups
        # A range that does not begin with a block reaches into one block more.
        partial = BLOCK_POSITIONS - 1 if kind.window else 0
        blocks = -(-(kind.capacity + partial) // BLOCK_POSITIONS)
        fitting = machine.sram_bytes // _SRAM_SHARE // cls(kind, 1, 1, 1, 0, 0).row_bytes
        most = max(min(fitting, _MOST_TILE, machine.vector.native) // BLOCK_POSITIONS, 1)
        fewest = _FEWEST_BLOCKS if machine.far else _FEWEST_TILES * most
        stripes = min(span, -(-blocks // fewest))
        own_blocks = -(-blocks // stripes)
        tiles = -(-own_blocks // most)
        tile = -(-own_blocks // tiles) * BLOCK_POSITIONS
        return cls(kind, groups, span, stripes, tile, tiles)

    def stripe(self, core: int) -> int:
        """The place of a core in its group; it keeps positions if it is less than `stripes`."""
        return core % self.span

    @property
    def heads(self) -> int:
        """Of a group."""
        return self.kind.kv_heads // self.groups

    @property
    def value_offset(self) -> int:
        """Bytes from a row's keys to its values."""
        return -(-2 * self.kind.head_dim // LINE_BYTES) * LINE_BYTES

    @property
    def row_bytes(self) -> int:
        """Of one position of one head."""
        return 2 * self.value_offset

    @property
    def held(self) -> int:
        """Local positions of a core."""
        return self.tile * self.tiles

    @property
    def head_bytes(self) -> int:
        """Of one head's local positions."""
        return self.held * self.row_bytes

    @property
    def layer_bytes(self) -> int:
        """Of the layer on one core, for one sequence."""
        return self.heads * self.head_bytes

    @property
    def gathered(self) -> KVHome:
        """All positions of a group's heads in one place: position p at row p modulo `held`."""
        return replace(self, span=1, stripes=1, tiles=self.tiles * self.stripes)

    def place(self, head: int, position: int) -> tuple[int, int]:
        """The core (index in its stage) of a head's row, and the row's first byte in the layer."""
        group, own = divmod(head, self.heads)
        block, row = divmod(position, BLOCK_POSITIONS)
        turn, stripe = divmod(block, self.stripes)
        local = (turn * BLOCK_POSITIONS + row) % self.held
        offset = own * self.head_bytes + local * self.row_bytes
        return group * self.span + stripe, offset
