"""Operators that reduce, normalise, pool or resize: what they run along stays, the rest passes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import onnx_ir as ir

from onnxshrink.channels.labels import Axis, Barrier, Rule, Walk
from onnxshrink.channels.removal import Cut
from onnxshrink.channels.rules.merged import align
from onnxshrink.channels.rules.norms import correct_variance, variance_about
from onnxshrink.graph import read

_KEEP_SUMS = {"ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2"}


def _reduce(walk: Walk, node: ir.Node) -> None:
    """Sums forget zeros, and means can be corrected for them; other reductions keep the axis."""
    x = walk.operand(node, 0)
    axes: Sequence[int] | np.ndarray | None = read.integers(node, "axes")
    if axes is None and walk.has(node, 1):
        axes = walk.constant(node, 1)
        if axes is None:
            raise Barrier("axes that are not constant")
    keep = bool(read.integer(node, "keepdims", 1))
    if (axes is None or not len(axes)) and read.integer(node, "noop_with_empty_axes", 0):
        axes, keep = [], True
    elif axes is None or not len(axes):
        axes = range(x.rank)
    gone = {int(axis) % x.rank for axis in axes}
    means: list[np.ndarray] = []
    mean = variance_about(walk, node) if node.op_type == "ReduceMean" else None
    for axis in gone:
        labels = x.axes[axis]
        if mean is not None and labels is not None:
            walk.streams.append(labels)
            walk.on_cut(node, partial(correct_variance, node=node, mean=mean, labels=labels))
        elif not x.zero[axis] or node.op_type not in _KEEP_SUMS | {"ReduceMean"}:
            walk.keep(node, [labels], "reduces along it")
        elif labels is not None and node.op_type == "ReduceMean":
            means.append(labels)
    unit = [walk.fresh([(1, 1)])[0] if axis in gone else x.axes[axis] for axis in range(x.rank)]
    left = [axis for axis in range(x.rank) if keep or axis not in gone]
    zero = [axis not in gone and x.zero[axis] and _of_zero(node) for axis in range(x.rank)]
    walk.put(node, [unit[axis] for axis in left], [zero[axis] for axis in left])
    for labels in means:
        walk.on_cut(node, partial(_correct_mean, node=node, labels=labels))


def _of_zero(node: ir.Node) -> bool:
    return node.op_type not in ("ReduceLogSum", "ReduceLogSumExp")


def _correct_mean(cut: Cut, node: ir.Node, labels: np.ndarray) -> None:
    """The mean over what is left, times its share: the removed were zeros in the mean over all."""
    removed = cut.removed(labels)
    if removed:
        cut.multiply_behind(node, (len(labels) - removed) / len(labels))


def _arg_reduce(walk: Walk, node: ir.Node) -> None:
    x = walk.operand(node, 0)
    at = read.integer(node, "axis", 0) % x.rank
    walk.keep(node, [x.axes[at]], "reduces along it")
    axes = list(x.axes)
    axes[at : at + 1] = walk.fresh([(1, 1)]) if read.integer(node, "keepdims", 1) else []
    walk.put(node, axes)


def _along(default: int) -> Rule:
    """Softmax, CumSum, TopK: the axis that they run along stays."""

    def rule(walk: Walk, node: ir.Node) -> None:
        x = walk.operand(node, 0)
        at = read.integer(node, "axis", default)
        if node.op_type.startswith("Cum"):
            constant = walk.constant(node, 1)
            if constant is None:
                raise Barrier("an axis that is not constant")
            at = int(constant.item())
        at = at % x.rank
        # Before opset 13 Softmax ran along all axes from this one on.
        flat = node.op_type in ("Softmax", "LogSoftmax", "Hardmax") and walk.model.opset < 13
        for axis in range(at, x.rank if flat else at + 1):
            walk.keep(node, [x.axes[axis]], "runs along it")
        for output, value in enumerate(node.outputs):
            axes = list(x.axes)
            if node.op_type == "TopK":
                axes[at : at + 1] = walk.kept(node, [walk.sizes(value)[at]], "the largest of them")
            walk.put(node, axes, output=output)
        if node.op_type != "TopK":
            align(walk, node, without=range(at - x.rank, 0 if flat else at - x.rank + 1))

    return rule


def _pool(walk: Walk, node: ir.Node) -> None:
    x = walk.operand(node, 0)
    walk.freeze_spatial(node, x)
    for output, value in enumerate(node.outputs):
        if output and value.uses():
            raise Barrier("its indices are used")
        spatial = walk.kept(node, walk.sizes(node.outputs[0])[2:], "a spatial axis")
        walk.put(node, [*x.axes[:2], *spatial], [*x.zero[:2], *[False] * len(spatial)], output)


def _resize(walk: Walk, node: ir.Node) -> None:
    """Axes that keep their length pass."""
    x, out = walk.operand(node, 0), walk.sizes(node.outputs[0])
    coefficients = read.text(node, "coordinate_transformation_mode", "") == "tf_crop_and_resize"
    axes: list[Axis] = []
    before = walk.sizes(node.inputs[0])
    for axis in range(x.rank):
        if before[axis] == out[axis] and not coefficients and x.axes[axis] is not None:
            axes.append(x.axes[axis])
        else:
            walk.keep(node, [x.axes[axis]], "a resized axis")
            axes += walk.kept(node, [out[axis]], "a resized axis")
    walk.put(node, axes, [zero and axes[a] is x.axes[a] for a, zero in enumerate(x.zero)])
    if not walk.has(node, 3):
        return
    given = read.integers(node, "axes")
    which = list(range(x.rank)) if given is None else [axis % x.rank for axis in given]
    if "keep_aspect_ratio_policy" in node.attributes:
        for axis in which:
            walk.keep(node, [axes[axis]], "keeps an aspect ratio")

    def rewrite(cut: Cut) -> None:
        removed = np.array([cut.removed(axes[axis]) for axis in which], np.int64)
        if removed.any():
            cut.subtract(node, 3, removed)

    walk.on_cut(node, rewrite)


_REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
_POOLS = ("AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool")
RULES: dict[tuple[str, str], Rule] = {
    **{("", f"Reduce{name}"): _reduce for name in _REDUCTIONS},
    **{("", name): _pool for name in _POOLS},
    ("", "ArgMax"): _arg_reduce,
    ("", "ArgMin"): _arg_reduce,
    ("", "CumProd"): _along(0),
    ("", "CumSum"): _along(0),
    ("", "Hardmax"): _along(-1),
    ("", "LogSoftmax"): _along(-1),
    ("", "LpNormalization"): _along(-1),
    ("", "Resize"): _resize,
    ("", "Softmax"): _along(-1),
    ("", "TopK"): _along(-1),
    ("", "Upsample"): _resize,
}
