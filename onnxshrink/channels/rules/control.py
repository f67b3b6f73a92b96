"""If, Loop and Scan: channels pass into their bodies and out of them again.

A value that a body takes from outside is the same value, with the same labels. What goes in and
out by name is tied: results of both branches of an If; what a loop begins with, what its body gets
and gives back, and what comes out.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxshrink.channels.labels import Axis, Barrier, Operand, Rule, Walk, describe
from onnxshrink.graph import read


def _given(walk: Walk, node: ir.Node, index: int) -> Operand | None:
    """Labels of an input; None for a sequence, or what else has no known shape."""
    value = node.inputs[index]
    known = value is not None and (read.constant(value) is not None or value in walk.labels)
    return walk.operand(node, index) if known else None


def _result(walk: Walk, value: ir.Value) -> Operand | None:
    """Labels of what a body gives back, if they are known."""
    if read.constant(value) is not None:
        axes = walk.fresh(walk.sizes(value), "a constant that a body returns")
        return Operand(axes, [False] * len(axes))
    if value not in walk.labels:
        return None
    return Operand(list(walk.labels[value]), list(walk.zero[value]))


def _keep(walk: Walk, node: ir.Node, operands: Sequence[Operand | None], why: str) -> None:
    for operand in operands:
        walk.keep(node, operand.axes if operand is not None else (), why)


def _tied(walk: Walk, node: ir.Node, one: Operand | None, other: Operand | None) -> Operand | None:
    """Two values that take the same place; None if their axes do not correspond."""
    if one is None or other is None or one.rank != other.rank:
        _keep(walk, node, (one, other), "what takes the same place is not alike")
        return None
    axes: list[Axis] = []
    for axis in range(one.rank):
        if one.length(axis) != other.length(axis):
            for operand in (one, other):
                walk.keep(node, [operand.axes[axis]], "an axis of varying length")
            axes.append(None)
        else:
            axes.append(walk.join(one.axes[axis], other.axes[axis], node))
    return Operand(axes, [a and b for a, b in zip(one.zero, other.zero, strict=True)])


def _hand_out(walk: Walk, node: ir.Node, output: int, found: Operand | None) -> None:
    if found is None:
        walk.hold(node.outputs[output], f"{describe(node)}: of unknown shape")
    else:
        walk.put(node, found.axes, found.zero, output)


def _if(walk: Walk, node: ir.Node) -> None:
    branches = [node.attributes[name].as_graph() for name in ("then_branch", "else_branch")]
    for branch in branches:
        walk.enter(branch)
    condition = walk.constant(node, 0)
    for output in range(len(node.outputs)):
        results = [_result(walk, branch.outputs[output]) for branch in branches]
        if condition is not None and not _alike(*results):
            found = results[0 if condition.item() else 1]  # the other is never taken
        else:
            found = _tied(walk, node, *results)
        _hand_out(walk, node, output, found)


def _alike(one: Operand | None, other: Operand | None) -> bool:
    if one is None or other is None or one.rank != other.rank:
        return False
    return all(one.length(axis) == other.length(axis) for axis in range(one.rank))


def _carry_in(walk: Walk, node: ir.Node, given: Operand | None, value: ir.Value) -> None:
    """Label what a body gets at first from outside, and then from its last turn."""
    sizes = walk.facts.sizes(value)
    if given is None or sizes is None or len(sizes) != given.rank:
        _keep(walk, node, (given,), "carries what is of unknown shape")
        walk.hold(value, f"{describe(node)}: of unknown shape")
        return
    axes: list[Axis] = []
    for labels, (a, b) in zip(given.axes, sizes, strict=True):
        steady = labels is not None and len(labels) == a == b
        if not steady:
            walk.keep(node, [labels], "an axis whose length changes from turn to turn")
        axes.append(labels if steady else None)
    zero = [z and (value, axis) not in walk.not_zero for axis, z in enumerate(given.zero)]
    walk.label(value, axes, zero, node)


def _carry_out(walk: Walk, node: ir.Node, output: int, value: ir.Value, result: ir.Value) -> None:
    """Tie what a body gets to what it gives back for its next turn."""
    given, found = _result(walk, value), _result(walk, result)
    tied = _tied(walk, node, given, found)
    if given is not None and found is not None and tied is not None:
        for axis, labels in enumerate(tied.axes):
            changes = given.zero[axis] and not found.zero[axis]
            if changes and labels is not None and not walk.atoms.is_frozen(labels).all():
                walk.newly_not_zero.add((value, axis))
    _hand_out(walk, node, output, tied)


def _collect(
    walk: Walk, node: ir.Node, output: int, result: ir.Value, turns: Axis, axis: int = 0
) -> None:
    """Label the results of all turns, stacked along a new axis."""
    found = _result(walk, result)
    if found is not None:
        at = axis % (found.rank + 1)
        found.axes.insert(at, turns)
        found.zero.insert(at, False)
    _hand_out(walk, node, output, found)


def _loop(walk: Walk, node: ir.Node) -> None:
    """``turns, condition, carried..``; the body gets and gives the condition too."""
    body, carried = node.attributes["body"].as_graph(), len(node.inputs) - 2
    _keep(walk, node, [_given(walk, node, index) for index in (0, 1)], "its turns")
    for value in body.inputs[:2]:
        walk.hold(value, f"{describe(node)}: its turns")
    for index, value in enumerate(body.inputs[2:], 2):
        _carry_in(walk, node, _given(walk, node, index), value)
    walk.enter(body)
    _keep(walk, node, [_result(walk, body.outputs[0])], "its condition")
    for output, result in enumerate(body.outputs[1:]):
        if output < carried:
            _carry_out(walk, node, output, body.inputs[output + 2], result)
        else:
            _collect(walk, node, output, result, None)


def _scan(walk: Walk, node: ir.Node) -> None:
    """``carried.., scanned..``; the body gets the scanned values without the axis of its turns."""
    if walk.model.opset < 9:
        raise Barrier("it has a batch axis of its own")
    body, scanned = node.attributes["body"].as_graph(), read.integer(node, "num_scan_inputs", 0)
    carried = len(node.inputs) - scanned
    axes, turns = read.integers(node, "scan_input_axes") or [0] * scanned, None
    for index, value in enumerate(body.inputs):
        x = _given(walk, node, index)
        if index < carried:
            _carry_in(walk, node, x, value)
        elif x is None:
            walk.hold(value, f"{describe(node)}: of unknown shape")
        else:
            at = axes[index - carried] % x.rank
            turns = x.axes.pop(at)
            x.zero.pop(at)
            walk.keep(node, [turns], "one index for each turn")
            walk.label(value, x.axes, x.zero, node)
    walk.enter(body)
    axes = read.integers(node, "scan_output_axes") or [0] * (len(node.outputs) - carried)
    for output, result in enumerate(body.outputs):
        if output < carried:
            _carry_out(walk, node, output, body.inputs[output], result)
        else:
            _collect(walk, node, output, result, turns, axes[output - carried])


RULES: dict[tuple[str, str], Rule] = {
    ("", "If"): _if,
    ("", "Loop"): _loop,
    ("", "Scan"): _scan,
}
