"""Constants that move to the main graph mean there what they meant where they were."""

import numpy as np
import onnx
import pytest
from answers import answers, normal
from onnx import helper, numpy_helper, parser

from onnxshrink.graph.file.model import Model
from onnxshrink.graph.rewrite.hoist import hoist_constants, separate_inputs


def branch(values: np.ndarray, as_node: bool) -> onnx.GraphProto:
    """A branch whose one constant is called ``w``, as that of the other branch."""
    name = "then" if values.flat[0] > 0 else "else"
    out = helper.make_tensor_value_info(f"{name}_y", onnx.TensorProto.FLOAT, [2, 4])
    tensor = numpy_helper.from_array(values, "w")
    nodes = [helper.make_node("Mul", ["x", "w"], [f"{name}_y"])]
    if as_node:
        nodes.insert(0, helper.make_node("Constant", [], ["w"], value=tensor))
    return helper.make_graph(nodes, name, [], [out], [] if as_node else [tensor])


def branches(then_node: bool, else_node: bool) -> Model:
    proto = parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[2, 4] x, bool c) => (float[2, 4] y) { y = Identity(x) }"""
    )
    bodies = {
        "then_branch": branch(np.full((2, 4), 3, np.float32), then_node),
        "else_branch": branch(np.full((2, 4), -5, np.float32), else_node),
    }
    proto.graph.node[0].CopyFrom(helper.make_node("If", ["c"], ["y"], **bodies))
    return Model.from_proto(proto)


@pytest.mark.parametrize("then_node", [True, False])
@pytest.mark.parametrize("else_node", [True, False])
def test_branches_may_use_one_name_for_different_values(then_node: bool, else_node: bool) -> None:
    model, x = branches(then_node, else_node), normal(2, 4)
    assert hoist_constants(model, 0) == 2
    assert len(model.to_proto().graph.initializer) == 2
    for condition, factor in ((True, 3), (False, -5)):
        (y,) = answers(model, x=x, c=np.array(condition))
        np.testing.assert_array_equal(y, factor * x)


def test_small_constants_outputs_and_those_of_functions_stay() -> None:
    proto = parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17, "f": 1]>
        g (float[4] x) => (float[4] y, float[4] z) {
            z = Constant <value = float[4] {1, 2, 3, 4}> ()
            one = Constant <value_float = 1.0> ()
            four = Constant <value_floats = [1.0, 2.0, 3.0, 4.0]> ()
            a = Add(x, one)  b = Add(a, four)  y = f.more(b)
        }
        <domain: "f", opset_import: ["": 17]>
        more (x) => (y) { k = Constant <value = float[4] {1, 1, 1, 1}> ()  y = Add(x, k) }"""
    )
    model, x = Model.from_proto(proto), normal(4)
    before = answers(model, x=x)
    assert hoist_constants(model, 16) == 1
    assert [t.name for t in model.to_proto().graph.initializer] == ["four"]
    for old, new in zip(before, answers(model, x=x), strict=True):
        np.testing.assert_array_equal(old, new)


def test_initializers_of_ir_3_stop_being_inputs() -> None:
    proto = parser.parse_model(
        """<ir_version: 3, opset_import: ["": 9]>
        g (float[4] x, float[4] w) => (float[4] y) <float[4] w = {1, 2, 3, 4}> { y = Mul(x, w) }"""
    )
    model = Model.from_proto(proto)
    separate_inputs(model)
    assert model.ir.ir_version == 4
    assert [value.name for value in model.to_proto().graph.input] == ["x"]
    assert answers(model, x=np.ones(4, np.float32))[0].tolist() == [1, 2, 3, 4]
