"""How a layer's function finds its operands from a few pointers.

The functions of a layer class are called with dozens of operands, but those lie at the same
distances in every call: the weights of a layer are packed one behind the other. So a function is
given one pointer for each group of operands that move together, and adds constants.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from infc.backends.cuda.lowering.programs import Place


@dataclass(frozen=True)
class LayerOperands:
    """The operands of a layer class.

    Attributes:
        anchors: what the function is given pointers to: an operand's number, or, for operands that
            are the same in all calls, their space; an operand of the call block by its place.
        sources: for each operand the number of its anchor, and how many bytes further it lies.
    """

    anchors: tuple[int | str | Place, ...]
    sources: tuple[tuple[int, int], ...]

    @staticmethod
    def of(calls: Sequence[Sequence[Place]]) -> LayerOperands:
        """Those of a class with all its calls."""
        anchors: list[int | str | Place] = []
        sources: list[tuple[int, int]] = []
        for number, first in enumerate(calls[0]):
            if all(call[number] == first for call in calls):
                anchor: int | str | Place = first if first.space == "call" else first.space
                offset = 0 if first.space == "call" else first.offset
            else:
                anchor, offset = _moves_with(number, anchors, calls)
            if anchor not in anchors:
                anchors.append(anchor)
            sources.append((anchors.index(anchor), offset))
        return LayerOperands(tuple(anchors), tuple(sources))


def _moves_with(
    number: int, anchors: Sequence[int | str | Place], calls: Sequence[Sequence[Place]]
) -> tuple[int, int]:
    """The anchor that an operand keeps its distance from, perhaps itself, and that distance."""
    for anchor in anchors:
        if not isinstance(anchor, int) or calls[0][anchor].space != calls[0][number].space:
            continue
        distances = {call[number].offset - call[anchor].offset for call in calls}
        if len(distances) == 1:
            return anchor, distances.pop()
    return number, 0
