"""Find the packages below the folders that pyproject.toml maps; everything else is there."""

import tomllib
from pathlib import Path

from setuptools import find_packages, setup

PYPROJECT = tomllib.loads(Path(__file__).with_name("pyproject.toml").read_text(encoding="utf-8"))
ROOTS: dict[str, str] = PYPROJECT["tool"]["setuptools"]["package-dir"]
COMPILED = ("pyc", "nbi", "nbc")

setup(
    packages=[
        package
        for name, folder in ROOTS.items()
        for package in [name, *(f"{name}.{inner}" for inner in find_packages(folder))]
    ],
    # Every file that lies in a package is part of it: target files, headers, dialects, templates.
    package_data={"": ["*", "**/*"]},
    # What Python and numba compiled on this machine is not.
    exclude_package_data={"": [f"{at}*.{kind}" for at in ("", "**/") for kind in COMPILED]},
)
