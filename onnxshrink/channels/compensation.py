"""Weights that read removed channels are given values that make up for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxshrink.channels.facts import nbytes_of
from onnxshrink.channels.groups import Removed
from onnxshrink.channels.labels import Walk
from onnxshrink.channels.readers import Consumer, find
from onnxshrink.channels.removal import Cut
from onnxshrink.graph import read, surgery
from onnxshrink.kernels.refit import DAMPINGS, Array, ChosenDamping, FeatureSums, choose, refit


@dataclass(frozen=True)
class Refitted:
    """A constant that has new values, or is new.

    Attributes:
        op_type: What reads the channels.
        before: Bytes before.
        after: Bytes now.
        choice: How it was fitted.
    """

    op_type: str
    before: int
    after: int
    choice: ChosenDamping


def choices(
    walk: Walk, seen: Mapping[Consumer, FeatureSums], removed: Removed, damping: float | None
) -> dict[str, ChosenDamping]:
    """How strongly each weight that reads removed channels is held to what it was.

    Args:
        walk: A labelled model.
        seen: Moments of what its weights read.
        removed: The channels.
        damping: To be used; tried out if there is none.

    Returns:
        By name of the consumer. Those that are better left as they are do not appear.
    """
    found = {}
    for consumer, moments in seen.items():
        features = _kept(walk, consumer, removed)
        if features.any() and not features.all():
            tried = DAMPINGS if damping is None else (damping,)
            choice = choose(consumer.matrix(), moments, features, tried, bias=consumer.shifts)
            if choice is not None:
                found[consumer.name] = choice
    return found


def compensate(
    walk: Walk, sums: Mapping[str, Array], removed: Removed, chosen: Mapping[str, ChosenDamping]
) -> dict[str, Refitted]:
    """Refit the weights that read removed channels. Must come before the cut.

    Args:
        walk: A labelled model, which is edited.
        sums: Sums of products of what each weight reads, by name of the consumer.
        removed: The channels.
        chosen: How strongly each is held to what it was.

    Returns:
        By name, the constants that have new values or are new.
    """
    done: dict[str, Refitted] = {}
    added: dict[ir.Node, ir.Value] = {}
    for consumer in list(find(walk)):
        choice = chosen.get(consumer.name)
        if choice is None:
            continue
        fitted, shift = refit(
            consumer.matrix(), sums[consumer.name], _kept(walk, consumer, removed),
            choice.damping, bias=consumer.shifts,
        )  # fmt: skip
        array = _array(consumer.weight)
        consumer.put(array, fitted)
        surgery.set_constant(walk.model, consumer.weight, array)
        _note(done, consumer, consumer.weight, choice)
        if not consumer.shifts:
            continue
        bias = consumer.bias or added.get(consumer.node)
        if bias is None:
            bias = added[consumer.node] = _with_bias(walk, consumer)
        array = _array(bias)
        array[consumer.bias_at] += consumer.sign * shift
        surgery.set_constant(walk.model, bias, array)
        _note(done, consumer, bias, choice, new=bias in added.values())
    return done


def _note(
    done: dict[str, Refitted], consumer: Consumer, value: ir.Value, choice: ChosenDamping, *,
    new: bool = False,
) -> None:  # fmt: skip
    nbytes = nbytes_of(value)
    row = Refitted(consumer.node.op_type, 0 if new else nbytes, nbytes, choice)
    done.setdefault(value.name or "", row)


def _kept(walk: Walk, consumer: Consumer, removed: Removed) -> np.ndarray:
    """Which features stay."""
    kept = walk.atoms.kept(consumer.labels, removed)
    return kept.repeat(consumer.features // consumer.channels)


def _array(value: ir.Value) -> Array:
    tensor = read.constant(value)
    assert tensor is not None
    return np.array(tensor.numpy(), np.float64)


def _with_bias(walk: Walk, consumer: Consumer) -> ir.Value:
    """Give a node a bias of zeros, which goes with the channels that it makes."""
    node, tensor = consumer.node, read.constant(consumer.weight)
    assert tensor is not None
    axis = 1 - consumer.weight_axis
    zeros = np.zeros(read.shape(tensor)[axis], tensor.dtype.numpy())
    cut = Cut(walk, np.zeros(walk.atoms.count, bool))
    bias = cut.constant(zeros, f"{consumer.weight.name}.bias", node)
    if len(node.inputs) < 3:
        node.resize_inputs(3)
    node.replace_input_with(2, bias)
    walk.model.touch_node(node)
    slot = walk.slot(bias, node, 2)
    walk.labels[slot], walk.zero[slot] = [walk.labels[consumer.weight][axis]], [True]
    return bias
