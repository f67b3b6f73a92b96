"""Operators that look at places of images: channels pass, what places depend on stays."""

from __future__ import annotations

import math

import onnx_ir as ir

from onnxshrink.channels.labels import Barrier, Operand, Rule, Walk
from onnxshrink.channels.rules.contraction import convolve, put_filtered
from onnxshrink.channels.rules.reshape import factor
from onnxshrink.graph import read


def _keep(walk: Walk, node: ir.Node, index: int, *, but: int = 0) -> None:
    """Keep all axes of an input but the first few."""
    if walk.has(node, index):
        walk.keep(node, walk.operand(node, index).axes[but:], "where it looks depends on it")


def _grid_sample(walk: Walk, node: ir.Node) -> None:
    """``x [N, C, ..], grid [N, .., 2]``."""
    x, grid = walk.operand(node, 0), walk.operand(node, 1)
    walk.freeze_spatial(node, x)
    _keep(walk, node, 1, but=1)
    batch = walk.join(x.axes[0], grid.axes[0], node)
    walk.put(
        node, [batch, x.axes[1], *grid.axes[1:-1]], [False, x.zero[1], *[False] * (x.rank - 2)]
    )


def _regions(walk: Walk, node: ir.Node) -> None:
    """RoiAlign, MaxRoiPool, CropAndResize: ``x [N, C, H, W], regions [R, ..]``."""
    x = walk.operand(node, 0)
    walk.freeze_spatial(node, x)
    walk.keep(node, [x.axes[0]], "regions name images")
    for index in range(1, len(node.inputs)):
        _keep(walk, node, index)
    out = walk.kept(node, walk.sizes(node.outputs[0]), "regions")
    walk.put(node, [out[0], x.axes[1], *out[2:]], [False, x.zero[1], False, False])


def _columns(walk: Walk, node: ir.Node) -> None:
    """Col2Im: ``x [N, C * block, places]`` to ``[N, C, H, W]``."""
    x, block = walk.operand(node, 0), walk.constant(node, 2)
    labels = x.axes[1]
    if labels is None or block is None:
        raise Barrier("channels or blocks that vary")
    size = math.prod(block.tolist())
    channels, places = factor(walk, labels, (len(labels) // size, size))
    walk.keep(node, (places, x.axes[2]), "places of an image")
    spatial = walk.kept(node, walk.sizes(node.outputs[0])[2:], "a spatial axis")
    walk.put(node, [x.axes[0], channels, *spatial], [False, x.zero[1], *[False] * len(spatial)])


def _deformed(walk: Walk, node: ir.Node) -> None:
    """``x, w, offset, bias, mask``; the offsets are those of all channels."""
    if read.integer(node, "offset_group", 1) != 1:
        raise Barrier("channels have different offsets")
    x, w = walk.operand(node, 0), walk.operand(node, 1)
    for index in (2, 4):
        _keep(walk, node, index)
    convolve(walk, node, x, w, node.inputs[1])
    out = Operand([w.axes[0]], [w.zero[0]])
    if walk.has(node, 3):
        out = walk.broadcast([out, walk.operand(node, 3)], node)
    put_filtered(walk, node, x, out)


def _mean_variance(walk: Walk, node: ir.Node) -> None:
    """It normalises along some axes; ``0 / sqrt(0 + eps)`` is 0 along the others."""
    x = walk.operand(node, 0)
    along = {axis % x.rank for axis in read.integers(node, "axes") or (0, 2, 3)}
    for axis in along:
        walk.keep(node, [x.axes[axis]], "normalises along it")
    walk.put(node, x.axes, [zero and axis not in along for axis, zero in enumerate(x.zero)])


def _det(walk: Walk, node: ir.Node) -> None:
    x = walk.operand(node, 0)
    walk.keep(node, x.axes[-2:], "all of a matrix")
    walk.put(node, x.axes[:-2])


RULES: dict[tuple[str, str], Rule] = {
    ("", "Col2Im"): _columns,
    ("", "DeformConv"): _deformed,
    ("", "Det"): _det,
    ("", "GridSample"): _grid_sample,
    ("", "MaxRoiPool"): _regions,
    ("", "MeanVarianceNormalization"): _mean_variance,
    ("", "RoiAlign"): _regions,
    ("com.microsoft", "CropAndResize"): _regions,
    ("com.microsoft", "GridSample"): _grid_sample,
}
