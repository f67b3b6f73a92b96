"""What the view of one node says is held to numpy: rows of the activation times the matrices."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import pytest
from weight_models import normal, parsed

from onnxshrink.graph import operators, read
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.operators import TABLE, Convolution, Matrices, Product
from onnxshrink.kernels.patches import Window, sample
from onnxshrink.kernels.rows import Rows, rows_of
from onnxshrink.runtime.session import SessionOptions, open_session, run_session

EXACT = SessionOptions(optimization="disable", accuracy_level=0)
_MANY = 10**6
_W, _TURNED = normal(6, 5, seed=1), normal(5, 6, seed=2)
_KERNEL, _SPREAD = normal(4, 3, 3, 2, seed=3), normal(6, 2, 3, 3, seed=4)
_X, _XT, _IMAGES = normal(7, 6, seed=5), normal(6, 7, seed=6), normal(2, 6, 7, 8, seed=7)
_TOKENS, _STACK = normal(2, 3, 6, seed=8), normal(2, 6, 5, seed=9)

#: By name: the operator with its attributes, its weight's input, the weight, the activation.
CASES: Mapping[str, tuple[str, int, np.ndarray, np.ndarray]] = {
    "MatMul": ("MatMul", 1, _W, _TOKENS),
    "MatMul, left": ("MatMul", 0, _TURNED, _XT),
    "MatMul, batched": ("MatMul", 1, _STACK, _TOKENS),
    "Gemm": ("Gemm<alpha = 0.5>", 1, _W, _X),
    "Gemm transB": ("Gemm<transB = 1>", 1, _TURNED, _X),
    "Gemm transA": ("Gemm<transA = 1>", 1, _W, _XT),
    "Gemm, left": ("Gemm<transA = 1>", 0, _W, _XT),
    "FusedMatMul": ("com.microsoft.FusedMatMul<alpha = 2.0, transB = 1>", 1, _TURNED, _TOKENS),
    "FusedMatMul transA": ("com.microsoft.FusedMatMul<transA = 1>", 1, _W, _XT),
    "FusedGemm": ('com.microsoft.FusedGemm<transB = 1, activation = "Relu">', 1, _TURNED, _X),
    "Einsum": ('Einsum<equation = "abc,cd->abd">', 1, _W, _TOKENS),
    "Einsum, turned": ('Einsum<equation = "dc,ca->da">', 0, _TURNED, _XT),
    "Conv": ("Conv<group = 2, strides = [2, 1], pads = [1, 0, 0, 1]>", 1, _KERNEL, _IMAGES),
    "FusedConv": ("com.microsoft.FusedConv<group = 2, dilations = [2, 1]>", 1, _KERNEL, _IMAGES),
    "ConvTranspose": (
        "ConvTranspose<group = 2, strides = [2, 1], dilations = [1, 2], pads = [1, 0, 2, 1], "
        "output_padding = [1, 0]>",
        1, _SPREAD, _IMAGES,
    ),
}  # fmt: skip


def node_of(text: str, index: int, weight: np.ndarray, x: np.ndarray) -> tuple[Model, ir.Node]:
    """A model of one node, whose other operand is the input."""
    operands = ["x", "w"] if index else ["w", "x"]
    shape = ", ".join(map(str, x.shape))
    source = f"g (float[{shape}] x) => (float y) {{ y = {text}({', '.join(operands)}) }}"
    model = Model.from_proto(parsed(source, w=weight))
    (node,) = model.ir.graph
    return model, node


@pytest.mark.parametrize("name", CASES)
def test_rows_times_matrices_are_what_the_node_computes(name: str) -> None:
    text, index, weight, x = CASES[name]
    model, node = node_of(text, index, weight, x)
    product = operators.product(node, index)
    assert product is not None
    assert product.activation is node.inputs[1 - index]
    assert bool(product.hidden) == bool(product.function)
    layout = product.layout(weight.shape)
    most = rows_of(x, layout, _MANY, 0) if isinstance(layout, Rows) else sample(x, layout, _MANY, 0)
    rows = np.concatenate(list(most))
    made = product.alpha * np.einsum("rgi,goi->rgo", rows, product.grouped(weight))
    made = np.maximum(made, 0) if product.function == "Relu" else made
    (answer,) = run_session(open_session(model.to_proto().SerializeToString(), EXACT), {"x": x})
    expected = np.moveaxis(answer, product.out_axis, -1)
    if product.grouped(weight).shape[0] > 1 and not product.convolves:
        expected = expected.swapaxes(0, 1)  # each matrix has rows of its own: [rows, groups, ...]
    np.testing.assert_allclose(made.ravel(), expected.ravel(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("text", "shape", "why"),
    [
        ("com.microsoft.FusedMatMul<transBatchA = 1>", (6, 5), "the batches of its input"),
        ("com.microsoft.FusedMatMul<transBatchB = 1>", (2, 6, 5), "its batches lie behind"),
        ('Einsum<equation = "ab,ba->a">', (6, 7), "no product of rows"),
        ('Einsum<equation = "nbc,cd->bnd">', (6, 5), "moves the axes of its input"),
        ('Einsum<equation = "...c,cd->...d">', (6, 5), "not one of two operands"),
        ('ConvTranspose<auto_pad = "SAME_UPPER">', (6, 2, 3, 3), "follow from the shape"),
        ("ConvTranspose<pads = [3, 0, 0, 0]>", (6, 2, 3, 3), "cuts off part"),
    ],
)
def test_what_makes_no_rows_says_why(text: str, shape: tuple[int, ...], why: str) -> None:
    _, node = node_of(text, 1, normal(*shape), _X)
    product = operators.product(node, 1)
    assert product is not None
    with pytest.raises(ValueError, match=why):
        product.layout(shape)


def test_states_with_the_batch_first_make_no_rows() -> None:
    node = ir.Node("", "GRU", [None] * 3, ir.convenience.convert_attributes({"layout": 1}))
    read_in, states = (operators.product(node, index) for index in (1, 2))
    assert read_in is not None
    assert states is not None
    assert read_in.layout((1, 15, 4)) == Rows()
    with pytest.raises(ValueError, match="batch first"):
        states.layout((1, 15, 5))


def test_a_parameter_of_a_function_is_no_default() -> None:
    _, node = node_of("Conv<group = 2>", 1, _KERNEL, _IMAGES)
    node.attributes["group"] = ir.RefAttr("group", "groups", ir.AttributeType.INT)
    product = operators.product(node, 1)
    assert product is not None
    assert "from the call of the function" in product.hidden
    with pytest.raises(ValueError, match="from the call of the function"):
        product.layout(_KERNEL.shape)


def test_what_is_done_with_the_sums_is_said() -> None:
    _, relu = node_of('com.microsoft.FusedConv<activation = "Relu">', 1, _KERNEL, _IMAGES)
    fused = operators.product(relu, 1)
    assert fused is not None
    assert fused.function == "Relu"
    assert "hides what it sums up" in fused.hidden
    lstm = ir.Node("", "LSTM", [None] * 3)
    state = operators.product(lstm, 2)
    assert state is not None
    assert state.recurs
    assert state.activation is lstm.outputs[0]
    assert "stays inside of LSTM" in state.hidden
    assert operators.sides(lstm) == (1, 2)


def test_biases_and_what_they_are_multiplied_with() -> None:
    model = Model.from_proto(
        parsed(
            """g (float[7, 6] x) => (float y) {
                y = com.microsoft.FusedGemm<alpha = 0.5, beta = 3.0>(x, w, b)
            }""",
            w=_W,
            b=normal(5),
        )
    )
    (node,) = model.ir.graph
    product = operators.product(node, 1)
    assert product is not None
    assert (product.alpha, product.beta, product.takes_bias) == (0.5, 3.0, True)
    assert product.bias is node.inputs[2]
    matmul = operators.product(ir.Node("", "MatMul", [None, None]), 1)
    assert matmul is not None
    assert (matmul.alpha, matmul.takes_bias, matmul.bias) == (1.0, False, None)


def test_a_new_row_is_a_new_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator under another name is known as soon as its row is there."""
    node = ir.Node("local", "Linear", [None, None, None])
    assert operators.product(node, 1) is None
    monkeypatch.setitem(TABLE, ("local", "Linear"), Matrices(sides=(1,), bias=2))
    product = operators.product(node, 1)
    assert product is not None
    assert (product.in_axis, product.out_axis, product.takes_bias) == (-1, -1, True)
    assert operators.sides(node) == (1,)


def test_rows_are_frozen_and_known_to_onnx() -> None:
    import onnx

    from onnxshrink.graph.file import contrib

    contrib.declare()
    for (domain, op_type), row in TABLE.items():
        assert dataclasses.is_dataclass(row)
        assert domain or onnx.defs.has(op_type), op_type


def test_a_window_of_a_transposed_convolution() -> None:
    _, node = node_of("ConvTranspose<strides = [2, 2], pads = [1, 1, 1, 1]>", 1, _SPREAD, _IMAGES)
    product = operators.product(node, 1)
    assert isinstance(product, Product)
    assert isinstance(product.row, Convolution)
    assert product.layout(_SPREAD.shape) == Window(
        (3, 3), (1, 1), (1, 1), (1, 1, 1, 1), 1, "NOTSET", (2, 2), flipped=True
    )
    assert read.integer(node, "group", 1) == product.groups == 1
