"""Operators that sum products over an axis: the two sides of that axis go together."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxshrink.channels.labels import Axis, Barrier, Operand, Rule, Walk
from onnxshrink.channels.removal import Cut
from onnxshrink.channels.rules.merged import align
from onnxshrink.channels.rules.reshape import factor
from onnxshrink.graph import read


def contract(walk: Walk, node: ir.Node, a: Operand, i: int, b: Operand, j: int) -> None:
    """Tie the axes that are summed over; a term may go only if it is zero in the original."""
    if not (a.zero[i] or b.zero[j]):
        why = "sums over channels that are not zero without their weights"
        walk.keep(node, [a.axes[i], b.axes[j]], why)
    walk.join(a.axes[i], b.axes[j], node)


def _matmul(walk: Walk, node: ir.Node) -> None:
    a, b = walk.operand(node, 0), walk.operand(node, 1)
    if node.domain and any(read.integer(node, name, 0) for name in ("transBatchA", "transBatchB")):
        raise Barrier("batches are transposed")
    for operand, name in ((a, "transA"), (b, "transB")):
        if node.domain and read.integer(node, name, 0) and operand.rank > 1:
            operand.axes[-2:] = operand.axes[:-3:-1]
            operand.zero[-2:] = operand.zero[:-3:-1]
    matmul(walk, node, a, b)


def matmul(walk: Walk, node: ir.Node, a: Operand, b: Operand) -> None:
    """numpy.matmul of two operands, vectors included; labels the first output."""
    if not a.rank or not b.rank:
        raise Barrier("a scalar operand")
    contract(walk, node, a, -1, b, -2 if b.rank > 1 else -1)
    lead = [Operand(o.axes[:-2], o.zero[:-2]) for o in (a, b)]
    batch = walk.broadcast(lead, node, product=True)
    axes, zero = list(batch.axes), list(batch.zero)
    if a.rank > 1:
        axes.append(a.axes[-2])
        zero.append(a.zero[-2])
    if b.rank > 1:
        axes.append(b.axes[-1])
        zero.append(b.zero[-1])
    walk.put(node, axes, zero)
    if a.rank > 1 and b.rank > 1 and not node.domain:
        align(walk, node, without=(-1, -2))


def _gemm(walk: Walk, node: ir.Node) -> None:
    result = gemm(walk, node, walk.operand(node, 0), walk.operand(node, 1), 2)
    if read.text(node, "activation", "") not in _KEEP_ZERO:
        result.zero = [False, False]
    walk.put(node, result.axes, result.zero)


def gemm(walk: Walk, node: ir.Node, a: Operand, b: Operand, c: int) -> Operand:
    """What a matrix product of two matrices is labelled, with a bias as input ``c``."""
    k, m = (0, 1) if read.integer(node, "transA", 0) else (1, 0)
    n, j = (0, 1) if read.integer(node, "transB", 0) else (1, 0)
    if a.rank != 2 or b.rank != 2:
        raise Barrier("operands that are no matrices")
    contract(walk, node, a, k, b, j)
    result = Operand([a.axes[m], b.axes[n]], [a.zero[m], b.zero[n]])
    return walk.broadcast([result, walk.operand(node, c)], node) if walk.has(node, c) else result


def _filters(walk: Walk, node: ir.Node, x: Operand, w: Operand) -> int:
    """The groups of a convolution, of which all axes but batch and channels are frozen."""
    if x.rank != w.rank or x.rank < 3:
        raise Barrier("operands of different rank")
    for axis in range(2, w.rank):
        walk.keep(node, [w.axes[axis]], "a kernel axis")
        walk.keep(node, [x.axes[axis]], "a spatial axis")
    return read.integer(node, "group", 1)


_KEEP_ZERO = {"", "HardSwish", "LeakyRelu", "Relu", "Tanh"}


def _conv(walk: Walk, node: ir.Node) -> None:
    """``X [N, C, ..], W [M, C / group, ..], B [M]``, and a fourth operand to add, where fused."""
    x, w = walk.operand(node, 0), walk.operand(node, 1)
    convolve(walk, node, x, w, node.inputs[1])
    out = Operand([w.axes[0]], [w.zero[0]])
    if walk.has(node, 2):
        out = walk.broadcast([out, walk.operand(node, 2)], node)
    if walk.has(node, 3):
        more = walk.operand(node, 3)
        out = walk.broadcast([out, Operand(more.axes[1:2], more.zero[1:2])], node)
    if read.text(node, "activation", "") not in _KEEP_ZERO:
        out.zero[0] = False
    put_filtered(walk, node, x, out)


def convolve(walk: Walk, node: ir.Node, x: Operand, w: Operand, weight: ir.Value | None) -> None:
    """Tie the channels of a convolution's input to those of its weight, in groups or not.

    Args:
        walk: The labels.
        node: The convolution.
        x: Its input.
        w: Its weight.
        weight: The value of the weight.
    """
    group = _filters(walk, node, x, w)
    if group == 1:
        contract(walk, node, x, 1, w, 1)
    elif node in walk.balance and x.zero[1] and _balance(walk, node, x.axes[1], w, weight, group):
        pass
    else:
        groups = _grouped(walk, node, x.axes[1], w.axes[1], group)
        outer, _ = _split(walk, w.axes[0], group)
        walk.join(groups, outer, node)
        if not (x.zero[1] or w.zero[1]):
            raise Barrier("sums over channels that are not zero without their weights")
        _count_groups(walk, node, groups)


def _conv_transpose(walk: Walk, node: ir.Node) -> None:
    """``X [N, C, ..], W [C, M / group, ..], B [M]``."""
    x, w = walk.operand(node, 0), walk.operand(node, 1)
    group = _filters(walk, node, x, w)
    contract(walk, node, x, 1, w, 0)
    out = Operand([w.axes[1]], [w.zero[1]])
    if group > 1:
        groups, _ = _split(walk, w.axes[0], group)
        out.axes[0] = _merged(walk, groups, w.axes[1])
        _count_groups(walk, node, groups)
    if walk.has(node, 2):
        out = walk.broadcast([out, walk.operand(node, 2)], node)
    put_filtered(walk, node, x, out)


def put_filtered(walk: Walk, node: ir.Node, x: Operand, out: Operand) -> None:
    """Label what a convolution makes, from its input and the axis of its output channels."""
    spatial = walk.kept(node, walk.sizes(node.outputs[0])[2:], "a spatial axis")
    zero = [x.zero[0], out.zero[0]] + [False] * len(spatial)
    walk.put(node, [x.axes[0], out.axes[0], *spatial], zero)


def _split(walk: Walk, axis: Axis, group: int) -> tuple[Axis, Axis]:
    """Labels of the groups of an axis, and of the places in a group."""
    if axis is None:
        raise Barrier("channels in groups that vary")
    outer, inner = factor(walk, axis, (group, len(axis) // group))
    return outer, inner


def _grouped(walk: Walk, node: ir.Node, x: Axis, inner: Axis, group: int) -> Axis:
    """Channels in groups are products of a group and a place that all groups share."""
    outer, place = _split(walk, x, group)
    walk.join(place, inner, node)
    if outer is not None and place is not None and len(place) > 1:
        walk.grouped.append((node, outer, place))
    return outer


def _balance(
    walk: Walk, node: ir.Node, x: Axis, w: Operand, weight: ir.Value | None, group: int
) -> bool:
    """Let every channel go alone, as many from every group; whether the weight allows it."""
    if weight is None or read.constant(weight) is None or len(weight.uses()) != 1:
        return False
    if x is None or w.axes[0] is None:
        return False
    walk.keep(node, [w.axes[1]], "channels of a group, which go with the input's")
    walk.balanced += [np.split(x, group), np.split(w.axes[0], group)]
    walk.narrowed[weight] = x
    labels = x

    def rewrite(cut: Cut) -> None:
        tensor = read.constant(weight)
        assert tensor is not None
        kept = cut.kept(labels)
        if not kept.all():
            rows = np.split(tensor.numpy(), group)
            own = np.split(kept, group)
            parts = [part[:, keep] for part, keep in zip(rows, own, strict=True)]
            cut.lay_out(weight, np.concatenate(parts))

    walk.on_cut(node, rewrite)
    return True


def _merged(walk: Walk, outer: Axis, inner: Axis) -> Axis:
    if outer is None or inner is None:
        raise Barrier("channels in groups that vary")
    a = outer.repeat(len(inner))
    b = inner[None].repeat(len(outer), 0).reshape(-1)
    return walk.atoms.product([a, b])


def _count_groups(walk: Walk, node: ir.Node, groups: Axis) -> None:
    def rewrite(cut: Cut) -> None:
        assert groups is not None
        if cut.removed(groups):
            cut.set_integer(node, "group", len(groups) - cut.removed(groups))

    walk.on_cut(node, rewrite)


def _einsum(walk: Walk, node: ir.Node) -> None:
    equation = read.text(node, "equation", "")
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if "." in equation or not arrow or len(terms) != len(node.inputs):
        raise Barrier("an equation with ... or without ->")
    places: dict[str, list[tuple[Operand, int]]] = {}
    for index, term in enumerate(terms):
        operand = walk.operand(node, index)
        if len(term) != operand.rank or len(set(term)) != len(term):
            raise Barrier(f"the term {term!r} does not fit its operand")
        for axis, letter in enumerate(term):
            places.setdefault(letter, []).append((operand, axis))
    axes: dict[str, Axis] = {}
    zero: dict[str, bool] = {}
    for letter, uses in places.items():
        wide = [(o, axis) for o, axis in uses if o.length(axis) != 1] or uses
        zero[letter] = any(o.zero[axis] for o, axis in wide)
        axes[letter] = wide[0][0].axes[wide[0][1]]
        for operand, axis in wide[1:]:
            axes[letter] = walk.join(axes[letter], operand.axes[axis], node)
        if letter not in right and not zero[letter]:
            walk.keep(node, [axes[letter]], f"sums over {letter!r}")
    walk.put(node, [axes[letter] for letter in right], [zero[letter] for letter in right])


RULES: dict[tuple[str, str], Rule] = {
    ("", "Conv"): _conv,
    ("", "ConvTranspose"): _conv_transpose,
    ("", "Einsum"): _einsum,
    ("", "Gemm"): _gemm,
    ("", "MatMul"): _matmul,
    ("com.microsoft", "FusedConv"): _conv,
    ("com.microsoft", "FusedGemm"): _gemm,
    ("com.microsoft", "FusedMatMul"): _matmul,
    ("com.microsoft", "TransposeMatMul"): _matmul,
}
