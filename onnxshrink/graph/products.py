"""Products of an activation and a weight, whichever way MatMul and Gemm write them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxshrink.graph.edit import Rebuild
from onnxshrink.graph.weights import Use, WeightView


@dataclass(frozen=True)
class Product:
    """``alpha * activation @ weight + beta * addend``.

    Attributes:
        node: The operator.
        activation: Its other operand, [..., K].
        turned_activation: Whether that is stored as [K, M].
        addend: What is added, of a shape that broadcasts; None for nothing.
    """

    node: ir.Node
    activation: ir.Value
    turned_activation: bool = False
    alpha: float = 1.0
    addend: ir.Value | None = None
    beta: float = 1.0

    def rows(self, rebuild: Rebuild) -> ir.Value:
        """The activation as [..., K]."""
        if not self.turned_activation:
            return self.activation
        return rebuild.node("Transpose", [self.activation], "x", perm=[1, 0])

    def completed(self, rebuild: Rebuild, result: ir.Value) -> ir.Value:
        """The operator's value, from that of the matrix product alone."""
        if self.alpha != 1:
            result = rebuild.node("Mul", [result, _number(rebuild, self.alpha)], "p")
        if self.addend is None or self.beta == 0:
            return result
        addend = self.addend
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
    activation = use.activation
    assert activation is not None  # both operands of a product are there
    if use.op_type == "MatMul":
        return Product(node, activation)

    def attribute(name: str) -> float:
        found = node.attributes.get(name)
        default = 1.0 if name in ("alpha", "beta") else 0
        if found is not None and found.is_ref():
            raise ValueError(f"its Gemm takes {name} from the call of a function")
        return default if found is None else float(found.value)

    addend = node.inputs[2] if len(node.inputs) > 2 else None
    return Product(
        node, activation, bool(attribute("transA")), attribute("alpha"), addend, attribute("beta")
    )
