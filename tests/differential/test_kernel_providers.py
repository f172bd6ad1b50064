"""Functions of other providers in programs of the CPU: chosen, linked, the same bits as ours."""

import ctypes
import platform
import re
import shutil
import subprocess
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from fake_provider import SOURCE, CProvider
from numpy.typing import NDArray
from small_models import SmallModels, feed, random_tokens

from infc.artifact import open_artifact
from infc.backends.cpu import provided
from infc.backends.cpu.codegen.builder import Builder
from infc.backends.cpu.codegen.objects import read_object
from infc.backends.cpu.kernels.layouts import layout_for
from infc.backends.cpu.mappings import kernel_candidates, kernel_work
from infc.backends.cpu.measured import kernel_library
from infc.backends.cpu.target import isa_of
from infc.backends.tvm import PROVIDER as TVM
from infc.backends.tvm.provider import TvmProvider
from infc.backends.tvm.records import all_records
from infc.diagnostics import Code, UserError
from infc.driver import artifact_cache
from infc.driver.compilation import cached_compile
from infc.driver.loading import load_runnable
from infc.ir.context import context
from infc.ir.mlir import ir
from infc.target.backend import KernelSummary
from infc.target.discovery import resolve_target
from infc.target.provider import KernelFunction, KernelProvider, ProviderStatus
from infc.target.runnable import Phase

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64" or shutil.which("gcc") is None,
    reason="the provider of these tests is C for x86-64",
)
TARGET = "cpu:x86-64-v3"
PROMPT, NEW, VOCABULARY = 11, 3, 32
PRODUCT = KernelSummary(
    "matmul", "decode", 3, 3, {"f32": 2.0 * 3 * 64 * 32}, 8192, 0, {}, ((64, 32, "f32"),)
)


class Providers:
    """Which providers there are; compiles and runs a tiny model with them."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self._patch = folder, patch

    def install(self, *providers: KernelProvider) -> None:
        self._patch.setattr(provided, "_providers", lambda: providers)

    def artifact(self, storage: str = "F32", target: str = TARGET) -> Path:
        """A fresh one: the next may have other kernels."""
        folder = self.folder / str(len(list(self.folder.iterdir())))
        folder.mkdir()
        models = SmallModels(folder)
        return models.artifact(models.model("llama2", storage), target)

    def product(self) -> bytes:
        """A shared object with one kernel, by the first provider."""
        _, target = resolve_target(TARGET)
        return kernel_library(PRODUCT, kernel_candidates(PRODUCT, target)[1:2], target)

    def logits(self, storage: str) -> NDArray[np.float32]:
        """Of a prompt that a tile divides with a rest, then of tokens one by one; on any number of
        threads."""
        runnable = load_runnable(open_artifact(self.artifact(storage)))
        tokens = random_tokens(VOCABULARY, PROMPT + NEW)
        found = []
        for threads in (1, 3):
            kv = runnable.new_kv()
            first = feed(runnable, kv, tokens[:PROMPT], threads=threads)
            then = feed(
                runnable, kv, tokens[PROMPT:], start=PROMPT, phase=Phase.DECODE, threads=threads
            )
            found.append(np.concatenate([first, then]))
        np.testing.assert_array_equal(*found)
        return found[0]


@pytest.fixture
def providers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Providers:
    found = Providers(tmp_path, monkeypatch)
    found.install()
    return found


def test_a_faster_provider_is_chosen_and_changes_no_bit(providers: Providers) -> None:
    own = providers.logits("F32")
    provider = CProvider(providers.folder)
    providers.install(provider)
    np.testing.assert_array_equal(providers.logits("F32"), own)
    assert {function.shapes["rows"] for function in provider.made} == {1, 3}


def test_names_of_a_provider_stay_in_the_program(providers: Providers) -> None:
    providers.install(CProvider(providers.folder))
    library = providers.folder / "kernel.so"
    library.write_bytes(providers.product())
    names = subprocess.run(["nm", "-D", library], capture_output=True, text=True, check=True).stdout
    assert "run_0" in names
    assert "sums" not in names


@pytest.mark.parametrize("speed", [0.5, 1.0, 2.0])
def test_the_cost_model_takes_a_provider_at_its_word(providers: Providers, speed: float) -> None:
    """Of its functions it ranks the backend's best guess, as many times as fast as it claims."""
    providers.install(CProvider(providers.folder, speed))
    _, target = resolve_target(TARGET)
    own, offered, *_ = kernel_candidates(PRODUCT, target)
    assert "provider" not in own
    assert offered == {
        **own,
        "row_tile": 3,
        "col_tile": 1,
        "flavour": "plain",
        "provider": "plain-c",
        "provider_percent": round(100 * speed),
    }
    ours, theirs = (kernel_work(PRODUCT, mapping, target).speed for mapping in (own, offered))
    assert theirs == pytest.approx(speed * ours)


