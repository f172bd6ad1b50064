"""What is probed of the host and what target it makes."""

import platform
from dataclasses import replace
from pathlib import Path

import llvmlite.binding as llvm
import pytest

from infc.backends.cpu import probe
from infc.backends.cpu import target as cpu_target
from infc.backends.cpu.codegen.isa import Isa
from infc.backends.cpu.probe import Cache, Host, probe_host
from infc.backends.cpu.target import (
    cpu_targets,
    host_target,
    isa_of,
    missing_features,
    resolve_cpu,
)
from infc.diagnostics import UserError
from infc.target.schema import Target, TargetStatus

V3 = frozenset(resolve_cpu("cpu:x86-64-v3").features)
AVX512 = frozenset(["avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl", "avx512vnni"])

LAPTOP = Host(
    machine="x86_64",
    cpu="alderlake",
    features=V3 | {"avxvnni"},
    disabled=frozenset({"sha", "gfni"}),
    cores=8,
    caches=(Cache(1, 48 * 1024, 8), Cache(2, 1280 * 1024, 8)),
    memory_bytes=32 * 2**30,
)
SERVER = replace(
    LAPTOP,
    cpu="znver4",
    features=V3 | AVX512 | {"avx512bf16"},
    caches=(*LAPTOP.caches, Cache(3, 32 * 2**20, 2)),
)


PHONE = Host(
    machine="aarch64",
    cpu="cortex-a76",
    features=frozenset(resolve_cpu("cpu:aarch64").features),
    disabled=frozenset({"i8mm", "sve"}),
    cores=4,
    caches=(Cache(1, 64 * 1024, 4), Cache(2, 512 * 1024, 4)),
    memory_bytes=8 * 2**30,
)


def test_hosts_of_aarch64_use_what_they_have() -> None:
    isa = isa_of(host_target(PHONE))
    assert (isa.vector_bytes, isa.vector_registers, isa.dot_i8) == (16, 32, "neon-dot")
    assert isa.triple == "aarch64-unknown-linux-gnu"
    assert (isa.cpu, isa.features.startswith("-i8mm,-sve,+crc,+dotprod,")) == ("cortex-a76", True)
    newer = replace(PHONE, features=PHONE.features | {"i8mm"}, disabled=frozenset({"sve"}))
    assert isa_of(host_target(newer)).dot_i8 == "neon-i8mm"
    full = resolve_cpu("cpu:aarch64-v8.6")
    newest = host_target(replace(newer, features=frozenset(full.features)))
    assert newest.unit("cores").operations_per_s == full.unit("cores").operations_per_s


