"""Operators that hand numbers on as they are: elsewhere, repeated, or only some of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxshrink.graph import read
from onnxshrink.graph.gradients.application import Application, Gradients, Rule


def _by_places(op: Application) -> Gradients:
    """Places moved as the numbers were say where each came from, whatever the movement is."""
    (origin,) = op.again(op.x.places())
    return [op.dy.scattered(origin, op.x)]


def _same(op: Application) -> Gradients:
    return [op.dy]


def _cast(op: Application) -> Gradients:
    return [op.dy.cast(op.x.dtype)]


def _reshaped(op: Application) -> Gradients:
    return [op.dy.as_shaped(op.x)]


def _transpose(op: Application) -> Gradients:
    order = op.integers("perm", range(op.x.rank)[::-1])
    return [op.dy.transpose([int(axis) for axis in np.argsort(order)])]


def _expand(op: Application) -> Gradients:
    return [op.dy.fit(op.x)]


def _concat(op: Application) -> Gradients:
    """To each its part."""
    operands = [op[index] for index in range(len(op.inputs))]
    axis = op.integer("axis", 0) % op.dy.rank
    sizes = op.tape.joined([operand.size(axis) for operand in operands])
    if len(operands) == 1:
        return [op.dy]
    parts = op.tape.several(
        "Split", op.dy, sizes, dtypes=[op.dy.dtype] * len(operands), axis=axis
    )  # fmt: skip
    return [part.shaped(operand.shape) for part, operand in zip(parts, operands, strict=True)]


def _split(op: Application) -> Gradients:
    """Parts that nothing depends on are zeros."""
    parts = [
        y.zeros() if g is None else g
        for g, y in zip(op.gradients, op.outputs, strict=True)
        if y is not None
    ]
    return [op.tape.joined(parts, op.axis(0))]


def _slice(op: Application) -> Gradients:
    """Zeros around what was taken in one piece; else by places."""
    tape, x = op.tape, op.x
    axes, steps = (read.integer_list(each.value) if (each := op.operand(at)) else None
                   for at in (3, 4))  # fmt: skip
    if any(step != 1 for step in steps or ()) or (op.operand(3) and axes is None):
        return _by_places(op)
    if op.operand(4) is not None and steps is None:
        return _by_places(op)
    count = x.rank
    starts = op[1].cast(x.sizes.dtype)
    places = [axis % count for axis in axes] if axes is not None else None
    if places is None:
        known = read.integer_list(op[1].value)
        if known is None:
            return _by_places(op)
        places = [*range(len(known))]
    zeros, where = tape.integers([0] * count), tape.integers(places)
    sizes = tape.node("Gather", x.sizes, where)
    first = (starts + sizes).where(starts.is_("Less", 0), starts)
    first = first.apply("Max", tape.integers([0])).apply("Min", sizes)
    before = tape.node("ScatterElements", zeros, where, first)
    return [op.dy.pad(before, x.sizes - op.dy.sizes - before).shaped(x.shape)]


def _pad(op: Application) -> Gradients:
    """What was put around is cut off again, what was cut off was worth nothing."""
    if op.text("mode", "constant") != "constant":
        return _by_places(op)
    pads = op[1]
    if op.operand(3) is None:
        return [op.dy.apply("Pad", -pads).shaped(op.x.shape)]
    return [op.dy.apply("Pad", -pads, None, op.operand(3)).shaped(op.x.shape)]


def _tile(op: Application) -> Gradients:
    """The sum of all copies."""
    x, tape = op.x, op.tape
    pairs = tape.joined([op[1].unsqueeze([1]), x.sizes.unsqueeze([1])], axis=1)
    copies = [2 * axis for axis in range(x.rank)]
    return [op.dy.reshape(pairs.flat).sum(copies, keep=False).shaped(x.shape)]


def _gather(op: Application) -> Gradients:
    """Rows of a table get all that was made of them."""
    if op.axis(0) != 0:
        return _by_places(op)
    rows, table = op[1].cast(ir.DataType.INT64).unsqueeze([op[1].rank]), op.x
    return [table.zeros().plus_at("ScatterND", rows, op.dy)]


def _gather_elements(op: Application) -> Gradients:
    return [op.x.zeros().plus_at("ScatterElements", op[1], op.dy, axis=op.axis(0))]


def _scatter(op: Application) -> Gradients:
    """What is overwritten gets nothing; what is written gets what its places get."""
    kind, how = op.node.op_type, op.text("reduction", "none")
    if how not in ("none", "add"):
        raise read.Unknown(f"takes the {how} of what falls on one place")
    if kind == "ScatterND":
        taken = op.tape.node("GatherND", op.dy, op[1])
    else:
        taken = op.tape.node("GatherElements", op.dy, op[1], axis=op.axis(0))
    taken = taken.shaped(op[2].shape)
    if how == "add":
        return [op.dy, None, taken]
    (left,) = op.again(op.dy, op[1], taken.as_shaped(op[2]) * 0)
    return [left, None, taken]


def _trilu(op: Application) -> Gradients:
    return op.again(op.dy)


def _depth_to_space(op: Application) -> Gradients:
    size, order = op.integer("blocksize", 1), (0, 1, 3, 5, 2, 4)
    if op.text("mode", "DCR") == "DCR":
        return [op.tape.node("SpaceToDepth", op.dy, blocksize=size)]
    block, (high, wide) = op.tape.integers([size]), (op.x.size(axis) for axis in (2, 3))
    apart = op.tape.joined([op.tape.integers([0, 0]), high, block, wide, block])
    return [op.dy.reshape(apart).transpose(order).as_shaped(op.x)]


def _space_to_depth(op: Application) -> Gradients:
    return [op.tape.node("DepthToSpace", op.dy, blocksize=op.integer("blocksize", 1))]


def _resize(op: Application) -> Gradients:
    """Along each axis it is a product with a matrix: what it makes of the identity."""
    if op.text("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        raise read.Unknown("cuts out a region that is computed")
    tape, x, g, scales = op.tape, op.x, op.dy, op.operand(2)
    attributes: dict[str, Any] = {name: value for name, value in op.node.attributes.items()
                  if name not in ("axes", "keep_aspect_ratio_policy")}  # fmt: skip
    if scales is not None and scales.shape == (0,):
        scales = None  # as it was left out before it could be
    axes = [axis % x.rank for axis in op.integers("axes", range(x.rank))]
    factors = None if scales is None else read.array(scales.value)
    for at, axis in enumerate(axes):
        before, after = (None if t.shape is None else t.shape[axis] for t in (x, op.y))
        fixed = before is not None and before == after and factors is None
        if fixed or (factors is not None and factors[at] == 1):
            continue
        size = x.size(axis)
        square = tape.node("ConstantOfShape", tape.joined([size, size]), dtype=x.dtype)
        identity = tape.node("EyeLike", square, dtype=x.dtype)
        one = tape.constant(np.ones(1, np.float32))
        if scales is None:
            taken = [None, None, tape.joined([op.y.size(axis), size])]
        else:
            taken = [None, tape.joined([scales[at : at + 1], one])]
        matrix = tape.node("Resize", identity, *taken, **attributes)
        order = [other for other in range(x.rank) if other != axis] + [axis]
        g = tape.node("MatMul", g.transpose(order), matrix)
        g = g.transpose([int(place) for place in np.argsort(order)])
    return [g.shaped(x.shape)]


RULES: Mapping[tuple[str, str], Rule] = {
    ("", "Cast"): _cast,
    ("", "CastLike"): _cast,
    ("", "Compress"): _by_places,
    ("", "Concat"): _concat,
    ("", "DepthToSpace"): _depth_to_space,
    ("", "Expand"): _expand,
    ("", "Flatten"): _reshaped,
    ("", "Gather"): _gather,
    ("", "GatherElements"): _gather_elements,
    ("", "GatherND"): _by_places,
    ("", "Identity"): _same,
    ("", "Pad"): _pad,
    ("", "Reshape"): _reshaped,
    ("", "Resize"): _resize,
    ("", "ReverseSequence"): _by_places,
    ("", "ScatterElements"): _scatter,
    ("", "ScatterND"): _scatter,
    ("", "Slice"): _slice,
    ("", "SpaceToDepth"): _space_to_depth,
    ("", "Split"): _split,
    ("", "Squeeze"): _reshaped,
    ("", "Tile"): _tile,
    ("", "Transpose"): _transpose,
    ("", "Trilu"): _trilu,
    ("", "Unsqueeze"): _reshaped,
}
