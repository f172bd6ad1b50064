"""Find the packages of the three source folders; everything else is in pyproject.toml."""

from setuptools import find_packages, setup

ROOTS = {"infc": "compiler", "infc.passes": "passes", "infc.backends": "backends"}

packages = [
    package
    for name, folder in ROOTS.items()
    for package in [name, *(f"{name}.{inner}" for inner in find_packages(folder))]
]

setup(
    packages=packages,
    package_data={"": ["*.toml", "*.json", "*.h", "*.mlir", "*.md", "py.typed", "*.jinja"]},
)
