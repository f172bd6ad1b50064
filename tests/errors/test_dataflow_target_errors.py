"""The rendered text of what can be wrong with a dataflow target."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.metadata import EntryPoint, EntryPoints
from importlib.resources import files
from pathlib import Path

import pytest
from oracle.families import make_family
from oracle.files import BLOCK_STORAGE, write_gguf, write_huggingface

import infc
from infc.backends.dataflow.backend import BACKEND
from infc.diagnostics import UserError
from infc.target import discovery

GOOD = (files("infc.backends.dataflow") / "targets" / "test.toml").read_text("utf-8")
NOT_SO = "error[INF3002]: target 'dataflow:test' is no dataflow machine: "
HINT = "\n   = hint: docs/targets.md says what a dataflow target holds"
Rendered = Callable[[str], str]


def refused(spec: str) -> str:
    with pytest.raises(UserError) as caught:
        BACKEND.resolve(spec)
    return str(caught.value)


@pytest.fixture
def rendered(tmp_path: Path) -> Rendered:
    """The report on a target file of some text."""

    def render(text: str) -> str:
        path = tmp_path / "mine.toml"
        path.write_text(text, encoding="utf-8")
        return refused(f"dataflow:{path}").replace(str(path), "mine.toml")

    return render


def changed(*changes: tuple[str, str]) -> str:
    """The small preset with some of its text replaced, each once."""
    text = GOOD
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    return text


@pytest.mark.parametrize(
    ("spec", "report"),
    [
        (
            "dataflow:lpu-lik",
            "error[INF3001]: no dataflow target is named 'dataflow:lpu-lik'\n"
            "   = hint: did you mean dataflow:lpu-like or dataflow:wafer-like or "
            "dataflow:three-tier?",
        ),
        (
            "dataflow",
            "error[INF3001]: no dataflow target is named 'dataflow'\n"
            "   = hint: did you mean dataflow:lpu-like or dataflow:systolic-hbm or dataflow:test?",
        ),
        *(
            (
                f"dataflow:lpu-like@{chips}",
                f"error[INF3001]: expected a number of chips behind '@', got '{chips}'\n"
                f"  --> dataflow:lpu-like@{chips}",
            )
            for chips in ("", "0", "-3", "1.5", "two", "9" * 5000, "１")
        ),
        (
            "dataflow:test@2",
            "error[INF3001]: expected 1 chip, as no link joins the chips of 'dataflow:test', "
            "got 2\n  --> dataflow:test@2",
        ),
        (
            "dataflow:lpu-like@70000",
            "error[INF3002]: target 'dataflow:lpu-like@70000' is no dataflow machine: 1 problem\n"
            "   - expected at most 65535 chips, got 70000 (count)" + HINT,
        ),
    ],
)
def test_names(spec: str, report: str) -> None:
    assert refused(spec) == report


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert refused(f"dataflow:{tmp_path}/none.toml").startswith(
        "error[INF3002]: cannot read the target file: "
    )


def test_a_target_file_of_another_backend(rendered: Rendered) -> None:
    assert rendered(changed(('kind = "dataflow"', 'kind = "model-only"'))) == (
        "error[INF3002]: expected a target file with backend and kind 'dataflow', got 'dataflow' "
        "and 'model-only'\n  --> mine.toml"
    )


def test_a_grid_of_zero(rendered: Rendered) -> None:
    report = rendered(changed(("grid_rows = 2", "grid_rows = 0")))
    assert report.startswith(NOT_SO)
    assert (
        "   - expected a whole number of at least 1 and at most 255, got 0 "
        "(backend_facts.grid_rows)\n"
    ) in report


def test_all_missing_facts_in_one_report(rendered: Rendered) -> None:
    """A file without any fact of its own; those of the memories and units are judged as well."""
    report = rendered(GOOD[: GOOD.index("[backend_facts]")])
    found = [line.split("(backend_facts.")[1] for line in report.splitlines() if "_facts" in line]
    assert found == [
        "grid_rows)",
        "grid_cols)",
        "clock_mhz)",
        "issue_cycles)",
        "matrix_weight_bytes_per_cycle)",
        "matrix_startup_cycles)",
        "vector_simple_cycles)",
        "vector_special_cycles)",
        "vector_reduction_cycles)",
        "vector_native_elements)",
        "vector_startup_cycles)",
        "dma_burst_bytes)",
        "dma_bytes_per_cycle)",
        "dma_outstanding)",
        "dma_startup_cycles)",
        "mesh_bytes_per_cycle)",
        "mesh_hop_cycles)",
        "call_ns)",
    ]
    assert (
        "   - expected a number greater than zero, got none (backend_facts.clock_mhz)\n" in report
    )


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            ("count = 4\nsize_bytes", "count = 3\nsize_bytes"),
            "expected channels that divide 4 cores, got 3 (memories.hbm.count)",
        ),
        (
            ('count = 4\nsize_bytes = "256KiB"', 'count = 2\nsize_bytes = "256KiB"'),
            "expected the sram of each of 4 cores, got 2 (memories.sram.count)",
        ),
        (
            ('"256KiB"', "262100"),
            "expected a multiple of 64 bytes below 2 GiB a core, got 262100 "
            "(memories.sram.size_bytes)",
        ),
        (
            ('size_bytes = "1GiB"', "size_bytes = 1000"),
            "expected channels of a multiple of 64 bytes, got 1000 (memories.hbm.size_bytes)",
        ),
        (
            ('latency_ns = "200ns"\n', ""),
            "expected a latency, got none (memories.hbm.latency_ns)",
        ),
        (
            ('name = "matrix"\ncount = 4', 'name = "matrix"\ncount = 1'),
            "expected the matrix unit of each of 4 cores, got 1 (compute.matrix.count)",
        ),
        (
            ("bf16 = [32, 32, 64]", "bf16 = [32, 16, 64]"),
            "expected one native tile for all formats, got 32x16x64, 32x32x64 "
            "(compute.matrix.tiles)",
        ),
        (
            ('int8 = "4.096TOP/s"', 'int8 = "100TOP/s"'),
            "expected about the 1.311e+14 that follow from whole cycles and the clock, got 1e+14",
        ),
        (
            ('f32 = "32GFLOP/s"', 'f32 = "64GFLOP/s"'),
            "expected about the 3.2e+10 that follow from whole cycles and the clock, got 6.4e+10 "
            "(compute.vector.operations_per_s.f32)",
        ),
        (
            ('bf16 = "2.048TFLOP/s"\n', ""),
            "expected operations of a format that has a tile, got none "
            "(compute.matrix.operations_per_s.bf16)",
        ),
        (
            ("lanes = { f32 = 32 }\n", ""),
            "expected the lanes of f32, got none (compute.vector.lanes)",
        ),
        (
            ("vector_native_elements = 1024", "vector_native_elements = 1000"),
            "expected a multiple of 32, got 1000 (backend_facts.vector_native_elements)",
        ),
        (
            ("dma_burst_bytes = 1024", "dma_burst_bytes = 100"),
            "expected a multiple of 64, got 100 (backend_facts.dma_burst_bytes)",
        ),
        (
            ("clock_mhz = 1000", 'clock_mhz = "fast"'),
            "expected a number greater than zero, got 'fast' (backend_facts.clock_mhz)",
        ),
        (
            ("issue_cycles = 1", "issue_cycles = 1.5"),
            "expected a whole number of at least 1, got 1.5 (backend_facts.issue_cycles)",
        ),
    ],
)
def test_contradictions(rendered: Rendered, change: tuple[str, str], problem: str) -> None:
    report = rendered(changed(change))
    assert report.startswith(NOT_SO)
    assert f"   - {problem}" in report
    assert report.endswith(HINT)


def test_a_tile_that_cuts_scales_apart(rendered: Rendered) -> None:
    assert (
        "   - expected a depth that is a multiple of 32, got 48 (compute.matrix.tiles)\n"
    ) in rendered(GOOD.replace("[32, 32, 64]", "[32, 32, 48]"))


def test_chips_in_a_torus(rendered: Rendered) -> None:
    link = (
        '[[links]]\nname = "c2c"\njoins = "chips"\nbandwidth_bytes_per_s = "1GB/s"\n'
        'latency_ns = 1\ntopology = "torus-2d"\n\n[backend_facts]'
    )
    assert rendered(changed(("count = 1", "count = 4"), ("[backend_facts]", link))) == (
        NOT_SO + "1 problem\n"
        "   - expected one of ring, all-to-all, mesh-2d, got torus-2d (links.c2c.topology)" + HINT
    )


def test_too_many_memories(rendered: Rendered) -> None:
    section = GOOD[GOOD.index("[[memories]]") : GOOD.index('[[memories]]\nname = "sram"')]
    more = "".join(section.replace('"hbm"', f'"{name}"') for name in ("ddr", "flash"))
    assert rendered(changed(("[[compute]]", more + "[[compute]]"))) == (
        NOT_SO + "1 problem\n"
        "   - expected at most two memories besides the sram, got 3 (memories)" + HINT
    )


Compiled = Callable[[str, str], str]


@pytest.fixture
def compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compiled:
    """The report on compiling two layers in a storage type for the text of a target file."""
    point = EntryPoint("dataflow", "infc.backends.dataflow.backend:BACKEND", discovery.GROUP)

    def entry_points(**selection: str) -> EntryPoints:
        return EntryPoints([point]).select(**selection)

    monkeypatch.setattr(discovery, "entry_points", entry_points)
    config, tensors = make_family("llama3", num_hidden_layers=2)
    target = tmp_path / "mine.toml"

    def compile_for(text: str, storage: str) -> str:
        target.write_text(text, encoding="utf-8")
        model = tmp_path / "model"
        if storage in BLOCK_STORAGE:
            write_gguf(model, config, tensors, storage)
        else:
            model.mkdir()
            write_huggingface(model, config, tensors, storage)
        with pytest.raises(UserError) as caught:
            infc.compile(model, target=f"dataflow:{target}", output=tmp_path / "a.infc")
        assert not (tmp_path / "a.infc").exists()
        return str(caught.value).replace(str(tmp_path), "")

    return compile_for


def without(unit: str) -> str:
    """The small preset without a compute unit."""
    begin = GOOD.index(f'[[compute]]\nname = "{unit}"')
    end = min(at for at in (GOOD.find("[[", begin + 1), GOOD.index("[backend_facts]")) if at > 0)
    return GOOD[:begin] + GOOD[end:]


def test_a_target_without_a_matrix_unit(compiled: Compiled) -> None:
    """Seven products and an attention in each of two layers, and the head, in one report."""
    feeds = 'feeds = ["matrix", "vector"]', 'feeds = ["vector"]'
    report = compiled(without("matrix").replace(*feeds), "BF16")
    assert report.startswith(
        "error[INF3004]: target dataflow:test cannot compile 17 operations of the model\n"
        "  --> /model\n"
        "   - infc.linear: expected a target with a matrix unit, got vector (layers.0."
    )
    assert (
        "   - infc.attention: expected a target with a matrix unit, got vector (layers.0.attention "
        "and 1 other)\n"
    ) in report
    assert report.endswith("   = hint: --target reference runs every operation, slowly")


def test_a_matrix_unit_without_a_format(compiled: Compiled) -> None:
    """Weights of bf16 need products of bf16; attention, products of f16, is not in the report."""
    tiles, peak = ", bf16 = [32, 32, 64]", 'bf16 = "2.048TFLOP/s"\n'
    report = compiled(changed((tiles, ""), (peak, "")), "BF16")
    assert "cannot compile 15 operations" in report
    assert (
        "infc.linear: expected a matrix unit with products of bf16, got int8, int4, f16" in report
    )
    assert "infc.attention" not in report


def test_a_target_without_a_vector_unit(compiled: Compiled) -> None:
    report = compiled(without("vector").replace('["matrix", "vector"]', '["matrix"]'), "BF16")
    assert "infc.rms_norm: expected a target with a vector unit, got matrix" in report
    assert "infc.weight" not in report


@pytest.mark.parametrize(("storage", "form"), [("Q4_0", "int4"), ("Q8_0", "int8"), ("F16", "f16")])
def test_the_format_follows_from_the_weights(compiled: Compiled, storage: str, form: str) -> None:
    others = [name for name in ("int8", "int4", "bf16", "f16") if name != form]
    tiles = "tiles = { " + ", ".join(f"{name} = [32, 32, 64]" for name in others) + " }"
    text = re.sub(r"tiles = .*", tiles, GOOD)
    report = compiled(re.sub(rf"(?m)^{form} = .*\n", "", text), storage)
    assert (
        f"infc.linear: expected a matrix unit with products of {form}, got {', '.join(others)}"
        in report
    )
    assert ("infc.attention" in report) == (form == "f16")


def test_weights_that_the_matrix_unit_does_not_read(compiled: Compiled) -> None:
    report = compiled(GOOD, "F32")
    assert (
        "   - infc.embed: expected weights of one of bf16, f16, q2_k, q3_k, q4_0, q4_1, q4_k, "
        "q5_0, q5_1, q5_k, q6_k, q8_0, got f32; --quantize q8_0 converts it ("
    ) in report
    assert report.count("infc.linear: expected weights of one of ") == 1
    assert "(layers.0.q and 14 others)" in report


def test_a_file_can_be_estimated_under_its_backends_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(GOOD)
    assert discovery.find_target(f"dataflow:{path}") == BACKEND.resolve(f"dataflow:{path}")
