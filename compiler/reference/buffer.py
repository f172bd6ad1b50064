"""Buffers as the reference has them, and transfers between them.

A buffer is a range of real bytes, so what a wrong plan overwrites is wrong here too. A packed
weight has no bytes in the reference, which does not know a backend's layout: its copy in a space is
a pattern that no other copy has, and reading it gives the weight only where the pattern is whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infc.diagnostics import InternalError
from infc.ir.types import BufferType

Bytes = NDArray[np.uint8]
UNWRITTEN = 0xA5
"""What memory that nobody wrote is full of."""


@dataclass
class Buffer:
    """A range of a space, or (`space` None) a value kept whole: packed weights, call operands.

    Attributes:
        size: bytes of the range.
        content: the value kept whole, or that which a pattern in the range stands for.
        pattern: what the range must hold for that.
        moving: a transfer into it has begun and was not waited for.
    """

    type: BufferType
    space: Bytes | None = None
    offset: int = 0
    content: Any = None
    size: int = 0
    pattern: Bytes | None = None
    moving: bool = False

    def bytes(self) -> Bytes:
        """The range itself, not a copy."""
        if self.space is None:
            raise InternalError("a value that is kept whole has no bytes")
        return self.space[self.offset : self.offset + self.size]

    def whole(self) -> Any:
        """The value of a buffer that is no plain bytes, None where it is.

        Raises:
            InternalError: its transfer was not waited for, or something overwrote it.
        """
        if self.moving:
            raise InternalError("a buffer is read before the transfer into it was waited for")
        if self.pattern is not None and not np.array_equal(self.bytes(), self.pattern):
            raise InternalError("a weight that was moved is read after something overwrote it")
        return self.content


@dataclass
class Transfer:
    """A copy under way, and what its source held when it began."""

    source: Buffer
    target: Buffer
    before: Bytes | None


def begin(source: Buffer, target: Buffer) -> Transfer:
    """Begin a copy; the target holds nothing until it has ended."""
    before = None if source.space is None else source.bytes().copy()
    source.whole()  # refuses what nobody may read
    if target.space is None:
        raise InternalError("the reference moves nothing into a value that is kept whole")
    target.content, target.pattern, target.moving = None, None, True
    target.bytes()[:] = UNWRITTEN
    return Transfer(source, target, before)


def finish(transfer: Transfer, serial: int) -> None:
    """End a copy.

    Args:
        serial: another one for each copy; patterns are made of it.

    Raises:
        InternalError: the source changed while it was copied, or the sizes differ.
    """
    source, target = transfer.source, transfer.target
    target.moving = False
    if transfer.before is None or source.pattern is not None:
        target.content = source.whole()
        target.pattern = (np.arange(target.size) * (2 * serial + 3) % 251).astype(np.uint8)
        target.bytes()[:] = target.pattern
        return
    if not np.array_equal(source.bytes(), transfer.before):
        raise InternalError("the source of a transfer changed before it was waited for")
    if source.size != target.size:
        raise InternalError(f"a transfer of {source.size} bytes has room for {target.size}")
    target.bytes()[:] = transfer.before
