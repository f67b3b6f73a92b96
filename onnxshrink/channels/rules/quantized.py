"""Quantized tensors: scales and zero points go with the channels that they belong to.

A code is zero when it equals the zero point. A weight that goes is meant so: all its codes do.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxshrink.channels.labels import Axis, Barrier, Operand, Rule, Walk
from onnxshrink.channels.removal import Cut
from onnxshrink.channels.rules.attention import heads_of, put_attended
from onnxshrink.channels.rules.contraction import contract, convolve, gemm, matmul, put_filtered
from onnxshrink.channels.rules.elementwise import KEEPS_ZERO
from onnxshrink.channels.rules.movement import concatenated
from onnxshrink.channels.rules.reshape import factor, merge
from onnxshrink.graph import read


def _is_symmetric(walk: Walk, node: ir.Node, index: int) -> bool:
    """Whether code 0 stands for 0: there is no zero point, or it is 0."""
    if not walk.has(node, index):
        return True
    value = node.inputs[index]
    tensor = read.constant(value)
    return tensor is not None and not np.any(tensor.numpy())


def _codes(walk: Walk, node: ir.Node, index: int, zero_point: int) -> Operand:
    """An operand of codes, which are constant or have a zero point of 0 if they may be zero."""
    operand, value = walk.operand(node, index), node.inputs[index]
    computed = value is not None and read.constant(value) is None
    if computed and not _is_symmetric(walk, node, zero_point):
        operand.zero = [False] * operand.rank
    return operand


def _tie_vector(walk: Walk, node: ir.Node, index: int, axis: Axis) -> None:
    """Tie a scale or zero point, where it is per channel, to the axis that it scales."""
    if walk.has(node, index):
        vector = walk.operand(node, index)
        if vector.rank > 1:
            raise Barrier("scales of more than one axis")
        if vector.rank == 1 and vector.length(0) != 1:
            walk.join(axis, vector.axes[0], node)


# -------------------------------------------------------------------------- QDQ


def _affine(walk: Walk, node: ir.Node) -> None:
    """QuantizeLinear and DequantizeLinear: per tensor, per axis, or in blocks of one axis."""
    x, scale = walk.operand(node, 0), walk.operand(node, 1)
    at = read.integer(node, "axis", 1)
    at = at + x.rank if at < 0 else at
    block = read.integer(node, "block_size", 0)
    for index in (1, 2):
        if block and walk.has(node, index):
            vector = walk.operand(node, index)
            for axis in range(vector.rank):
                if axis != at:
                    walk.join(x.axes[axis], vector.axes[axis], node)
                elif vector.length(axis) != 1:
                    _tie_blocks(walk, node, x.axes[at], vector.axes[at], block)
        elif scale.rank:
            _tie_vector(walk, node, index, x.axes[at] if x.rank > at else None)
    walk.put(node, x.axes, _zero_behind(walk, node, x))


def _tie_blocks(walk: Walk, node: ir.Node, axis: Axis, blocks: Axis, size: int) -> None:
    """Only whole blocks may go, with their scale."""
    if axis is None or blocks is None or len(axis) != len(blocks) * size:
        walk.keep(node, (axis, blocks), "blocks of unequal length share a scale")
        return
    outer, inner = factor(walk, axis, (len(blocks), size))
    walk.keep(node, [inner], "channels of a block share a scale")
    walk.join(outer, blocks, node)


def _zero_behind(walk: Walk, node: ir.Node, x: Operand) -> list[bool]:
    """Where zeros in are zeros out: 0 keeps its code, and a zero point its value."""
    value = node.inputs[0]
    if node.op_type == "QuantizeLinear" or value is None:
        return [zero and _is_symmetric(walk, node, 2) for zero in x.zero]
    if read.constant(value) is not None or _is_symmetric(walk, node, 2):
        return x.zero
    before = value.producer()
    if before is not None and before.op_type == "QuantizeLinear" and before.inputs[0] is not None:
        points = [n.inputs[2] if len(n.inputs) > 2 else None for n in (before, node)]
        tensors = [read.constant(point) for point in points]
        one, other = (None if tensor is None else tensor.numpy() for tensor in tensors)
        if one is not None and other is not None and np.array_equal(one, other):
            return list(walk.operand(before, 0).zero)
    return [False] * x.rank


def _dynamic(walk: Walk, node: ir.Node) -> None:
    x = walk.operand(node, 0)
    keep_range(walk, node, x)
    walk.put(node, x.axes, [False] * x.rank)
    walk.put(node, [], output=1)
    walk.put(node, [], output=2)


def keep_range(walk: Walk, node: ir.Node, x: Operand) -> None:
    """A range always has 0 in it, so channels of zeros do not move it; others must stay."""
    for labels, zero in zip(x.axes, x.zero, strict=True):
        if not zero:
            walk.keep(node, [labels], "its range depends on all values")


# ------------------------------------------------------------- integer products


def _qlinear_conv(walk: Walk, node: ir.Node) -> None:
    """``x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, B``."""
    x, w = _codes(walk, node, 0, 2), _codes(walk, node, 3, 5)
    if read.integer(node, "channels_last", 0):
        raise Barrier("channels that come last")
    convolve(walk, node, x, w, node.inputs[3])
    for index in (4, 5, 8):
        _tie_vector(walk, node, index, w.axes[0])
    put_filtered(walk, node, x, Operand([w.axes[0]], [w.zero[0] and _is_symmetric(walk, node, 7)]))


def _conv_integer(walk: Walk, node: ir.Node) -> None:
    """``x, w, x_zero, w_zero``."""
    x, w = _codes(walk, node, 0, 2), _codes(walk, node, 1, 3)
    convolve(walk, node, x, w, node.inputs[1])
    _tie_vector(walk, node, 3, w.axes[0])
    put_filtered(walk, node, x, Operand([w.axes[0]], [w.zero[0]]))


def _integer_matmul(points: tuple[int, int], columns: Sequence[int], b: int = 1) -> Rule:
    """A product of codes: where the zero points are, and what belongs to columns of B."""

    def rule(walk: Walk, node: ir.Node) -> None:
        left, right = _codes(walk, node, 0, points[0]), _codes(walk, node, b, points[1])
        output_point = 7 if node.op_type == "QLinearMatMul" else len(node.inputs)
        if right.rank < 2:
            raise Barrier("a vector as its second operand")
        for index in columns:
            _tie_vector(walk, node, index, right.axes[-1])
        rows = [i for i in (points[0], points[0] - 1) if i > b or node.op_type == "QLinearMatMul"]
        for index in rows:
            vector = walk.operand(node, index) if walk.has(node, index) else None
            if vector is not None and vector.rank and vector.length(0) != 1:
                raise Barrier("a zero point for every row")
        matmul(walk, node, left, right)
        if not _is_symmetric(walk, node, output_point):
            value = node.outputs[0]
            walk.zero[value] = [False] * len(walk.zero[value])

    return rule


def _dynamic_matmul(walk: Walk, node: ir.Node) -> None:
    """``A, B, b_scale, b_zero_point, bias``; A is quantized by its own range."""
    a, b = walk.operand(node, 0), _codes(walk, node, 1, 3)
    keep_range(walk, node, a)
    for index in (2, 3, 4):
        _tie_vector(walk, node, index, b.axes[-1])
    matmul(walk, node, a, b)


def _qgemm(walk: Walk, node: ir.Node) -> None:
    """``A, a_scale, a_zero, B, b_scale, b_zero, C, y_scale, y_zero``."""
    a, b = _codes(walk, node, 0, 2), _codes(walk, node, 3, 5)
    for index in (4, 5):
        _tie_vector(walk, node, index, b.axes[0 if read.integer(node, "transB", 0) else 1])
    result = gemm(walk, node, a, b, 6)
    symmetric = _is_symmetric(walk, node, 8)
    walk.put(node, result.axes, [zero and symmetric for zero in result.zero])


def _block_matmul(walk: Walk, node: ir.Node) -> None:
    """MatMulNBits: ``A [.., K], B [N, blocks, bytes], scales, zero points, g_idx, bias [N]``."""
    a, b = walk.operand(node, 0), walk.operand(node, 1)
    rows, blocks, size = b.axes[0], b.axes[1], read.integer(node, "block_size", 0)
    points = walk.operand(node, 3) if walk.has(node, 3) else None
    packed = points is not None and points.length(-1) not in (
        b.length(1),
        (b.length(0) or 0) * (b.length(1) or 0),
    )
    if walk.has(node, 4) or packed or b.length(1) == 1:
        walk.keep(node, [a.axes[-1]], "channels of a block share bytes")
        walk.keep(node, [blocks], "channels of a block share bytes")
    else:
        _tie_blocks(walk, node, a.axes[-1], blocks, size)
    walk.keep(node, [b.axes[2]], "the bytes of a block")
    if rows is None or blocks is None:
        raise Barrier("a weight that varies")
    for index in (2, 3):
        if not walk.has(node, index):
            continue
        table = walk.operand(node, index)
        if table.rank == 2:
            walk.join(rows, table.axes[0], node)
            if table.length(1) == len(blocks):
                walk.join(blocks, table.axes[1], node)
            else:
                walk.keep(node, [table.axes[1]], "zero points share bytes")
        elif table.length(0) == len(rows) * len(blocks):
            walk.join(merge(walk, [rows, blocks]), table.axes[0], node)
        else:
            length = table.length(0) or 0
            walk.join(rows.repeat(length // len(rows)), table.axes[0], node)
    _tie_vector(walk, node, 5, rows)
    walk.put(node, [*a.axes[:-1], rows], [*a.zero[:-1], b.zero[0]])

    def rewrite(cut: Cut) -> None:
        cut.set_integer(node, "N", len(rows) - cut.removed(rows))
        if gone := cut.removed(a.axes[-1]):
            cut.set_integer(node, "K", read.integer(node, "K", 0) - gone)

    walk.on_cut(
        node, lambda cut: rewrite(cut) if cut.removed(rows) or cut.removed(blocks) else None
    )


def _attention(walk: Walk, node: ir.Node) -> None:
    """``x, w [C, 3 * H * D], bias, x_scale, w_scale, mask, x_zero, w_zero``."""
    if walk.has(node, 8) or len(node.outputs) > 1 or read.integer(node, "do_rotary", 0):
        raise Barrier("a cache, or rotary positions")
    x, w, bias = _codes(walk, node, 0, 6), _codes(walk, node, 1, 7), walk.operand(node, 2)
    contract(walk, node, x, 2, w, 0)
    columns = walk.join(w.axes[1], bias.axes[0], node)
    for index in (4, 7):
        _tie_vector(walk, node, index, columns)
    if columns is None:
        raise Barrier("heads that vary")
    count = read.integer(node, "num_heads", 0)
    q, k, v = (heads_of(walk, part, count) for part in np.split(columns, 3))
    walk.join(q[0], k[0], node)
    walk.join(k[1], v[1], node)  # all three have one size
    put_attended(walk, node, (q, k, v), x, [w.zero[1] and bias.zero[0]] * 3)


# ----------------------------------------------------------------- value by value


def _elementwise(walk: Walk, node: ir.Node) -> None:
    """QLinearAdd, QLinearMul: ``A, scale, zero, B, scale, zero, scale, zero``."""
    result = walk.broadcast([walk.operand(node, 0), walk.operand(node, 3)], node)
    walk.put(node, result.axes, [False] * len(result.axes))


def _where(walk: Walk, node: ir.Node) -> None:
    """``condition, X, scale, zero, Y, scale, zero, scale, zero``."""
    result = walk.broadcast([walk.operand(node, index) for index in (0, 1, 4)], node)
    walk.put(node, result.axes, [False] * len(result.axes))


def _softmax(walk: Walk, node: ir.Node) -> None:
    """``X, scale, zero, scale, zero``."""
    x = walk.operand(node, 0)
    at = read.integer(node, "axis", -1) % x.rank
    # Before opset 13 Softmax ran along all axes from this one on.
    end = x.rank if read.integer(node, "opset", 13) < 13 else at + 1
    walk.keep(node, x.axes[at:end], "runs along it")
    walk.put(node, x.axes)


def _unary(walk: Walk, node: ir.Node) -> None:
    """QLinearLeakyRelu, QLinearSigmoid: ``X, scale, zero, scale, zero``."""
    x = walk.operand(node, 0)
    symmetric = _is_symmetric(walk, node, 2) and _is_symmetric(walk, node, 4)
    keeps = symmetric and node.op_type.removeprefix("QLinear") in KEEPS_ZERO
    walk.put(node, x.axes, [keeps and zero for zero in x.zero])


def _pool(walk: Walk, node: ir.Node) -> None:
    """QLinearAveragePool and its global form, whose channels may come last."""
    x = walk.operand(node, 0)
    if read.integer(node, "channels_last", 0):
        raise Barrier("channels that come last")
    walk.freeze_spatial(node, x)
    spatial = walk.kept(node, walk.sizes(node.outputs[0])[2:], "a spatial axis")
    walk.put(node, [*x.axes[:2], *spatial])


def _concat(walk: Walk, node: ir.Node) -> None:
    """``scale, zero, X, scale, zero, ...``."""
    parts = [walk.operand(node, index) for index in range(2, len(node.inputs), 3)]
    walk.put(node, concatenated(walk, node, parts))


RULES: dict[tuple[str, str], Rule] = {
    ("", "ConvInteger"): _conv_integer,
    ("", "DequantizeLinear"): _affine,
    ("", "DynamicQuantizeLinear"): _dynamic,
    ("", "MatMulInteger"): _integer_matmul((2, 3), (3,)),
    ("", "QLinearConv"): _qlinear_conv,
    ("", "QLinearMatMul"): _integer_matmul((2, 5), (4, 5), 3),
    ("", "QuantizeLinear"): _affine,
    ("com.microsoft", "DequantizeLinear"): _affine,
    ("com.microsoft", "DynamicQuantizeMatMul"): _dynamic_matmul,
    ("com.microsoft", "MatMulIntegerToFloat"): _integer_matmul((4, 5), (3, 5, 6)),
    ("com.microsoft", "MatMulNBits"): _block_matmul,
    ("com.microsoft", "QAttention"): _attention,
    ("com.microsoft", "QGemm"): _qgemm,
    ("com.microsoft", "QLinearAdd"): _elementwise,
    ("com.microsoft", "QLinearAveragePool"): _pool,
    ("com.microsoft", "QLinearConcat"): _concat,
    ("com.microsoft", "QLinearConv"): _qlinear_conv,
    ("com.microsoft", "QLinearGlobalAveragePool"): _pool,
    ("com.microsoft", "QLinearLeakyRelu"): _unary,
    ("com.microsoft", "QLinearMul"): _elementwise,
    ("com.microsoft", "QLinearSigmoid"): _unary,
    ("com.microsoft", "QLinearSoftmax"): _softmax,
    ("com.microsoft", "QLinearWhere"): _where,
    ("com.microsoft", "QuantizeLinear"): _affine,
}
