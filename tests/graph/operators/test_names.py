"""Operator types that a list may name: those of ONNX, of its past, and of ONNX Runtime."""

from onnxshrink.graph.operators import TABLE
from onnxshrink.graph.operators.names import operator_types


def test_every_operator_of_the_table_and_of_old_versions_is_one() -> None:
    known = operator_types()
    assert {kind for _, kind in TABLE} <= known
    assert {"Upsample", "Scatter", "LinearRegressor", "MatMulNBits"} <= known
    assert not {"", "conv", "Conv2d"} & known
