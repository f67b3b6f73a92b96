"""Axes of varying length that static ones were merged into: ``[batch, heads] -> [batch * heads]``.

What is merged keeps its labels as a digit of the axis. Operators that work value by value, products
of batches, and those that move axes carry digits on; every other operator keeps them whole.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import onnx_ir as ir

from onnxshrink.channels.facts import Pair
from onnxshrink.channels.labels import Digit, Operand, Rule, Walk
from onnxshrink.graph import read


def align(walk: Walk, node: ir.Node, without: Collection[int] = ()) -> None:
    """Carry digits to the first output of a node whose operands are aligned to the right.

    Args:
        walk: The labels.
        node: The node, labelled.
        without: Axes of the output, counted from the end, along which it does not work so.
    """
    sizes = walk.facts.sizes(node.outputs[0])
    if sizes is None or not walk.digits:
        return
    for axis in range(-len(sizes), 0):
        if sizes[axis][0] == sizes[axis][1] or axis in without:
            continue
        wide = [
            (index, axis + len(shape))
            for index, shape in _shapes(walk, node)
            if -axis <= len(shape) and shape[axis] != (1, 1)
        ]
        found = [walk.digits.get((_input(node, i), own), ()) for i, own in wide]
        if any([d.size for d in digits] != [d.size for d in found[0]] for digits in found):
            continue
        for digits in found[1:]:
            for one, other in zip(found[0], digits, strict=True):
                walk.join(one.labels, other.labels, node)
        for index, own in wide:
            walk.carry(node, index, own)
        walk.put_digits(node, axis + len(sizes), [Digit(d.labels, d.size) for d in found[0]])


def aligned(rule: Rule) -> Rule:
    """A rule of an operator that works value by value."""

    def both(walk: Walk, node: ir.Node) -> None:
        rule(walk, node)
        align(walk, node)

    return both


def _shapes(walk: Walk, node: ir.Node) -> list[tuple[int, Sequence[Pair]]]:
    """The operands that axes can come from."""
    values = [(index, value) for index, value in enumerate(node.inputs) if value is not None]
    return [
        (index, walk.sizes(value))
        for index, value in values
        if read.constant(value) is not None or value in walk.labels
    ]


def _input(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    assert value is not None
    return value


def opened(
    walk: Walk, node: ir.Node, x: Operand, sizes: Sequence[Pair]
) -> tuple[Operand, list[Pair]]:
    """The first input of a node with digits in the places of the axes that they make up."""
    digits: list[Digit] = []
    for axis, size in enumerate(sizes):
        whole = Digit(x.axes[axis], size, x.zero[axis])
        digits += walk.carry(node, 0, axis) or [whole]
    return Operand([d.labels for d in digits], [d.zero for d in digits]), [d.size for d in digits]


def closed(digits: Sequence[Digit]) -> Sequence[Digit]:
    """The digits of an axis of varying length; none where they have to stay whole."""
    joined: list[Digit] = []
    for digit in digits:
        if joined and joined[-1].labels is digit.labels is None:
            (a, b), (c, d) = joined[-1].size, digit.size
            joined[-1] = Digit(None, (a * c, b * d))
        else:
            joined.append(digit)
    if sum(digit.labels is None for digit in joined) == 1 and len(joined) > 1:
        return joined
    return ()
