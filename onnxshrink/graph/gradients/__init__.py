"""Derivatives of a graph, as a graph: reverse-mode differentiation in standard operators.

The rule of each operator says in formulas (:mod:`.terms`) what the gradients of its operands are;
rules stand by family in modules of their own. What the standard defines by other operators is
differentiated by its definition.
"""

from onnxshrink.graph.gradients.backward import Derivative, Stop, differentiate
from onnxshrink.graph.gradients.losses import Aim, ModelWithLosses, Soft, Squares, with_losses

__all__ = [
    "Aim", "Derivative", "ModelWithLosses", "Soft", "Squares", "Stop", "differentiate",
    "with_losses",
]  # fmt: skip