def test_a_kept_model_is_compiled_anew_for_other_versions_of_a_provider(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = SmallModels(tmp_path).model("llama2")
    versions: dict[str, dict[str, str]] = {}
    monkeypatch.setattr(artifact_cache, "provider_versions", lambda backend: versions)
    own = cached_compile(model).path
    assert cached_compile(model).path == own
    versions["plain-c"] = {"compiler": "7.1"}
    assert cached_compile(model).path != own
    versions.clear()
    assert cached_compile(model).path == own


def raises(self: CProvider, *_: object) -> NoReturn:
    raise RuntimeError("no compiler")


def other_architecture(self: CProvider, *arguments: Any) -> bytes:
    code = bytearray(MADE(self, *arguments))
    code[18:20] = (183).to_bytes(2, "little")
    return bytes(code)


MADE = CProvider.object_code
WRONG: dict[str, tuple[dict[str, object], str]] = {
    "raises": ({"object_code": raises}, "fails to make {symbol}: RuntimeError: no compiler"),
    "architecture": (
        {"object_code": other_architecture},
        "makes {symbol} for another architecture: expected x86_64, got aarch64",
    ),
    "symbol": (
        {"source": SOURCE.replace("{symbol}", "other")},
        "makes another function: expected {symbol}, got other",
    ),
    "calls": (
        {"source": "void away(void); void {symbol}(void) {{ away(); }}"},
        "makes a function that cannot stand alone: {symbol} needs away",
    ),
    "no object": (
        {"object_code": lambda *_: b"MZ"},
        "makes no usable object file for {symbol}: expected a little-endian ELF file of 64 bits",
    ),
    "cut off": (
        {"object_code": lambda *arguments: MADE(*arguments)[:100]},
        "makes no usable object file for {symbol}: the ELF file is damaged",
    ),
    "candidates": ({"candidates": raises}, "fails to offer candidates: RuntimeError: no compiler"),
    "rows": (
        {"row_tile": 0.5},
        "offers a candidate: expected a row_tile of 1 to 3, got 0.5",
    ),
    "speed": (
        {"speed": 1e9},
        "offers a candidate: expected a speed of 0.01 to 100, got 1000000000.0",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_provider_that_is_wrong_is_one_error_that_names_it(
    providers: Providers, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    changes, message = WRONG[wrong]
    for name, value in changes.items():
        monkeypatch.setattr(CProvider, name, value, raising=False)
    provider = CProvider(providers.folder)
    for name in changes.keys() - {"object_code", "candidates"}:
        setattr(provider, name, changes[name])
    providers.install(provider)
    with pytest.raises(UserError) as caught:
        providers.product()
    assert caught.value.code is Code.KERNEL_PROVIDER
    pattern = re.escape(f"kernel provider 'plain-c' {message}").replace(r"\{symbol\}", r"\w+")
    assert re.fullmatch(pattern, caught.value.diagnostic.message)


def test_a_dump_that_wants_an_absent_provider_says_so(providers: Providers) -> None:
    with context():
        module = ir.Module.create()
        b = Builder(module, isa_of(resolve_target(TARGET)[1]))
        declare = provided.sums_provider({"provider": "gone", "row_tile": 1})
        assert declare is not None
        declare(b, layout_for("f32"), 64, 1)
        with pytest.raises(UserError, match="wants functions of provider 'gone', which cannot"):
            provided.provided_objects(module, resolve_target(TARGET)[1])


# ---- TVM ---------------------------------------------------------------------------------------

needs_tvm = pytest.mark.skipif(not TVM.status().available, reason=TVM.status().reason)


@needs_tvm
@pytest.mark.parametrize("storage", ["F32", "BF16"])
def test_kernels_of_tvm_have_the_bits_of_ours(
    providers: Providers, monkeypatch: pytest.MonkeyPatch, storage: str
) -> None:
    own = providers.logits(storage)
    providers.install(faster(TVM, monkeypatch))
    np.testing.assert_array_equal(providers.logits(storage), own)


@needs_tvm
@pytest.mark.parametrize("target", [TARGET, "cpu:aarch64"])
@pytest.mark.parametrize("schedule", ["registers", "default"])
def test_objects_of_tvm_stand_alone_and_are_the_same_every_time(target: str, schedule: str) -> None:
    function = KernelFunction("panel-sums", "tvm_sums", {"rows": 2, "k": 64}, "n16.bf16")
    facts = resolve_target(target)[1]
    first, again = (TVM.object_code(function, {"schedule": schedule}, facts) for _ in range(2))
    assert first == again
    made = read_object(first)
    assert made.architecture == isa_of(facts).architecture
    assert "tvm_sums" in made.defined
    assert made.undefined <= {"_GLOBAL_OFFSET_TABLE_"}


def faster(provider: TvmProvider, patch: pytest.MonkeyPatch) -> TvmProvider:
    """The provider, which is now sure of itself, so that it is chosen."""
    offers = provider.candidates
    patch.setattr(
        provider,
        "candidates",
        lambda kernel, target: [replace(offer, speed=2.0) for offer in offers(kernel, target)],
    )
    return provider


def test_without_tvm_the_provider_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("infc.backends.tvm.provider.version", absent)
    assert TVM.status() == ProviderStatus(
        "tvm", "cpu", False, "apache-tvm is not installed: pip install 'infc[tvm]'"
    )
    monkeypatch.setattr("infc.backends.tvm.provider.version", lambda name: "0.1.15")
    assert TVM.status().reason == (
        "expected apache-tvm 0.27.0.post1, got 0.1.15: pip install 'infc[tvm]'"
    )


@needs_tvm
@pytest.mark.parametrize("kind", ["f32", "bf16"])
def test_schedules_that_were_found_keep_the_order_of_additions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Each record, compiled for any processor: a trace tiles, and tiles keep the order of k."""
    rng = np.random.default_rng(0)
    _, target = resolve_target(TARGET)
    records = {key: trace for key, trace in all_records().items() if key[2] == kind}
    assert records
    for (rows, k, _, _), trace in records.items():
        monkeypatch.setattr(
            "infc.backends.tvm.panel_sums.find_record", lambda *_, found=trace: found
        )
        x = rng.standard_normal((rows, k), dtype=np.float32)
        panel = rng.standard_normal((k, 16), dtype=np.float32)
        bits = panel if kind == "f32" else (panel.view(np.uint32) >> 16).astype(np.uint16)
        made = []
        for schedule in ("registers", "tuned"):
            function = KernelFunction("panel-sums", schedule, {"rows": rows, "k": k}, f"n16.{kind}")
            source = tmp_path / f"{schedule}_{rows}.o"
            source.write_bytes(TVM.object_code(function, {"schedule": schedule}, target))
            library = source.with_suffix(".so")
            subprocess.run(["gcc", "-shared", source, "-o", library], check=True)
            sums = np.zeros((rows, 16), np.float32)
            getattr(ctypes.CDLL(str(library)), schedule)(
                *(ctypes.c_void_p(array.ctypes.data) for array in (x, bits, sums))
            )
            made.append(sums)
        np.testing.assert_array_equal(*made)
        wide = bits if kind == "f32" else (bits.astype(np.uint32) << 16).view(np.float32)
        np.testing.assert_allclose(made[0], x @ wide, rtol=0, atol=1e-3)
