"""How a tiled product runs: the sizes of its tiles, and what they ask of a multiprocessor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from infc.backends.cuda.kernels.frame import WARPS, WORK_OFFSET
from infc.backends.cuda.kernels.packing import Layout, layout_named
from infc.backends.cuda.kernels.product_spec import ProductSpec
from infc.passes.codegen.panels import PANEL_ROWS

MMA, WARPGROUP = "mma", "warpgroup"
STEP_BLOCKS = 2
"""Blocks of a panel that a stage holds: 64 numbers of a row, a line of 128 bytes."""
LINE_BYTES = 128
STAGE_ALIGNMENT = 1024
"""The swizzled lines of a stage repeat after so many bytes."""


@dataclass(frozen=True)
class TileMapping:
    """How the kernel runs.

    Attributes:
        unit: `mma` (all architectures) or `warpgroup` (sm_90a; an entry of its own).
        features: rows of weights of a block's tile; of a gated product half of them are gates.
        tokens: rows of activations of a block's tile.
        warp_features: rows of weights of a warp. The tile's tokens are split among the warps that
            are left; of `warpgroup` none are.
        stages: how many parts of 64 numbers along k there is room for.
    """

    unit: str
    features: int
    tokens: int
    warp_features: int
    stages: int

    def __post_init__(self) -> None:
        if self.unit not in (MMA, WARPGROUP):
            raise ValueError(f"unit is one of {(MMA, WARPGROUP)}, got {self.unit!r}")
        if self.stages < 3:
            raise ValueError(f"a tile needs at least 3 stages, got {self.stages}")
        warps, left = divmod(self.features, self.warp_features)
        if left or self.warp_features % PANEL_ROWS or WARPS % warps or self.tokens % 32:
            raise ValueError(f"{WARPS} warps do not share a tile of {self}")
        if self.unit == WARPGROUP and warps != WARPS:
            raise ValueError(f"each warp of a warpgroup has its own features, got {self}")
        if self.warp_tokens % 16:
            raise ValueError(f"a warp has a multiple of 16 tokens, got {self.warp_tokens}")

    @property
    def warp_tokens(self) -> int:
        """Tokens of a warp."""
        return self.tokens * self.features // (self.warp_features * WARPS)

    @property
    def warp_sums(self) -> int:
        """Sums of a warp."""
        return self.warp_features * self.warp_tokens


@dataclass(frozen=True)
class Stage:
    """What a stage holds in shared memory.

    Attributes:
        tokens: lines.
        layouts: of the segments.
        panels: of each segment.
    """

    tokens: int
    layouts: tuple[Layout, ...]
    panels: int

    @property
    def weights(self) -> tuple[int, ...]:
        """Bytes from the start of the stage to the panels of each segment."""
        starts, end = [], self.tokens * LINE_BYTES
        for layout in self.layouts:
            starts.append(end)
            end += self.panels * STEP_BLOCKS * layout.block_bytes
        return tuple(starts)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all panels."""
        return self.panels * STEP_BLOCKS * sum(layout.block_bytes for layout in self.layouts)

    @property
    def size_bytes(self) -> int:
        """Bytes from one stage to the next."""
        used = self.tokens * LINE_BYTES + self.weight_bytes
        return -(-used // STAGE_ALIGNMENT) * STAGE_ALIGNMENT


def stage_of(spec: ProductSpec, mapping: TileMapping, output: int) -> Stage:
    """The stage of the tiles of an output."""
    group = spec.groups[output]
    if mapping.warp_features % (PANEL_ROWS * len(group)):
        raise ValueError(f"a warp has whole panels of {len(group)} matrices, got {mapping}")
    layouts = tuple(layout_named(spec.segments[i].layout) for i in group)
    return Stage(mapping.tokens, layouts, mapping.features // PANEL_ROWS // len(group))


@dataclass(frozen=True)
class _Chip:
    """A multiprocessor, and how many there are. Only what they are to each other matters.

    Attributes:
        rates: of each unit, dense bf16 products and sums a clock.
    """

    multiprocessors: int
    shared_bytes: int
    rates: dict[str, float]


_CHIPS = {
    # NVIDIA A100 and H100 whitepapers; `mma.sync` has 62% of the rate of `wgmma` there (Luo et al.,
    # "Benchmarking and Dissecting the Nvidia Hopper GPU Architecture via Microbenchmarking").
    "sm_80": _Chip(108, 163 << 10, {MMA: 1024}),
    "sm_90a": _Chip(132, 227 << 10, {MMA: 1270, WARPGROUP: 2048}),
    "sm_100a": _Chip(148, 227 << 10, {MMA: 1024}),
}
_SHARED_RATE = 128
"""Bytes of shared memory a clock."""
_ISSUES = 4
"""Instructions of warps a clock."""
_FETCH_RATE = 40
"""Bytes a clock that a multiprocessor gets of the second cache when all of them read: 5120 for the
108 of an A100 (whitepaper), less for more of them."""
_UNPACKING = {"bf16": 2, "f16": 26, "f32": 12, "f8": 90, 8: 74, 6: 80, 5: 80, 4: 65, 3: 83, 2: 81}
"""Instructions that bring a block of a layout into registers (counted in SASS; `f8` by what its PTX
has more than 8 bits)."""
_STEP_OVERHEAD = 70
"""Instructions of a warp in a stage for barriers, addresses and copies (counted in SASS)."""
_MOST_SUMS = 128
_PERSISTENT_SUMS = 64
"""Sums of a thread: a block of 288 threads has fewer registers for each."""
_STAGES = (4, 3)
_FEW_ROWS = (64, 256, 512)
"""Calls of up to so many rows have tiles of their own, where there may be twice as many."""
_MOST_CANDIDATES = 6


def tile_candidates(
    spec: ProductSpec, arch: str, *, entry: bool, shared_bytes: int | None = None
) -> list[TileMapping]:
    """Mappings for calls of `max_rows` rows, those first that should take least time.

    Args:
        spec: of the product.
        arch: `sm_80`, `sm_90a`, ...
        entry: whether the product may be an entry of its own, which `warpgroup` needs.
        shared_bytes: that a block may have, where that is less than the architecture's.
    """
    chip = _CHIPS[arch]
    if shared_bytes is not None:
        chip = replace(chip, shared_bytes=min(shared_bytes, chip.shared_bytes))
    return _fitting(spec, chip, entry)[:_MOST_CANDIDATES]


def regimes(spec: ProductSpec, mapping: TileMapping, arch: str) -> list[tuple[int, TileMapping]]:
    """How a kernel with this mapping runs by the rows of a call: the most rows of each regime,
    ascending, and its mapping. The last is `mapping`; those before are of the same unit and want no
    more shared memory and registers."""
    chosen: list[tuple[int, TileMapping]] = []
    for rows in _FEW_ROWS:
        if 2 * rows > spec.max_rows:
            break
        for other in _fitting(replace(spec, max_rows=rows), _CHIPS[arch], True):
            less = stages_bytes(spec, other) <= stages_bytes(spec, mapping)
            if other.unit == mapping.unit and less and other.warp_sums <= mapping.warp_sums:
                chosen.append((rows, other))
                break
    chosen.append((spec.max_rows, mapping))
    return [
        one
        for one, then in zip(chosen, [*chosen[1:], None], strict=True)
        if then is None or one[1] != then[1]
    ]


def stages_bytes(spec: ProductSpec, mapping: TileMapping) -> int:
    """Shared memory of all stages."""
    outputs = range(len(spec.outputs))
    return mapping.stages * max(stage_of(spec, mapping, i).size_bytes for i in outputs)


def _fitting(spec: ProductSpec, chip: _Chip, entry: bool) -> list[TileMapping]:
    """All mappings that a block has room for, the best guess first."""
    fitting = [
        mapping
        for sizes in _sizes(spec, chip, entry)
        for mapping in [_with_stages(spec, sizes, chip)]
        if mapping is not None
    ]
    # Equal guesses: the larger tile, which reads less from the second cache.
    fitting.sort(key=lambda m: (_clocks(spec, m, chip), -m.features * m.tokens))
    return fitting


def _sizes(spec: ProductSpec, chip: _Chip, entry: bool) -> Iterator[tuple[str, int, int, int]]:
    """Units, features, tokens, and features of a warp."""
    least = PANEL_ROWS * len(spec.groups[0])
    if WARPGROUP in chip.rates and entry:
        for features, most in ((128, 256), (256, 128)):
            if features // WARPS >= least:
                for tokens in range(64, most + 1, 64):
                    yield WARPGROUP, features, tokens, features // WARPS
    most = _MOST_SUMS if entry else _PERSISTENT_SUMS
    for features in (64, 128, 256):
        for tokens in (32, 64, 128, 256):
            for warp_features in (16, 32, 64):
                warp_tokens = tokens * features // (warp_features * WARPS)
                fits = 16 <= warp_tokens <= 32 * most // warp_features
                shared_out = features // WARPS <= warp_features <= features
                if fits and shared_out and warp_features >= least:
                    yield MMA, features, tokens, warp_features


def _with_stages(
    spec: ProductSpec, sizes: tuple[str, int, int, int], chip: _Chip
) -> TileMapping | None:
    for stages in _STAGES:
        mapping = TileMapping(*sizes, stages)
        # Barriers of the stages of `warpgroup` lie behind them.
        if WORK_OFFSET + stages_bytes(spec, mapping) + 16 * stages <= chip.shared_bytes:
            return mapping
    return None


def _clocks(spec: ProductSpec, mapping: TileMapping, chip: _Chip) -> float:
    """Clocks of a multiprocessor for a stage of all tiles that it has."""
    tiles, clocks = 0, 0.0
    token_tiles = -(-spec.max_rows // mapping.tokens)
    for output, group in enumerate(spec.groups):
        width = mapping.features // len(group)
        count = token_tiles * -(-spec.stored_columns(output) // width)
        tiles += count
        clocks += count * max(stage_clocks(spec, mapping, chip.rates[mapping.unit], output))
    waves = -(-tiles // chip.multiprocessors)
    return waves * clocks / tiles


class StageClocks(NamedTuple):
    """Clocks of a multiprocessor for a stage of a tile, each as if it were all that counts.

    Attributes:
        tensor: of the tensor cores.
        shared: to write and read shared memory.
        issue: to issue instructions.
        fetch: to get the stage from the second cache.
    """

    tensor: float
    shared: float
    issue: float
    fetch: float


def stage_clocks(spec: ProductSpec, mapping: TileMapping, rate: float, output: int) -> StageClocks:
    """What a stage of an output's tiles takes where the tensor cores do `rate` products a clock."""
    stage = stage_of(spec, mapping, output)
    blocks = mapping.warp_features // PANEL_ROWS * STEP_BLOCKS
    segments = len(stage.layouts)
    read = WARPS * blocks * sum(x.block_bytes for x in stage.layouts) // segments
    unpacked = sum(_UNPACKING[x.bits if x.kind == "int" else x.kind] for x in stage.layouts)
    issued = _STEP_OVERHEAD + blocks * unpacked // segments
    if mapping.unit == WARPGROUP:
        # Each `wgmma` has 64 rows of weights and reads all tokens.
        read += mapping.features // 64 * mapping.tokens * LINE_BYTES
        issued += mapping.tokens // 3  # the warps that copy
    else:
        read += WARPS * mapping.warp_tokens * LINE_BYTES
        products = blocks * 2 * mapping.warp_tokens // 8
        issued += products + mapping.warp_tokens // 4 + stage.size_bytes // 1024
    return StageClocks(
        tensor=mapping.features * mapping.tokens * (LINE_BYTES // 2) / rate,
        shared=(read + stage.size_bytes) / _SHARED_RATE,
        issue=WARPS * issued / _ISSUES,
        fetch=stage.size_bytes / _FETCH_RATE,
    )
