"""What a value of the model is on the cores of a group, between kernels.

`Rows` f32, on the cores that own them; `Columns` f32, as a product leaves them; `Codes` and
`Halves` are what products read: all rows on all cores.
"""

from __future__ import annotations

from dataclasses import dataclass

from infc.backends.dataflow.codegen.memory import Buffer
from infc.backends.dataflow.isa import Unary
from infc.ir.types import KVType, TensorType


@dataclass(frozen=True)
class RowSpace:
    """A dimension of rows: the tokens of a call, or those whose logits are wanted.

    Attributes:
        symbol: `t` or `r`.
        least, most: how many there are in a call.
        shared: core i owns rows [i * q, (i + 1) * q) with q = ceil(rows / cores); else every core
            owns all of them, and does for itself what is to be done with them.
        cores: of the group.
    """

    symbol: str
    least: int
    most: int
    shared: bool
    cores: int

    @property
    def owned(self) -> int:
        """The most rows that one core owns."""
        return -(-self.most // self.cores) if self.shared else self.most


@dataclass(frozen=True)
class Rows:
    """f32 [owned rows][width], row i of a core being its own i-th."""

    space: RowSpace
    buffer: Buffer
    width: int

    @property
    def row_bytes(self) -> int:
        """From one row to the next."""
        return 4 * self.width


@dataclass(frozen=True)
class Columns:
    """f32 [all rows][columns of the core].

    Attributes:
        slices: per core its first column and the one past its last.
        row_bytes: from one row to the next, the same on all cores.
    """

    space: RowSpace
    buffer: Buffer
    width: int
    slices: tuple[tuple[int, int], ...]
    row_bytes: int


@dataclass(frozen=True)
class Codes:
    """a8: int8 [all rows][k], and f32 scales [all rows][k / 32], on every core."""

    space: RowSpace
    codes: Buffer
    scales: Buffer
    k: int

    @property
    def scale_bytes(self) -> int:
        """From the scales of one row to those of the next."""
        return self.k // 32 * 4


@dataclass(frozen=True)
class Halves:
    """bf16 or f16 [all rows][k] on every core."""

    space: RowSpace
    buffer: Buffer
    k: int


@dataclass(frozen=True)
class Weight:
    """A tensor of the model file; in a loop over layers that of each.

    Attributes:
        sources: names in the model file, one for each turn.
        type: the same for all.
    """

    sources: tuple[str, ...]
    type: TensorType


@dataclass(frozen=True)
class Operand:
    """The x of a product as the matrix unit reads it: a8 codes and scales, or halves."""

    space: RowSpace
    values: Buffer
    scales: Buffer | None
    k: int

    @property
    def element_bytes(self) -> int:
        """Of a code or a half."""
        return 1 if self.scales is not None else 2

    @property
    def row_bytes(self) -> int:
        """From one row to the next."""
        return self.k * self.element_bytes


@dataclass(frozen=True)
class Gated:
    """What a gate lets through, not made yet: strip by strip it is when it is known what it is
    rounded to.

    Attributes:
        x: what both matrices are multiplied with.
        weights: two of one shape.
        activated: which of them is the gate's.
        kind: its activation.
        origin: what it is called.
    """

    x: Operand
    weights: tuple[Weight, Weight]
    activated: int
    kind: Unary
    origin: str


@dataclass(frozen=True)
class RopeTable:
    """cos and sin by position; what is in SRAM are the rows of the call's own tokens.

    Attributes:
        buffer: f32 [owned rows][pairs][2].
    """

    buffer: Buffer
    space: RowSpace
    pairs: int


@dataclass(frozen=True)
class Cache:
    """The KV cache of a layer; in a loop over layers that of each, one behind the other.

    Attributes:
        layers: numbers of the layers.
    """

    layers: tuple[int, ...]
    kind: KVType


@dataclass(frozen=True)
class Appended:
    """A cache and the call's own rows of keys and values, which attention moves to their homes.

    Attributes:
        rows: on each core, of its group's heads: f16 `[head][all rows]` as `kv_home` has them;
            whole tiles of rows are finite numbers.
        head_bytes: from one head to the next.
    """

    cache: Cache
    space: RowSpace
    rows: Buffer
    head_bytes: int


@dataclass(frozen=True)
class Argument:
    """An argument of the program: `tokens`, `positions`, `slots` or `rows`."""

    name: str


Value = Rows | Columns | Gated | Codes | Halves | Weight | RopeTable | Cache | Appended | Argument


def deal(width: int, unit: int, cores: int) -> tuple[tuple[int, int], ...]:
    """Columns [first, stop) of each core: as even as whole units allow."""
    units = -(-width // unit)
    ends = [min(width, unit * (units * (core + 1) // cores)) for core in range(cores)]
    return tuple(zip([0, *ends[:-1]], ends, strict=True))
