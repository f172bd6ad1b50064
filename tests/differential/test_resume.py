"""The IR is what is compiled: any dump leads to the same artifact, and an edited one to another."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from oracle.families import make_family
from oracle.files import write_huggingface

import infc
from infc.artifact import open_artifact
from infc.diagnostics import UserError
from infc.driver.dumps import run_opt

PASSES = (
    "import",
    "graph-canonicalize",
    "phase-split-phases",
    "phase-outline-layers",
    "schedule-quantize-activations",
    "schedule-split-head",
    "schedule-fuse-kernels",
    "schedule-choose-mappings",
    "memory-bufferize",
    "memory-schedule-transfers",
    "memory-plan-memory",
    "memory-insert-barriers",
    "memory-pack-weights",
    "memory-record-plan",
    "machine-lower-programs",
    "machine-lower-to-llvm",
)
UNCHANGED = (5, 9)
"""A head behind a soft cap is not split, and the CPU has no scratchpad."""
DUMPED = [number for number in range(len(PASSES)) if number not in UNCHANGED]
TOKENS = [17, 3, 250, 99, 5, 12, 200, 31, 64]

RESUME = """
import sys
import infc
from infc.driver import compile
model, dump, output = sys.argv[1:]
compile(model, resume_from=dump, output=output)
"""


@dataclass
class Compiled:
    """A model, its artifact, and the dumps of that compilation by number."""

    folder: Path
    model: Path
    artifact: Path
    logits: NDArray[np.float32]

    def dump(self, number: int) -> Path:
        """The dump after a pass."""
        return self.folder / f"{number:03d}-{PASSES[number]}.mlir"

    def resumed(self, text: str, output: Path) -> Path:
        edited = output.with_suffix(".mlir")
        edited.write_text(text)
        infc.compile(self.model, resume_from=edited, output=output)
        return output


def logits_of(artifact: Path) -> NDArray[np.float32]:
    return infc.load(artifact, threads=1).prefill(TOKENS)


def object_code(artifact: Path) -> bytes:
    with open_artifact(artifact) as opened:
        return bytes(opened.member("programs/model.so"))


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """Two layers, one that slides; soft caps on scores and logits; norms behind each block."""
    root = tmp_path_factory.mktemp("resume")
    model, artifact = root / "model", root / "model.infc"
    model.mkdir()
    write_huggingface(model, *make_family("gemma2", num_hidden_layers=2))
    infc.compile(model, output=artifact, max_context=64, chunk=16, dump=root / "dump")
    return Compiled(root / "dump", model, artifact, logits_of(artifact))


class TestContinuing:
    def test_there_is_a_dump_after_every_pass(self, compiled: Compiled) -> None:
        names = sorted(path.stem for path in compiled.folder.iterdir())
        assert names == [f"{number:03d}-{name}" for number, name in enumerate(PASSES)]

    def test_every_dump_leads_to_the_next(self, compiled: Compiled) -> None:
        """So all lead to the same last one."""
        for before, after in pairwise(DUMPED):
            got = run_opt(compiled.dump(before).read_text(), PASSES[after].split("-", 1)[1])
            expected = compiled.dump(after).read_text()
            if PASSES[after] == "machine-lower-to-llvm":
                # MLIR prints no places of loop variables, which become arguments of blocks here.
                got, expected = without_places(got), without_places(expected)
            assert got == expected, PASSES[after]

    @pytest.mark.parametrize(
        "number",
        [pytest.param(n, id=PASSES[n], marks=() if n == 7 else pytest.mark.slow) for n in DUMPED],
    )
    def test_a_fresh_process_makes_the_same_bytes(
        self, compiled: Compiled, tmp_path: Path, number: int
    ) -> None:
        output = tmp_path / "resumed.infc"
        arguments = [str(compiled.model), str(compiled.dump(number)), str(output)]
        subprocess.run([sys.executable, "-c", RESUME, *arguments], check=True, timeout=100)
        assert output.read_bytes() == compiled.artifact.read_bytes()

    @pytest.mark.slow
    def test_dumps_of_a_resumed_compilation(self, compiled: Compiled, tmp_path: Path) -> None:
        """They count on, and say the same."""
        output, again = tmp_path / "resumed.infc", tmp_path / "dump"
        infc.compile(compiled.model, resume_from=compiled.dump(13), output=output, dump=again)
        assert output.read_bytes() == compiled.artifact.read_bytes()
        for number in (14, 15):
            path = compiled.dump(number)
            assert (again / path.name).read_text() == path.read_text()


def without_places(text: str) -> str:
    return re.sub(r' ?loc\((#loc\d*|unknown|"[^"]*"(:\d+:\d+)?)\)|#loc.*\n', "", text)


def edit(text: str, pattern: str, replacement: str) -> str:
    edited, count = re.subn(pattern, replacement, text)
    assert count, f"nothing matches {pattern}"
    return edited


def without(op: str) -> Callable[[str], str]:
    """Uses of the results of all ops of a kind become uses of their first operand."""

    def remove(text: str) -> str:
        lines, renamed = [], dict[str, str]()
        for line in text.splitlines(keepends=True):
            if "func.func" in line:
                renamed.clear()
            for old, new in renamed.items():
                line = re.sub(rf"{old}\b", new, line)
            found = re.match(rf'\s*(%\w+) = "{op}"\((%\w+)', line)
            if found:
                renamed[found[1]] = found[2]
            else:
                lines.append(line)
        assert len(lines) < text.count("\n")
        return "".join(lines)

    return remove


class TestEditing:
    @pytest.mark.parametrize(
        ("key", "value"),
        [
            pytest.param("row_tile", 3, id="row_tile"),
            pytest.param("unroll", 2, id="unroll", marks=pytest.mark.slow),
            pytest.param("key_block", 32, id="key_block", marks=pytest.mark.slow),
            # What no kernel can do falls back to what it can: the numbers stay right.
            pytest.param("row_tile", 1000, id="huge", marks=pytest.mark.slow),
            pytest.param("row_tile", 0, id="zero", marks=pytest.mark.slow),
        ],
    )
    def test_another_tile_is_other_code_with_the_same_logits(
        self, compiled: Compiled, tmp_path: Path, key: str, value: int
    ) -> None:
        text = edit(compiled.dump(7).read_text(), rf"\b{key} = \d+", f"{key} = {value}")
        # Larger tiles of attention need more of it.
        text = re.sub(r"\bscratch_bytes = \d+", f"scratch_bytes = {1 << 20}", text)
        output = compiled.resumed(text, tmp_path / "edited.infc")
        assert object_code(output) != object_code(compiled.artifact)
        np.testing.assert_allclose(logits_of(output), compiled.logits, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize(
        ("number", "op"),
        [
            pytest.param(0, "infc.softcap", marks=pytest.mark.slow),
            pytest.param(0, "infc.rms_norm", marks=pytest.mark.slow),
            pytest.param(3, "infc.rms_norm", marks=pytest.mark.slow),
            pytest.param(6, "infc.softcap"),
            pytest.param(7, "infc.softcap", marks=pytest.mark.slow),
        ],
    )
    def test_without_an_operation_the_logits_are_others(
        self, compiled: Compiled, tmp_path: Path, number: int, op: str
    ) -> None:
        text = without(op)(compiled.dump(number).read_text())
        logits = logits_of(compiled.resumed(text, tmp_path / "edited.infc"))
        assert np.isfinite(logits).all()
        if op == "infc.softcap":
            # The model's last step: undoing it shows that nothing else has changed.
            np.testing.assert_allclose(4 * np.tanh(logits / 4), compiled.logits, atol=1e-4)
        assert np.abs(logits - compiled.logits).max() > 0.1 * np.ptp(compiled.logits)

    @pytest.mark.slow
    def test_another_number(self, compiled: Compiled, tmp_path: Path) -> None:
        """A soft cap of 2 in place of 4, in a planned program."""
        text = edit(
            compiled.dump(13).read_text(),
            r'("infc.softcap"\(%\w+\) \{cap = )4.000000e\+00',
            r"\g<1>2.000000e+00",
        )
        logits = logits_of(compiled.resumed(text, tmp_path / "edited.infc"))
        raw = 4 * np.arctanh(compiled.logits.astype(np.float64) / 4)
        np.testing.assert_allclose(logits, 2 * np.tanh(raw / 2), atol=1e-3)


def refusal(compiled: Compiled, dump: Path) -> str:
    """The text of a refusal, with the folder of the test left out."""
    output = dump.with_name("never.infc")
    with pytest.raises(UserError) as error:
        infc.compile(compiled.model, resume_from=dump, output=output)
    assert not output.exists()
    return str(error.value).replace(f"{dump.parent}/", "").replace(str(compiled.model), "MODEL")


class TestRefusals:
    @pytest.fixture
    def edited(self, compiled: Compiled, tmp_path: Path) -> Callable[[int, str, str], str]:
        def refuse(number: int, pattern: str, replacement: str) -> str:
            dump = tmp_path / "edited.mlir"
            dump.write_text(edit(compiled.dump(number).read_text(), pattern, replacement))
            return refusal(compiled, dump)

        return refuse

    def test_a_dump_of_another_model(self, compiled: Compiled, tmp_path: Path) -> None:
        other = tmp_path / "model"
        other.mkdir()
        write_huggingface(other, *make_family("gemma2", num_hidden_layers=1))
        with pytest.raises(UserError) as error:
            infc.compile(other, resume_from=compiled.dump(7), output=tmp_path / "never.infc")
        sums = re.findall(r"[0-9a-f]{64}", str(error.value))
        assert sums[0] in compiled.dump(7).read_text()
        assert str(error.value) == (
            f"error[INF1009]: expected the model with sha256 {sums[0]}, got {sums[1]}\n"
            f"  --> {other}\n"
            "   = hint: a dump continues with the model it was made from"
        )

    def test_no_such_dump(self, compiled: Compiled, tmp_path: Path) -> None:
        dump = tmp_path / "no.mlir"
        assert refusal(compiled, dump) == (
            "error[INF2001]: the dump could not be read: [Errno 2] No such file or directory: "
            "'no.mlir'\n"
            "  --> no.mlir"
        )

    def test_a_dump_that_is_not_text(self, compiled: Compiled, tmp_path: Path) -> None:
        dump = tmp_path / "edited.mlir"
        dump.write_bytes(b"\xff\xfe\x00")
        assert refusal(compiled, dump).startswith("error[INF2001]: the dump could not be read: ")

    def test_no_mlir(self, compiled: Compiled, tmp_path: Path) -> None:
        dump = tmp_path / "edited.mlir"
        text = compiled.dump(7).read_text()
        dump.write_text(text.replace("return", "retrun", 1))
        line = next(
            n for n, part in enumerate(dump.read_text().splitlines(), 1) if "retrun" in part
        )
        got = refusal(compiled, dump)
        assert got.startswith(
            "error[INF2001]: the IR does not parse\n"
            "  --> edited.mlir\n"
            f'   |  loc("edited.mlir":{line}:'
        )
        assert got.endswith(
            "   = hint: a dump is parsed as it was printed; undo the edit at the line named above"
        )

    @pytest.mark.parametrize("text", ["", "module {}"])
    def test_an_empty_module(self, compiled: Compiled, tmp_path: Path, text: str) -> None:
        dump = tmp_path / "edited.mlir"
        dump.write_text(text)
        assert refusal(compiled, dump) == (
            "error[INF2001]: expected infc.level to be one of graph, phase, schedule, memory, "
            "machine, got ''\n"
            "   = hint: only modules that infc dumped carry a level"
        )

    def test_shapes_that_do_not_fit(self, edited: Callable[[int, str, str], str]) -> None:
        """All of them are listed, with their places in the model."""
        got = edited(0, r"tensor<96x64xf32>", "tensor<95x64xf32>")
        assert got == (
            "error[INF2002]: the IR breaks 4 rules\n"
            "   - infc.linear: expected result shape ('t', 95), got ('t', 96) "
            '(loc("layers.0.gate"))\n'
            "   - infc.linear: expected result shape ('t', 95), got ('t', 96) "
            '(loc("layers.0.up"))\n'
            "   - infc.linear: expected result shape ('t', 95), got ('t', 96) "
            '(loc("layers.1.gate"))\n'
            "   - infc.linear: expected result shape ('t', 95), got ('t', 96) "
            '(loc("layers.1.up"))'
        )

    def test_a_level_too_low(self, edited: Callable[[int, str, str], str]) -> None:
        got = edited(0, 'infc.level = "graph"', 'infc.level = "memory"')
        first, second, *_ = got.splitlines()
        assert re.fullmatch(r"error\[INF2003\]: not legal at level memory: \d+ operations", first)
        assert second == (
            '   - infc.weight is not legal at level memory (loc("model.embed_tokens.weight"))'
        )
        assert '   - infc.attention is not legal at level memory (loc("layers.0.attention"))' in got

    def test_a_level_that_is_not_the_pass_s(self, edited: Callable[[int, str, str], str]) -> None:
        assert edited(7, 'infc.level = "schedule"', 'infc.level = "phase"') == (
            "error[INF2004]: pass bufferize expects a module at level schedule, got phase\n"
            "   = hint: the order is bufferize, schedule-transfers, plan-memory, insert-barriers, "
            "pack-weights, record-plan, lower-programs, lower-to-llvm"
        )

    def test_an_unknown_level(self, edited: Callable[[int, str, str], str]) -> None:
        assert edited(10, 'infc.level = "memory"', 'infc.level = "soup"') == (
            "error[INF2001]: expected infc.level to be one of graph, phase, schedule, memory, "
            "machine, got 'soup'\n"
            "   = hint: only modules that infc dumped carry a level"
        )

    def test_an_unknown_pass(self, edited: Callable[[int, str, str], str]) -> None:
        assert edited(7, 'infc.pass = "choose-mappings"', 'infc.pass = "soup"') == (
            "error[INF2004]: there is no pass 'soup'\n"
            "   = hint: the passes are canonicalize, split-phases, outline-layers, "
            "quantize-activations, split-head, fuse-kernels, choose-mappings, bufferize, "
            "schedule-transfers, plan-memory, insert-barriers, pack-weights, record-plan, "
            "lower-programs, lower-to-llvm"
        )

    def test_another_version_of_the_dialect(self, edited: Callable[[int, str, str], str]) -> None:
        assert edited(7, r"infc.version = \d+", "infc.version = 0").startswith(
            "error[INF2001]: expected a dump of dialect version "
        )

    def test_an_unknown_target(self, edited: Callable[[int, str, str], str]) -> None:
        assert edited(7, r"backend\\22: \\22cpu", r"backend\\22: \\22soup") == (
            "error[INF3001]: no backend is named 'soup'\n"
            "   = hint: `infc targets` lists all of them"
        )

    @pytest.mark.parametrize(
        ("number", "pattern", "replacement", "reason"),
        [
            (0, '"graph"', '"machine", infc.pass = "lower-to-llvm"', r"KeyError\(.*\)"),
            (8, 'infc.pass = "bufferize"', 'infc.pass = "record-plan"', r"TypeError\(.*\)"),
            (7, r'target = "\{', 'target = "{{', r"(?s:.*)"),
        ],
        ids=["level-and-pass", "pass-too-late", "target"],
    )
    def test_what_only_a_pass_notices(
        self,
        edited: Callable[[int, str, str], str],
        number: int,
        pattern: str,
        replacement: str,
        reason: str,
    ) -> None:
        assert re.fullmatch(
            r"error\[INF2002\]: the compilation cannot go on from the dump: " + reason + "\n"
            "  --> edited.mlir\n"
            "   = hint: undo the edits of the dump; where there were none, please report this",
            edited(number, pattern, replacement),
        )

    @pytest.mark.parametrize(
        ("pattern", "replacement", "message"),
        [
            (
                r"infc.options = \{",
                "infc.options = {soup = 1 : i64, ",
                "error[INF2001]: infc.options states 'soup', which is no option\n"
                "   = hint: the options are max_context, max_batch, chunk, logit_rows, prompt, "
                "new_tokens, batch, quantize, kv_dtype, max_threads",
            ),
            (
                r"chunk = \d+ : i64",
                'chunk = "16"',
                "error[INF5001]: expected chunk to be of type int, got str",
            ),
        ],
        ids=["unknown", "type"],
    )
    def test_options_that_are_none(
        self, edited: Callable[[int, str, str], str], pattern: str, replacement: str, message: str
    ) -> None:
        assert edited(7, pattern, replacement) == message

    def test_weights_the_model_does_not_hold(self, edited: Callable[[int, str, str], str]) -> None:
        assert edited(7, r"layers.0.input_layernorm.weight", "layers.0.soup") == (
            "error[INF2002]: not the model's: 1 weight of the dump\n"
            "  --> edited.mlir\n"
            "   - weight model.layers.0.soup: expected nothing, got f32 (64,)"
        )
        got = edited(12, r"type = tensor<64x96xf32>", "type = tensor<80x96xf32>")
        assert got == (
            "error[INF2002]: not the model's: 2 weights of the dump\n"
            "  --> edited.mlir\n"
            "   - weight model.layers.0.mlp.down_proj.weight: expected f32 (64, 96), "
            "got f32 (80, 96)\n"
            "   - weight model.layers.1.mlp.down_proj.weight: expected f32 (64, 96), "
            "got f32 (80, 96)"
        )
