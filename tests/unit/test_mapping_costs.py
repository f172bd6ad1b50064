"""What tells one mapping of a product from another in the cost model: target facts, and no ties."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from kernel_summaries import product

from infc.backends.cpu.kernels.matmul import MatmulMapping
from infc.backends.cpu.lowering.forms import matmul_mapping_of
from infc.backends.cpu.mapping_costs import mapping_speed
from infc.backends.cpu.mappings import kernel_candidates, kernel_work, matmul_spec
from infc.backends.cpu.target import resolve_cpu
from infc.cost.roofline import estimate_work
from infc.target.backend import KernelMapping, KernelSummary
from infc.target.changes import with_figures
from infc.target.schema import Target

STREAM = product(1, [(2048, 2048, "q4_0")], "int8")
TILED = product(256, [(2048, 2048, "q4_0")], "int8")
FLOATS = product(64, [(1024, 2048, "f32")], "f32")
BLOCKED = product(512, [(2048, 640, "q5_0")], "bf16")
TARGETS = ("cpu:x86-64-v3", "cpu:x86-64-v4", "cpu:x86-64-amx", "cpu:aarch64")
Faster = Callable[..., float]


def speed_on(kernel: KernelSummary, target: Target) -> Faster:
    """`speed(name=value, ...)` of the best guess with other numbers."""
    spec = matmul_spec(kernel)
    guess = matmul_mapping_of(kernel_candidates(kernel, target)[0])

    def speed(**changed: int) -> float:
        return mapping_speed(spec, replace(guess, **changed), kernel.typical_rows, target)

    return speed


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kernel", [STREAM, TILED, FLOATS], ids=["stream", "tiled", "floats"])
def test_only_mappings_that_do_the_same_are_equal(kernel: KernelSummary, target: str) -> None:
    facts = resolve_cpu(target)
    mappings = kernel_candidates(kernel, facts)
    works = [kernel_work(kernel, mapping, facts) for mapping in mappings]
    assert all(0.0 < work.speed <= 1.0 for work in works)
    times = [estimate_work(work, facts).mid for work in works]
    assert times[0] < 1.5 * min(times)  # the guess was no bad one
    doing = [done(mapping, kernel, facts) for mapping in mappings]
    assert len(set(times)) > 0.9 * len(set(doing))


def done(mapping: KernelMapping, kernel: KernelSummary, target: Target) -> tuple[object, ...]:
    """What of a mapping makes a difference."""
    if kernel.typical_rows == 1:
        turns = -(-kernel.matrices[0][1] // (32 * int(mapping["unroll"])))
        everything_even = mapping["stream_even"] == 100
        piece = 0 if everything_even else mapping["stream_piece"]
        return turns, mapping["prefetch_bytes"], mapping["stream_even"], piece
    panels = sum(n // 16 for n, _, _ in kernel.matrices)
    fair = panels // (target.unit("cores").count * int(mapping["tile_pieces"])) // 2 * 2
    piece = min(max(fair, 2), int(mapping["col_tile"]))
    unroll = mapping["unroll"] if kernel is FLOATS else 1
    tile = (mapping["row_tile"], mapping["col_tile"], unroll)
    return *tile, mapping["tile_even"], piece


def test_a_prefetch_reaches_as_far_as_the_latency_wants() -> None:
    speed = speed_on(STREAM, resolve_cpu("cpu:x86-64-amx"))
    by_distance = [speed(prefetch_bytes=distance) for distance in (0, 2048, 8192, 65536)]
    assert by_distance[0] < by_distance[1] < by_distance[2] > by_distance[3]
    assert by_distance[2] == max(by_distance)


@pytest.mark.parametrize(
    ("target", "storage", "asks"),
    [
        ("cpu:x86-64-v3", "q8_0", True),
        ("cpu:x86-64-v3", "q6_k", False),
        ("cpu:x86-64-v3", "q4_0", True),
        ("cpu:x86-64-v4", "q8_0", True),
    ],
)
def test_six_bits_in_halves_of_256_bits_are_not_prefetched(
    target: str, storage: str, asks: bool
) -> None:
    facts, kernel = resolve_cpu(target), product(1, [(2048, 2048, storage)], "int8")
    guess = kernel_candidates(kernel, facts)[0]
    assert bool(guess["prefetch_bytes"]) == asks
    speed = speed_on(kernel, facts)
    assert (speed(prefetch_bytes=8192) > speed(prefetch_bytes=0)) == asks


def test_halves_of_256_bits_want_what_is_near() -> None:
    speed = speed_on(STREAM, resolve_cpu("cpu:x86-64-v3"))
    by_distance = [speed(prefetch_bytes=distance) for distance in (0, 1536, 8192, 65536)]
    assert by_distance[1] == max(by_distance)
    assert by_distance[1] > by_distance[2] > by_distance[3]
    assert by_distance[1] > 1.05 * by_distance[0]


def test_a_longer_latency_wants_to_look_further_ahead() -> None:
    def best(latency: str) -> int:
        target = with_figures(resolve_cpu("cpu:x86-64-amx"), {"dram.latency": latency})
        speed = speed_on(STREAM, target)
        return max((2048 << i for i in range(6)), key=lambda ahead: speed(prefetch_bytes=ahead))

    assert best("40ns") < best("150ns") < best("700ns")


@pytest.mark.parametrize("kernel", [STREAM, TILED], ids=["stream", "tiled"])
def test_small_pieces_even_out_and_cost_their_beginnings(kernel: KernelSummary) -> None:
    speed = speed_on(kernel, resolve_cpu("cpu:x86-64-v4"))
    if kernel is STREAM:
        assert speed(stream_even=75) > speed(stream_even=100)
        assert speed(stream_piece=1 << 16) > speed(stream_piece=1 << 12)
        assert speed(stream_piece=1 << 16) > speed(stream_piece=1 << 20)
    else:
        assert speed(tile_even=75, tile_pieces=8) > speed(tile_even=0, tile_pieces=2)


def with_cores(target: Target, count: int) -> Target:
    cores = target.unit("cores").model_dump() | {"count": count}
    return Target.model_validate(target.model_dump() | {"compute": [cores]})


def test_one_core_shares_with_nobody() -> None:
    speed = speed_on(STREAM, with_cores(resolve_cpu("cpu:x86-64-v4"), 1))
    assert speed(stream_even=100) == speed(stream_even=50, stream_piece=1 << 14)
    assert speed(stream_even=100) > 0.97


def test_sums_beyond_the_registers_are_spilt() -> None:
    wide, narrow = (speed_on(TILED, resolve_cpu(name)) for name in TARGETS[1::-1])
    assert wide(row_tile=6, col_tile=2) > wide(row_tile=12, col_tile=4)
    assert wide(row_tile=6, col_tile=2) > wide(row_tile=1, col_tile=1)  # loads for each product
    # Sixteen registers of half the width hold a quarter of that.
    loss = [
        speed(row_tile=6, col_tile=2) / speed(row_tile=3, col_tile=1) for speed in (wide, narrow)
    ]
    assert loss[1] < loss[0]


def test_floats_want_registers_too() -> None:
    speed = speed_on(FLOATS, resolve_cpu("cpu:x86-64-v4"))
    assert speed(row_tile=6) > speed(row_tile=12)
    assert speed(row_tile=6) > speed(row_tile=1)


def test_sums_in_16_bits_want_registers_within_a_step() -> None:
    facts = resolve_cpu("cpu:x86-64-v3")
    for storage in ("q4_0", "q5_0", "q6_k", "q8_0"):
        speed = speed_on(product(512, [(1024, 1024, storage)], "int8"), facts)
        assert speed(row_tile=5, col_tile=1) > speed(row_tile=6, col_tile=1)  # no room for products
        assert speed(row_tile=4, col_tile=1) > 1.05 * speed(row_tile=2, col_tile=3)
    # Panels from the second cache are to serve many rows, unless sums leave registers too often.
    long = speed_on(product(512, [(640, 4096, "q4_0")], "int8"), facts)
    assert long(row_tile=5, col_tile=1) > 1.05 * long(row_tile=2, col_tile=1)
    bytes_, nibbles = (
        speed_on(product(512, [(640, 640, s)], "int8"), facts) for s in ("q8_0", "q4_0")
    )
    gain = [
        each(row_tile=4, col_tile=1) / each(row_tile=1, col_tile=1) for each in (bytes_, nibbles)
    ]
    assert gain[0] > gain[1]  # two planes of codes to load


@pytest.mark.parametrize("target", ["cpu:x86-64-v3", "cpu:aarch64"])
@pytest.mark.parametrize("storage", ["f32", "bf16", "f16", "f8_e4m3"])
def test_few_registers_want_parts_of_sums_of_many_rows(target: str, storage: str) -> None:
    facts = resolve_cpu(target)
    for rows in (8, 32, 512):
        kernel = product(rows, [(1024, 2048, storage)], "f32")
        speed, mappings = speed_on(kernel, facts), kernel_candidates(kernel, facts)
        chosen = max(mappings, key=lambda mapping: kernel_work(kernel, mapping, facts).speed)
        assert chosen["row_tile"] >= 4
        assert speed(row_tile=4) > 1.1 * speed(row_tile=2)
    assert speed(row_tile=6) > speed(row_tile=7)  # one sum leaves the registers
    assert speed(row_tile=6) > speed(row_tile=4)
    slow = speed_on(kernel, with_figures(facts, {"l2.bandwidth": "10GB/s"}))
    assert slow(col_tile=4) > slow(col_tile=1)  # rows come again for each panel


def test_few_rows_are_cut_into_equal_tiles() -> None:
    kernel = product(8, [(1024, 2048, "bf16")], "f32")
    speed = speed_on(kernel, resolve_cpu("cpu:x86-64-v3"))
    assert speed(row_tile=4) == speed(row_tile=6)


def test_blocks_read_rows_again_for_each_run_of_panels() -> None:
    target = resolve_cpu("cpu:x86-64-amx")
    spec = matmul_spec(BLOCKED)
    mapping = MatmulMapping(32, 2, 1, 0, tile_even=75, tile_pieces=8)
    slow_cache = with_figures(target, {"l2.bandwidth": "20GB/s"})
    fast, slow = (mapping_speed(spec, mapping, 512, each) for each in (target, slow_cache))
    assert slow < 0.7 * fast
    few_rows = mapping_speed(spec, mapping, 32, slow_cache)
    assert few_rows > slow or few_rows < fast


def test_a_provider_that_claims_nothing_wins_no_tie() -> None:
    target = resolve_cpu("cpu:x86-64-v4")
    kernel = product(1, [(2048, 2048, "f32")], "f32")
    guess = kernel_candidates(kernel, target)[0]
    own = kernel_work(kernel, guess, target).speed
    assert (
        kernel_work(kernel, {**guess, "provider": "x", "provider_percent": 100}, target).speed
        == own
    )
    twice = {**guess, "provider": "x", "provider_percent": 200}
    assert kernel_work(kernel, twice, target).speed == pytest.approx(2 * own)
