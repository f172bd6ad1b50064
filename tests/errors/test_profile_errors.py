"""The rendered text of what can go wrong with profiles and with questions to the kernel model."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infc.backends.chips import BACKEND
from infc.cost.kernels.predict import kernel_estimate
from infc.cost.kernels.profile import Profile, dump_profile, load_profile, parse_profile
from infc.cost.kernels.queries import (
    Collective,
    DecodeAttention,
    Elementwise,
    Gemm,
    PrefillAttention,
)
from infc.diagnostics import UserError


@pytest.fixture(scope="module")
def shipped() -> Profile:
    [profile] = BACKEND.profiles()
    return profile


def message(act: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as caught:
        act()
    return str(caught.value)


def rendered(text: str) -> str:
    return message(lambda: parse_profile(text, location="chip.toml"))


def lines(*text: str) -> str:
    return "\n".join(text)


def table(text: str, name: str) -> str:
    """One table of a TOML text, its header included."""
    [found] = re.findall(rf"^\[{re.escape(name)}\]\n(?:[^\[\n].*\n|\n)*", text, re.MULTILINE)
    return str(found)


def edited(profile: Profile, name: str, old: str, new: str) -> str:
    text = dump_profile(profile)
    part = table(text, name)
    assert re.search(old, part)
    return text.replace(part, re.sub(old, new, part))


SHARE = "classes.gemm-16bit.constants.memory_share"


def test_all_findings_at_once(shipped: Profile) -> None:
    text = edited(shipped, SHARE, r"value = .*", "value = 1.7")
    text = text.replace(table(text, "classes.gemm-16bit.constants.launches"), "")
    assert rendered(text) == lines(
        "error[INF3006]: the profile has 2 problems",
        "  --> chip.toml",
        "   - gemm-16bit needs the constant 'launches'",
        "   - gemm-16bit.memory_share must be between 0.5 and 1 (unit 1), got 1.7",
    )


@pytest.mark.parametrize(
    ("old", "new", "finding"),
    [
        (r'unit = "1"', 'unit = "%"', "gemm-16bit.memory_share is in '1', got '%'"),
        (
            r"low = .*",
            "low = 0.1",
            "gemm-16bit.memory_share has the range 0.5 to 1, got 0.1 to 1",
        ),
        (
            r"^\[.*\]",
            "[classes.gemm-16bit.constants.magic]",
            "gemm-16bit needs the constant 'memory_share'\n"
            "   - gemm-16bit has the constants launches, compute_share, memory_share, "
            "feed_bytes_per_s, tile_seconds, tile_bytes_per_s, split_seconds, split_bytes_per_s, "
            "overlap, cached_bytes, got 'magic'",
        ),
    ],
)
def test_a_constant_that_contradicts_its_class(
    shipped: Profile, old: str, new: str, finding: str
) -> None:
    text = edited(shipped, SHARE, old, new)
    count = "1 problem" if "\n" not in finding else "2 problems"
    assert rendered(text) == lines(
        f"error[INF3006]: the profile has {count}", "  --> chip.toml", f"   - {finding}"
    )


def test_a_class_that_does_not_exist(shipped: Profile) -> None:
    assert rendered(dump_profile(shipped).replace("classes.elementwise", "classes.tea")) == lines(
        "error[INF3006]: the profile has 1 problem",
        "  --> chip.toml",
        "   - expected one of the classes gemm-16bit, gemm-8bit, prefill-attention, "
        "decode-attention, all-reduce, exchange, elementwise, stream-product, head-search, "
        "blocked-product, staged-product, float-product, row-attention, tile-attention, rows, "
        "rotary, got 'tea'",
    )


def test_residuals(shipped: Profile) -> None:
    name = "classes.elementwise.residuals.launch"
    text = edited(shipped, name, r"^\[.*\]", "[classes.elementwise.residuals.lunch]")
    assert rendered(text) == lines(
        "error[INF3006]: the profile has 1 problem",
        "  --> chip.toml",
        "   - elementwise has the regimes launch, memory, got 'lunch'",
    )
    text = dump_profile(shipped)
    for regime in ("launch", "memory"):
        text = text.replace(table(text, f"classes.elementwise.residuals.{regime}"), "")
    text += "\n[classes.elementwise.residuals]\n"
    assert rendered(text) == lines(
        "error[INF3006]: the profile has 1 problem",
        "  --> chip.toml",
        "   - elementwise needs residuals of at least one regime",
    )
    assert rendered(edited(shipped, name, r"low = .*", "low = 0.2")) == lines(
        "error[INF3006]: the profile has 1 problem",
        "  --> chip.toml",
        "   - input should be less than or equal to 0 (classes.elementwise.residuals.launch.low)",
    )


def test_a_figure_that_is_none(shipped: Profile) -> None:
    assert rendered(edited(shipped, SHARE, r"value = .*", "value = nan")) == lines(
        "error[INF3006]: the profile has 1 problem",
        "  --> chip.toml",
        "   - input should be a finite number (classes.gemm-16bit.constants.memory_share.value)",
    )


def test_another_version(shipped: Profile) -> None:
    text = dump_profile(shipped).replace("schema_version = 1", "schema_version = 2")
    assert rendered(text) == lines(
        "error[INF3006]: the profile has 1 problem",
        "  --> chip.toml",
        "   - input should be 1 (schema_version)",
    )


@pytest.mark.parametrize("text", ["x = " + "[" * 50_000, "x = " + "9" * 5000])
def test_toml_that_no_reader_takes(text: str) -> None:
    assert rendered(text).startswith("error[INF3006]: the profile is no valid TOML: ")


def test_no_toml() -> None:
    assert rendered("target = ") == lines(
        "error[INF3006]: the profile is no valid TOML: Invalid value (at end of document)",
        "  --> chip.toml",
    )


def test_no_file(tmp_path: Path) -> None:
    text = message(lambda: load_profile(tmp_path / "chip.toml"))
    assert text.replace(str(tmp_path), "DIR") == lines(
        "error[INF3006]: cannot read the profile: [Errno 2] No such file or directory: "
        "'DIR/chip.toml'",
        "  --> DIR/chip.toml",
    )


@pytest.mark.parametrize(
    ("ask", "finding"),
    [
        (lambda: Gemm(0, 1, 1, "bf16"), "m must be at least 1, got 0"),
        (
            lambda: Gemm(1, 1, 1, "q4"),
            "dtype must be one of f32, bf16, f16, fp8, int8, fp4, got 'q4'",
        ),
        (
            lambda: DecodeAttention("bf16", "bf16", 1, 8, 12, 8, 64),
            "heads must be a multiple of kv_heads (8), got 12",
        ),
        (
            lambda: PrefillAttention("bf16", "bf16", 1, 8, 8, 8, 64, past=-1),
            "past must be at least 0, got -1",
        ),
        (
            lambda: Collective("gossip", 2, 8),  # type: ignore[arg-type]
            "kind must be one of all-reduce, all-gather, reduce-scatter, all-to-all, send, "
            "got 'gossip'",
        ),
        (lambda: Elementwise(-1), "bytes must be at least 0, got -1"),
    ],
)
def test_questions_without_an_answer(ask: Callable[[], Any], finding: str) -> None:
    assert message(ask) == f"error[INF5001]: {finding}"


def test_what_a_chip_cannot_do(shipped: Profile) -> None:
    older = BACKEND.resolve("nvidia-a100")
    for profile in (shipped, None):
        found = message(lambda known=profile: kernel_estimate(Gemm(1, 8, 8, "fp8"), older, known))
        known = ", ".join(sorted(older.compute[0].operations_per_s))
        assert found == f"error[INF3004]: target 'nvidia-a100' computes in {known}, got fp8"
    alone = older.model_copy(update={"links": (), "count": 1})
    for profile in (shipped, None):
        assert (
            message(
                lambda known=profile: kernel_estimate(Collective("all-reduce", 4, 8), alone, known)
            )
            == "error[INF3004]: target 'nvidia-a100' has no link, so several of it cannot work "
            "together\n"
            "   = hint: --link NAME gives it one; infc targets lists chips that have links"
        )
