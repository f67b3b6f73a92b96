"""How one node multiplies each channel with a gain and adds a shift, whichever operator it is."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from onnxshrink.graph import read
from onnxshrink.graph.operators.one_by_one import Norm
from onnxshrink.graph.operators.predicates import multiplies
from onnxshrink.graph.operators.rows import QuantizedRow
from onnxshrink.graph.operators.table import of


@dataclass(frozen=True, eq=False)
class Gains:
    """The gains and shifts of one node.

    Attributes:
        node: The node.
        index: Which of its inputs the gains are.
        shift_index: Which one the shifts are; None where it adds none.
        axis: The axis of the channels.
        norm: What kind of norm it is; None for another product with gains.
        either: Whether the gains may as well be the other one of its two inputs.
    """

    node: ir.Node
    index: int
    shift_index: int | None
    axis: int
    norm: Norm | None = None
    either: bool = False

    @property
    def value(self) -> ir.Value | None:
        """The gains."""
        return read.input(self.node, self.index)

    @property
    def shift(self) -> ir.Value | None:
        """The shifts."""
        return None if self.shift_index is None else read.input(self.node, self.shift_index)

    @property
    def over_several_axes(self) -> bool:
        """Whether it may normalise over other axes than the last: its gains are no vector then.

        Raises:
            Unknown: A function takes the axis from a caller.
        """
        return (
            self.norm is not None and self.axis == -1 and read.integer(self.node, "axis", -1) != -1
        )


def gains(node: ir.Node | None) -> Gains | None:
    """The gains of a norm, or of an operator that has such; None for others.

    Mul counts, whose one side may hold gains, and quantized products with scales of their own.
    """
    if node is None:
        return None
    if (norm := of(node, Norm)) is not None:
        return Gains(node, norm.gain, norm.shift, norm.channels, norm)
    codes = of(node, QuantizedRow)
    if codes is not None and codes.gain is not None:
        return Gains(node, codes.gain, codes.shift, -1)
    return Gains(node, 1, None, -1, either=True) if multiplies(node) else None
