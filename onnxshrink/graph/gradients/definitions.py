"""The graph as rules take it: without functions, fused products, and operators made of others."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import onnx
import onnx.inliner
import onnx_ir as ir

from onnxshrink.graph import operators, read
from onnxshrink.graph.file import contrib
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.gradients.application import Application
from onnxshrink.graph.gradients.recurrent import unrolled
from onnxshrink.graph.gradients.rules import RULES, STOPS
from onnxshrink.graph.gradients.terms import Tape
from onnxshrink.graph.operators import Recurrent
from onnxshrink.graph.rewrite import inline, opset, plain

logger = logging.getLogger(__name__)

_OPSET = 17  # all that rules record means the same from here on
_DEPTH = 4  # definitions are written in operators that may have definitions themselves


def spelled_out(model: Model) -> Model:
    """A copy in operators that have rules, as far as the standard defines the others by these.

    Raises:
        UnsupportedModel: Its operator set cannot be raised, or a function not be inlined.
    """
    copy = model.clone()
    inline.inline_functions(copy)
    opset.raise_opset(copy, _OPSET)
    plain.spell_out(copy)
    for _ in range(_DEPTH):
        composed = {node.op_type for node in copy.nodes if _is_composed(node, copy.opset)}
        if not composed:
            break
        Tape.over(copy)  # definitions depend on types
        copy.rewrite_proto(partial(_inlined, composed, copy.opset))
    _unroll(copy)
    return copy


def _unroll(model: Model) -> None:
    """Write out recurrent layers; those that cannot be stay, and stop gradients."""
    found = [node for node in model.ir.graph if operators.of(node, Recurrent) is not None]
    for node in found:
        tape = Tape.over(model)
        try:
            tape.put_in_place(node, unrolled(Application.of(node, tape)))
        except read.Unknown as reason:
            logger.debug("%s %r: %s", node.op_type, node.name, reason)


def _is_composed(node: ir.Node, version: int) -> bool:
    """Whether the standard defines an operator by others, and we by nothing."""
    key = node.domain, node.op_type
    if node.domain or key in RULES or node.op_type in STOPS or not onnx.defs.has(*key[::-1]):
        return False
    schema: Any = onnx.defs.get_schema(node.op_type, version, "")
    return bool(schema.has_function or schema.has_context_dependent_function)


def _inlined(composed: set[str], version: int, proto: onnx.ModelProto) -> onnx.ModelProto:
    contrib.declare()
    for node in proto.graph.node:
        if not node.domain and node.op_type in composed:
            _say_defaults(node, version)
    for tensor in proto.graph.initializer:  # whose types it does not see
        known = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        proto.graph.value_info.append(known)
    return onnx.inliner.inline_selected_functions(
        onnx.shape_inference.infer_shapes(proto),
        [("", name) for name in sorted(composed)],
        inline_schema_functions=True,
    )


def _say_defaults(node: onnx.NodeProto, version: int) -> None:
    """Write down what a node leaves to defaults: onnx's inliner does not know them."""
    given = {attribute.name for attribute in node.attribute}
    for name, attribute in onnx.defs.get_schema(node.op_type, version, "").attributes.items():
        if name not in given and attribute.default_value.type:
            node.attribute.append(attribute.default_value)
