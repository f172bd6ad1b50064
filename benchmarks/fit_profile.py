"""Write the profile of the chip that `data/silicon` was measured on: the same bytes every time.

python fit_profile.py -o ../backends/chips/profiles/nvidia-h100-sxm.toml
"""

from __future__ import annotations

import argparse
from pathlib import Path

from silicon import TARGET, tables

from infc.cost.fit import described, fit_class
from infc.cost.kernels.elementwise import ELEMENTWISE
from infc.cost.kernels.machine import machine_of
from infc.cost.kernels.profile import (
    ClassProfile,
    FittedFacts,
    Profile,
    Residuals,
    dump_profile,
)
from infc.cost.kernels.registry import CLASSES
from infc.target.discovery import resolve_target


def fitted_profile() -> Profile:
    """Constants of all classes, from all rows."""
    _, target = resolve_target(TARGET)
    machine = machine_of(target)
    classes = {
        name: fit_class(CLASSES[name], table.queries, table.seconds, machine, table.source)
        for name, table in tables().items()
    }
    share = classes["gemm-16bit"].values["memory_share"]
    return Profile(
        target=target.name,
        family=target.family,
        facts=FittedFacts.of(machine),
        classes=classes | {ELEMENTWISE.name: _elementwise(share)},
    )


def _elementwise(memory_share: float) -> ClassProfile:
    """Nothing was measured: one launch, and the memory as matrix products get it."""
    return ClassProfile(
        rows=0,
        source="assumed: one launch, and the memory's share of 16-bit matrix products",
        constants=described(ELEMENTWISE, {"launches": 1.0, "memory_share": memory_share}),
        residuals={
            "launch": Residuals(rows=0, low=-0.4, high=0.4),
            "memory": Residuals(rows=0, low=-0.2, high=0.2),
        },
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.parse_args().output.write_text(dump_profile(fitted_profile()), encoding="utf-8")


if __name__ == "__main__":
    main()
