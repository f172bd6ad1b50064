"""The wheel holds every file of every package, and works without the project beside it."""

import importlib.metadata
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
SETTINGS = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
ROOTS: dict[str, str] = SETTINGS["tool"]["setuptools"]["package-dir"]

IMPORT_ALL = """
import importlib, sys, warnings
# An editable install answers for what is missing: it must not.
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
folder, *names = sys.argv[1:]
sys.path.insert(0, folder)
warnings.simplefilter("error")
for name in names:
    module = importlib.import_module(name)
    assert module.__file__.startswith(folder), (name, module.__file__)
"""


def source_files() -> dict[str, Path]:
    """Path in the wheel -> path in the project, of everything that lies in a package."""
    return {
        f"{name.replace('.', '/')}/{path.relative_to(PROJECT / folder).as_posix()}": path
        for name, folder in ROOTS.items()
        for path in (PROJECT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a copy of the sources: a build folder beside them could hold old files."""
    copy = tmp_path_factory.mktemp("sources")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(PROJECT / name, copy)
    for folder in ROOTS.values():
        shutil.copytree(
            PROJECT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    out = tmp_path_factory.mktemp("wheel")
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        out,
        copy,
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "DeprecationWarning" not in result.stdout + result.stderr
    (built,) = out.iterdir()
    return built


def test_the_wheel_holds_every_file(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == set(source_files())


def test_every_module_of_the_wheel_can_be_imported(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    names = sorted(
        path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for path in source_files()
        if path.endswith(".py") and not path.endswith("__main__.py")
    )
    command: list[str | Path] = [sys.executable, "-P", "-c", IMPORT_ALL, tmp_path, *names]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("group", ["scripts", "entry-points"])
def test_entry_points_lead_somewhere(group: str) -> None:
    groups = (
        {"console_scripts": SETTINGS["project"]["scripts"]}
        if group == "scripts"
        else SETTINGS["project"]["entry-points"]
    )
    for kind, points in groups.items():
        for name, value in points.items():
            assert importlib.metadata.EntryPoint(name, value, kind).load() is not None


def test_torch_is_no_dependency() -> None:
    project = SETTINGS["project"]
    for required in (project["dependencies"], *project["optional-dependencies"].values()):
        assert [name for name in required if name.startswith(("torch", "transformers"))] == []
