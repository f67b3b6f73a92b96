"""Products of an activation and a weight, whichever way MatMul and Gemm write them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxshrink.graph import operators, surgery
from onnxshrink.graph.forms.rebuild import Rebuild
from onnxshrink.graph.weights.views import Use, WeightView

#: Functions without parameters that can be operators of their own.
FUNCTIONS = ("", "Relu", "Sigmoid", "Tanh")


@dataclass(frozen=True)
class RebuiltProduct:
    """``f(alpha * activation @ weight + beta * addend)``.

    Its operands are read from the node when they are asked for: edits of other products may have
    put other values there.

    Attributes:
        way: How the operator multiplies.
        alpha: See above; read beforehand, as is what follows.
        beta: See above.
        function: The operator that f is; empty for none.
    """

    way: operators.Product
    alpha: float = 1.0
    beta: float = 1.0
    function: str = ""

    @property
    def node(self) -> ir.Node:
        """The operator."""
        return self.way.node

    @property
    def activation(self) -> ir.Value:
        """The first operand."""
        value = self.way.activation
        assert value is not None
        return value

    @property
    def turned_activation(self) -> bool:
        """Whether the activation is stored as [K, M]."""
        return self.way.in_axis == -2

    @property
    def addend(self) -> ir.Value | None:
        """What is added, of a shape that broadcasts; None for nothing."""
        return self.way.bias if self.beta else None

    def rows(self, rebuild: Rebuild) -> ir.Value:
        """The activation as [..., K]."""
        if not self.turned_activation:
            return self.activation
        return rebuild.node("Transpose", [self.activation], "x", perm=[1, 0])

    def completed(self, rebuild: Rebuild, result: ir.Value) -> ir.Value:
        """The operator's value, from that of the matrix product alone."""
        if self.alpha != 1:
            result = rebuild.node("Mul", [result, _number(rebuild, self.alpha)], "p")
        if (addend := self.addend) is not None:
            if self.beta != 1:
                addend = rebuild.node("Mul", [addend, _number(rebuild, self.beta)], "e")
            result = rebuild.node("Add", [result, addend], "y")
        return rebuild.node(self.function, [result], "f") if self.function else result


def _number(rebuild: Rebuild, value: float) -> ir.Value:
    return rebuild.constant(np.asarray(value, rebuild.view.dtype.numpy()), "b")


def of(view: WeightView, *, but: Sequence[Use] = (), turned: bool = False) -> list[RebuiltProduct]:
    """What a weight is used for, when that is nothing but products from the right.

    Args:
        view: The weight.
        but: Uses that are something else.
        turned: Whether a Transpose may lie between the weight and a product.

    Raises:
        ValueError: Says what else it is used for.
    """
    if view.others:
        raise ValueError(f"is also used by {', '.join(sorted(set(view.others)))}")
    if len({use.axes for use in view.uses}) > 1:
        raise ValueError("is used transposed and as it is")
    return [_product(view, use, turned) for use in view.uses if use not in but]


def _product(view: WeightView, use: Use, turned: bool) -> RebuiltProduct:
    way = use.product
    if way is None or way.convolves or way.inside:
        raise ValueError(f"is used by {use.op_type}")
    if not use.direct and not (turned and _only_turned(view, use)):
        raise ValueError("something lies between it and its product")
    if way.out_axis != -1:
        raise ValueError("is the left operand of its product")
    if len(view.shape) < 2:
        raise ValueError("is a vector")
    # Refuses what is not known or no product of rows.
    way.layout(view.shape if use.direct else view.shape[::-1])
    if way.in_axis != -1 and not way.takes_bias:
        raise ValueError(f"is used by {use.op_type} with its input transposed")
    if way.function not in FUNCTIONS:
        raise ValueError(f"is used by {use.op_type}, of which {way.hidden}")
    return RebuiltProduct(way, way.alpha, way.beta, way.function)


def lookups(view: WeightView, *, turned: bool = False) -> list[Use]:
    """The uses that look up rows of a matrix.

    Args:
        view: The weight.
        turned: Whether rows of its transpose count, too, which are columns as it is stored.
    """
    if len(view.shape) != 2:
        return []
    return [
        use for use in view.uses
        if use.picks_rows or (turned and use.picks_columns and _only_turned(view, use))
    ]  # fmt: skip


def replace(rebuild: Rebuild, product: RebuiltProduct, result: ir.Value) -> None:
    """Put a value in the place of a product, and a Transpose of its weight out of the graph."""
    weight = product.node.inputs[product.way.index]
    rebuild.put_in_place(product.node, [product.completed(rebuild, result)])
    forget_between(rebuild, weight)


def forget_between(rebuild: Rebuild, weight: ir.Value | None) -> None:
    """Take a Transpose of a weight out of the graph, once nothing uses it any more."""
    between = None if weight is None or weight is rebuild.view.value else weight.producer()
    if weight is not None and between is not None and not weight.uses():
        surgery.remove(rebuild.model, between)


def _only_turned(view: WeightView, use: Use) -> bool:
    """Whether one Transpose of a matrix is all that lies between a weight and a use of it."""
    value = use.node.inputs[use.index]
    between = None if value is None else value.producer()
    return (
        len(view.shape) == 2
        and between is not None
        and operators.moves(between) == "permutes"
        and between.inputs[0] is view.value
    )
