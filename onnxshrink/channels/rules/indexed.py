"""Operators that pick or place values by indices: the axes that indices count along stay."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxshrink.channels.labels import Axis, Barrier, Operand, Rule, Walk
from onnxshrink.graph import read


def _at(walk: Walk, node: ir.Node, index: int, rank: int) -> int:
    """An axis that is an attribute, or a constant input at this place."""
    if index < 0:
        axis = read.integer(node, "axis", 0)
    else:
        constant = walk.constant(node, index)
        if constant is None:
            raise Barrier("an axis that is not constant")
        axis = int(constant.item())
    return axis % rank


_COUNTED = "indices count along it"


def _meet(walk: Walk, node: ir.Node, a: Operand, b: Operand, axis: int) -> Axis:
    """Tie an axis of two operands where the second may be shorter."""
    if a.length(axis) == b.length(axis):
        return walk.join(a.axes[axis], b.axes[axis], node)
    walk.keep(node, [a.axes[axis], b.axes[axis]], "only a part of it is met")
    return b.axes[axis]


def _gather_elements(walk: Walk, node: ir.Node) -> None:
    """``out[i, j] = data[index[i, j], j]``: both have the other axes."""
    data, index = walk.operand(node, 0), walk.operand(node, 1)
    at = _at(walk, node, -1, data.rank)
    walk.keep(node, [data.axes[at], index.axes[at]], _COUNTED)
    axes = [
        index.axes[axis] if axis == at else _meet(walk, node, data, index, axis)
        for axis in range(data.rank)
    ]
    walk.put(node, axes, [zero and axis != at for axis, zero in enumerate(data.zero)])


def _scatter_elements(walk: Walk, node: ir.Node) -> None:
    """``data``, but ``updates`` at the indices of one axis."""
    data, index, updates = (walk.operand(node, i) for i in range(3))
    at = _at(walk, node, -1, data.rank)
    walk.keep(node, [data.axes[at], index.axes[at], updates.axes[at]], _COUNTED)
    for axis in range(data.rank):
        if axis != at:
            _meet(walk, node, data, index, axis)
            walk.join(index.axes[axis], updates.axes[axis], node)
    zero = [
        a and b and axis != at
        for axis, (a, b) in enumerate(zip(data.zero, updates.zero, strict=True))
    ]
    walk.put(node, data.axes, zero)


def _gather_nd(walk: Walk, node: ir.Node) -> None:
    """``data [b.., k.., rest..]`` at ``indices [b.., n.., k]`` is ``[b.., n.., rest..]``."""
    data, index = walk.operand(node, 0), walk.operand(node, 1)
    count = index.length(index.rank - 1)
    if count is None:
        raise Barrier("indices of varying length")
    counted = read.integer(node, "batch_dims", 0) + count
    walk.keep(node, [*data.axes[:counted], *index.axes], _COUNTED)
    axes = [*index.axes[:-1], *data.axes[counted:]]
    walk.put(node, axes, [False] * (index.rank - 1) + data.zero[counted:])


def _scatter_nd(walk: Walk, node: ir.Node) -> None:
    """``data [k.., rest..]``, but ``updates [n.., rest..]`` at ``indices [n.., k]``."""
    data, index, updates = (walk.operand(node, i) for i in range(3))
    count, places = index.length(index.rank - 1), index.rank - 1
    if count is None:
        raise Barrier("indices of varying length")
    walk.keep(node, [*data.axes[:count], *index.axes, *updates.axes[:places]], _COUNTED)
    zero = [False] * count
    for axis in range(count, data.rank):
        walk.join(data.axes[axis], updates.axes[axis - count + places], node)
        zero.append(data.zero[axis] and updates.zero[axis - count + places])
    walk.put(node, data.axes, zero)


def _tensor_scatter(walk: Walk, node: ir.Node) -> None:
    """A cache, but the update from some place of one axis on."""
    cache, update = walk.operand(node, 0), walk.operand(node, 1)
    at = read.integer(node, "axis", -2) % cache.rank
    walk.keep(node, [cache.axes[0], update.axes[0], cache.axes[at], update.axes[at]], _COUNTED)
    for axis in set(range(1, cache.rank)) - {at}:
        walk.join(cache.axes[axis], update.axes[axis], node)
    walk.put(node, cache.axes, [a and b for a, b in zip(cache.zero, update.zero, strict=True)])


def _one_hot(walk: Walk, node: ir.Node) -> None:
    x, out = walk.operand(node, 0), walk.sizes(node.outputs[0])
    at = read.integer(node, "axis", -1) % len(out)
    axes = list(x.axes)
    axes[at:at] = walk.kept(node, [out[at]], "one index for each value")
    walk.put(node, axes)


def _picked(index: int = -1, attributes: Sequence[str] = ("axis",)) -> Rule:
    """Some of the indices of some axes, or in another order; the others pass."""

    def rule(walk: Walk, node: ir.Node) -> None:
        x, out = walk.operand(node, 0), walk.sizes(node.outputs[0])
        if index < 0 and not any(name in node.attributes for name in attributes):
            raise Barrier("it works on all axes")
        if index < 0:
            stated = read.attributes(node)
            named = {
                int(axis) % x.rank
                for name in attributes
                for axis in np.atleast_1d(stated.get(name, 0))
            }
        else:
            named = {_at(walk, node, index, x.rank)}
        axes = list(x.axes)
        for axis in named:
            walk.keep(node, [axes[axis]], "changes it")
            axes[axis] = walk.kept(node, [out[axis]], "changes it")[0]
        walk.put(node, axes, [zero and axis not in named for axis, zero in enumerate(x.zero)])

    return rule


def _reverse_sequence(walk: Walk, node: ir.Node) -> None:
    x = walk.operand(node, 0)
    along = [read.integer(node, "batch_axis", 1), read.integer(node, "time_axis", 0)]
    walk.keep(node, [x.axes[axis] for axis in along], "parts of it are reversed")
    walk.put(node, x.axes, x.zero)


def _embedded_blocks(walk: Walk, node: ir.Node) -> None:
    """GatherBlockQuantized: rows of codes, with scales for blocks of the last axis."""
    data, index = walk.operand(node, 0), walk.operand(node, 1)
    if read.integer(node, "gather_axis", 0) or not read.integer(node, "quantize_axis", 1):
        raise Barrier("rows that are not along the first axis")
    for operand in (0, 2, 3):
        if walk.has(node, operand):
            walk.keep(node, walk.operand(node, operand).axes, "codes share bytes and scales")
    width = walk.kept(node, walk.sizes(node.outputs[0])[index.rank :], "blocks of codes")
    assert data.rank == len(width) + 1
    walk.put(node, [*index.axes, *width])


RULES: dict[tuple[str, str], Rule] = {
    ("", "CenterCropPad"): _picked(attributes=("axes",)),
    ("", "Compress"): _picked(),
    ("", "GatherElements"): _gather_elements,
    ("", "GatherND"): _gather_nd,
    ("", "OneHot"): _one_hot,
    ("", "ReverseSequence"): _reverse_sequence,
    ("", "Scatter"): _scatter_elements,
    ("", "ScatterElements"): _scatter_elements,
    ("", "ScatterND"): _scatter_nd,
    ("", "TensorScatter"): _tensor_scatter,
    ("com.microsoft", "GatherBlockQuantized"): _embedded_blocks,
    ("com.microsoft", "GatherND"): _gather_nd,
}
