"""What a product can do itself becomes part of it: paddings of convolutions, sums behind MatMul."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from onnxshrink.graph.analysis import shapes
from onnxshrink.graph.analysis.shape_rules import Shape
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.forms import edit
from onnxshrink.graph.read import constant


def fold_pads(model: Model) -> None:
    """Let convolutions pad their inputs with zeros themselves."""
    for scope in list(model.scopes):
        for pad in [node for node in scope if (node.domain, node.op_type) == ("", "Pad")]:
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
                given = node.attributes.get("pads")
                rank = widths.shape[1] - 2
                own = np.zeros(2 * rank, int) if given is None else np.array(given.as_ints())
                total = own.reshape(2, rank) + widths[:, 2:]
                node.attributes["pads"] = ir.AttrInt64s("pads", total.reshape(-1).tolist())
                node.attributes.pop("auto_pad", None)
                model.touch_node(node)
            model.touch(pad.outputs[0].name)
            constants = pad.inputs[1:]
            source = pad.inputs[0]
            assert source is not None
            pad.outputs[0].replace_all_uses_with(source)
            scope.remove(pad, safe=True)
            for value in constants:
                if value is not None:
                    edit.forget(model, value)


def _zero_padding(pad: ir.Node) -> np.ndarray | None:
    """How many zeros a Pad puts [before and after, each axis]; None where it does other things."""
    mode = pad.attributes.get("mode")
    if mode is not None and mode.as_string() != "constant":
        return None
    if "pads" in pad.attributes:  # before opset 11
        value = pad.attributes.get("value")
        widths, filler = (
            pad.attributes["pads"].as_ints(),
            0.0 if value is None else value.as_float(),
        )
    else:
        given = [None if v is None else constant(v) for v in pad.inputs[1:]]
        if not given or given[0] is None or (len(pad.inputs) > 3 and pad.inputs[3] is not None):
            return None
        if len(pad.inputs) > 2 and pad.inputs[2] is not None:
            if given[1] is None:
                return None
            filler = float(given[1].numpy().reshape(-1)[0])
        else:
            filler = 0.0
        widths = given[0].numpy().tolist()
    found = np.array(widths).reshape(2, -1)
    return found if filler == 0 and found.min() >= 0 and not found[:, :2].any() else None


def _pads_itself(node: ir.Node, scope: ir.Graph | ir.Function, rank: int) -> bool:
    auto = node.attributes.get("auto_pad")
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    kernel = None if weight is None else constant(weight)
    return (
        (node.domain, node.op_type) == ("", "Conv")
        and node.graph is scope
        and (auto is None or auto.as_string() in ("NOTSET", "VALID"))
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
        for node in [node for node in scope if (node.domain, node.op_type) == ("", "MatMul")]:
            added = _bias_behind(node, known)
            if added is None:
                continue
            sum_, bias = added
            output, result = node.outputs[0], sum_.outputs[0]
            node.op_type = "Gemm"
            node.resize_inputs(3)
            node.replace_input_with(2, bias)
            model.touch(output.name, result.name)
            name, output.type, output.shape = result.name, result.type, result.shape
            result.replace_all_uses_with(output, replace_graph_outputs=True)
            scope.remove(sum_, safe=True)
            output.name = name


def _bias_behind(node: ir.Node, known: Mapping[ir.Value, Shape]) -> tuple[ir.Node, ir.Value] | None:
    """The Add that alone uses a product of matrices, and the row that it adds to it."""
    first, weight = node.inputs[0], node.inputs[1]
    uses = list(node.outputs[0].uses())
    matrix = None if weight is None else constant(weight)
    if first is None or matrix is None or len(matrix.shape) != 2 or len(uses) != 1:
        return None
    user, index = uses[0]
    if (user.domain, user.op_type) != ("", "Add") or user.graph is not node.graph:
        return None
    bias = user.inputs[1 - index]
    row = None if bias is None else constant(bias)
    rank = known.get(first)
    if bias is None or row is None or rank is None or len(rank) != 2:
        return None
    if node.outputs[0].is_graph_output() or row.dtype != matrix.dtype or len(row.shape) > 2:
        return None
    return (user, bias) if tuple(row.shape)[-1:] == (row.size,) == (matrix.shape[1],) else None
