"""Functions of kernels that others make (`infc.kernels`): asked for, ranked with ours, linked in.

The one contract is `panel-sums`: a C function

    void SYMBOL(const float *x, const void *panel, float *sums)

makes the products of `rows` rows of x, `k` floats each, with one panel `[k][16]` of weights in the
layout `n16.f32`, `n16.f16` or `n16.bf16`: `sums[rows][16]`. All three are 64-byte aligned where `k`
is a multiple of 16, `sums` always; x and the panel at least to their numbers. The function stores
nothing else and may prefetch behind the panel. Its additions have the order of ours
(`stream.emit_float_sums`): four sums by k modulo 4, each by fused multiply-adds from zero in order
of k, then `(s0 + s1) + (s2 + s3)`. So a kernel has the same bits with any provider, and programs
keep theirs whatever was chosen for which number of rows.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from functools import cache, partial
from typing import Any, TypeVar

from infc.backends.cpu.codegen.builder import Builder
from infc.backends.cpu.codegen.objects import read_object
from infc.backends.cpu.kernels.layouts import PackedLayout
from infc.backends.cpu.kernels.matmul import MatmulMapping, MatmulSpec, SumsProvider
from infc.backends.cpu.target import isa_of
from infc.diagnostics import Code, UserError
from infc.ir.attributes import from_attribute, to_attribute
from infc.ir.mlir import ir
from infc.target.backend import KernelMapping, KernelSummary
from infc.target.discovery import kernel_providers, list_providers
from infc.target.provider import Candidate, KernelFunction, KernelProvider
from infc.target.schema import Target

T = TypeVar("T")
PANEL_SUMS = "panel-sums"
PROVIDER, SPEED = "provider", "provider_percent"
"""What the mapping of a kernel with foreign functions says besides: whose they are, and its speed
in percent of what the cost model expects."""
MAX_PROVIDED_ROWS = 32
"""The sums of a tile come back through the stack."""
_DECLARED = "infc.provided"
"""The module's attribute that lists the functions its code calls."""
_FREE_NAMES = frozenset({"_GLOBAL_OFFSET_TABLE_"})
"""What the linker itself defines."""
_OWN = frozenset(field.name for field in fields(MatmulMapping))


def provided_candidates(
    kernel: KernelSummary, spec: MatmulSpec, guess: MatmulMapping, target: Target
) -> list[KernelMapping]:
    """The mappings of a product in float32 that others offer, by provider.

    Args:
        kernel: as providers see it.
        spec: the same as the emitter sees it.
        guess: says what a candidate leaves open.
        target: with the code generator's facts: `triple`, `cpu` and `features`.

    Raises:
        UserError: a provider fails or offers what cannot be (INF3007).
    """
    if spec.activation != "f32" or any(segment.layout.is_scaled for segment in spec.segments):
        return []
    found: list[KernelMapping] = []
    for provider in _providers():
        offers = _ask(provider, "offer candidates", partial(provider.candidates, kernel, target))
        found += [_mapping(provider.name, offer, guess, kernel.rows) for offer in offers]
    return found


def _mapping(name: str, offer: Candidate, guess: MatmulMapping, most_rows: int) -> KernelMapping:
    rows, speed = offer.mapping.get("row_tile"), offer.speed
    most = min(MAX_PROVIDED_ROWS, most_rows)
    if type(rows) is not int or not 1 <= rows <= most:
        raise _failed(name, f"offers a candidate: expected a row_tile of 1 to {most}, got {rows!r}")
    if not 0.01 <= speed <= 100:
        raise _failed(name, f"offers a candidate: expected a speed of 0.01 to 100, got {speed!r}")
    usual = asdict(replace(guess, col_tile=1))
    stated = {PROVIDER: name, SPEED: round(100 * speed)}
    return {**usual, **offer.mapping, **stated}


