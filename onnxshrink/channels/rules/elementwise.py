"""Operators that work value by value: channels pass, and operands go together."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxshrink.channels.labels import Barrier, Operand, Rule, Walk
from onnxshrink.channels.rules.merged import aligned
from onnxshrink.graph import read

#: f(0) = 0: what is zero without weights stays zero.
KEEPS_ZERO = (
    "Abs", "Asin", "Asinh", "Atan", "Atanh", "BitwiseNot", "Cast", "Ceil", "Celu", "Dropout", "Elu",
    "Erf", "Floor", "Gelu", "HardSwish", "Identity", "LeakyRelu", "Mish", "Neg", "Relu", "Round",
    "Selu", "Sign", "Sin", "Sinh", "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu",
)  # fmt: skip
_OTHERS = (
    "Acos", "Acosh", "Cos", "Cosh", "Exp", "HardSigmoid", "IsInf", "IsNaN", "Log", "Not",
    "Reciprocal", "Shrink", "Sigmoid", "Softplus",
)  # fmt: skip
_SUMS = ("Add", "Max", "Mean", "Min", "Sub", "Sum", "BitwiseOr", "BitwiseXor", "Or", "Xor")
_PRODUCTS = ("And", "BitwiseAnd", "Mul", "SwiGLU")
_COMPARISONS = ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "BitShift", "Mod")


def _unary(keeps_zero: bool) -> Rule:
    def rule(walk: Walk, node: ir.Node) -> None:
        x = walk.operand(node, 0)
        zero = x.zero if keeps_zero else [False] * x.rank
        for output in range(len(node.outputs)):
            walk.put(node, x.axes, zero, output)

    return rule


def _operands(walk: Walk, node: ir.Node) -> list[Operand]:
    return [walk.operand(node, i) for i, value in enumerate(node.inputs) if value is not None]


def _sum(walk: Walk, node: ir.Node) -> None:
    result = walk.broadcast(_operands(walk, node), node)
    walk.put(node, result.axes, result.zero)


def _product(walk: Walk, node: ir.Node) -> None:
    result = walk.broadcast(_operands(walk, node), node, product=True)
    walk.put(node, result.axes, result.zero)


def _comparison(walk: Walk, node: ir.Node) -> None:
    walk.put(node, walk.broadcast(_operands(walk, node), node).axes)


def _first_decides(walk: Walk, node: ir.Node) -> None:
    """Div, Pow: zero where the first operand is, provided that it is not repeated there."""
    operands = _operands(walk, node)
    result = walk.broadcast(operands, node)
    first, pad = operands[0], len(result.axes) - operands[0].rank
    zero = [False] * pad + [
        first.zero[axis] and first.length(axis) != 1 for axis in range(first.rank)
    ]
    if node.op_type == "Pow":
        exponent = walk.constant(node, 1)
        if exponent is None:
            exponent = read.array(node.inputs[1])
        if exponent is None or not (np.asarray(exponent) > 0).all():
            zero = [False] * len(zero)
    walk.put(node, result.axes, zero)


def _where(walk: Walk, node: ir.Node) -> None:
    operands = _operands(walk, node)
    result = walk.broadcast(operands, node)
    branches = operands[1:]
    zero = [
        all(o.rank >= -axis and o.length(axis) != 1 and o.zero[axis] for o in branches)
        for axis in range(-len(result.axes), 0)
    ]
    walk.put(node, result.axes, zero)


def _clip(walk: Walk, node: ir.Node) -> None:
    x = walk.operand(node, 0)
    low, high = (_bound(walk, node, i, name) for i, name in ((1, "min"), (2, "max")))
    keeps = low is not None and high is not None and low <= 0 <= high
    walk.put(node, x.axes, [keeps and zero for zero in x.zero])


def _bound(walk: Walk, node: ir.Node, index: int, name: str) -> float | None:
    if name in node.attributes:
        return read.number(node, name, 0.0)
    if not walk.has(node, index):
        return -np.inf if name == "min" else np.inf
    return read.scalar(node.inputs[index])


def _prelu(walk: Walk, node: ir.Node) -> None:
    x, slope = walk.operand(node, 0), walk.operand(node, 1)
    result = walk.broadcast([x, slope], node)
    if result.axes and len(result.axes) != x.rank:
        raise Barrier("the slope has more axes than the input")
    walk.put(node, result.axes, x.zero)


def _bias_gelu(walk: Walk, node: ir.Node) -> None:
    """Gelu of a sum, as ONNX Runtime fuses it; the bias may be missing."""
    _sum(walk, node)


def _cast_like(walk: Walk, node: ir.Node) -> None:
    x = walk.operand(node, 0)
    walk.put(node, x.axes, x.zero)


_RULES: dict[tuple[str, str], Rule] = {
    **{("", name): _unary(True) for name in KEEPS_ZERO},
    **{("", name): _unary(False) for name in _OTHERS},
    **{("", name): _sum for name in _SUMS},
    **{("", name): _product for name in _PRODUCTS},
    **{("", name): _comparison for name in _COMPARISONS},
    ("", "CastLike"): _cast_like,
    ("", "Clip"): _clip,
    ("", "Div"): _first_decides,
    ("", "PRelu"): _prelu,
    ("", "Pow"): _first_decides,
    ("", "Where"): _where,
    ("com.microsoft", "BiasGelu"): _bias_gelu,
    ("com.microsoft", "FastGelu"): _bias_gelu,
    ("com.microsoft", "Gelu"): _unary(True),
    ("com.microsoft", "QuickGelu"): _unary(True),
    ("com.microsoft", "ScaledSiLU"): _unary(True),
}

RULES = {operator: aligned(rule) for operator, rule in _RULES.items()}
