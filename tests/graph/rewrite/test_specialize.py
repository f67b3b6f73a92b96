"""What follows from an input of one value is computed; the signature stays."""

import numpy as np
from answers import answers, kinds, normal
from hard_models import text

from onnxshrink.graph.file.model import Model
from onnxshrink.graph.rewrite.specialize import specialize

SWITCHED = """g (float[n, 4] x, int64 rate) => (float[n, m] y) {
    c = Equal(rate, fast)
    y = If (c) <then_branch = t () => (float[n, m] a) { a = MatMul(x, w) },
                else_branch = e () => (float[n, m] b) { b = MatMul(x, v) }>
}"""


def test_branches_of_a_value_and_sizes_of_a_shape() -> None:
    proto = text(SWITCHED, w=normal(4, 3), v=normal(4, 5), fast=np.array(16))
    for rate in (16, 8):
        model, x = Model.from_proto(proto), normal(2, 4, seed=1)
        expected = answers(model, x=x, rate=np.array(rate))
        specialize(model, {"rate": np.array(rate)}, {})
        assert kinds(model) == ["MatMul"]
        assert [value.name for value in model.ir.graph.inputs] == ["x", "rate"]
        np.testing.assert_array_equal(answers(model, x=x, rate=np.array(0)), expected)


def test_a_fixed_shape_folds_but_stays_declared_as_it_was() -> None:
    source = """g (float[n, 4] x) => (float[4, n] y) {
        s = Shape(x)  r = Gather <axis = 0> (s, order)  y = Reshape(x, r)
    }"""
    model = Model.from_proto(text(source, order=np.array([1, 0])))
    specialize(model, {}, {"x": (2, 4)})
    assert "Shape" not in kinds(model)
    assert "Gather" not in kinds(model)
    assert [str(dim) for dim in model.ir.graph.inputs[0].shape or ()] == ["n", "4"]
    x = normal(2, 4)
    np.testing.assert_array_equal(answers(model, x=x)[0], x.reshape(4, 2))
