"""Products of an activation and a weight, whichever way MatMul and Gemm write them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxshrink.graph import read
from onnxshrink.graph.forms.rebuild import Rebuild
from onnxshrink.graph.weights.views import Use, WeightView


@dataclass(frozen=True)
class Product:
    """``alpha * activation @ weight + beta * addend``.

    Its operands are read from the node when they are asked for: edits of other products may have
    put other values there.

    Attributes:
        node: The operator, whose second input the weight is.
        turned_activation: Whether the activation is stored as [K, M].
    """

    node: ir.Node
    turned_activation: bool = False
    alpha: float = 1.0
    beta: float = 1.0

    @property
    def activation(self) -> ir.Value:
        """The first operand."""
        value = self.node.inputs[0]
        assert value is not None
        return value

    @property
    def addend(self) -> ir.Value | None:
        """What is added, of a shape that broadcasts; None for nothing."""
        return read.input(self.node, 2) if self.beta else None

    def rows(self, rebuild: Rebuild) -> ir.Value:
        """The activation as [..., K]."""
        if not self.turned_activation:
            return self.activation
        return rebuild.node("Transpose", [self.activation], "x", perm=[1, 0])

    def completed(self, rebuild: Rebuild, result: ir.Value) -> ir.Value:
        """The operator's value, from that of the matrix product alone."""
        if self.alpha != 1:
            result = rebuild.node("Mul", [result, _number(rebuild, self.alpha)], "p")
        addend = self.addend
        if addend is None:
            return result
        if self.beta != 1:
            addend = rebuild.node("Mul", [addend, _number(rebuild, self.beta)], "e")
        return rebuild.node("Add", [result, addend], "y")


def _number(rebuild: Rebuild, value: float) -> ir.Value:
    return rebuild.constant(np.asarray(value, rebuild.view.dtype.numpy()), "b")


def of(view: WeightView) -> list[Product]:
    """What a weight is used for, when that is nothing but products from the right.

    Raises:
        ValueError: Says what else it is used for.
    """
    if view.others:
        raise ValueError(f"is also used by {', '.join(sorted(set(view.others)))}")
    if len({use.axes for use in view.uses}) > 1:
        raise ValueError("is used transposed and as it is")
    return [_product(view, use) for use in view.uses]


def _product(view: WeightView, use: Use) -> Product:
    node = use.node
    if node.domain or use.op_type not in ("MatMul", "Gemm"):
        raise ValueError(f"is used by {use.op_type}")
    if not use.direct:
        raise ValueError("something lies between it and its product")
    if use.index == 0:
        raise ValueError("is the left operand of its product")
    if len(view.shape) < 2:
        raise ValueError("is a vector")
    if use.op_type == "MatMul":
        return Product(node)

    transposed = bool(read.integer(node, "transA", 0))
    return Product(
        node, transposed, read.number(node, "alpha", 1.0), read.number(node, "beta", 1.0)
    )
