"""One product in two: the operators that a weight of low rank can be split between."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxshrink.graph import read
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.forms import products
from onnxshrink.graph.forms.dequantize import cast_mul, factor, multiplied_in
from onnxshrink.graph.forms.rebuild import Rebuild
from onnxshrink.graph.operators import Matrices, Product
from onnxshrink.graph.weights.views import WeightView
from onnxshrink.kernels.affine import Quantized

Array = npt.NDArray[np.floating]

#: Bytes that a second node and its weight cost, about.
OVERHEAD = 120
#: Bytes that the nodes of a weight cost that is rebuilt from factors and integers, about.
RESIDUAL_OVERHEAD = 420


@dataclass(frozen=True)
class SplitWay:
    """One way to split an operator in two.

    Attributes:
        kind: ``product``; of a convolution ``channel`` (the kernel, then 1 x 1) or ``spatial`` (its
            columns, then its rows); ``lookup``.
        shape: The matrix whose rank decides, [rows, columns].
        weights: Weights of the two operators for each rank.
        work: Multiplications of the two for each rank, at each place of the output.
        work_before: Multiplications of the one, there.
    """

    kind: str
    shape: tuple[int, int]
    weights: int
    work: int
    work_before: int


def why_not(view: WeightView) -> str:
    """Why an operator cannot be split; empty when it can."""
    use, product = view.main, view.main.product
    looks_up = use.is_lookup and use.activation is not None
    if not looks_up and (product is None or product.inside or product.spreads):
        return f"is used by {use.op_type}, which is not split"
    if len(view.uses) > 1 or view.others:
        return "is used by several operators"
    if not use.direct:
        return "reaches its operator through other nodes"
    if reason := read.obstacle(use.node):
        return reason
    if product is not None and product.convolves:
        if len(view.shape) < 3 or product.groups > 1:
            return "is a convolution in groups"
        if product.added is not None or product.function not in products.FUNCTIONS:
            return f"is used by {use.op_type}, of which {product.hidden}"
    elif len(view.shape) != 2:
        return f"has {len(view.shape)} axes, and only matrices are split"
    elif product is not None and (product.transposes_activation or not _is_matmul(product)):
        if product.out_axis == -2 or product.in_axis != -1:
            return "is the left side of a product, or multiplied with a transpose"
        try:
            products.of(view)
        except ValueError as error:
            return str(error)
    if looks_up and use.axes.out != (0,):
        return "is not looked up by rows"
    return ""


def _is_matmul(product: Product) -> bool:
    return not product.node.domain and isinstance(product.row, Matrices) and not product.takes_bias


def ways(view: WeightView) -> Iterator[SplitWay]:
    """How the operator of a weight can be split."""
    product = view.main.product
    if product is not None and product.convolves:
        outputs, inputs, *kernel = view.shape
        before = math.prod(view.shape)
        across = inputs * math.prod(kernel)
        yield SplitWay("channel", (outputs, across), outputs + across, outputs + across, before)
        if len(kernel) == 2 and min(kernel) > 1:
            height, width = kernel
            tall, flat = outputs * width, inputs * height
            # The first of the two computes every column that the second one skips.
            stride = (read.integers(view.main.node, "strides") or (1, 1))[1]
            yield SplitWay("spatial", (tall, flat), tall + flat, tall + flat * stride, before)
        return
    rows, columns = view.matrix.shape
    kind = "lookup" if view.main.is_lookup else "product"
    work = columns if kind == "lookup" else rows + columns
    yield SplitWay(
        kind, (rows, columns), rows + columns, work, 0 if kind == "lookup" else rows * columns
    )


def matrix(view: WeightView, way: SplitWay) -> Array:
    """The weight as the matrix whose rank decides: its columns are what comes in."""
    if way.kind != "spatial":
        return view.matrix
    values: Array = view.array().transpose(0, 3, 1, 2)  # [outputs, width, inputs, height]
    return values.reshape(way.shape)


def matrix_of(view: WeightView, way: SplitWay, product: Array) -> Array:
    """The weight's own matrix, [outputs, inputs], from that of a way."""
    if way.kind != "spatial":
        return product
    outputs, inputs, height, width = view.shape
    values: Array = product.reshape(outputs, width, inputs, height).transpose(0, 2, 3, 1)
    return values.reshape(outputs, -1)


