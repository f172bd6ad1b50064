"""Who may import whom: the layering of docs/design.md, read from the source of every module."""

import ast
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
ROOTS = {"compiler": "infc", "passes": "infc.passes", "backends": "infc.backends"}
LAYERS = (
    ("diagnostics",),
    ("ir",),
    ("frontends", "reference", "target"),
    ("cost", "memory"),
    ("pipeline",),
    ("passes",),
    ("backends",),
    ("artifact", "runtime"),
    ("driver", "cli"),
)
RANK = {part: rank for rank, parts in enumerate(LAYERS) for part in parts}
FRONT_DOOR = len(LAYERS) - 1
"""`infc` itself offers what the driver does; the command line may come through it."""


def modules() -> Iterator[tuple[str, Path]]:
    """Import name and file of every module of infc."""
    for folder, package in ROOTS.items():
        for path in sorted((PROJECT / folder).rglob("*.py")):
            inner = path.relative_to(PROJECT / folder).with_suffix("").parts
            yield ".".join([package, *inner]).removesuffix(".__init__"), path


MODULES = dict(modules())


def running_code(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a tree, without the bodies of `if TYPE_CHECKING:`."""
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        yield from running_code(child)


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of all that a module imports when it runs, wherever in it.

    What only the type checker imports is left out: a protocol may name types of a layer above it.
    """
    for node in running_code(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            assert node.module is not None
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def rank(name: str) -> int:
    """The layer of a module, or of something in one."""
    parts = name.split(".")
    return RANK.get(parts[1], FRONT_DOOR) if len(parts) > 1 else FRONT_DOOR


def test_every_package_has_a_layer() -> None:
    packages = {
        name.split(".")[1]
        for name, path in MODULES.items()
        if path.name == "__init__.py" and "." in name
    }
    assert packages == set(RANK)


def test_imports_go_down() -> None:
    wrong = [
        f"{path.relative_to(PROJECT)}:{line}: {name} imports {imported}"
        for name, path in MODULES.items()
        for line, imported in imports(path)
        if imported.split(".")[0] == "infc"
        and imported != "infc.__version__"
        and rank(imported) > rank(name)
    ]
    assert wrong == []


def test_backends_do_not_import_one_another() -> None:
    wrong = []
    for name, path in MODULES.items():
        own = ".".join(name.split(".")[:3]) if name.startswith("infc.backends.") else None
        for line, imported in imports(path):
            is_backend = imported.startswith("infc.backends.")
            if is_backend and ".".join(imported.split(".")[:3]) != own:
                wrong.append(f"{path.relative_to(PROJECT)}:{line}: {name} imports {imported}")
    assert wrong == []


def test_only_one_module_imports_mlir() -> None:
    found = {
        name
        for name, path in MODULES.items()
        for _, imported in imports(path)
        if imported.split(".")[0] == "mlir"
    }
    assert found == {"infc.ir.mlir"}


CHIP = re.compile(
    r"(?<![a-z])(avx[0-9]*|neon|x86|aarch64|amx|vnni|nvidia|cuda|sm_[0-9]+|tpu|groq)(?![a-z])",
    re.IGNORECASE,
)
"""Words that only a backend may use; prose may."""


def code_words(path: Path) -> Iterator[tuple[int, str]]:
    """Line and text of every identifier and of every string that is a single word."""
    with tokenize.open(path) as file:
        source = file.read()
    tree = ast.parse(source)
    prose = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if id(node) not in prose and not re.search(r"\s", node.value):
                yield node.lineno, node.value
        elif isinstance(node, ast.Name):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute):
            yield node.lineno, node.attr


def test_nothing_outside_backends_names_a_chip() -> None:
    wrong = [
        f"{path.relative_to(PROJECT)}:{line}: {word!r}"
        for name, path in MODULES.items()
        if not name.startswith("infc.backends.")
        for line, word in code_words(path)
        if CHIP.search(word)
    ]
    assert wrong == []


def test_no_file_imports_a_folder_by_its_bare_name() -> None:
    folders = ("compiler", "passes", "backends", "tests", "benchmarks", "samples", "scripts")
    wrong = [
        f"{path.relative_to(PROJECT)}:{line}: {imported}"
        for folder in folders
        for path in sorted((PROJECT / folder).rglob("*.py"))
        for line, imported in imports(path)
        if imported.split(".")[0] in ROOTS
    ]
    assert wrong == []


@pytest.mark.parametrize("folder", ROOTS)
def test_a_folder_cannot_be_imported_by_its_bare_name(folder: str) -> None:
    """From the project's root Python would find it, and make a second copy of every class."""
    result = subprocess.run(
        [sys.executable, "-c", f"import {folder}"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert f"ImportError: import {ROOTS[folder]}: the folder name is not" in result.stderr
