"""Quantized values have one pair of nodes each, which all their users share."""

from collections.abc import Mapping

import numpy as np
import pytest
from answers import answers, kinds, normal
from hard_models import text

from onnxshrink.graph.file.model import Model
from onnxshrink.graph.forms import integer_kernels, qdq
from onnxshrink.kernels.ranges import Grid

HEADER = '<ir_version: 10, opset_import: ["": 21]> '
ON = Grid(2.0**-4, 128, "uint8")
X = np.clip(np.round(normal(2, 4) * 16), -64, 64).astype(np.float32) / 16  # on that grid


def emitted(source: str, fold: bool = True, **arrays: np.ndarray) -> tuple[Model, qdq.Emitter]:
    """A model in which every node that has an integer kernel is asked for."""
    model = Model.from_proto(text(HEADER + source, **arrays))
    placement = qdq.place(integer_kernels.find(model), fold=fold)
    grids: Mapping = {placement.root(value): ON for value in placement.values}
    emitter = qdq.Emitter(model)
    emitter.emit(placement, grids)
    return model, emitter


def test_two_readers_share_one_pair_and_its_constants() -> None:
    source = """g (float[2, 4] x) => (float[2, 4] y, float[2, 4] z) {
        y = MatMul(x, w)  z = MatMul(x, v)
    }"""
    eye = np.eye(4, dtype=np.float32)
    model, emitter = emitted(source, w=eye, v=2 * eye)
    assert kinds(model) == ["QuantizeLinear", "DequantizeLinear", "MatMul", "MatMul"]
    assert emitter.pairs == 1
    assert len(model.ir.graph.initializers) == 4  # one scale and one zero point besides
    y, z = answers(model, x=X)
    np.testing.assert_array_equal(y, X)
    np.testing.assert_array_equal(z, 2 * X)


def test_a_relu_becomes_the_end_of_the_range() -> None:
    source = """g (float[1, 1, 2, 4] x) => (float[1, 1, 2, 4] y) {
        a = Conv(x, w)  r = Relu(a)  y = Conv(r, w)
    }"""
    one = np.ones((1, 1, 1, 1), np.float32)
    model, _ = emitted(source, w=one)
    assert kinds(model) == ["QuantizeLinear", "DequantizeLinear", "Conv"] * 2 + [
        "QuantizeLinear", "DequantizeLinear"
    ]  # fmt: skip
    # The convolution gives what the Relu gave, under its name; that of the output stays as well.
    assert [n.outputs[0].name for n in model.ir.graph if n.op_type == "Conv"] == ["r", "y.f"]
    assert model.ir.graph.outputs[0].name == "y"
    kept, _ = emitted(source, fold=False, w=one)
    assert "Relu" in kinds(kept)


@pytest.mark.parametrize(
    ("outputs", "cut"),
    [("y, float[1, 1, 2, 4] a", "Relu(a)"), ("y", "Clip(a, one, six)"), ("y", "Clip(a, six)")],
    ids=["seen before it", "above zero", "below nothing"],
)
def test_a_cut_that_codes_cannot_stand_for_stays(outputs: str, cut: str) -> None:
    """Its input is an output too, or the grid, which has a zero, would reach beyond its ends."""
    source = f"""g (float[1, 1, 2, 4] x) => (float[1, 1, 2, 4] {outputs}) {{
        a = Conv(x, w)  r = {cut}  y = Conv(r, w)
    }}"""
    ends = {"one": np.float32(1), "six": np.float32(6)}
    used = {name: value for name, value in ends.items() if name in cut}
    model, _ = emitted(source, w=np.ones((1, 1, 1, 1), np.float32), **used)
    assert cut[:4] in {kind[:4] for kind in kinds(model)}


def test_a_body_has_a_pair_of_its_own_and_constants_of_the_main_graph() -> None:
    source = """g (float[2, 4] x, bool c) => (float[2, 4] y) {
        y = If (c) <then_branch = t () => (float[2, 4] a) { a = MatMul(x, w) },
                    else_branch = e () => (float[2, 4] b) { b = MatMul(x, w) }>
    }"""
    model, emitter = emitted(source, w=np.eye(4, dtype=np.float32))
    assert emitter.pairs == 2
    assert len(model.ir.graph.initializers) == 3
    for condition in (True, False):
        np.testing.assert_array_equal(answers(model, x=X, c=np.array(condition))[0], X)


def test_a_bias_is_stored_as_codes_and_the_old_one_goes() -> None:
    source = """g (float[1, 1, 2, 4] x) => (float[1, 1, 2, 4] y) { y = Conv(x, w, c) }"""
    one = np.ones((1, 1, 1, 1), np.float32)
    model = Model.from_proto(text(HEADER + source, w=one, c=np.ones(1, np.float32)))
    emitter = qdq.Emitter(model)
    codes, scale, zero = np.array([6], np.int32), np.float32([0.25]), np.zeros(1, np.int32)
    emitter.store(model.ir.graph.node(0), 2, codes, scale, zero)
    assert kinds(model) == ["DequantizeLinear", "Conv"]
    assert "c" not in model.ir.graph.initializers
    x = normal(1, 1, 2, 4)
    np.testing.assert_allclose(answers(model, x=x)[0], x + 1.5, rtol=1e-6)
