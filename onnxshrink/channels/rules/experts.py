"""Mixtures of experts: the inner neurons of all experts go together, by their place."""

from __future__ import annotations

import onnx_ir as ir

from onnxshrink.channels.labels import Axis, Barrier, Operand, Rule, Walk
from onnxshrink.channels.rules.contraction import contract
from onnxshrink.graph import read

_KEEP_ZERO = {"gelu", "identity", "relu", "silu", "swiglu"}


def _tie(walk: Walk, node: ir.Node, index: int, axis: int, labels: Axis) -> bool:
    """Tie an axis of an input, if there is one; whether it is zero where its labels go."""
    if not walk.has(node, index):
        return True
    operand = walk.operand(node, index)
    walk.join(operand.axes[axis], labels, node)
    return operand.zero[axis]


def _mixture(walk: Walk, node: ir.Node) -> None:
    """``x [.., C], router [T, E], W1 [E, F, C], b1, W2 [E, C', F], b2, W3 [E, F, C], b3``.

    With a gate in one weight (SwiGLU), ``W1 [E, 2 * F, C]`` has gates and values in turn, or the
    gates first.
    """
    x, first, second = (walk.operand(node, index) for index in (0, 2, 4))
    rows = first.axes[1]
    if rows is None or second.axes[2] is None:
        raise Barrier("neurons that vary")
    contract(walk, node, x, -1, first, 2)
    _tie(walk, node, 6, 2, first.axes[2])
    inner = second.axes[2]
    if len(rows) == 2 * len(inner):
        turns = read.integer(node, "swiglu_fusion", 0) == 1
        gates, values = (rows[::2], rows[1::2]) if turns else rows.reshape(2, -1)
        walk.join(gates, values, node)
        walk.join(gates, inner, node)
    else:
        walk.join(rows, inner, node)
    known = read.text(node, "activation_type", "relu") in _KEEP_ZERO
    zero = all([_tie(walk, node, 3, 1, rows), _tie(walk, node, 6, 1, rows),
                _tie(walk, node, 7, 1, rows)])  # fmt: skip
    if not known or not (zero or second.zero[2]):
        walk.keep(node, [inner], "neurons that are not zero without their weights")
    bias = _tie(walk, node, 5, 1, second.axes[1])
    for index in range(1, 8):  # experts
        if walk.has(node, index):
            walk.freeze(walk.operand(node, index).axes[-1 if index == 1 else 0], "experts")
    out = Operand([*x.axes[:-1], second.axes[1]], [False] * x.rank)
    out.zero[-1] = second.zero[1] and bias
    walk.put(node, out.axes, out.zero)


RULES: dict[tuple[str, str], Rule] = {("com.microsoft", "MoE"): _mixture}
