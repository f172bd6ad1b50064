"""Documents that would be wrong without anybody noticing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from infc.diagnostics import Code
from infc.passes.pipelines import SHARED

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("samples/*.md")])


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8"))
    local = [link for link in links if not link.startswith("https://")]
    missing = [link for link in local if not (document.parent / link).exists()]
    assert missing == []


def test_every_operation_is_described_and_no_other() -> None:
    dialect = text("compiler/ir/infc.mlir")
    defined = set(re.findall(r"irdl\.operation @(\w+)", dialect))
    rows = re.findall(r"^\| (`infc\.[^|]*) \|", text("docs/ir.md"), re.MULTILINE)
    described = {name for row in rows for name in re.findall(r"`infc\.(\w+)`", row)}
    attributes = {"kernel", "mapping", "work", "version", "level", "model", "options", "pass"}
    attributes |= {"signature", "weight_bytes", "report", "info"}
    assert described - attributes == defined


def test_passes_are_listed_in_their_order() -> None:
    section = text("docs/design.md").split("## The passes, in order")[1].split("\n## ")[0]
    listed = re.findall(r"^\| `([a-z-]+)` \|", section, re.MULTILINE)
    assert listed[: len(SHARED.names())] == SHARED.names()


def test_every_group_of_codes_is_described() -> None:
    groups = set(re.findall(r"`(INF\d\d)xx`", text("docs/errors.md")))
    assert groups == {code[:5] for code in Code}


def test_tests_that_design_names_exist() -> None:
    named = set(re.findall(r"`(?:tests/\w+/)?(test_\w+\.py)`", text("docs/design.md")))
    found = {path.name for path in ROOT.glob("tests/**/test_*.py")}
    assert named <= found
