"""Operators split in two compute with the product of the two factors."""

import numpy as np
import pytest
from answers import answers, kinds, normal, view_of
from hard_models import text
from onnx import parser

from onnxshrink.graph.file.model import Model
from onnxshrink.graph.forms import split
from onnxshrink.kernels import affine

CONV = "Conv <strides = [2, 1], pads = [1, 0, 1, 2]> (x, w, c)"
CASES = {
    "MatMul": ("float[2, 8]", "MatMul(x, w)", (8, 6), "product"),
    "left": ("float[8, 2]", "MatMul(w, x)", (6, 8), "product"),
    "Gemm": ("float[2, 8]", "Gemm <transB = 1, alpha = 2.0, beta = 3.0> (x, w, c)", (6, 8),
             "product"),
    "Gather": ("int64[3]", "Gather <axis = 0> (w, x)", (5, 6), "lookup"),
    "channel": ("float[1, 4, 9, 9]", CONV, (6, 4, 3, 3), "channel"),
    "spatial": ("float[1, 4, 9, 9]", CONV, (6, 4, 3, 3), "spatial"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_factors_multiply_to_the_weight(case: str) -> None:
    kind, body, shape, way_kind = CASES[case]
    declared = ", ".join(f"d{i}" for i in range(4 if "Conv" in body else 2))
    source = f"g ({kind} x) => (float[{declared}] y) {{ y = {body} }}"
    more = {"c": normal(6, seed=1)} if ", c)" in body else {}
    model = Model.from_proto(text(source, w=normal(*shape), **more))
    feed = np.array([4, 0, 4]) if "int64" in kind else normal(
        *map(int, kind[6:-1].split(",")), seed=2
    )  # fmt: skip
    (expected,) = answers(model, x=feed)
    view = view_of(model, "w")
    assert split.why_not(view) == ""
    way = next(way for way in split.ways(view) if way.kind == way_kind)
    matrix = split.matrix(view, way)
    assert matrix.shape == way.shape
    np.testing.assert_array_equal(split.matrix_of(view, way, matrix), view.matrix)
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    split.apply(model, view, way, left * values, right)
    assert len(kinds(model)) == 2
    assert "w" not in model.ir.graph.initializers
    np.testing.assert_allclose(answers(model, x=feed)[0], expected, rtol=1e-4, atol=1e-4)


def test_a_weight_beside_what_its_factors_leave() -> None:
    source = "g (float[2, 8] x) => (float[2, 6] y) { y = MatMul(x, w) }"
    model, x = Model.from_proto(text(source, w=normal(8, 6))), normal(2, 8, seed=1)
    view = view_of(model, "w")
    assert split.why_no_residual(view) == ""
    left, right = normal(6, 2, seed=2), normal(2, 8, seed=3)
    stored = affine.quantize(view.array() - (left @ right).T, "int8", (0,))
    split.with_residual(model, view, left, right, stored)
    expected = x @ ((left @ right).T + affine.dequantize(stored))
    np.testing.assert_allclose(answers(model, x=x)[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("a = MatMul(x, w)  y = MatMul(a, w)", "used by several operators"),
        ("t = Transpose <perm = [1, 0]> (w)  y = MatMul(x, t)", "through other nodes"),
        ("y = Gemm <transA = 1> (x, w)", "multiplied with a transpose"),
        ("y = Add(x, w)", "used by Add"),
    ],
)
def test_why_not(body: str, said: str) -> None:
    source = f"g (float[4, 4] x) => (float[4, 4] y) {{ {body} }}"
    assert said in split.why_not(view_of(Model.from_proto(text(source, w=normal(4, 4))), "w"))


def test_groups_that_a_caller_gives_are_not_known() -> None:
    proto = parser.parse_model(
        """<ir_version: 10, opset_import: ["": 21, "f": 1]>
        g (float[1, 2, 8] x) => (float[1, 2, n] y) { y = f.conv <group: int = 2> (x) }
        <domain: "f", opset_import: ["": 21]> conv <group> (x) => (y) {
            w = Constant <value = float[2, 1, 2] {1, 2, 3, 4}> ()
            y = Conv <group: int = @group> (x, w)
        }"""
    )
    assert "'group' from the call" in split.why_not(view_of(Model.from_proto(proto), "w"))
