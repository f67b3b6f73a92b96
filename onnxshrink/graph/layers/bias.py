"""The vector that a layer adds to its outputs: changed where it is, made where there is none."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxshrink.graph import surgery, weights
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.layers.fitting import Outline
from onnxshrink.graph.operators import Product, moves

Array = npt.NDArray[np.float64]


def why_not(outline: Outline) -> str:
    """Why a layer's bias cannot be changed; empty when it can."""
    if outline.hidden:
        return outline.hidden
    try:
        if product_of(outline).out_axis == -2:
            return "its weight is multiplied from the left"
    except ValueError as error:
        return str(error)
    if outline.bias is not None and _stored(outline.bias) is None:
        return "what it adds is not stored as numbers of its own"
    return ""


def product_of(outline: Outline) -> Product:
    """How a layer without :func:`why_not` multiplies."""
    assert outline.product is not None
    return outline.product


def shift(
    model: Model, outline: Outline, amount: Array, weight: ir.TensorProtocol | None
) -> tuple[str, int, int]:
    """Add to what a layer adds.

    Args:
        model: The model, whose journal is kept.
        outline: The layer.
        amount: One number for each channel.
        weight: Its weight before it was compressed, which may say in which type it computes.

    Returns:
        The name of the constant that was changed, or of the output that has a new one, and its
        bytes before and after.
    """
    node, product = outline.node, product_of(outline)
    if outline.bias is not None and product.bias is outline.bias:
        amount = amount / product.beta
    if outline.bias is None:
        values = amount.astype(_computed_in(node, weight).numpy())
        if not product.takes_bias:
            _add_behind(model, node, values)
        else:
            node.attributes.pop("beta", None)
            surgery.give_constant(model, node, 2, values, f"{outline.output}.bias")
        return outline.output, 0, values.nbytes
    stored = _stored(outline.bias)
    assert stored is not None
    tensor = weights.constant(stored)
    assert tensor is not None
    values = tensor.numpy() + amount
    if is_own(outline) and values.shape == tuple(tensor.shape):
        view = next(view for view in weights.find(model) if view.value is stored)
        surgery.set_constant(model, view.value, values)
        return stored.name or "", tensor.nbytes, tensor.nbytes
    user, index = next(
        (use.node, use.idx) for use in outline.bias.uses() if _adds(use.node, outline)
    )
    values = values.astype(_type(outline.bias, tensor).numpy())
    surgery.give_constant(model, user, index, values, f"{outline.output}.bias")
    surgery.forget(model, stored)
    return outline.output, 0, values.nbytes


def is_own(outline: Outline) -> bool:
    """Whether a layer has a bias that is stored for it alone, and not once for several."""
    stored = None if outline.bias is None else _stored(outline.bias)
    if stored is None or outline.bias is None:
        return False
    return len(stored.uses()) == len(outline.bias.uses()) == 1


def _adds(user: ir.Node, outline: Outline) -> bool:
    """Whether it is this layer that a vector is added to."""
    return user is outline.node or user.outputs[0].name == outline.output


def _stored(value: ir.Value) -> ir.Value | None:
    """The floating-point constant behind a vector, which may be stored in another type."""
    node = value.producer()
    if node is not None and moves(node) in ("converts", "copies") and node.inputs[0] is not None:
        return _stored(node.inputs[0])
    tensor = weights.constant(value)
    return value if tensor is not None and tensor.dtype in weights.FLOATS else None


def _type(value: ir.Value, stored: ir.TensorProtocol) -> ir.DataType:
    """The type in which a vector is added, that of the last Cast on its way from the constant."""
    node = value.producer()
    if node is not None and moves(node) == "converts":
        return ir.DataType(node.attributes["to"].as_int())
    if node is not None and moves(node) == "copies" and node.inputs[0] is not None:
        return _type(node.inputs[0], stored)
    return stored.dtype


def _computed_in(node: ir.Node, weight: ir.TensorProtocol | None) -> ir.DataType:
    """The type that a layer computes in, as far as the model says."""
    said = [node.outputs[0].dtype, None if weight is None else weight.dtype]
    said += [value.dtype for value in node.inputs if value is not None]
    return next((dtype for dtype in said if dtype in weights.FLOATS), ir.DataType.FLOAT)


def _add_behind(model: Model, node: ir.Node, values: np.ndarray) -> None:
    """Add a vector to what a node makes; the sum takes the name."""
    graph, name = node.graph, node.outputs[0].name or ""
    assert graph is not None
    recorder = surgery.Recorder(model, graph)
    addend = recorder.constant(values, f"{name}.bias")
    recorder.put_behind(node.outputs[0], "Add", [addend], f"{name}.product")
