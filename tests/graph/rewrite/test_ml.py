"""Operators of ai.onnx.ml in standard ones, wherever they stand, and why not."""

import numpy as np
import pytest
from answers import answers, kinds
from onnx import parser

from onnxshrink.graph.file.model import Model
from onnxshrink.graph.rewrite import ml

LINEAR = """<ir_version: %d, opset_import: ["": 17, "ai.onnx.ml": 3]>
g (float[2, 3] x) => (float[2, 2] y) {
    y = ai.onnx.ml.LinearRegressor <targets = 2, coefficients = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
        intercepts = [10.0, 20.0]> (x)
}"""
IN_FUNCTION = """<ir_version: 8, opset_import: ["": 17, "ai.onnx.ml": 3, "f": 1]>
g (float[2, 3] x) => (float[2, 3] y) { y = f.scaled <by: floats = [2.0]> (x) }
<domain: "f", opset_import: ["": 17, "ai.onnx.ml": 3]>
scaled %s (x) => (y) { y = ai.onnx.ml.Scaler <offset = [1.0], scale%s> (x) }"""
X = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.mark.parametrize(("ir_version", "first"), [(8, ["Gemm"]), (3, ["Constant"] * 2 + ["Gemm"])])
def test_weights_leave_their_attributes(ir_version: int, first: list[str]) -> None:
    model = Model.from_proto(parser.parse_model(LINEAR % ir_version))
    expected = X @ np.array([[1, 2, 3], [4, 5, 6]], np.float32).T + [10, 20]
    (operator,) = ml.find(model)
    assert (operator.rank, operator.features) == (2, 3)
    before, after = ml.lower(model, operator)
    ml.drop_import(model)
    assert kinds(model) == first
    assert "ai.onnx.ml" not in model.ir.opset_imports
    assert before > 0
    assert after > 32  # at least the numbers
    np.testing.assert_array_equal(answers(model, x=X)[0], expected)


def test_constants_of_a_function_are_nodes_in_it() -> None:
    model = Model.from_proto(parser.parse_model(IN_FUNCTION % ("", " = [2.0]")))
    for operator in ml.find(model):
        ml.lower(model, operator)
    assert not model.to_proto().graph.initializer
    np.testing.assert_array_equal(answers(model, x=X)[0], (X - 1) * 2)


def test_numbers_that_a_caller_gives_are_not_known() -> None:
    proto = parser.parse_model(IN_FUNCTION % ("<by>", ": floats = @by"))
    model = Model.from_proto(proto)
    (operator,) = ml.find(model)
    with pytest.raises(ValueError, match=r"'scale' from the call of the function .* inline it"):
        ml.lower(model, operator)
    assert model.to_proto() == proto
