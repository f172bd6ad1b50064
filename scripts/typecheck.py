"""Run mypy over infc under its import names.

mypy cannot follow an editable install whose folders are not named like their packages. So a tree of
links that are named so is laid under build/typing, and mypy reads that. Arguments go to mypy.
"""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
TREE = PROJECT / "build" / "typing"


def link_packages() -> None:
    """Lay the tree: `infc` is a folder of links, so that `infc.passes` can lie in it too."""
    settings = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
    folders: dict[str, str] = settings["tool"]["setuptools"]["package-dir"]
    shutil.rmtree(TREE, ignore_errors=True)
    front = TREE / "infc"
    front.mkdir(parents=True)
    for entry in sorted((PROJECT / folders.pop("infc")).iterdir()):
        if entry.name != "__pycache__":
            (front / entry.name).symlink_to(entry)
    for name, folder in folders.items():
        (TREE / name.replace(".", "/")).symlink_to(PROJECT / folder)


def main() -> int:
    """Check the packages; the exit status is mypy's."""
    link_packages()
    command = [sys.executable, "-m", "mypy", "--strict", "-p", "infc", *sys.argv[1:]]
    environment = {**os.environ, "MYPYPATH": str(TREE)}
    return subprocess.run(command, cwd=PROJECT, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
