"""The contract of a kernel provider, found through the entry-point group `infc.kernels`.

A provider makes inner functions of another backend's kernels: the backend asks for candidates,
ranks them among its own and links what was chosen into its programs. The two never import one
another; which functions a backend takes from others, and what each must do, is in its part of
docs/backends.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from infc.target.backend import KernelMapping, KernelSummary
from infc.target.schema import Target

PROVIDER_API_VERSION = 1


@dataclass(frozen=True)
class ProviderStatus:
    """One line of `infc targets`.

    Attributes:
        name: of the provider.
        backend: whose kernels it makes functions for; `unknown` where it could not be loaded.
        available: it is asked when a model is compiled.
        reason: why it is not, or a remark; may be empty.
        versions: of what its functions depend on besides their arguments and the distribution that
            it comes in: compilers, schedules, records. A compiled model is kept for the same ones.
    """

    name: str
    backend: str
    available: bool
    reason: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Candidate:
    """A way in which a provider would make the functions of a kernel.

    Attributes:
        mapping: what goes into the kernel's mapping, under names that the backend's own mappings
            have or that are the provider's alone; all that `object_code` needs to be told again.
        speed: how many times as fast as the cost model expects of such a kernel, as far as the
            provider knows: 1 leaves the choice between it and the backend's own to measurements.
    """

    mapping: KernelMapping
    speed: float = 1.0


@dataclass(frozen=True)
class KernelFunction:
    """A function that a backend asks for.

    Attributes:
        contract: the name of what such functions do, in the backend's documentation.
        symbol: its name in the object file; a C identifier.
        shapes: numbers it is specialised to, by name.
        layout: of the weights, by name.
    """

    contract: str
    symbol: str
    shapes: Mapping[str, int]
    layout: str


class KernelProvider(Protocol):
    """What an entry point of the group `infc.kernels` is. Every method is a function of its
    arguments alone; what it raises becomes one error that names the provider (INF3007)."""

    api_version: int
    name: str
    backend: str
    """The backend whose kernels it makes functions for."""

    def status(self) -> ProviderStatus:
        """Whether it can be used here; quick, since every compilation asks."""

    def candidates(self, kernel: KernelSummary, target: Target) -> Sequence[Candidate]:
        """What it has for a kernel, the best guess first; nothing where it has none."""

    def object_code(
        self, function: KernelFunction, mapping: KernelMapping, target: Target
    ) -> bytes:
        """A relocatable object file for the target that defines `function.symbol`, calls nothing
        that it does not define, and is the same bytes every time."""
