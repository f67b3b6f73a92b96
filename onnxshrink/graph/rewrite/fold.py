"""What a product can do itself becomes part of it: paddings of convolutions, sums behind MatMul."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxshrink.graph import operators, read, surgery
from onnxshrink.graph.analysis import shapes
from onnxshrink.graph.analysis.shape_rules import Shape
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.operators import Convolution, Matrices


def fold_pads(model: Model) -> None:
    """Let convolutions pad their inputs with zeros themselves."""
    for scope in list(model.scopes):
        for pad in [node for node in scope if operators.moves(node) == "pads"]:
            widths = _zero_padding(pad)
            readers = [node for node, index in pad.outputs[0].uses() if index == 0]
            if (
                widths is None
                or pad.outputs[0].is_graph_output()
                or len(readers) != len(pad.outputs[0].uses())
                or not all(_pads_itself(node, scope, widths.shape[1]) for node in readers)
            ):
                continue
            for node in readers:
                rank = widths.shape[1] - 2
                own = np.array(read.integers(node, "pads") or [0] * 2 * rank)
                total = own.reshape(2, rank) + widths[:, 2:]
                node.attributes["pads"] = ir.AttrInt64s("pads", total.reshape(-1).tolist())
                node.attributes.pop("auto_pad", None)
                model.touch_node(node)
            constants = [value for value in pad.inputs[1:] if value is not None]
            source = pad.inputs[0]
            assert source is not None
            surgery.redirect(model, pad.outputs[0], source)
            surgery.remove(model, pad)
            for value in constants:
                surgery.forget(model, value)


def _zero_padding(pad: ir.Node) -> np.ndarray | None:
    """How many zeros a Pad puts [before and after, each axis]; None where it does other things."""
    if read.obstacle(pad) or read.text(pad, "mode", "constant") != "constant":
        return None
    widths: Sequence[int] | None
    filler: float | None
    if "pads" in pad.attributes:  # before opset 11
        widths, filler = read.integers(pad, "pads"), read.number(pad, "value", 0.0)
    else:
        widths, value = read.integer_list(read.input(pad, 1)), read.input(pad, 2)
        filler = 0.0 if value is None else read.scalar(value)
    if widths is None or read.input(pad, 3) is not None:
        return None
    found = np.array(widths).reshape(2, -1)
    return found if filler == 0 and found.min() >= 0 and not found[:, :2].any() else None


def _pads_itself(node: ir.Node, scope: ir.Graph | ir.Function, rank: int) -> bool:
    kernel = read.constant(read.input(node, 1))
    return (
        operators.of(node, Convolution) == Convolution()
        and node.graph is scope
        and not read.obstacle(node)
        and read.text(node, "auto_pad", "NOTSET") in ("NOTSET", "VALID")
        and kernel is not None
        and len(kernel.shape) == rank
    )


def fold_biases(model: Model) -> None:
    """Let MatMul of matrices add the constant behind it: both become one Gemm.

    ONNX Runtime does so when it loads a model, and then looks for integer kernels; a Gemm whose
    bias is not quantized has none.
    """
    known = shapes.walk(model).shapes
    for scope in list(model.scopes):
        for node in [node for node in scope if _is_matmul(node)]:
            added = _bias_behind(node, known)
            if added is None:
                continue
            sum_, bias = added
            node.op_type = "Gemm"
            surgery.set_input(model, node, 2, bias)
            surgery.replace_node(model, sum_, node.outputs)


def _is_matmul(node: ir.Node) -> bool:
    return not node.domain and operators.of(node, Matrices) == Matrices()


def _bias_behind(node: ir.Node, known: Mapping[ir.Value, Shape]) -> tuple[ir.Node, ir.Value] | None:
    """The Add that alone uses a product of matrices, and the row that it adds to it."""
    first, weight = node.inputs[0], node.inputs[1]
    uses = list(node.outputs[0].uses())
    matrix = read.constant(weight)
    if first is None or matrix is None or len(matrix.shape) != 2 or len(uses) != 1:
        return None
    user, index = uses[0]
    if not operators.adds(user) or user.graph is not node.graph:
        return None
    bias = user.inputs[1 - index]
    row = read.constant(bias)
    rank = known.get(first)
    if bias is None or row is None or rank is None or len(rank) != 2:
        return None
    if node.outputs[0].is_graph_output() or row.dtype != matrix.dtype or len(row.shape) > 2:
        return None
    return (user, bias) if tuple(row.shape)[-1:] == (row.size,) == (matrix.shape[1],) else None