def sums_provider(mapping: KernelMapping) -> SumsProvider | None:
    """What declares the functions of the mapping's provider; None where it has none."""
    if PROVIDER not in mapping:
        return None

    def declare(b: Builder, layout: PackedLayout, k: int, rows: int) -> str:
        symbol = _symbol(mapping, layout, k, rows)
        if not b.defined(symbol):
            b.declare(symbol, 3)
            entry = {
                "mapping": dict(mapping),
                "symbol": symbol,
                "layout": layout.name,
                "shapes": {"rows": rows, "k": k},
            }
            attributes = b.module.operation.attributes
            attributes[_DECLARED] = to_attribute([*_declared(b.module), entry])
        return symbol

    return declare


def provided_objects(module: ir.Module, target: Target) -> list[bytes]:
    """The object files of the functions that a module declares.

    Raises:
        UserError: a provider is not there, fails, or makes something else (INF3007).
    """
    found = []
    for entry in _declared(module):
        mapping = entry["mapping"]
        provider = _provider(mapping[PROVIDER])
        function = KernelFunction(PANEL_SUMS, entry["symbol"], entry["shapes"], entry["layout"])
        code = _ask(
            provider,
            f"make {function.symbol}",
            partial(provider.object_code, function, mapping, target),
        )
        found.append(_checked(provider.name, function.symbol, code, isa_of(target).architecture))
    return found


def _checked(name: str, symbol: str, code: bytes, architecture: str) -> bytes:
    """The object file with its names hidden, if it is what was asked for."""
    try:
        made = read_object(code)
    except (TypeError, ValueError) as error:
        raise _failed(name, f"makes no usable object file for {symbol}: {error}") from error
    if made.architecture != architecture:
        raise _failed(
            name,
            f"makes {symbol} for another architecture: expected {architecture}, "
            f"got {made.architecture}",
        )
    if symbol not in made.defined:
        names = ", ".join(sorted(made.defined)) or "nothing"
        raise _failed(name, f"makes another function: expected {symbol}, got {names}")
    if needed := sorted(made.undefined - _FREE_NAMES):
        raise _failed(
            name, f"makes a function that cannot stand alone: {symbol} needs {', '.join(needed)}"
        )
    return made.hidden


def _declared(module: ir.Module) -> list[dict[str, Any]]:
    attributes = module.operation.attributes
    return list(from_attribute(attributes[_DECLARED])) if _DECLARED in attributes else []


def _symbol(mapping: KernelMapping, layout: PackedLayout, k: int, rows: int) -> str:
    """A C identifier that two different functions never share."""
    told = {name: value for name, value in mapping.items() if name not in _OWN and name != SPEED}
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]
    whose = re.sub(r"\W", "_", str(mapping[PROVIDER]), flags=re.ASCII)
    return f"{whose}_sums_{layout.kind}_k{k}_r{rows}_{digest}"


@cache
def _providers() -> tuple[KernelProvider, ...]:
    """Those that can be used here: looked for once, since each kernel asks."""
    return tuple(kernel_providers("cpu"))


def _provider(name: str) -> KernelProvider:
    for provider in _providers():
        if provider.name == name:
            return provider
    reasons = [status.reason for status in list_providers() if status.name == name]
    raise UserError(
        Code.KERNEL_PROVIDER,
        f"a kernel wants functions of provider {name!r}, which cannot be used here",
        notes=[reason for reason in reasons if reason],
        hint="`infc targets` lists the providers; without one, leave it out of infc.mapping",
    )


def _ask(provider: KernelProvider, what: str, call: Callable[[], T]) -> T:
    """What a provider answers; whatever it raises becomes one error that names it."""
    try:
        return call()
    except UserError:
        raise
    except Exception as error:
        raise _failed(provider.name, f"fails to {what}: {type(error).__name__}: {error}") from error


def _failed(name: str, what: str) -> UserError:
    return UserError(
        Code.KERNEL_PROVIDER,
        f"kernel provider {name!r} {what}",
        hint="report it to the provider's author; uninstall the provider to compile without it",
    )
