"""How the simulators become machine code: numba, without liberties in the arithmetic.

No `fastmath`: a product and a sum are never contracted, and sums keep their order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
import numpy as np

_Function = TypeVar("_Function")

_HERE = Path(__file__).parent
_FORMAT = ("../operations.py", "../instruction.py", "compiled.py")


def part(function: _Function) -> _Function:
    """Compile as a part of functions that are an `entry`; it cannot be called from Python."""
    return _compiled(function, **_INNER)


def borrowing_part(function: _Function) -> _Function:
    """A `part` that makes no arrays, and does not count references to those that it is given.

    Counting them at every call takes several times as long as what a small function does.
    """
    njit: Any = numba.njit
    options = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True, "_nrt": False}
    return cast(_Function, njit(nogil=True, error_model="numpy", **options)(function))


def entry(function: _Function) -> _Function:
    """Compile when first called, and keep the result beside the function's file.

    numba looks at the date of that one file, whatever files the parts are in. So the function must
    have a last parameter that nobody passes, `sources: str = digest("walk", ...)`: numba keeps
    results by the values of such parameters.
    """
    return _kept(function)


def bare_part(function: _Function) -> _Function:
    """A `part` that makes no arrays: without the counts of references, which take most of the time
    of short functions that get many arrays."""
    return _compiled(function, **_INNER, **_BARE)


def inlined_part(function: _Function) -> _Function:
    """A `bare_part` that is called from one or two places, where its code goes."""
    return _compiled(function, forceinline=True, **_INNER, **_BARE)


def bare_entry(function: _Function) -> _Function:
    """An `entry` that makes no arrays; see `bare_part`."""
    return _kept(function, **_BARE)


# Without wrappers for Python, which take long to compile.
_INNER = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
_BARE = {"_nrt": False}


def _kept(function: _Function, **options: bool) -> _Function:
    try:
        return _compiled(function, cache=True, **options)
    except RuntimeError:
        # Neither this folder nor one of the user's can be written: compiled in each process.
        return _compiled(function, **options)


def _compiled(function: _Function, **options: bool) -> _Function:
    njit: Any = numba.njit  # numba's types do not know of all options
    return cast(_Function, njit(nogil=True, error_model="numpy", **options)(function))


def digest(*modules: str) -> str:
    """A digest of these modules of this folder and of those with the numbers of the format."""
    files = (*_FORMAT, *(f"{module}.py" for module in modules))
    return hashlib.sha256(b"".join((_HERE / file).read_bytes() for file in files)).hexdigest()


def opaque(values: Iterable[int]) -> list[int]:
    """The same numbers as NumPy's.

    Where a function gets one of Python's constants as an argument, numba compiles it anew for each.
    """
    return cast("list[int]", list(np.array(list(values))))
