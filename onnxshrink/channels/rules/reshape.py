"""Reshape and its kin, as algebra: axes are cut into digits that both shapes are made of.

``[B, S, 12 * 64] -> [B, S, 12, 64]`` has the digits B, S, 12, 64. An axis that is one digit keeps
its labels; one of several is their product, so that each digit may lose indices of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise

import numpy as np
import onnx_ir as ir

from onnxshrink.channels.atoms import Labels
from onnxshrink.channels.facts import Pair
from onnxshrink.channels.labels import Axis, Barrier, Digit, Rule, Walk
from onnxshrink.channels.removal import Cut
from onnxshrink.channels.rules.merged import closed, opened
from onnxshrink.graph import read


def factor(walk: Walk, labels: Labels, sizes: Sequence[int]) -> list[Labels]:
    """Cut one axis into digits, and say that it is their product.

    Args:
        walk: Where the labels live.
        labels: Labels of the axis.
        sizes: Lengths of the digits, the slowest first; their product is the axis' length.
    """
    atoms = walk.atoms
    roots = atoms.find(labels).reshape(sizes)
    names = ["an axis of length 1", "a digit of a reshaped axis along which nothing changes"]
    digits: list[Labels | None] = []
    for axis, size in enumerate(sizes):
        first = roots.take([0], axis)
        same = bool((roots == first).all())
        digits.append(atoms.fresh(size, names[size > 1]) if same else None)
    open_ = [axis for axis, digit in enumerate(digits) if digit is None]
    if len(open_) == 1:
        axis = open_[0]
        index = tuple(slice(None) if i == axis else 0 for i in range(len(sizes)))
        digits[axis] = roots[index]
    elif open_:
        for axis in open_:
            digits[axis] = atoms.fresh(sizes[axis])
        atoms.join(labels, merge(walk, [digit for digit in digits if digit is not None]))
    return [digit for digit in digits if digit is not None]


def merge(walk: Walk, digits: Sequence[Labels]) -> Labels:
    """The labels of one axis made of digits, the slowest first."""
    if len(digits) == 1:
        return digits[0]
    grids = np.meshgrid(*digits, indexing="ij")
    return walk.atoms.product([grid.reshape(-1) for grid in grids])


def _boundaries(sizes: Sequence[Pair]) -> list[Pair]:
    """How many elements one step along each axis passes over, in both runs."""
    behind = [sizes[axis + 1 :] for axis in range(len(sizes))]
    return [(math.prod(a for a, _ in rest), math.prod(b for _, b in rest)) for rest in behind]


def reshaped(
    walk: Walk, node: ir.Node, axes: Sequence[Axis], zero: Sequence[bool],
    before: Sequence[Pair], after: Sequence[Pair],
) -> tuple[list[Axis], list[bool], dict[int, Sequence[Digit]]]:  # fmt: skip
    """Labels behind a change of shape, and the digits of axes of varying length.

    Raises:
        Barrier: The two shapes are not made of the same digits.
    """
    if any(0 in size for size in (*before, *after)):
        raise Barrier("an empty axis")
    total = (math.prod(a for a, _ in before), math.prod(b for _, b in before))
    strides = set(_boundaries(before)) | set(_boundaries(after)) | {total}
    steps = sorted(strides, reverse=True)
    for (a, b), (c, d) in pairwise(steps):
        if a % c or b % d:
            raise Barrier("the two shapes share no digits")
    digit_of: dict[Pair, tuple[Axis, bool]] = {}  # by the stride that it starts at
    for axis, size, stride in zip(range(len(before)), before, _boundaries(before), strict=True):
        outer = (stride[0] * size[0], stride[1] * size[1])
        inside = steps[steps.index(outer) : steps.index(stride) + 1]
        sizes = [(a // c, b // d) for (a, b), (c, d) in pairwise(inside)]
        labels = axes[axis]
        if len(sizes) == 1:
            digit_of[inside[0]] = labels, zero[axis]
            continue
        if labels is None or any(a != b for a, b in sizes):
            walk.keep(node, [labels], "digits of varying length")
            parts = walk.kept(node, sizes, "digits of varying length")
        else:
            parts = list(factor(walk, labels, [a for a, _ in sizes])) if sizes else []
        for start, part in zip(inside, parts, strict=False):
            digit_of[start] = part, zero[axis]
    atoms = walk.atoms
    result: list[Axis] = []
    zeros: list[bool] = []
    merged: dict[int, Sequence[Digit]] = {}
    for size, stride in zip(after, _boundaries(after), strict=True):
        outer = (stride[0] * size[0], stride[1] * size[1])
        inside = steps[steps.index(outer) : steps.index(stride)]
        digits = [digit_of[start] for start in inside]
        # Where a digit is frozen nothing goes by it, so nothing need be zero.
        zeros.append(
            bool(digits)
            and all(z or (d is not None and bool(atoms.is_frozen(d).all())) for d, z in digits)
        )
        if not digits:
            result += walk.fresh([size])
        elif any(labels is None for labels, _ in digits):
            ends = pairwise([*inside, stride])
            lengths = [(a // c, b // d) for (a, b), (c, d) in ends]
            pieces = [Digit(d, n, z) for (d, z), n in zip(digits, lengths, strict=True)]
            if size[0] != size[1] and (own := closed(pieces)):
                merged[len(result)] = own
            elif len(digits) > 1:
                for labels, _ in digits:
                    walk.keep(node, [labels], "merged with an axis of varying length")
            result.append(None if size[0] != size[1] else walk.fresh([size], "varying digits")[0])
        else:
            result.append(merge(walk, [labels for labels, _ in digits if labels is not None]))
    return result, zeros, merged


def _reshape(walk: Walk, node: ir.Node) -> None:
    if _shuffled(walk, node):
        return
    x = walk.operand(node, 0)
    before, after = walk.sizes(node.inputs[0]), walk.sizes(node.outputs[0])
    more, sizes = opened(walk, node, x, before)
    try:
        axes, zero, merged = reshaped(walk, node, more.axes, more.zero, sizes, after)
    except Barrier:
        if len(sizes) == len(before):
            raise
        walk.keep(node, more.axes, "the two shapes share no digits")
        axes, zero, merged = reshaped(walk, node, x.axes, x.zero, before, after)
    walk.put(node, axes, zero)
    if node.op_type == "Reshape":
        _retarget(walk, node, x.axes, axes, merged)
    for axis, digits in merged.items():
        walk.put_digits(node, axis, digits)


def _retarget(
    walk: Walk, node: ir.Node, before: Sequence[Axis], after: Sequence[Axis],
    merged: Mapping[int, Sequence[Digit]],
) -> None:  # fmt: skip
    """Take what is removed off the target of a Reshape."""
    values = walk.facts.values(node.inputs[1] if len(node.inputs) > 1 else None)
    if values is None or len(values[0]) != len(after):
        raise Barrier("its target is not known")
    kinds = [(np.sign(a), np.sign(b)) for a, b in zip(*values, strict=True)]
    if any(a != b for a, b in kinds):
        raise Barrier("its target has entries that change their meaning")

    for axis, entry in enumerate(values[0]):
        here, there = merged.get(axis, ()), walk.carry(node, 0, axis)
        if entry == 0 and [id(d.labels) for d in here] != [id(d.labels) for d in there]:
            raise Barrier("its target copies an axis that is made of other parts")

    def rewrite(cut: Cut) -> None:
        removed = np.zeros(len(after), np.int64)
        parts = np.ones((2, len(after)), np.int64)
        for axis, digits in merged.items():
            static = [digit.labels for digit in digits if digit.labels is not None]
            if values[0][axis] > 0:
                parts[0, axis] = math.prod(map(len, static))
                parts[1, axis] = math.prod(len(each) - cut.removed(each) for each in static)
        if (parts[0] != parts[1]).any():
            cut.put_before(node, 1, "Div", [parts[0]])
            cut.put_before(node, 1, "Mul", [parts[1]])
        explicit: dict[int, int] = {}
        for axis, labels in enumerate(after):
            gone = cut.removed(labels)
            entry = int(values[0][axis])
            if entry > 0:
                removed[axis] = gone
            elif entry == 0 and gone != cut.removed(before[axis]):
                assert labels is not None
                explicit[axis] = len(labels) - gone
        if removed.any() or explicit:
            cut.subtract(node, 1, removed, explicit)

    walk.on_cut(node, rewrite)


def _shuffled(walk: Walk, node: ir.Node) -> bool:
    """Whether this Reshape begins a channel shuffle; labels all of its nodes if so.

    ShuffleNet's Reshape, Transpose, Reshape permutes one axis. As a Gather it lets every channel go
    alone, where digits would tie the channels of a group.
    """
    second = _only_user(node.outputs[0])
    third = _only_user(second.outputs[0]) if second is not None else None
    if second is None or third is None:
        return False
    if [n.op_type for n in (node, second, third)] != ["Reshape", "Transpose", "Reshape"]:
        return False
    sizes = [walk.facts.sizes(n.outputs[0]) for n in (node, second, third)]
    before = walk.facts.sizes(node.inputs[0]) if node.inputs[0] is not None else None
    if before is None or any(size is None for size in sizes) or before != sizes[2]:
        return False
    assert sizes[0] is not None
    perm = read.integers(second, "perm")
    if perm is None or math.prod(a for a, _ in before) > 2**24:
        return False
    first = np.arange(math.prod(a for a, _ in before)).reshape([a for a, _ in before])
    moved = first.reshape([a for a, _ in sizes[0]]).transpose(perm).reshape(first.shape)
    x = walk.operand(node, 0)
    for axis, labels in enumerate(x.axes):
        if labels is None or len(labels) < 4:
            continue
        index: list[int | slice] = [0] * first.ndim
        index[axis] = slice(None)
        line = first[tuple(index)]
        order = np.searchsorted(line, moved[tuple(index)])
        if (order >= len(line)).any() or not np.array_equal(first.take(order, axis), moved):
            continue
        if np.array_equal(order, np.arange(len(order))):
            continue
        for middle in (node, second):
            inner = walk.sizes(middle.outputs[0])
            walk.put(middle, walk.kept(middle, inner, "a channel shuffle"))
        axes = list(x.axes)
        axes[axis] = labels[order]
        walk.put(third, axes, x.zero)
        walk.handled |= {second, third}
        shuffle = partial(
            _gather, nodes=(node, second, third), axis=axis, labels=labels, order=order
        )
        walk.on_cut(third, shuffle)
        return True
    return False


def _gather(
    cut: Cut, nodes: tuple[ir.Node, ir.Node, ir.Node], axis: int, labels: Labels, order: Labels
) -> None:
    """Put a Gather of the channels that are left in place of a shuffle."""
    kept = cut.kept(labels)
    if kept.all():
        return
    new_index = np.cumsum(kept) - 1
    source = nodes[0].inputs[0]
    assert source is not None
    cut.replace_by_gather(nodes, source, new_index[order[kept[order]]], axis)


def _only_user(value: ir.Value) -> ir.Node | None:
    uses = value.uses()
    return next(iter(uses)).node if len(uses) == 1 and not value.is_graph_output() else None


RULES: dict[tuple[str, str], Rule] = {
    ("", "Flatten"): _reshape,
    ("", "Reshape"): _reshape,
    ("", "Squeeze"): _reshape,
    ("", "Unsqueeze"): _reshape,
    ("com.microsoft", "ExpandDims"): _reshape,
}
