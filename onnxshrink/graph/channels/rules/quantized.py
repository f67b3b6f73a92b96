"""Quantized tensors: scales and zero points go with the channels that they belong to."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxshrink.graph.channels.facts import stored
from onnxshrink.graph.channels.rules.contraction import contract
from onnxshrink.graph.channels.walk import Barrier, Operand, Rule, Walk, describe, integer


def _has_zero_in_the_middle(walk: Walk, node: ir.Node, index: int) -> bool:
    """Whether code 0 stands for 0: there is no zero point, or it is 0."""
    if not walk.has(node, index):
        return True
    value = node.inputs[index]
    tensor = None if value is None else stored(value)
    return tensor is not None and not np.any(tensor.numpy())


def _affine(walk: Walk, node: ir.Node) -> None:
    """QuantizeLinear and DequantizeLinear: per tensor, per axis, or in blocks of one axis."""
    x, scale = walk.operand(node, 0), walk.operand(node, 1)
    vectors = [scale, walk.operand(node, 2)] if walk.has(node, 2) else [scale]
    at = integer(node, "axis", 1)
    at = at + x.rank if at < 0 else at
    block = integer(node, "block_size", 0)
    for vector in vectors:
        if block:
            walk.freeze(x.axes[at], f"{describe(node)}: blocks along it share a scale")
            for axis in range(vector.rank):
                if axis != at:
                    walk.join(x.axes[axis], vector.axes[axis], node)
                else:
                    walk.freeze(vector.axes[axis], f"{describe(node)}: scales of blocks")
        elif vector.rank == 1 and vector.length(0) != 1:
            walk.join(x.axes[at], vector.axes[0], node)
        elif vector.rank > 1:
            raise Barrier("scales of more than one axis")
    symmetric = _has_zero_in_the_middle(walk, node, 2)
    walk.put(node, x.axes, [zero and symmetric for zero in x.zero])


def _dynamic(walk: Walk, node: ir.Node) -> None:
    """The range always has 0 in it, so channels of zeros do not move it."""
    x = walk.operand(node, 0)
    for labels, zero in zip(x.axes, x.zero, strict=True):
        if not zero:
            walk.freeze(labels, f"{describe(node)}: its range depends on all values")
    walk.put(node, x.axes, [False] * x.rank)
    walk.put(node, [], output=1)
    walk.put(node, [], output=2)


def _scales(walk: Walk, node: ir.Node, first: int, axis: Operand, at: int) -> None:
    """Tie a scale and a zero point, where they are per channel, to the axis that they scale."""
    for index in (first, first + 1):
        if walk.has(node, index):
            vector = walk.operand(node, index)
            if vector.rank == 1 and vector.length(0) != 1:
                walk.join(axis.axes[at], vector.axes[0], node)
            elif vector.rank > 1:
                raise Barrier("scales of more than one axis")


def _qlinear_conv(walk: Walk, node: ir.Node) -> None:
    """``x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, B``."""
    x, w = walk.operand(node, 0), walk.operand(node, 3)
    if integer(node, "group", 1) != 1:
        raise Barrier("channels in groups")
    for axis in range(2, x.rank):
        walk.freeze(x.axes[axis], f"{describe(node)}: a spatial axis")
        walk.freeze(w.axes[axis], f"{describe(node)}: a kernel axis")
    exact = Operand(w.axes, [_has_zero_in_the_middle(walk, node, 5)] * w.rank)
    contract(walk, node, x, 1, exact, 1)
    _scales(walk, node, 4, w, 0)
    if walk.has(node, 8):
        walk.join(w.axes[0], walk.operand(node, 8).axes[0], node)
    spatial = walk.fresh(walk.sizes(node.outputs[0])[2:], f"{describe(node)}: a spatial axis")
    zero = exact.zero[0] and _has_zero_in_the_middle(walk, node, 7)
    walk.put(node, [x.axes[0], w.axes[0], *spatial], [False, zero, *[False] * len(spatial)])


RULES: dict[tuple[str, str], Rule] = {
    ("", "DequantizeLinear"): _affine,
    ("", "DynamicQuantizeLinear"): _dynamic,
    ("", "QLinearConv"): _qlinear_conv,
    ("", "QuantizeLinear"): _affine,
    ("com.microsoft", "DequantizeLinear"): _affine,
    ("com.microsoft", "QuantizeLinear"): _affine,
}
