"""The arena planner, its checker, and live ranges."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from infc.diagnostics import InternalError
from infc.memory.buffer import Buffer
from infc.memory.buffers_csv import read_buffers
from infc.memory.checker import check_plan
from infc.memory.liveness import Access, live_ranges
from infc.memory.planner import plan_arena

INSTANCES = Path(__file__).parents[1] / "data" / "minimalloc"
CAPACITY = 1048576


def read_instance(name: str) -> list[Buffer]:
    return list(read_buffers(INSTANCES / f"{name}.csv").buffers)


@pytest.mark.parametrize("name", ["A", "B", "C", "E", "G", "H", "K"])
def test_hard_instances_fit(name: str) -> None:
    buffers = read_instance(name)
    plan = plan_arena(buffers, capacity_bytes=CAPACITY, node_limit=500_000)
    check_plan(buffers, plan.offsets, plan.height_bytes)
    assert plan.height_bytes <= CAPACITY
    assert plan.method == "search"
    assert plan.optimal == (plan.height_bytes == plan.lower_bound_bytes)
    assert (plan.stop is None) == plan.optimal


@pytest.mark.parametrize("name", ["B", "C"])
def test_hard_instances_reach_the_lower_bound_without_a_capacity(name: str) -> None:
    buffers = read_instance(name)
    plan = plan_arena(buffers)
    check_plan(buffers, plan.offsets, plan.height_bytes)
    assert plan.optimal
    assert plan.height_bytes == plan.lower_bound_bytes


def cut(count: int, seed: int) -> list[Buffer]:
    """A rectangle of time and memory cut into blocks at random: it is known to fit."""
    draw = random.Random(seed)
    blocks = [(0, 1 << 20, 0, 1024)]
    while len(blocks) < count:
        areas = [((b - a) * (d - c)) ** 0.5 for a, b, c, d in blocks]
        a, b, c, d = blocks.pop(draw.choices(range(len(blocks)), areas)[0])
        if draw.random() < 0.6 and b - a > 1:
            x = draw.randrange(a + 1, b)
            blocks += [(a, x, c, d), (x, b, c, d)]
        elif d - c > 1:
            y = draw.randrange(c + 1, d)
            blocks += [(a, b, c, y), (a, b, y, d)]
        else:
            blocks.append((a, b, c, d))
    draw.shuffle(blocks)
    return [Buffer(str(i), 1024 * (d - c), 1, a, b - 1) for i, (a, b, c, d) in enumerate(blocks)]


@pytest.mark.parametrize(("count", "seed"), [(150, 1), (250, 2), (350, 3), (450, 4)])
def test_blocks_cut_out_of_a_rectangle_fit_into_it_again(count: int, seed: int) -> None:
    buffers = cut(count, seed)
    plan = plan_arena(buffers, capacity_bytes=CAPACITY, node_limit=500_000)
    check_plan(buffers, plan.offsets, plan.height_bytes)
    assert plan.height_bytes == CAPACITY
    assert plan.optimal


PLAN_IN_A_PROCESS = """
import json, os, sys
if sys.argv[2] == "one core":
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from pathlib import Path
from infc.memory.buffers_csv import read_buffers
from infc.memory.planner import plan_arena
plan = plan_arena(read_buffers(Path(sys.argv[1])).buffers, node_limit=60_000)
print(json.dumps([dict(plan.offsets), plan.height_bytes, plan.lower_bound_bytes, plan.method]))
"""


def test_processes_agree_however_many_cores_they_have() -> None:
    answers = {
        subprocess.run(
            [sys.executable, "-c", PLAN_IN_A_PROCESS, str(INSTANCES / "E.csv"), cores],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for cores in ("all cores", "one core")
    }
    assert len(answers) == 1
    assert json.loads(answers.pop())[3] == "search"


def test_what_a_heuristic_solves_does_not_load_numba() -> None:
    code = (
        "import sys; from infc.memory.buffer import Buffer; "
        "from infc.memory.planner import plan_arena; "
        "plan = plan_arena([Buffer('a', 8, 8, 0, 1), Buffer('b', 8, 8, 1, 2)]); "
        "assert plan.optimal and plan.method == 'heuristic'; print('numba' in sys.modules)"
    )
    run = [sys.executable, "-c", code]
    assert subprocess.run(run, check=True, capture_output=True, text=True).stdout == "False\n"


def test_a_plan_is_the_same_each_time() -> None:
    buffers = read_instance("B")
    assert plan_arena(buffers, seed=3) == plan_arena(buffers, seed=3)


def test_without_search_a_plan_is_legal_but_higher() -> None:
    buffers = read_instance("B")
    plan = plan_arena(buffers, node_limit=0)
    check_plan(buffers, plan.offsets, plan.height_bytes)
    assert (plan.optimal, plan.method, plan.stop) == (False, "heuristic", "node limit")
    assert plan.lower_bound_bytes < plan.height_bytes < 1.25 * plan.lower_bound_bytes


def test_a_clock_ends_the_search_with_the_best_plan_so_far() -> None:
    buffers = read_instance("B")
    plan = plan_arena(buffers, out_of_time=lambda: True)
    check_plan(buffers, plan.offsets, plan.height_bytes)
    assert (plan.optimal, plan.method, plan.stop) == (False, "heuristic", "time limit")


def test_a_capacity_below_what_is_live_is_known_to_be_impossible() -> None:
    buffers = read_instance("B")
    plan = plan_arena(buffers, capacity_bytes=CAPACITY - 1)
    assert plan.lower_bound_bytes == CAPACITY
    assert plan.height_bytes == CAPACITY


def test_a_capacity_can_be_proven_impossible_by_the_search() -> None:
    # 80 bytes are live; see below why 134 are needed.
    buffers = [Buffer("a", 10, 64, 0, 0), Buffer("b", 10, 64, 0, 0), Buffer("c", 60, 1, 0, 0)]
    plan = plan_arena(buffers, capacity_bytes=133)
    assert plan.lower_bound_bytes == plan.height_bytes == 134


def test_a_result_takes_its_operands_place() -> None:
    # x -> y -> z in one place, while w lives beside them.
    buffers = [
        Buffer("w", 64, 64, 0, 3),
        Buffer("x", 100, 4, 0, 1),
        Buffer("y", 100, 64, 1, 2, in_place_of="x"),
        Buffer("z", 50, 4, 2, 3, in_place_of="y"),
    ]
    plan = plan_arena(buffers)
    check_plan(buffers, plan.offsets, plan.height_bytes)
    assert plan.height_bytes == plan.lower_bound_bytes == 64 + 100
    assert list(plan.offsets) == ["w", "x", "y", "z"]
    assert plan.offsets["x"] == plan.offsets["y"] == plan.offsets["z"]


@pytest.mark.parametrize(
    ("buffers", "message"),
    [
        (
            [Buffer("b", 1, 1, 0, 1, in_place_of="a")],
            "buffer 'b' cannot take the place of 'a', which does not end with step 0",
        ),
        (
            [Buffer("a", 1, 1, 0, 2), Buffer("b", 1, 1, 1, 3, in_place_of="a")],
            "buffer 'b' cannot take the place of 'a', which does not end with step 1",
        ),
        (
            [Buffer("a", 1, 1, 0, 1)]
            + [Buffer(name, 1, 1, 1, 2, in_place_of="a") for name in "bc"],
            "buffers 'b' and 'c' both take the place of 'a'",
        ),
        ([Buffer("a", 2**60, 1, 0, 1)], "expected at most 1152921504606846976 bytes to plan, got"),
    ],
)
def test_what_cannot_be_planned_is_refused(buffers: list[Buffer], message: str) -> None:
    with pytest.raises(InternalError, match=message):
        plan_arena(buffers)


REUSED = [
    Buffer("x", 8, 8, 0, 1),
    Buffer("y", 4, 4, 1, 2, in_place_of="x"),
    Buffer("new", 4, 4, 1, 1),
    Buffer("late", 4, 4, 2, 2),
]


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        ({"x": 0, "y": 0, "new": 8, "late": 4}, None),
        ({"x": 0, "y": 16, "new": 8, "late": 0}, None),
        # Its place may be taken, not a part of it; and others wait until the step is over.
        ({"x": 0, "y": 4, "new": 8, "late": 0}, "buffers 'x' and 'y' overlap: both live at step 1"),
        ({"x": 0, "y": 0, "new": 4, "late": 8}, "buffers 'y' and 'new' overlap"),
        ({"x": 0, "y": 0, "new": 8, "late": 0}, "buffers 'late' and 'y' overlap"),
    ],
)
def test_the_checker_knows_who_may_take_a_place(
    offsets: dict[str, int], message: str | None
) -> None:
    if message is None:
        check_plan(REUSED, offsets, 24)
    else:
        with pytest.raises(InternalError, match=message):
            check_plan(REUSED, offsets, 24)


def decoder_layers(layers: int, rows: int) -> list[Buffer]:
    """The blocks of a decoder-only transformer, one step an op."""
    sizes: dict[str, int] = {}
    steps: list[Access] = []
    widths = {"norm": 640, "q": 1024, "k": 256, "v": 256, "attn": 1024, "o": 640,
              "ffn": 640, "gate": 2048, "up": 2048, "act": 2048, "down": 640}  # fmt: skip
    previous = "embed"
    sizes[previous] = 640 * rows * 4
    for i in range(layers):
        name = {role: f"{i}.{role}" for role in widths}
        sizes |= {name[role]: width * rows * 4 for role, width in widths.items()}
        flow = [
            ([previous], "norm"), ([name["norm"]], "q"), ([name["norm"]], "k"),
            ([name["norm"]], "v"), ([name["q"], name["k"], name["v"]], "attn"),
            ([name["attn"], previous], "o"), ([name["o"]], "ffn"), ([name["ffn"]], "gate"),
            ([name["ffn"]], "up"), ([name["gate"], name["up"]], "act"),
            ([name["act"], name["o"]], "down"),
        ]  # fmt: skip
        steps += [Access(reads, [name[role]]) for reads, role in flow]
        previous = name["down"]
    return live_ranges(steps, sizes, align=64, inputs=["embed"], outputs=[previous])


@pytest.mark.parametrize("rows", [1, 7, 512])
def test_a_transformer_is_planned_within_one_percent(rows: int) -> None:
    buffers = decoder_layers(layers=18, rows=rows)
    plan = plan_arena(buffers)
    check_plan(buffers, plan.offsets, plan.height_bytes)
    assert plan.height_bytes <= 1.01 * plan.lower_bound_bytes


def test_mixed_alignments_are_respected_and_bounded() -> None:
    # Both live at once: 64-byte alignment puts the second at 64 whatever its order, unless it is
    # the small one that comes second.
    buffers = [Buffer("small", 10, 1, 0, 1), Buffer("big", 100, 64, 1, 2)]
    plan = plan_arena(buffers)
    check_plan(buffers, plan.offsets, plan.height_bytes)
    assert plan.height_bytes == 110
    assert plan.optimal


def test_the_bound_counts_rounding_but_not_of_the_topmost() -> None:
    buffers = [Buffer(name, 100, 64, 0, 0) for name in "abc"]
    plan = plan_arena(buffers)
    assert plan.height_bytes == plan.lower_bound_bytes == 128 + 128 + 100


def test_a_search_can_prove_more_than_the_live_bytes() -> None:
    # 80 bytes are live, but the two aligned blocks are 64 apart and the third one fits between
    # neither: 10 at 0, 10 at 64, 60 at 74.
    buffers = [Buffer("a", 10, 64, 0, 0), Buffer("b", 10, 64, 0, 0), Buffer("c", 60, 1, 0, 0)]
    plan = plan_arena(buffers)
    check_plan(buffers, plan.offsets, plan.height_bytes)
    assert plan.height_bytes == plan.lower_bound_bytes == 134
    assert plan.optimal


def test_buffers_of_disjoint_times_share_memory_and_empty_ones_take_none() -> None:
    buffers = [Buffer("a", 8, 8, 0, 0), Buffer("b", 8, 8, 1, 1), Buffer("none", 0, 8, 0, 1)]
    plan = plan_arena(buffers)
    assert plan.offsets == {"a": 0, "b": 0, "none": 0}
    assert plan.height_bytes == 8
    assert plan_arena([]).height_bytes == 0


def test_many_buffers_are_planned_by_dives_alone() -> None:
    draw = random.Random(1)
    starts = [draw.randrange(4000) for _ in range(4500)]
    buffers = [
        Buffer(str(i), draw.randrange(1, 1000), 16, start, start + draw.randrange(30))
        for i, start in enumerate(starts)
    ]
    plan = plan_arena(buffers)
    check_plan(buffers, plan.offsets, plan.height_bytes)
    assert plan.height_bytes < 1.25 * plan.lower_bound_bytes


def test_two_buffers_of_one_name_are_refused() -> None:
    with pytest.raises(InternalError, match="two buffers of one plan are named 'a'"):
        plan_arena([Buffer("a", 1, 1, 0, 0), Buffer("a", 1, 1, 1, 1)])


@pytest.mark.parametrize(
    ("buffer", "message"),
    [
        ((-1, 1, 0, 0), "buffer 'a' has a negative size: -1"),
        ((1, 0, 0, 0), "buffer 'a' has no valid alignment: 0"),
        ((1, 1, 2, 1), "buffer 'a' ends before it starts: first 2, last 1"),
    ],
)
def test_impossible_buffers_are_refused(buffer: tuple[int, int, int, int], message: str) -> None:
    with pytest.raises(InternalError, match=message):
        Buffer("a", *buffer)


BUFFERS = [Buffer("a", 8, 8, 0, 2), Buffer("b", 8, 8, 2, 4), Buffer("c", 8, 8, 3, 4)]


@pytest.mark.parametrize(
    ("offsets", "height", "message"),
    [
        ({"a": 0, "b": 0, "c": 8}, 16, "buffers 'a' and 'b' overlap: both live at step 2"),
        ({"a": 0, "b": 8, "c": 8}, 16, "buffers 'b' and 'c' overlap: both live at step 3"),
        ({"a": 0, "b": 4, "c": 16}, 24, "buffer 'b' needs an offset that is a multiple of 8"),
        ({"a": 0, "b": 8, "c": 16}, 20, "buffer 'c' must lie in an arena of 20 bytes"),
        ({"a": -8, "b": 8, "c": 16}, 24, "buffer 'a' must lie in an arena of 24 bytes"),
        ({"a": 0, "b": 8}, 24, "buffer 'c' has no offset"),
        ({"a": 0, "b": 8, "c": 0, "d": 0}, 24, "the plan places 'd', which is no buffer"),
    ],
)
def test_the_checker_refuses(offsets: dict[str, int], height: int, message: str) -> None:
    with pytest.raises(InternalError, match=message):
        check_plan(BUFFERS, offsets, height)


def test_the_checker_sees_a_block_inside_another() -> None:
    buffers = [Buffer("outer", 100, 1, 0, 9), Buffer("inner", 10, 1, 5, 5)]
    with pytest.raises(InternalError, match="buffers 'outer' and 'inner' overlap"):
        check_plan(buffers, {"outer": 0, "inner": 50}, 100)


def test_live_ranges_cover_first_write_to_last_access() -> None:
    steps = [Access(["x", "w"], ["y"]), Access(["y"], ["z"]), Access(["x"], ["u"])]
    sizes = {"x": 4, "y": 8, "z": 12, "u": 16}
    assert live_ranges(steps, sizes, align=4, inputs=["x"], outputs=["z"]) == [
        Buffer("x", 4, 4, 0, 2),
        Buffer("y", 8, 4, 0, 1),
        Buffer("z", 12, 4, 1, 2),
        Buffer("u", 16, 4, 2, 2),
    ]


def test_reading_what_nothing_wrote_is_an_error() -> None:
    with pytest.raises(InternalError, match="step 0 reads 'x' before anything was written to it"):
        live_ranges([Access(["x"], [])], {"x": 4}, align=4)
    with pytest.raises(InternalError, match="no step accesses 'x'"):
        live_ranges([], {"x": 4}, align=4)
