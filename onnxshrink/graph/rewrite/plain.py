"""Products that ONNX Runtime's optimizer fused, spelled out again: a product, what is done with it.

ONNX Runtime fuses them once more when it loads the model, so that nothing is lost; but every part
has a name by then, and operators that were made for the plain ones can take their place.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxshrink.graph import operators, read, surgery
from onnxshrink.graph.analysis import shapes
from onnxshrink.graph.analysis.operands import constants_of
from onnxshrink.graph.analysis.shape_rules import Shape
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.operators import Convolution, Equation, Matrices, Product

#: Functions that are operators of their own, and what their parameters are called there.
_FUNCTIONS: Mapping[str, tuple[str, ...]] = {
    "HardSigmoid": ("alpha", "beta"),
    "LeakyRelu": ("alpha",),
    "Relu": (),
    "Sigmoid": (),
    "Tanh": (),
}
_OWN = ("activation", "activation_params", "activation_alpha", "activation_beta",
        "activation_gamma")  # fmt: skip


def spell_out(model: Model, *, hiding: bool = False) -> int:
    """Let plain operators stand for fused ones, and for Einsum where it is a product of matrices.

    Args:
        model: Edited in place; each node stays the same object.
        hiding: Only those whose sums nobody sees otherwise.

    Returns:
        How many were spelled out.
    """
    fused = [product for node in model.nodes if (product := _fused(node)) is not None]
    if hiding:
        fused = [product for product in fused if product.hidden]
    known = shapes.walk(model).shapes if fused else {}
    return sum(_spelled(model, product, known) for product in fused)


def seen_through(model: Model) -> Model:
    """The model, or a copy in which products are apart from what was fused with them."""
    copy = model.clone()
    return copy if spell_out(copy, hiding=True) else model


def take_over(model: Model, other: Model, names: Collection[str]) -> None:
    """Give constants of these names the values that they have in a copy."""
    for ours, theirs in zip(model.scopes, other.scopes, strict=True):
        new = {value.name: tensor for value, tensor in constants_of(theirs)}
        for value, tensor in list(constants_of(ours)):
            if value.name in names and new.get(value.name, tensor) is not tensor:
                surgery.set_constant(model, value, new[value.name].numpy())


def _fused(node: ir.Node) -> Product | None:
    """A product that is not plain."""
    if not node.domain and operators.of(node, Equation) is None:
        return None
    found = (operators.product(node, index) for index in (1, 0))
    for product in found:
        if product is None or not isinstance(product.row, Convolution | Equation | Matrices):
            continue
        if not isinstance(product.row, Equation) or read.constant(node.inputs[product.index]):
            return None if product.inside else product
    return None


def _spelled(model: Model, product: Product, known: Mapping[ir.Value, Shape]) -> bool:
    """Spell one out, where that can be done."""
    node, row = product.node, product.row
    try:
        function, parameters = product.function, _parameters(product)
        before = _matrices(model, product, known) if _is_matmul(product) else {}
    except ValueError:
        return False
    if function and function not in (*_FUNCTIONS, "Clip"):
        return False
    if not isinstance(row, Convolution | Matrices | Equation) or before is None:
        return False
    added = product.added
    scale = product.alpha if _is_matmul(product) else 1.0
    for name in _OWN:
        node.attributes.pop(name, None)
    if isinstance(row, Convolution):
        node.op_type = "Conv"
        node.resize_inputs(min(len(node.inputs), 3))
    elif _is_matmul(product):
        node.op_type = "Gemm" if before.get("transB") else "MatMul"
        node.attributes.clear()
        node.attributes.update({n: ir.AttrInt64(n, v) for n, v in before.items()})
    else:
        node.op_type = "Gemm"
    node.domain = ""
    model.touch_node(node)
    _behind(model, node, scale, added, function, parameters)
    return True


def _is_matmul(product: Product) -> bool:
    """Whether it becomes a product of matrices that adds nothing."""
    return not product.convolves and not product.takes_bias


def _parameters(product: Product) -> tuple[float, ...]:
    """Those of the function."""
    given = read.numbers(product.node, "activation_params")
    if given is not None:
        return given
    names = ("activation_alpha", "activation_beta")
    return tuple(read.number(product.node, n, 0.0) for n in names if n in product.node.attributes)


def _matrices(
    model: Model, product: Product, known: Mapping[ir.Value, Shape]
) -> dict[str, int] | None:
    """Bring the operands of a product into the order of MatMul; None where that is not known.

    Returns:
        Attributes that make it a Gemm; none for MatMul.

    Raises:
        ValueError: It is no product of rows with a matrix.
    """
    node, other, weight = product.node, product.activation, product.node.inputs[product.index]
    shape = None if weight is None else known.get(weight)
    rows = None if other is None else known.get(other)
    if other is None or weight is None or shape is None or rows is None or len(shape) < 2:
        return None
    product.layout(tuple(size or 1 for size in shape))
    roles = product.axes(len(shape))
    if roles is None or product.out_axis != -1:
        return None
    turned = roles.contract == (len(shape) - 1,)
    made = surgery.Recorder(model, _scope(node), prefix=f"{node.outputs[0].name}.")
    if product.in_axis != -1:
        order = [*range(len(rows))]
        order[-1], order[product.in_axis] = order[product.in_axis], order[-1]
        if product.in_axis != -2:
            return None
        other = made.node("Transpose", [other], "rows", perm=order)
    matrix = turned and len(rows) == len(shape) == 2
    if turned and not matrix:
        order = [*range(len(shape) - 2), len(shape) - 1, len(shape) - 2]
        weight = made.node("Transpose", [weight], "matrix", perm=order)
    if made.nodes:
        made.put_before(node)
    for index, value in enumerate((other, weight)):
        surgery.set_input(model, node, index, value)
    return {"transB": 1} if matrix else {}


def _behind(
    model: Model, node: ir.Node, scale: float, added: ir.Value | None, function: str,
    parameters: tuple[float, ...],
) -> None:  # fmt: skip
    """Do to what a node makes what the fused operator did; the result takes the name."""
    value, name = node.outputs[0], node.outputs[0].name or ""
    kind = next((v.dtype for v in (value, *node.inputs) if v and v.dtype), ir.DataType.FLOAT)
    made = surgery.Recorder(model, _scope(node), prefix=f"{name}.")

    def number(given: float, suffix: str) -> ir.Value:
        return made.constant(np.asarray(given, kind.numpy()), suffix)

    result = value
    if scale != 1:
        result = made.node("Mul", [result, number(scale, "alpha")], "scaled")
    if added is not None:
        result = made.node("Add", [result, added], "added")
    if function == "Clip":
        ends = [number(each, suffix) for each, suffix in zip(parameters, "lh", strict=False)]
        result = made.node("Clip", [result, *ends], "y")
    elif function:
        options: dict[str, Any] = dict(zip(_FUNCTIONS[function], parameters, strict=False))
        result = made.node(function, [result], "y", **options)
    if result is value:
        return
    reader = next(each for each in made.nodes if value in each.inputs)
    made.put_after(node)
    surgery.put_behind(model, value, reader, result, f"{name}.sum")


def _scope(node: ir.Node) -> ir.Graph | ir.Function:
    assert node.graph is not None
    return node.graph
