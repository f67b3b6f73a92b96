"""Operators that normalise: those over channels are told how many zeros they no longer see.

A channel that goes is zero in the model that the removal stands for (where its weights alone would
not make it zero, its norms take it for zero), and a norm along the channels still has it in its
mean. Two forms are exact. A LayerNormalization gets as many zeros as channels went, with a scale of
zero, and they are cut off behind it: fused kernels stay fused. Norms that are written out get their
means multiplied by the share that is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import onnx_ir as ir

from onnxshrink.channels.atoms import Labels
from onnxshrink.channels.labels import Barrier, Operand, Rule, Walk
from onnxshrink.channels.removal import Cut
from onnxshrink.channels.rules.reshape import factor
from onnxshrink.graph import read


def _batch_normalization(walk: Walk, node: ir.Node) -> None:
    x = walk.operand(node, 0)
    if read.integer(node, "training_mode", 0) or len([v for v in node.outputs if v.name]) > 1:
        raise Barrier("it is in training mode")
    if x.rank < 2:
        raise Barrier("an input without channels")
    channels, zero = x.axes[1], True
    for index in range(1, 5):
        vector = walk.operand(node, index)
        channels = walk.join(channels, vector.axes[0], node)
        zero = zero and (index > 2 or vector.zero[0])
    walk.put(node, x.axes, [False, zero, *[False] * (x.rank - 2)])


def _instance_normalization(walk: Walk, node: ir.Node) -> None:
    x, scale, bias = (walk.operand(node, index) for index in range(3))
    walk.join(walk.join(x.axes[1], scale.axes[0], node), bias.axes[0], node)
    walk.freeze_spatial(node, x)
    walk.put(node, x.axes, [False, scale.zero[0] and bias.zero[0], *[False] * (x.rank - 2)])


def _group_normalization(walk: Walk, node: ir.Node) -> None:
    """Whole groups may go."""
    x, scale, bias = (walk.operand(node, index) for index in range(3))
    count, labels = read.integer(node, "num_groups", 1), x.axes[1]
    if labels is None:
        raise Barrier("channels that vary")
    groups, places = factor(walk, labels, (count, len(labels) // count))
    walk.keep(node, [places], "normalises along it")
    walk.freeze_spatial(node, x)
    per_group = scale.length(0) == count != len(labels)
    for vector in (scale, bias):
        walk.join(groups if per_group else labels, vector.axes[0], node)
    walk.put(node, x.axes, [False, scale.zero[0] and bias.zero[0], *[False] * (x.rank - 2)])

    def rewrite(cut: Cut) -> None:
        if cut.removed(groups):
            cut.set_integer(node, "num_groups", count - cut.removed(groups))

    walk.on_cut(node, rewrite)


def _layer_normalization(walk: Walk, node: ir.Node) -> None:
    """``x [.., n], scale [n], bias [n]``; the last axis may go where zeros take its place."""
    x = walk.operand(node, 0)
    at = read.integer(node, "axis", -1) % x.rank
    vectors = [index for index in (1, 2) if walk.has(node, index)]
    labels = may_lose(walk, node, x, vectors) if at == x.rank - 1 else None
    if labels is None:
        _whole(walk, node, x, at)
        return
    for index in vectors:
        walk.join(labels, walk.operand(node, index).axes[0], node)
    walk.streams.append(labels)
    walk.put(node, x.axes, [*[False] * (x.rank - 1), True])
    walk.on_cut(
        node, partial(with_zeros, node=node, ranks=[x.rank], vectors=vectors, labels=labels)
    )


def _skip_layer_normalization(walk: Walk, node: ir.Node) -> None:
    """``input, skip, gamma, beta, bias -> output, _, _, sum`` as ONNX Runtime fuses them."""
    simplified = node.op_type.startswith("SkipSimplified")
    terms = [walk.operand(node, i) for i in (0, 1, 3 if simplified else 4) if walk.has(node, i)]
    x = walk.broadcast(terms, node)
    if any(value.uses() for value in node.outputs[1:3]):
        raise Barrier("its statistics are used")
    vectors = [index for index in range(2, len(node.inputs)) if walk.has(node, index)]
    if (labels := may_lose(walk, node, x, vectors)) is None:
        _whole(walk, node, x, x.rank - 1)
        walk.put(node, x.axes, x.zero, output=3)
        return
    for index in vectors:
        walk.join(labels, walk.operand(node, index).axes[0], node)
    walk.streams.append(labels)
    walk.put(node, x.axes, [*[False] * (x.rank - 1), True])
    walk.put(node, x.axes, x.zero, output=3)
    if simplified:
        walk.on_cut(node, partial(_of_fewer, node=node, labels=labels))
    else:
        ranks = [term.rank for term in terms[:2]]
        walk.on_cut(
            node, partial(with_zeros, node=node, ranks=ranks, vectors=vectors, labels=labels)
        )


def may_lose(
    walk: Walk, node: ir.Node, x: Operand, vectors: Sequence[int], outputs: Sequence[int] = (1, 2)
) -> Labels | None:
    """The labels of the last axis of a norm's input, if zeros can stand for what goes.

    Args:
        walk: The labels.
        node: The norm.
        x: Its input.
        vectors: Which inputs are its scales and biases.
        outputs: Which outputs are statistics, and must not be used.
    """
    values = [node.inputs[index] for index in vectors]
    plain = all(value is not None and read.constant(value) is not None for value in values)
    ranks = {walk.operand(node, index).rank for index in vectors}
    if (
        not plain
        or ranks - {1}
        or any(node.outputs[i].uses() for i in outputs if i < len(node.outputs))
    ):
        return None
    if not x.zero[-1] and x.axes[-1] is not None:
        walk.gated.append((node, x.axes[-1]))
    return x.axes[-1]


def with_zeros(
    cut: Cut, node: ir.Node, ranks: Sequence[int], vectors: Sequence[int], labels: Labels
) -> None:
    """Give a norm zeros for the channels that went, behind the others, and take them off again."""
    removed = cut.removed(labels)
    if not removed:
        return
    kept = cut.kept(labels)
    for index in vectors:
        value = node.inputs[index]
        tensor = read.constant(value)
        assert tensor is not None
        own = tensor.numpy()[kept]
        cut.replace_input(node, index, np.concatenate([own, np.zeros(removed, own.dtype)]))
    for index, rank in enumerate(ranks):
        cut.put_before(node, index, "Pad", [np.array([0] * (2 * rank - 1) + [removed], np.int64)])
    ends = [np.array([n], np.int64) for n in (0, int(kept.sum()), -1)]
    for output in (0, 3):
        if output < len(node.outputs) and node.outputs[output].uses():
            cut.put_behind(node, "Slice", ends, output)


def _whole(walk: Walk, node: ir.Node, x: Operand, at: int) -> None:
    """The normalised axes stay; all others pass."""
    for axis in range(at, x.rank):
        walk.keep(node, [x.axes[axis]], "normalises along it")
    result = x
    for index in range(1, len(node.inputs)):
        if walk.has(node, index):
            result = walk.broadcast([result, walk.operand(node, index)], node)
    walk.put(node, result.axes)
    if not node.domain:
        for output in range(1, len(node.outputs)):
            unit = walk.fresh([(1, 1)] * (x.rank - at))
            walk.put(node, [*x.axes[:at], *unit], output=output)


def _rms_normalization(walk: Walk, node: ir.Node) -> None:
    x, scale = walk.operand(node, 0), walk.operand(node, 1)
    at = read.integer(node, "axis", -1) % x.rank
    used = len([value for value in node.outputs if value.name and value.uses()])
    labels = x.axes[-1]
    if at != x.rank - 1 or scale.rank != 1 or used > 1 or labels is None:
        _whole(walk, node, x, at)
        return
    if not x.zero[-1]:
        walk.gated.append((node, labels))
    walk.join(labels, scale.axes[0], node)
    walk.streams.append(labels)
    walk.put(node, x.axes, [*[False] * (x.rank - 1), True])
    for output in range(1, len(node.outputs)):
        walk.put(node, [*x.axes[:at], *walk.fresh([(1, 1)])], output=output)
    walk.on_cut(node, partial(_of_fewer, node=node, labels=labels))


def _of_fewer(cut: Cut, node: ir.Node, labels: Labels) -> None:
    """The mean of squares is over all channels: scale and epsilon make up for removed zeros.

    ``x / sqrt(sum(x^2) / n + eps) * g`` over n' channels that hold all of the sum equals
    ``x / sqrt(sum(x^2) / n' + eps * n / n') * g * sqrt(n / n')``.
    """
    removed = cut.removed(labels)
    if removed:
        share = len(labels) / (len(labels) - removed)
        cut.set_float(node, "epsilon", read.number(node, "epsilon", 1e-5) * share)
        cut.multiply_behind(node, share**0.5)


def _lrn(walk: Walk, node: ir.Node) -> None:
    x = walk.operand(node, 0)
    walk.keep(node, [x.axes[1]], "normalises along it")
    walk.put(node, x.axes)


# ------------------------------------------------------------------- written out


def variance_about(walk: Walk, node: ir.Node) -> ir.Value | None:
    """The mean about which a ReduceMean takes the variance of channels, if that is what it does.

    ``d = x - ReduceMean(x)``, ``ReduceMean(d * d)``: a LayerNormalization before opset 17.
    """
    square = node.inputs[0].producer() if node.inputs[0] is not None else None
    if square is None or square.op_type not in ("Mul", "Pow"):
        return None
    if square.op_type == "Mul" and square.inputs[0] is not square.inputs[1]:
        return None
    if square.op_type == "Pow" and read.scalar(square.inputs[1]) != 2:
        return None
    sub = square.inputs[0].producer() if square.inputs[0] is not None else None
    if sub is None or sub.op_type != "Sub" or sub.inputs[0] is None or sub.inputs[1] is None:
        return None
    mean = sub.inputs[1].producer()
    if mean is None or mean.op_type != "ReduceMean" or mean.inputs[0] is not sub.inputs[0]:
        return None
    zero = walk.zero.get(sub.inputs[0], [False])
    same = _axes(walk, mean) == _axes(walk, node) == [len(zero) - 1]
    whole = read.integer(mean, "keepdims", 1) and read.integer(node, "keepdims", 1)
    return sub.inputs[1] if same and whole and zero[-1] else None


def _axes(walk: Walk, node: ir.Node) -> list[int] | None:
    stated = read.integers(node, "axes")
    axes = walk.constant(node, 1) if stated is None else stated
    rank = len(walk.labels.get(node.inputs[0], ())) if node.inputs[0] is not None else 0
    return None if axes is None or not rank else [int(axis) % rank for axis in axes]


def correct_variance(cut: Cut, node: ir.Node, mean: ir.Value, labels: Labels) -> None:
    """``(sum of kept d^2 + removed * mean^2) / n``: at a removed channel d is minus the mean."""
    if removed := cut.removed(labels):
        cut.multiply_behind(node, 1 - removed / len(labels))
        cut.add_behind(node, cut.square(mean, removed / len(labels), node))


RULES: dict[tuple[str, str], Rule] = {
    ("", "BatchNormalization"): _batch_normalization,
    ("", "GroupNormalization"): _group_normalization,
    ("", "InstanceNormalization"): _instance_normalization,
    ("", "LRN"): _lrn,
    ("", "LayerNormalization"): _layer_normalization,
    ("", "RMSNormalization"): _rms_normalization,
    ("", "SimplifiedLayerNormalization"): _rms_normalization,
    ("com.microsoft", "SimplifiedLayerNormalization"): _rms_normalization,
    ("com.microsoft", "SkipLayerNormalization"): _skip_layer_normalization,
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): _skip_layer_normalization,
}
