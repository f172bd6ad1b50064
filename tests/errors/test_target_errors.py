"""The rendered text of what can go wrong with targets."""

import pytest

from infc.backends.cpu.codegen.linking import link_shared
from infc.backends.cpu.target import resolve_cpu
from infc.diagnostics import UserError
from infc.target import discovery
from infc.target.loader import parse_target
from infc.target.schema import TargetStatus

GOOD = """
name = "toy"
backend = "made-up"
kind = "gpu"
source = "the data sheet"
launch_ns = 1
barrier_ns = 1

[[memories]]
name = "hbm"
size_bytes = "80GiB"
bandwidth_bytes_per_s = "3TB/s"
managed_by = "hardware"
feeds = ["cores"]
efficiency = { low = 0.5, mid = 0.8, high = 0.9 }

[[compute]]
name = "cores"
operations_per_s = { f32 = "1TFLOP/s" }
efficiency = { low = 0.5, mid = 0.8, high = 0.9 }
"""

MACHINES = (("x86_64", 62), ("aarch64", 183))
"""Numbers of ELF."""


def rendered(text: str) -> str:
    with pytest.raises(UserError) as caught:
        parse_target(text, location="toy.toml")
    return str(caught.value)


def test_all_findings_of_the_schema_are_listed_with_their_place() -> None:
    text = (
        GOOD.replace('"3TB/s"', '"3TB"').replace('kind = "gpu"', 'kind = "toaster"')
        + 'colour = "red"\n'
    )
    assert rendered(text) == (
        "error[INF3002]: the target file has 3 problems\n"
        "  --> toy.toml\n"
        "   - input should be 'cpu', 'gpu', 'dataflow' or 'model-only' (kind)\n"
        "   - expected a number and one of B/s, kB/s, MB/s, GB/s, TB/s, PB/s, KiB/s, MiB/s, GiB/s, "
        "TiB/s, Mbit/s, Gbit/s, Tbit/s, got '3TB' (memories.hbm.bandwidth_bytes_per_s)\n"
        "   - extra inputs are not permitted (compute.cores.colour)"
    )


def test_facts_without_a_source_are_listed() -> None:
    text = GOOD.replace('source = "the data sheet"\n', "").replace(
        "launch_ns = 1", 'launch_ns = { value = 1, source = "" }'
    )
    report = rendered(text)
    assert report.startswith("error[INF3002]: the target file has 11 problems\n  --> toy.toml\n")
    assert "   - expected source as text (launch_ns)\n" in report
    assert "   - expected a source, got a fact without one (barrier_ns)\n" in report
    assert "(memories.hbm.efficiency.high)\n" in report


def test_missing_sources_hide_no_other_finding() -> None:
    text = GOOD.replace("launch_ns = 1", 'launch_ns = { value = 1, source = "" }').replace(
        '"3TB/s"', '"3TB"'
    )
    assert rendered(text.replace('kind = "gpu"', 'kind = "toaster"')) == (
        "error[INF3002]: the target file has 3 problems\n"
        "  --> toy.toml\n"
        "   - expected source as text (launch_ns)\n"
        "   - input should be 'cpu', 'gpu', 'dataflow' or 'model-only' (kind)\n"
        "   - expected a number and one of B/s, kB/s, MB/s, GB/s, TB/s, PB/s, KiB/s, MiB/s, GiB/s, "
        "TiB/s, Mbit/s, Gbit/s, Tbit/s, got '3TB' (memories.hbm.bandwidth_bytes_per_s)"
    )


def test_a_fact_without_a_source_may_be_wrong_besides() -> None:
    text = GOOD.replace('source = "the data sheet"\n', "").replace('"3TB/s"', '"3TB"')
    report = rendered(text.replace('["cores"]', '["core"]'))
    assert report.startswith("error[INF3002]: the target file has 12 problems\n")
    where = "memories.hbm.bandwidth_bytes_per_s"
    assert f"   - expected a source, got a fact without one ({where})\n" in report
    assert f"got '3TB' ({where})" in report


def test_a_fact_says_one_thing() -> None:
    text = GOOD.replace("launch_ns = 1", 'launch_ns = { value = 1, unknown = "x", note = "y" }')
    assert rendered(text) == (
        "error[INF3002]: the target file has 1 problem\n"
        "  --> toy.toml\n"
        "   - expected a value with a source or an assumption, or unknown with a reason, got note, "
        "unknown, value (launch_ns)"
    )


def test_names_must_agree() -> None:
    assert rendered(GOOD.replace('feeds = ["cores"]', 'feeds = ["core"]')) == (
        "error[INF3002]: the target file has 1 problem\n"
        "  --> toy.toml\n"
        "   - memory 'hbm' feeds 'core': expected one of cores"
    )


def test_a_target_computes_something() -> None:
    assert rendered("compute = []\n" + GOOD[: GOOD.index("[[compute]]")]) == (
        "error[INF3002]: the target file has 1 problem\n"
        "  --> toy.toml\n"
        "   - expected at least one memory and one compute unit"
    )


def test_an_efficiency_range_must_be_ordered() -> None:
    assert rendered(GOOD.replace("low = 0.5, mid = 0.8", "low = 0.9, mid = 0.8", 1)) == (
        "error[INF3002]: the target file has 1 problem\n"
        "  --> toy.toml\n"
        "   - expected low <= mid <= high, got 0.9, 0.8, 0.9 (memories.hbm.efficiency)"
    )


@pytest.mark.parametrize("text", ["name =", "x = " + "[" * 50_000, "x = " + "9" * 5000])
def test_no_toml(text: str) -> None:
    assert (
        rendered(text)
        .splitlines()[0]
        .startswith("error[INF3002]: the target file is no valid TOML: ")
    )


