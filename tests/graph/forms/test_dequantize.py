"""Every form gives the weight that its codes stand for, under its name, and drops the old one."""

import numpy as np
import pytest
from answers import answers, kinds, normal, view_of
from hard_models import text

from onnxshrink.graph.file.model import Model
from onnxshrink.graph.forms import dequantize, layout
from onnxshrink.kernels import affine

PRODUCT = """<ir_version: %d, opset_import: ["": 21]>
g (float[2, 8] x) => (float[2, 6] y) { y = MatMul(x, w) }"""
CASES = [
    ("dq", "int8", {}, ["DequantizeLinear", "MatMul"]),
    ("dq", "uint4", {"block_size": 4}, ["DequantizeLinear", "MatMul"]),
    ("cast-mul", "int8", {}, ["Cast", "Mul", "MatMul"]),
    ("cast-mul", "uint8", {"block_size": 4}, ["Cast", "Sub", "Mul", "Reshape", "MatMul"]),
]


@pytest.mark.parametrize(("form", "dtype", "settings", "nodes"), CASES)
def test_products_multiply_with_what_codes_stand_for(form, dtype, settings, nodes) -> None:
    model = Model.from_proto(text(PRODUCT % 10, w=normal(8, 6) + 1))
    x = normal(2, 8, seed=1)
    view = view_of(model, "w")
    found = layout.of(view, **settings)
    symmetric = not dtype.startswith("u")
    stored = affine.quantize(found.values(), dtype, found.axes, symmetric=symmetric)
    nbytes = dequantize.dequantized(model, view, stored, form)
    expected = x @ found.spread(affine.dequantize(stored))
    assert kinds(model) == nodes
    assert "w" not in model.ir.graph.initializers
    assert model.ir.graph.node(-1).inputs[1].name == "w"
    assert stored.codes.size * stored.bits // 8 < nbytes < 500
    np.testing.assert_allclose(answers(model, x=x)[0], expected, rtol=1e-5, atol=1e-6)


def test_lookups_rebuild_only_the_rows_that_they_take() -> None:
    source = "g (int64[3] x) => (float[3, 6] y) { y = Gather <axis = 0> (w, x) }"
    model = Model.from_proto(text(source, w=normal(8, 6)))
    view = view_of(model, "w")
    assert dequantize.can_gather(model, view)
    stored = affine.quantize(view.array(), "int8", (1,))
    dequantize.dequantized(model, view, stored, "gather")
    assert kinds(model) == ["Gather", "Cast", "Gather", "Mul"]
    x = np.array([5, 0, 5])
    np.testing.assert_array_equal(answers(model, x=x)[0], affine.dequantize(stored)[x])


def test_a_gemm_is_turned_with_its_weight() -> None:
    source = """<ir_version: 10, opset_import: ["": 21]>
    g (float[2, 8] x) => (float[2, 6] y) { y = Gemm <transB = 1> (x, w) }"""
    model = Model.from_proto(text(source, w=normal(6, 8)))
    x = normal(2, 8, seed=1)
    view = view_of(model, "w")
    stored = affine.quantize(view.array().T, "int8", (0,))
    dequantize.dequantized_gemm(model, view, stored)
    expected = x @ affine.dequantize(stored)
    np.testing.assert_allclose(answers(model, x=x)[0], expected, rtol=1e-5, atol=1e-6)


def test_constants_of_ir_3_are_nodes() -> None:
    proto = text(
        """<ir_version: 3, opset_import: ["": 9]>
        g (float[2, 4] x, float[4, 4] w) => (float[2, 4] y) { y = MatMul(x, w) }""", w=normal(4, 4)
    )  # fmt: skip
    model, x = Model.from_proto(proto), normal(2, 4, seed=1)
    view = view_of(model, "w")
    half = view.array().astype(np.float16)
    assert not dequantize.can_gather(model, view)
    dequantize.stored_as(model, view, half)
    assert kinds(model) == ["Constant", "Cast", "MatMul"]
    assert [value.name for value in model.ir.graph.inputs] == ["x"]
    expected = x @ half.astype(np.float32)
    np.testing.assert_allclose(answers(model, x=x)[0], expected, rtol=1e-6, atol=1e-6)