def apply(model: Model, view: WeightView, way: SplitWay, left: Array, right: Array) -> int:
    """Put two operators in place of one.

    The second has its name, its output and its bias.

    Args:
        model: The model, whose journal is kept.
        view: The weight, without :func:`why_not`.
        way: One of its :func:`ways`.
        left: [rows, rank] of that way's matrix.
        right: [rank, columns].

    Returns:
        Bytes that both weights take now, about.
    """
    rebuild, node = Rebuild(model, view), view.main.node
    kind = view.dtype.numpy()
    left, right = (np.ascontiguousarray(side, kind) for side in (left, right))

    def constant(values: Array, suffix: str) -> ir.Value:
        return rebuild.constant(np.ascontiguousarray(values), suffix)

    other = view.activation
    assert other is not None
    if way.kind in ("channel", "spatial"):
        result = _convolutions(rebuild, node, other, way, *_kernels(view, way, left, right))
        function = "" if view.main.product is None else view.main.product.function
        result = rebuild.node(function, [result], "f") if function else result
    elif way.kind == "lookup":
        axis = read.integer(node, "axis", 0)
        rows = rebuild.node("Gather", [constant(left, "a"), other], "h", axis=axis)
        result = rebuild.node("MatMul", [rows, constant(right, "b")], "y")
    elif not node.domain and view.main.row == Matrices(bias=2):
        hidden = rebuild.node("MatMul", [other, constant(right.T, "a")], "h")
        scalars: dict[str, Any] = {
            name: read.number(node, name, 1.0)
            for name in ("alpha", "beta")
            if name in node.attributes
        }
        rest = [value for value in node.inputs[2:] if value is not None]
        result = rebuild.node("Gemm", [hidden, constant(left.T, "b"), *rest], "y", **scalars)
    elif node.domain or not isinstance(view.main.row, Matrices):
        (product,) = products.of(view)
        hidden = rebuild.node("MatMul", [product.rows(rebuild), constant(right.T, "a")], "h")
        result = rebuild.node("MatMul", [hidden, constant(left.T, "b")], "y")
        result = product.completed(rebuild, result)
    elif view.main.index == 1:
        hidden = rebuild.node("MatMul", [other, constant(right.T, "a")], "h")
        result = rebuild.node("MatMul", [hidden, constant(left.T, "b")], "y")
    else:
        hidden = rebuild.node("MatMul", [constant(right, "a"), other], "h")
        result = rebuild.node("MatMul", [constant(left, "b"), hidden], "y")
    second = result.producer()
    assert second is not None
    second.name = node.name
    rebuild.put_in_place(node, [result])
    rebuild.drop()
    return rebuild.nbytes


def why_no_residual(view: WeightView) -> str:
    """Why a weight cannot be rebuilt from factors and integers; empty when it can."""
    axes, order = view.axes, tuple(range(len(view.shape)))
    if view.dtype != ir.DataType.FLOAT:
        return f"is {view.dtype.name.lower()}, and only float32 weights are rebuilt from factors"
    if not axes.contract or not axes.out or axes.groups > 1:
        return "is no matrix"
    if axes.out + axes.contract != order and axes.contract + axes.out != order:
        return "has its inputs between its output channels"
    return ""


def with_residual(
    model: Model, view: WeightView, left: Array, right: Array, stored: Quantized
) -> int:
    """Replace a weight by ``left right`` and integers, which are summed up at load.

    Args:
        model: The model, whose journal is kept.
        view: The weight, without :func:`why_no_residual`.
        left: [rows, rank] of its matrix, in float32; stored as float16 if that is exact.
        right: [rank, columns].
        stored: What the factors leave, in the stored shape.

    Returns:
        Bytes that it takes now, about.
    """
    rebuild = Rebuild(model, view)
    turned = view.axes.contract < view.axes.out
    sides = (right.T, left.T) if turned else (left, right)
    working = multiplied_in(view.dtype)
    first, second = (factor(rebuild, np.ascontiguousarray(s), working) for s in sides)
    value = rebuild.node("MatMul", [first, second], "m")
    if len(view.shape) > 2:
        shape = rebuild.constant(np.array(view.shape, np.int64), "n")
        value = rebuild.node("Reshape", [value, shape], "r")
    value = rebuild.node("Add", [value, cast_mul(rebuild, stored, working)], "w")
    if working != view.dtype:
        value = rebuild.node("Cast", [value], "h", to=view.dtype.value)
    rebuild.finish(value)
    return rebuild.nbytes


def _kernels(view: WeightView, way: SplitWay, left: Array, right: Array) -> tuple[Array, Array]:
    """Weights of the two convolutions."""
    outputs, inputs, *kernel = view.shape
    rank = left.shape[1]
    if way.kind == "channel":
        return right.reshape(rank, inputs, *kernel), left.reshape(outputs, rank, *[1] * len(kernel))
    height, width = kernel
    rows = left.reshape(outputs, width, rank).transpose(0, 2, 1)
    return right.reshape(rank, inputs, height, 1), rows.reshape(outputs, rank, 1, width)


def _convolutions(
    rebuild: Rebuild, node: ir.Node, other: ir.Value, way: SplitWay, first: Array, second: Array
) -> ir.Value:
    spatial = len(first.shape) - 2
    strides = read.integers(node, "strides") or (1,) * spatial
    dilations = read.integers(node, "dilations") or (1,) * spatial
    pads = read.integers(node, "pads") or (0,) * 2 * spatial
    padding = read.text(node, "auto_pad", "NOTSET")

    def around(axes: list[int]) -> dict[str, Any]:
        """Strides, dilations and padding along some axes; none along the others."""
        chosen = [axis in axes for axis in range(spatial)]
        attributes: dict[str, Any] = {
            "strides": [s if on else 1 for s, on in zip(strides, chosen, strict=True)],
            "dilations": [d if on else 1 for d, on in zip(dilations, chosen, strict=True)],
        }
        if padding not in ("", "NOTSET"):
            return {**attributes, "auto_pad": padding}
        return {
            **attributes, "pads": [p if on else 0 for p, on in zip(pads, chosen * 2, strict=True)]
        }  # fmt: skip

    every = list(range(spatial))
    before, after = (every, []) if way.kind == "channel" else ([0], [1])
    weights = [
        rebuild.constant(np.ascontiguousarray(values), name)
        for values, name in ((first, "a"), (second, "b"))
    ]
    hidden = rebuild.node(
        "Conv", [other, weights[0]], "h", kernel_shape=list(first.shape[2:]), **around(before)
    )
    bias = [value for value in node.inputs[2:] if value is not None]
    return rebuild.node(
        "Conv", [hidden, weights[1], *bias], "y",
        kernel_shape=list(second.shape[2:]), **around(after),
    )  # fmt: skip
