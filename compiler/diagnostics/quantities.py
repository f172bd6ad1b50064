"""Quantities as a person reads them."""

from __future__ import annotations


def human_bytes(count: float) -> str:
    """In binary units, three figures: `171 MiB`."""
    return _scaled(count, 1024.0, ("B", "KiB", "MiB", "GiB", "TiB"))


def human_count(count: float) -> str:
    """In thousands, three figures: `3.4 G`."""
    return _scaled(count, 1000.0, ("", "k", "M", "G", "T", "P")).rstrip()


def human_seconds(seconds: float) -> str:
    """In s, ms or us, three figures."""
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if seconds * scale >= 1.0 or unit == "us":
            return f"{_three_figures(seconds * scale)} {unit}"
    raise AssertionError("the last unit takes everything")


def _scaled(value: float, step: float, units: tuple[str, ...]) -> str:
    for unit in units[:-1]:
        # 999.5 would print as 1000.
        if abs(value) < 0.9995 * step:
            return f"{_three_figures(value)} {unit}"
        value /= step
    return f"{_three_figures(value)} {units[-1]}"


def _three_figures(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"
