"""Operators that a convolution can do at no cost become part of it: paddings, scales and shifts."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxshrink.graph import edit
from onnxshrink.graph.model import Model
from onnxshrink.graph.weights import constant


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
