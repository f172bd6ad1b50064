"""`infc explain` of an artifact: its figures, the JSON object and the page."""

import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from small_models import SLOTS, SmallModels

from infc import driver
from infc.cli import artifact_page, main
from infc.cli.artifact_page import render_page
from infc.cli.units import human_bytes, human_seconds
from infc.diagnostics import UserError
from infc.driver import Explanation
from infc.driver.explanation import trace_call
from infc.driver.explanation_rows import BufferRow, FrameRow, StagingRow, TransferRow
from infc.target.runnable import Phase

HOSTILE = "</title><script src=http://x/>\"'&\ud800<img onerror=x>"


@pytest.fixture(scope="module")
def artifact(small_models: SmallModels) -> Path:
    return small_models.artifact(small_models.model("gemma2", num_hidden_layers=2), "cpu")


@pytest.fixture(scope="module")
def explanation(artifact: Path) -> Explanation:
    return driver.explain(artifact, threads=1)


class Page(HTMLParser):
    """Tags, attributes, and the texts between tags of a page whose tags match."""

    void = frozenset({"meta", "br", "line", "rect", "circle", "i"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.titles: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.void:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.void:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        (self.titles if self._open[-1:] == ["title"] else self.texts).append(data.strip())


def test_the_kernels_add_up_to_their_program(explanation: Explanation) -> None:
    assert [row.program for row in explanation.programs] == ["prefill", "decode"]
    for program in explanation.programs:
        rows = [row for row in explanation.kernels if row.program == program.program]
        measured = sum(row.measured_seconds or 0.0 for row in rows)
        assert measured == pytest.approx(program.measured_seconds)
        assert program.predicted_seconds_low is not None
        assert program.predicted_seconds_high is not None
        assert program.predicted_seconds is not None
        assert sum(row.predicted_seconds for row in rows) < program.predicted_seconds
        assert program.predicted_seconds_low < program.predicted_seconds
        assert program.predicted_seconds < program.predicted_seconds_high
        for row in rows:
            # A prediction is never faster than the machine's peak.
            peak = max(row.memory_peak_seconds, row.compute_peak_seconds)
            assert row.predicted_seconds >= peak
            assert row.floor_seconds == peak
            if row.measured_seconds:
                assert row.floor_reached == pytest.approx(peak / row.measured_seconds)


def test_buffers_lie_in_their_frames(explanation: Explanation) -> None:
    heights = {(f.program, f.function, f.space): f.height_bytes for f in explanation.frames}
    tops: dict[tuple[str, str, str], int] = dict.fromkeys(heights, 0)
    for row in explanation.buffers:
        key = (row.program, row.function, row.space)
        tops[key] = max(tops[key], row.offset_bytes + row.size_bytes)
    assert tops == heights


def test_json(artifact: Path, explanation: Explanation) -> None:
    result = CliRunner().invoke(main, ["explain", str(artifact), "--json"])
    found = json.loads(result.stdout)
    assert list(found) == [
        "schema_version",
        "model",
        "digest",
        "compiler",
        "member_bytes",
        "threads",
        "kv_cache",
        "programs",
        "kernels",
        "frames",
        "buffers",
        "transfers",
        "staging",
        "ops",
        "layouts",
        "code",
        "unmeasured",
        "notes",
    ]
    assert found["schema_version"] == 1
    cache = found["kv_cache"]
    assert (cache["dtype"], cache["slots"]) == ("f32", SLOTS)
    kernel, expected = found["kernels"][2], explanation.kernels[2]
    assert list(kernel) == [
        "program",
        "kernel",
        "location",
        "launches",
        "bytes",
        "operations",
        "bound",
        "bound_kind",
        "memory_peak_seconds",
        "compute_peak_seconds",
        "floor_seconds",
        "predicted_seconds",
        "measured_seconds",
        "floor_reached",
    ]
    assert (kernel["kernel"], kernel["bytes"]) == (expected.kernel, expected.bytes)
    assert kernel["operations"] == expected.operations
    assert [buffer["offset_bytes"] for buffer in found["buffers"]] == [
        row.offset_bytes for row in explanation.buffers
    ]
    assert found["frames"][0]["height_bytes"] >= found["frames"][0]["lower_bound_bytes"]


@pytest.mark.parametrize(("dtype", "element_bytes", "scales"), [("f16", 2, 0), ("int8", 1, 2)])
def test_the_cache_is_stated(
    small_models: SmallModels, dtype: str, element_bytes: int, scales: int
) -> None:
    model = small_models.model("gemma2", num_hidden_layers=2)
    artifact = small_models.artifact(model, "reference", kv_dtype=dtype)
    shape = small_models.runnable(model, "reference", kv_dtype=dtype).kv_shape
    assert shape.head_dim <= 32  # one scale a key
    position = shape.kv_heads * 2 * (shape.head_dim * element_bytes + scales)
    cache = driver.explain(artifact).kv_cache
    assert cache.size_bytes == SLOTS * sum(shape.capacity) * position
    shown = CliRunner().invoke(main, ["explain", str(artifact)]).stdout
    assert shown.endswith(f"KV cache: {dtype}, {human_bytes(cache.size_bytes)} for {SLOTS} slots\n")


def test_the_page_has_the_figures(explanation: Explanation) -> None:
    page = Page(render_page(explanation))
    for row in explanation.kernels:
        assert row.measured_seconds is not None
        assert row.kernel in page.texts
        assert human_seconds(row.measured_seconds) in page.texts
        assert human_seconds(row.predicted_seconds) in page.texts
    for program in explanation.programs:
        assert program.measured_seconds is not None
        assert human_seconds(program.measured_seconds) in page.texts
    for frame in explanation.frames:
        assert any(human_bytes(frame.height_bytes) in text for text in page.texts)
    # Layers that differ in nothing but names share a chart; every kind of buffer has a rectangle.
    lifetimes = {(row.first_launch, row.last_launch) for row in explanation.buffers}
    for first, last in lifetimes:
        assert any(text.endswith(f"live in steps {first} to {last}") for text in page.titles)


def test_the_page_draws_transfers(explanation: Explanation) -> None:
    frame = FrameRow("decode", "main", "sram", 128, 128)
    stay = BufferRow("decode", "main", "sram", "w", "tensor<32xf32>", 0, 128, 0, 9)
    arrives = TransferRow("decode", "main", "sram", "w", True, 0, 128, 0, 3)
    leaves = TransferRow("decode", "main", "sram", "w", False, 0, 128, 7, 9)
    staged = replace(
        explanation,
        frames=(frame,),
        buffers=(stay,),
        transfers=(arrives, leaves),
        staging=(StagingRow("decode", 2e-6, 1e-6, 5e-7, 256, 4096),),
    )
    page = Page(render_page(staged))
    points = [text for name, text in page.attributes if name == "points"]
    ramps = [[tuple(map(float, p.split(","))) for p in (text or "").split()] for text in points]
    (start, full, end), (begin, still_full, gone) = ramps
    # One goes up to the right and one comes down; y grows downwards.
    assert start[0] < full[0] == end[0]
    assert full[1] < start[1] == end[1]
    assert begin[0] == still_full[0] < gone[0]
    assert "w arrives\n128 B\nunder way in steps 0 to 3" in page.titles
    assert "w leaves\n128 B\nunder way in steps 7 to 9" in page.titles
    assert any("256 B moved, 2 us expected, 0.5 us of it waiting" in t for t in page.texts)


def test_the_page_needs_nothing_from_elsewhere(explanation: Explanation) -> None:
    html = render_page(explanation)
    page = Page(html)
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert not {"src", "href", "srcset"} & {name for name, _ in page.attributes}
    assert "url(" not in html
    assert "@import" not in html


def test_names_cannot_escape_into_the_page(
    explanation: Explanation, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile = replace(
        explanation,
        model=HOSTILE,
        member_bytes={HOSTILE: 1},
        programs=tuple(replace(row, target=HOSTILE) for row in explanation.programs),
        kernels=tuple(replace(r, kernel=HOSTILE, location=HOSTILE) for r in explanation.kernels),
        frames=tuple(replace(row, function=HOSTILE) for row in explanation.frames),
        buffers=tuple(
            replace(row, function=HOSTILE, buffer=HOSTILE, type=HOSTILE)
            for row in explanation.buffers
        ),
    )
    monkeypatch.setattr(driver, "explain", lambda path, threads: hostile)
    out = tmp_path / "page.html"
    result = CliRunner().invoke(main, ["explain", str(artifact), "--html", str(out)])
    assert result.exit_code == 0
    page = Page(out.read_text(encoding="utf-8"))
    assert not {"script", "img"} & set(page.tags)
    assert not any(name.startswith("on") for name, _ in page.attributes)
    assert HOSTILE.replace("\ud800", "?") in page.texts


def test_a_target_without_kernels(small_models: SmallModels) -> None:
    model = small_models.model("gemma2", num_hidden_layers=2)
    artifact = small_models.artifact(model, "reference")
    text = CliRunner().invoke(main, ["explain", str(artifact)]).stdout
    assert text.startswith(
        "The target interprets the model: it has no kernels and plans no memory.\n"
    )
    assert "KV cache: " in text
    explanation = driver.explain(artifact)
    assert [row.predicted_seconds for row in explanation.programs] == [None, None]
    page = Page(render_page(explanation))
    assert page.texts.count("not measured") == 2
    assert page.texts.count("no estimate") == 2
    assert "The backend of this target reports no kernels and no memory plan." in page.texts


def test_kernels_that_could_not_be_measured(explanation: Explanation) -> None:
    programs = tuple(replace(row, measured_seconds=None) for row in explanation.programs)
    kernels = tuple(replace(row, measured_seconds=None) for row in explanation.kernels)
    estimated = replace(explanation, threads=None, programs=programs, kernels=kernels)
    page = Page(render_page(estimated))
    assert page.texts.count("not measured") == 2
    assert "Roofline" not in page.texts
    for row in kernels:
        assert human_seconds(row.predicted_seconds) in page.texts


def test_an_unwritable_page_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    out = tmp_path / "none" / "page.html"
    result = CliRunner().invoke(main, ["explain", str(tmp_path / "absent"), "--html", str(out)])
    assert result.exit_code == 1
    assert result.stderr == (
        "error[INF4006]: cannot write the output: its folder does not exist\n"
        f"  --> {out}\n"
        f"   = hint: create it: mkdir -p {out.parent}\n"
    )


def test_an_old_page_survives_a_failure(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(explanation: Explanation) -> str:
        raise KeyboardInterrupt

    out = tmp_path / "page.html"
    out.write_text("old")
    monkeypatch.setattr(artifact_page, "render_page", interrupt)
    result = CliRunner().invoke(main, ["explain", str(artifact), "--html", str(out)])
    assert result.exit_code == 130
    assert out.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["page.html"]


@pytest.mark.parametrize("option", [["--json"], ["--html", "page.html"]])
def test_an_error_code_has_no_page(option: list[str]) -> None:
    result = CliRunner().invoke(main, ["explain", "INF5004", *option])
    assert result.exit_code == 2
    assert (
        "Error: --html, --threads and --json are for artifacts, not for error codes\n"
        in result.stderr
    )


def test_calls_that_are_measured_read_a_text() -> None:
    text = np.array([5, 6, 7], np.int32)
    assert trace_call(Phase.PREFILL, 5, 5, text).tokens.tolist() == [5, 6, 7, 5, 6]
    assert trace_call(Phase.DECODE, 5, 5, text).tokens.tolist() == [7]
    assert trace_call(Phase.PREFILL, 2, 2).tokens.tolist() == [0, 0]


def test_more_threads_than_the_programs_take(artifact: Path) -> None:
    with pytest.raises(UserError) as caught:
        driver.explain(artifact, threads=65)
    assert str(caught.value) == (
        "error[INF5001]: threads must be 1 to 64, got 65\n"
        "   = hint: the programs were compiled for at most 64 threads"
    )


def test_the_page_is_not_put_over_the_artifact(artifact: Path) -> None:
    before = artifact.read_bytes()
    result = CliRunner().invoke(main, ["explain", str(artifact), "--html", str(artifact)])
    assert (result.exit_code, result.stderr) == (
        1,
        "error[INF4006]: cannot write the output: it is part of the input\n"
        f"  --> {artifact}\n"
        "   = hint: choose another name\n",
    )
    assert artifact.read_bytes() == before


@pytest.mark.parametrize("max_context", [1, 3])
def test_a_context_that_holds_fewer_positions_than_are_measured(
    small_models: SmallModels, max_context: int
) -> None:
    model = small_models.model("gemma2", num_hidden_layers=2)
    artifact = small_models.artifact(model, "cpu", max_context=max_context)
    explanation = driver.explain(artifact, threads=1)
    assert all(row.measured_seconds is not None for row in explanation.kernels)
