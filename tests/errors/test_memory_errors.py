"""Memory-level dumps whose edits break the plan are refused before code is made of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from oracle.families import make_family
from oracle.files import write_huggingface

import infc
from infc.diagnostics import UserError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_huggingface(folder, *make_family("llama2"))
    return folder


@pytest.fixture(scope="module")
def planned(model: Path) -> str:
    """The last memory-level dump."""
    dumps = model.parent / "dumps"
    infc.compile(model, output=model.parent / "a.infc", max_context=64, chunk=16, dump=dumps)
    (path,) = dumps.glob("*-memory-record-plan.mlir")
    return path.read_text()


def drop_first_barrier(text: str) -> str:
    return re.sub(r' *"infc\.barrier"\(\)[^\n]*\n', "", text, count=1)


def all_offsets_zero(text: str) -> str:
    return re.sub(r'("infc\.alloc"\([^)]*\) \{[^}]*offset = )\d+', r"\g<1>0", text)


def beyond_the_plan(text: str) -> str:
    return re.sub(r'("infc\.alloc"\([^)]*\) \{[^}]*offset = )\d+', r"\g<1>1048576", text, count=1)


def weights_on_top_of_each_other(text: str) -> str:
    return re.sub(r'("infc\.packed"\(\) \{[^}]*offset = )\d+', r"\g<1>0", text)


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (drop_first_barrier, r"   - no barrier in front of @k\d+_\w+ \("),
        (all_offsets_zero, r"   - buffer"),
        (beyond_the_plan, r"   - buffer"),
        (weights_on_top_of_each_other, r"   - packed weight @w1 at 0 overlaps, is misaligned"),
    ],
)
def test_an_edit_that_breaks_the_plan_is_refused(
    model: Path, planned: str, tmp_path: Path, edit: Callable[[str], str], problem: str
) -> None:
    edited = tmp_path / "edited.mlir"
    edited.write_text(edit(planned))
    assert edited.read_text() != planned
    with pytest.raises(UserError) as caught:
        infc.compile(model, resume_from=edited, output=tmp_path / "b.infc")
    first, *found, hint = str(caught.value).splitlines()
    assert first == "error[INF2101]: the memory plan does not hold"
    assert hint == (
        "   = hint: run plan-memory and insert-barriers on the dump before them, or undo the edit"
    )
    assert any(re.match(problem, line) for line in found), found
    assert not (tmp_path / "b.infc").exists()
