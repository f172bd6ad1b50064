"""What the KV cache still holds: sliding-window layers keep a ring, and rings forget.

A layer of capacity `c` keeps position `p` in ring place `p % c`, so writing position `p` destroys
position `p - c`. Truncating a sequence does not bring those back: how far it may go is a fact of
the highest position ever written, not of the present length.
"""

from __future__ import annotations

from collections.abc import Sequence

from infc.target.runnable import KVShape


class Rings:
    """The lowest position each layer of one slot still holds.

    Attributes:
        oldest: per layer, all positions from here to the sequence's end are intact.
    """

    def __init__(self, shape: KVShape, oldest: Sequence[int] | None = None) -> None:
        self.shape = shape
        self._smallest = min(shape.capacity)
        self.oldest = [0] * shape.layers if oldest is None else list(oldest)

    def write(self, stop: int) -> None:
        """Positions up to `stop` (exclusive) are about to be written."""
        if stop <= self._smallest:
            return
        self.oldest = [
            max(oldest, stop - capacity)
            for oldest, capacity in zip(self.oldest, self.shape.capacity, strict=True)
        ]

    def clear(self) -> None:
        """The sequence is empty: nothing old is needed any more."""
        self.oldest = [0] * self.shape.layers

    def restore(self, starts: Sequence[int]) -> None:
        """Sliding layers were given back their positions from `starts` on."""
        self.oldest = [
            oldest if window is None else start
            for window, oldest, start in zip(self.shape.windows, self.oldest, starts, strict=True)
        ]

    def lowest_truncation(self) -> int:
        """The smallest length above 0 whose next token finds its whole window in every layer."""
        return max(
            (
                oldest + window - 1
                for window, oldest in zip(self.shape.windows, self.oldest, strict=True)
                if window is not None and oldest > 0
            ),
            default=0,
        )

    def missing(self, n: int) -> str | None:
        """Why a sequence cannot be truncated to length `n`, by the first layer that refuses."""
        layers = zip(self.shape.windows, self.shape.capacity, self.oldest, strict=True)
        for layer, (window, capacity, oldest) in enumerate(layers):
            if window is not None and n > 0 and max(0, n - window + 1) < oldest:
                return (
                    f"layer {layer}: window {window}, ring of {capacity} positions; needs position "
                    f"{max(0, n - window + 1)}, the oldest it holds is {oldest}"
                )
        return None

    def would_lose(self, position: int, stop: int) -> bool:
        """Whether writing up to `stop` destroys what a sequence of length `position` needs."""
        if stop <= self._smallest:
            return False
        after = Rings(self.shape, self.oldest)
        after.write(stop)
        return after.missing(position) is not None

    def oldest_sliding(self) -> int:
        """The lowest position any sliding layer holds; there must be one."""
        return min(
            oldest
            for window, oldest in zip(self.shape.windows, self.oldest, strict=True)
            if window is not None
        )
