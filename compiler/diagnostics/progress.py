"""What long work says of itself while it goes on."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, float], None]
"""`progress(stage, fraction)`: what is being done, and how much of all is done, 0.0 to 1.0."""
