"""How the simulators become machine code: numba, without liberties in the arithmetic.

No `fastmath`: a product and a sum are never contracted, and sums keep their order.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, TypeVar, cast

import numba

_Function = TypeVar("_Function")

_HERE = Path(__file__).parent
_FORMAT = ("../operations.py", "../instruction.py", "compiled.py")


def part(function: _Function) -> _Function:
    """Compile as a part of functions that are an `entry`; it cannot be called from Python."""
    # Without wrappers for Python, which take long to compile; numba's types do not know of them.
    njit: Any = numba.njit
    options = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    return cast(_Function, njit(nogil=True, error_model="numpy", **options)(function))


def entry(function: _Function) -> _Function:
    """Compile when first called, and keep the result beside the function's file.

    numba looks at the date of that one file, whatever files the parts are in. So the function must
    have a last parameter that nobody passes, `sources: str = digest("walk", ...)`: numba keeps
    results by the values of such parameters.
    """
    njit: Any = numba.njit
    try:
        return cast(_Function, njit(nogil=True, error_model="numpy", cache=True)(function))
    except RuntimeError:
        # Neither this folder nor one of the user's can be written: compiled in each process.
        return cast(_Function, njit(nogil=True, error_model="numpy")(function))


def digest(*modules: str) -> str:
    """A digest of these modules of this folder and of those with the numbers of the format."""
    files = (*_FORMAT, *(f"{module}.py" for module in modules))
    return hashlib.sha256(b"".join((_HERE / file).read_bytes() for file in files)).hexdigest()