def test_tables_too_deep_to_walk() -> None:
    assert rendered(".".join("a" * 5000) + " = 1") == (
        "error[INF3002]: the target file is nested too deeply\n  --> toy.toml"
    )


def test_an_integer_beyond_all_floats() -> None:
    text = rendered(GOOD.replace("launch_ns = 1", f"launch_ns = {10**400}", 1))
    assert "expected a finite number of at least zero, got 1000000" in text


def test_an_unknown_target_names_its_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    statuses = [TargetStatus("vendor-chip-100", "chips", "model-only", True)]
    monkeypatch.setattr(discovery, "list_targets", lambda: statuses)
    monkeypatch.setattr(discovery, "backend_names", lambda: ["chips", "cpu"])
    with pytest.raises(UserError) as caught:
        discovery.resolve_target("vendor-chip-10")
    assert str(caught.value) == (
        "error[INF3001]: no target is named 'vendor-chip-10'\n"
        "   = hint: did you mean vendor-chip-100?"
    )
    with pytest.raises(UserError) as caught:
        discovery.resolve_target("zzz")
    assert str(caught.value) == (
        "error[INF3001]: no target is named 'zzz'\n   = hint: `infc targets` lists all of them"
    )


def test_an_unknown_cpu_target() -> None:
    with pytest.raises(UserError) as caught:
        resolve_cpu("cpu:x86-64-v9")
    assert str(caught.value) == (
        "error[INF3001]: no CPU target is named 'cpu:x86-64-v9'\n"
        "   = hint: known ones: cpu, cpu:x86-64-amx, cpu:x86-64-v4, cpu:x86-64-v3, "
        "cpu:aarch64-v8.6, cpu:aarch64"
    )


def test_without_a_cross_linker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setenv("PATH", "")
    start = b"\x7fELF\x02\x01" + bytes(10) + b"\x01\x00"  # a relocatable file without sections
    elf = {name: start + number.to_bytes(2, "little") + bytes(44) for name, number in MACHINES}
    with pytest.raises(UserError) as caught:
        link_shared(elf["aarch64"])
    assert str(caught.value) == (
        "error[INF3005]: no linker found: looked for aarch64-linux-gnu-gcc and ld.lld on PATH\n"
        "   = hint: install a cross compiler (Debian: apt-get install gcc-aarch64-linux-gnu)"
    )
    with pytest.raises(UserError) as caught:
        link_shared(elf["x86_64"])
    assert str(caught.value) == (
        "error[INF3005]: no linker found: looked for cc, gcc and clang on PATH\n"
        "   = hint: install gcc (Debian: apt-get install gcc)"
    )


@pytest.mark.parametrize(
    ("old", "new", "finding"),
    [
        (
            'managed_by = "hardware"',
            'unit_bandwidth_bytes_per_s = "4TB/s"\nmanaged_by = "hardware"',
            "expected unit_bandwidth_bytes_per_s of at most bandwidth_bytes_per_s (3e+12), "
            "got 4e+12 (memories.hbm)",
        ),
        (
            'operations_per_s = { f32 = "1TFLOP/s" }',
            'operations_per_s = { f32 = "1TFLOP/s" }\nchip_operations_per_s = { f32 = 1 }',
            "expected operations_per_s or chip_operations_per_s, got both (compute.cores)",
        ),
        (
            'operations_per_s = { f32 = "1TFLOP/s" }',
            "operations_per_s = {}",
            "expected the operations per second of at least one dtype, got none "
            "(compute.cores.operations_per_s)",
        ),
        (
            "barrier_ns = 1",
            "barrier_ns = 1\ncount = 8",
            "expected a link between 8 chips, got none",
        ),
        (
            "barrier_ns = 1",
            "barrier_ns = 1\ncount = 0",
            "input should be greater than or equal to 1 (count)",
        ),
        (
            "barrier_ns = 1",
            'barrier_ns = 1\npower_watts = "0W"',
            "expected 0.001 to 1e+09 W, got 0 (power_watts)",
        ),
        (
            'size_bytes = "80GiB"',
            'size_bytes = "0GiB"',
            "expected 1 to 1e+18 bytes, got 0 (memories.hbm.size_bytes)",
        ),
        (
            '"3TB/s"',
            "1e-300",
            "expected 1000 to 1e+18 B/s, got 1e-300 (memories.hbm.bandwidth_bytes_per_s)",
        ),
        (
            '"1TFLOP/s"',
            "1e308",
            "expected 1000 to 1e+21 OP/s, got 1e+308 (compute.cores.operations_per_s.f32)",
        ),
        (
            "launch_ns = 1",
            "launch_ns = 1e13",
            "expected 0 to 1e+12 ns, got 1e+13 (launch_ns)",
        ),
        (
            "barrier_ns = 1",
            "barrier_ns = 1\ncount = 1000000001",
            "input should be less than or equal to 1000000000 (count)",
        ),
        (
            "{ low = 0.5, mid = 0.8, high = 0.9 }",
            "{ low = 1e-9, mid = 0.8, high = 0.9 }",
            "input should be greater than or equal to 0.0001 (memories.hbm.efficiency.low)",
        ),
        (
            "barrier_ns = 1",
            'barrier_ns = 1\nmodel_memory = "sram"',
            "expected model_memory to be one of hbm, got 'sram'",
        ),
    ],
)
def test_contradictory_figures(old: str, new: str, finding: str) -> None:
    assert rendered(GOOD.replace(old, new, 1)) == (
        f"error[INF3002]: the target file has 1 problem\n  --> toy.toml\n   - {finding}"
    )