def test_features_of_aarch64_come_from_the_system(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """LLVM may know none of them there."""
    info = tmp_path / "cpuinfo"
    info.write_text(
        "processor: 0\nFeatures\t: fp asimd asimddp lrcpc\n\nFeatures\t: fp asimd asimddp\n"
    )
    monkeypatch.setattr(llvm, "get_host_cpu_features", dict)
    monkeypatch.setattr(probe.platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(probe, "Path", lambda name: info if name == "/proc/cpuinfo" else Path(name))
    host = probe_host()
    assert (host.machine, host.features) == ("aarch64", {"fp-armv8", "neon", "dotprod"})
    assert {"i8mm", "rcpc", "sve"} <= host.disabled
    assert not host.disabled & {"dotprod", "neon"}


def test_a_host_without_avx512_uses_256_bits() -> None:
    isa = isa_of(host_target(LAPTOP))
    assert (isa.vector_bytes, isa.vector_registers, isa.dot_i8, isa.bf16_dot) == (
        32,
        16,
        "avx-vnni",
        False,
    )
    assert isa.cpu == "alderlake"
    assert isa.features.startswith("-gfni,-sha,+avx,+avx2,+avxvnni,")


def test_a_host_with_vnni_and_bf16_uses_512_bits() -> None:
    target = host_target(SERVER)
    assert (isa_of(target).vector_bytes, isa_of(target).dot_i8) == (64, "avx512-vnni")
    assert isa_of(target).bf16_dot
    assert "bf16" in target.unit("cores").operations_per_s


@pytest.mark.parametrize(("cpu", "is_faster"), [("cooperlake", False), ("znver5", True)])
def test_bf16_without_tiles_is_slow_on_intel(cpu: str, is_faster: bool) -> None:
    rates = host_target(replace(SERVER, cpu=cpu)).unit("cores").operations_per_s
    assert (rates["bf16"] >= rates["f32"]) is is_faster


def test_a_host_with_tiles_uses_them_where_the_system_lets_it() -> None:
    tiles = host_target(replace(SERVER, features=SERVER.features | {"amx-bf16", "amx-tile"}))
    assert isa_of(tiles).amx
    assert not isa_of(host_target(SERVER)).amx
    less = replace(SERVER, features=(SERVER.features | {"amx-tile"}) - {"avx512bf16"})
    assert {"amx-bf16", "amx-tile"}.isdisjoint(host_target(less).features)


def test_without_bf16_there_is_no_bf16_arithmetic() -> None:
    target = host_target(replace(SERVER, features=SERVER.features - {"avx512bf16"}))
    assert not isa_of(target).bf16_dot
    assert "bf16" not in target.unit("cores").operations_per_s


def test_avx512_without_vnni_is_turned_off() -> None:
    target = host_target(replace(SERVER, features=SERVER.features - {"avx512vnni", "avx512bf16"}))
    isa = isa_of(target)
    assert (isa.vector_bytes, isa.dot_i8) == (32, "avx2")
    assert "-avx512f" in isa.features.split(",")
    assert not any(feature.startswith("avx512") for feature in target.features)


def test_sizes_and_cores_are_those_of_the_host() -> None:
    target = host_target(LAPTOP)
    assert [memory.name for memory in target.memories] == ["dram", "l2", "l1"]
    assert [memory.feeds for memory in target.memories] == [("l2",), ("l1",), ("cores",)]
    assert target.memory("dram").size_bytes == 32 * 2**30
    assert (target.memory("l2").size_bytes, target.memory("l2").count) == (1280 * 1024, 8)
    assert target.unit("cores").count == 8
    assert target.source_of("memories.l2.size_bytes") == target.source_of("features")
    assert "memories.dram.size_bytes" not in target.assumptions


@pytest.mark.skipif(platform.machine() != "x86_64", reason="needs an x86-64 host")
def test_the_same_host_gives_the_same_bytes() -> None:
    text = host_target(probe_host()).to_json()
    assert host_target(probe_host()).to_json() == text
    assert Target.from_json(text).to_json() == text


def test_a_host_that_is_too_old_is_refused() -> None:
    with pytest.raises(UserError) as caught:
        host_target(replace(LAPTOP, features=V3 - {"avx2", "fma"}))
    assert str(caught.value) == (
        "error[INF3004]: infc cannot run programs on this host: the processor lacks avx2, fma\n"
        "   = hint: compile for cpu:x86-64-v3 and run on a processor with AVX2"
    )
    with pytest.raises(UserError) as caught:
        host_target(replace(PHONE, features=PHONE.features - {"dotprod"}))
    assert str(caught.value) == (
        "error[INF3004]: infc cannot run programs on this host: the processor lacks dotprod\n"
        "   = hint: compile for cpu:aarch64 and run on a processor with dot products (Armv8.2-A)"
    )
    with pytest.raises(UserError, match="emits x86-64 and AArch64 only, and this host is riscv64"):
        host_target(replace(LAPTOP, machine="riscv64"))


def test_features_that_a_host_lacks_are_named() -> None:
    target = resolve_cpu("cpu:x86-64-v4")
    assert missing_features(target, SERVER.features) == []
    assert missing_features(target, LAPTOP.features) == sorted(AVX512 | {"avx512bf16"})


def test_what_the_kernel_hides_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    reported = {"avx2": True, "avx512f": True, "sha": True, "fma": False, "64bit": True}
    monkeypatch.setattr(llvm, "get_host_cpu_features", lambda: reported)
    info = tmp_path / "cpuinfo"
    info.write_text("processor: 0\nflags\t: avx2 avx512f fma\n\nflags\t: avx2 fma\n")
    monkeypatch.setattr(probe, "Path", lambda name: info if name == "/proc/cpuinfo" else Path(name))
    host = probe_host()
    assert host.features == {"avx2"}
    assert host.disabled == {"avx512f", "sha", "fma"}


def test_caches_are_counted_by_the_cores_that_share_them(tmp_path: Path) -> None:
    layout = {"index0": ("Data", 1, "48K"), "index1": ("Instruction", 1, "32K")}
    for core in range(2):
        for index, (kind, level, size) in layout.items():
            write_cache(tmp_path, core, index, (kind, level, size, str(core)))
        write_cache(tmp_path, core, "index2", ("Unified", 3, "32768K", "0-1"))
    assert probe._caches(tmp_path, [0, 1]) == (
        Cache(1, 48 * 1024, 2),
        Cache(3, 32 * 2**20, 1),
    )


def write_cache(root: Path, core: int, index: str, facts: tuple[str, int, str, str]) -> None:
    folder = root / f"cpu{core}" / "cache" / index
    folder.mkdir(parents=True)
    names = ("type", "level", "size", "shared_cpu_list")
    for name, fact in zip(names, facts, strict=True):
        (folder / name).write_text(f"{fact}\n")


@pytest.mark.parametrize(
    ("host", "widest"), [(LAPTOP, "ymm"), (SERVER, "zmm")], ids=["laptop", "server"]
)
def test_generated_code_keeps_to_the_features(host: Host, widest: str) -> None:
    """The processor's name alone would allow more, as on a machine that hides AVX-512."""
    everything = replace(host, cpu="sapphirerapids", disabled=(AVX512 | V3) - host.features)
    assembly = compile_multiply_add(isa_of(host_target(everything)))
    assert widest in assembly
    assert ("zmm" in assembly) == (widest == "zmm")


def compile_multiply_add(isa: Isa) -> str:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    module = llvm.parse_assembly(
        """
        define <16 x float> @f(<16 x float> %a, <16 x float> %b) {
          %r = call <16 x float> @llvm.fma.v16f32(<16 x float> %a, <16 x float> %b, <16 x float> %a)
          ret <16 x float> %r
        }
        declare <16 x float> @llvm.fma.v16f32(<16 x float>, <16 x float>, <16 x float>)
        """
    )
    machine = llvm.Target.from_triple(isa.triple).create_target_machine(
        cpu=isa.cpu, features=isa.features
    )
    return str(machine.emit_assembly(module))


def test_targets_of_other_hosts_say_what_compiles_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_target, "probe_host", lambda: LAPTOP)
    monkeypatch.setattr(cpu_target, "linker_problem", lambda machine: None)
    reasons = {status.name: status.reason for status in cpu_targets()}
    here = "compiles here, runs elsewhere: this host"
    assert reasons["cpu:x86-64-v3"] == ""
    assert reasons["cpu:x86-64-v4"].startswith(f"{here} lacks avx512bf16, avx512bw, ")
    assert reasons["cpu:aarch64"] == reasons["cpu:aarch64-v8.6"] == f"{here} is x86_64"
    monkeypatch.setattr(cpu_target, "linker_problem", lambda machine: f"no {machine}")
    assert cpu_targets()[-1] == TargetStatus("cpu:aarch64", "cpu", "cpu", False, "no aarch64")


def test_every_listed_target_resolves_or_says_why() -> None:
    for status in cpu_targets():
        if status.available:
            target = resolve_cpu(status.name)
            assert (target.name, target.backend, target.kind) == (status.name, "cpu", "cpu")
            assert isa_of(target).vector_bytes in (16, 32, 64)
        else:
            assert status.reason
