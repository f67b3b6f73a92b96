"""Operators that move, pick, repeat or pad: labels move along."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxshrink.channels.labels import Axis, Barrier, Operand, Rule, Walk
from onnxshrink.channels.removal import Cut
from onnxshrink.graph import read


def _axis(node: ir.Node, rank: int, default: int = 0) -> int:
    axis = read.integer(node, "axis", default)
    return axis + rank if axis < 0 else axis


def _transpose(walk: Walk, node: ir.Node) -> None:
    x = walk.operand(node, 0)
    perm = read.integers(node, "perm") or tuple(range(x.rank))[::-1]
    walk.put(node, [x.axes[axis] for axis in perm], [x.zero[axis] for axis in perm])
    for axis, source in enumerate(perm):
        walk.put_digits(node, axis, walk.carry(node, 0, source))


def _concat(walk: Walk, node: ir.Node) -> None:
    parts = [walk.operand(node, i) for i in range(len(node.inputs))]
    zero = [all(part.zero[axis] for part in parts) for axis in range(parts[0].rank)]
    walk.put(node, concatenated(walk, node, parts), zero)


def concatenated(walk: Walk, node: ir.Node, parts: Sequence[Operand]) -> list[Axis]:
    """Labels of operands joined along the axis that a node names."""
    at = _axis(node, parts[0].rank)
    axes: list[Axis] = []
    for axis in range(parts[0].rank):
        labels = [part.axes[axis] for part in parts]
        if axis != at:
            joined = labels[0]
            for other in labels[1:]:
                joined = walk.join(joined, other, node)
            axes.append(joined)
        elif any(one is None for one in labels):
            walk.keep(node, labels, "joined to an axis of varying length")
            axes.append(None)
        else:
            axes.append(np.concatenate([one for one in labels if one is not None]))
    return axes


def _split(walk: Walk, node: ir.Node) -> None:
    x = walk.operand(node, 0)
    at = _axis(node, x.rank)
    sizes = [walk.sizes(value)[at] for value in node.outputs]
    labels = x.axes[at]
    parts: list[Axis] = [None] * len(sizes)
    if labels is not None:
        if any(a != b for a, b in sizes) or sum(a for a, _ in sizes) != len(labels):
            raise Barrier("parts of varying length")
        parts = list(np.split(labels, np.cumsum([a for a, _ in sizes])[:-1]))
        walk.on_cut(node, lambda cut: _resplit(cut, node, [p for p in parts if p is not None]))
    for output, part in enumerate(parts):
        walk.put(node, [*x.axes[:at], part, *x.axes[at + 1 :]], x.zero, output)


def _resplit(cut: Cut, node: ir.Node, parts: Sequence[np.ndarray]) -> None:
    if not any(cut.removed(part) for part in parts):
        return
    lengths = [len(part) - cut.removed(part) for part in parts]
    if cut.model.opset < 13:
        cut.set_integers(node, "split", lengths)
    else:
        cut.drop_attribute(node, "num_outputs")
        cut.replace_input(node, 1, np.array(lengths, np.int64))


def _slice(walk: Walk, node: ir.Node) -> None:
    x = walk.operand(node, 0)
    out = walk.sizes(node.outputs[0])
    starts, ends, which, steps = _ranges(walk, node, x.rank)
    axes: list[Axis] = list(x.axes)
    moved: dict[int, tuple[np.ndarray, int, int]] = {}  # position in starts -> labels, start, end
    for place, axis in enumerate(which):
        labels = x.axes[axis]
        if labels is None or out[axis] == (len(labels), len(labels)):
            if labels is not None and steps is not None and steps[place] < 0:
                walk.keep(node, [labels], "reversed")
                axes[axis] = labels[::-1]
            continue
        if starts is None or ends is None or steps is None:
            walk.keep(node, [labels], "a range that is not constant")
            axes[axis] = walk.kept(node, [out[axis]], "a range that is not constant")[0]
            continue
        chosen = np.arange(len(labels))[starts[place] : ends[place] : steps[place]]
        if steps[place] != 1:
            walk.keep(node, [labels], "every so many channels")
        elif len(chosen):
            moved[place] = labels, int(chosen[0]), int(chosen[-1]) + 1
        axes[axis] = labels[chosen]
    walk.put(node, axes, x.zero)
    if starts is not None and ends is not None and moved:
        walk.on_cut(node, lambda cut: _reslice(cut, node, starts, ends, moved))


def _ranges(
    walk: Walk, node: ir.Node, rank: int
) -> tuple[list[int] | None, list[int] | None, list[int], list[int] | None]:
    """Starts, ends, axes, steps of a Slice; None for what is not constant."""
    starts, ends = read.integers(node, "starts"), read.integers(node, "ends")
    if starts is not None and ends is not None:  # before opset 10
        which = read.integers(node, "axes") or range(len(starts))
        return list(starts), list(ends), [axis % rank for axis in which], [1] * len(starts)
    found = [walk.constant(node, index) for index in range(1, 5)]
    size = walk.sizes(node.inputs[1])[0][0]
    if walk.has(node, 3) and found[2] is None:
        raise Barrier("axes that are not constant")
    which = list(range(size)) if found[2] is None else [int(axis) % rank for axis in found[2]]
    steps = [int(step) for step in found[3]] if found[3] is not None else None
    if steps is None and not walk.has(node, 4):
        steps = [1] * size
    first, last = ([int(v) for v in f] if f is not None else None for f in found[:2])
    return first, last, which, steps


def _reslice(
    cut: Cut, node: ir.Node, starts: Sequence[int], ends: Sequence[int],
    moved: dict[int, tuple[np.ndarray, int, int]],
) -> None:  # fmt: skip
    new_starts, new_ends = list(starts), list(ends)
    for place, (labels, start, end) in moved.items():
        kept = cut.kept(labels)
        if not kept.all():
            new_starts[place] = int(kept[:start].sum())
            new_ends[place] = int(kept[:end].sum())
    if (new_starts, new_ends) == (list(starts), list(ends)):
        return
    if "starts" in node.attributes:
        cut.set_integers(node, "starts", new_starts)
        cut.set_integers(node, "ends", new_ends)
    else:
        cut.replace_input(node, 1, np.array(new_starts, np.int64))
        cut.replace_input(node, 2, np.array(new_ends, np.int64))


def _gather(walk: Walk, node: ir.Node) -> None:
    data = walk.operand(node, 0)
    at = _axis(node, data.rank)
    index = walk.constant(node, 1)
    labels = data.axes[at]
    middle: list[Axis]
    if labels is not None and index is not None and index.ndim < 2:
        places = np.where(index < 0, index + len(labels), index).astype(np.int64)
        if index.ndim == 0:
            walk.keep(node, [labels[places.reshape(1)]], "picked")
            middle = []
        else:
            middle = [labels[places]]
        walk.on_cut(node, lambda cut: _regather(cut, node, labels, places))
    else:
        walk.keep(node, [labels], "looked up by indices that vary")
        if node.inputs[1] in walk.labels:
            middle = walk.operand(node, 1).axes
        else:
            sizes = walk.sizes(node.inputs[1])
            middle = walk.kept(node, sizes, "an axis of the indices")
    zero = [*data.zero[:at], *[bool(data.zero[at])] * len(middle), *data.zero[at + 1 :]]
    walk.put(node, [*data.axes[:at], *middle, *data.axes[at + 1 :]], zero)


def _regather(cut: Cut, node: ir.Node, labels: np.ndarray, places: np.ndarray) -> None:
    kept = cut.kept(labels)
    if kept.all():
        return
    new_index = np.cumsum(kept) - 1
    chosen = places if places.ndim == 0 else places[kept[places]]
    cut.replace_input(node, 1, np.asarray(new_index[chosen], np.int64))


def _tile(walk: Walk, node: ir.Node) -> None:
    x = walk.operand(node, 0)
    out = walk.sizes(node.outputs[0])
    axes: list[Axis] = []
    for labels, size in zip(x.axes, out, strict=True):
        if labels is None or size[0] != size[1]:
            walk.keep(node, [labels], "repeated a varying number of times")
            axes += walk.kept(node, [size], "repeated")
        else:
            axes.append(np.tile(labels, size[0] // len(labels)))
    walk.put(node, axes, x.zero)


def _pad(walk: Walk, node: ir.Node) -> None:
    x = walk.operand(node, 0)
    out = walk.sizes(node.outputs[0])
    stated = read.integers(node, "pads")
    pads = walk.constant(node, 1) if stated is None else np.array(stated)
    given = walk.constant(node, 3)
    which = [int(axis) % x.rank for axis in given] if given is not None else list(range(x.rank))
    axes: list[Axis] = list(x.axes)
    why = "a padded axis"
    for axis, labels in enumerate(x.axes):
        if labels is None or out[axis] == (len(labels), len(labels)):
            continue
        place = which.index(axis) if axis in which else None
        simple = read.text(node, "mode", "constant") == "constant"
        if pads is None or place is None or not simple or (pads < 0).any():
            walk.keep(node, [labels], why)
            axes[axis] = walk.kept(node, [out[axis]], why)[0]
            continue
        before, after = (int(pads[place + side * len(which)]) for side in (0, 1))
        edges = walk.kept(node, [(before, before), (after, after)], why)
        axes[axis] = np.concatenate([edges[0], labels, edges[1]])
    walk.put(node, axes, x.zero)


def _expand(walk: Walk, node: ir.Node) -> None:
    """An axis that is repeated may be repeated less often."""
    x = walk.operand(node, 0)
    out = walk.sizes(node.outputs[0])
    pad = len(out) - x.rank
    axes: list[Axis] = []
    zero: list[bool] = []
    for axis, size in enumerate(out):
        own = axis - pad
        if own >= 0 and x.length(own) != 1:
            axes.append(x.axes[own])
            zero.append(x.zero[own])
        else:
            axes += walk.fresh([size])
            zero.append(False)
    walk.put(node, axes, zero)
    _shaped_by(walk, node, 1, axes)


def _shaped_by(walk: Walk, node: ir.Node, index: int, axes: Sequence[Axis]) -> None:
    """Take what is removed off the shape that an input gives, aligned to the right."""
    values = walk.facts.values(node.inputs[index])
    if values is None:
        walk.keep(node, axes, "a shape that is not known")
        return
    shape, lead = values[0], len(axes) - len(values[0])

    def rewrite(cut: Cut) -> None:
        removed = np.array(
            [
                0 if shape[i] == 1 else cut.removed(axes[lead + i])
                for i in range(len(shape))
            ], np.int64,
        )  # fmt: skip
        if removed.any():
            cut.subtract(node, index, removed)

    walk.on_cut(node, rewrite)


def _constant_of_shape(walk: Walk, node: ir.Node) -> None:
    axes = walk.fresh(walk.sizes(node.outputs[0]))
    tensor = node.attributes["value"].as_tensor().numpy() if "value" in node.attributes else 0
    walk.put(node, axes, [not np.any(tensor)] * len(axes))
    _shaped_by(walk, node, 0, axes)


def _depth_to_space(walk: Walk, node: ir.Node) -> None:
    """Digits of the block stay; the channels of a block go together."""
    x = walk.operand(node, 0)
    block = read.integer(node, "blocksize", 1)
    labels = x.axes[1]
    if labels is None:
        raise Barrier("channels that vary")
    count = len(labels) // block**2
    if read.text(node, "mode", "DCR") == "DCR":
        grid = labels.reshape(block**2, count)
    else:
        grid = labels.reshape(count, block**2).T
    for row in grid[1:]:
        walk.join(grid[0], row, node)
    spatial = walk.kept(node, walk.sizes(node.outputs[0])[2:], "a spatial axis")
    walk.put(node, [x.axes[0], grid[0].copy(), *spatial], [False, x.zero[1], False, False])
    walk.freeze_spatial(node, x)


def _space_to_depth(walk: Walk, node: ir.Node) -> None:
    x = walk.operand(node, 0)
    labels = x.axes[1]
    if labels is None:
        raise Barrier("channels that vary")
    spatial = walk.kept(node, walk.sizes(node.outputs[0])[2:], "a spatial axis")
    tiled = np.tile(labels, read.integer(node, "blocksize", 1) ** 2)
    walk.put(node, [x.axes[0], tiled, *spatial], [False, x.zero[1], False, False])
    walk.freeze_spatial(node, x)


def _trilu(walk: Walk, node: ir.Node) -> None:
    """What is above or below the diagonal depends on both of the last axes."""
    x = walk.operand(node, 0)
    walk.keep(node, x.axes[-2:], "a diagonal")
    walk.put(node, x.axes, x.zero)


RULES: dict[tuple[str, str], Rule] = {
    ("", "Concat"): _concat,
    ("", "ConstantOfShape"): _constant_of_shape,
    ("", "DepthToSpace"): _depth_to_space,
    ("", "Expand"): _expand,
    ("", "Gather"): _gather,
    ("", "Pad"): _pad,
    ("", "Slice"): _slice,
    ("", "SpaceToDepth"): _space_to_depth,
    ("", "Split"): _split,
    ("", "Tile"): _tile,
    ("", "Transpose"): _transpose,
    ("", "Trilu"): _trilu,
    ("com.microsoft", "Pad"): _pad,
    ("com.microsoft", "Trilu"): _trilu,
}
