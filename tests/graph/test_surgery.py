"""Edits keep names, types and the journal: what was made, changed or removed, and nothing else."""

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hard_models import text, weight
from onnx.reference import ReferenceEvaluator

from onnxshrink.graph import read, surgery
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.surgery import Recorder

CHAIN = """g (float[2, 4] x) => (float[2, 4] y, float[2, 4] z) {
    a = Relu(x)  b = Abs(a)  y = Add(b, c)  z = Sub(b, d)
}"""
IN_FUNCTION = """<ir_version: 8, opset_import: ["": 17, "f": 1]>
g (float[2, 4] x) => (float[2, 4] y) { y = f.twice(x) }
<domain: "f", opset_import: ["": 17]> twice (x) => (y) { y = Add(x, x) }"""


def chain(ir_version: int = 8) -> Model:
    proto = text(CHAIN, c=weight(1, 4), d=weight(2, 4))
    proto.ir_version = ir_version
    if ir_version < 4:
        proto.graph.input.extend(
            onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims)
            for t in proto.graph.initializer
        )
    return Model.from_proto(proto)


def named(model: Model, name: str) -> ir.Node:
    """The node that makes a value."""
    return next(n for n in model.nodes if any(v.name == name for v in n.outputs))


def saved(model: Model) -> onnx.ModelProto:
    """The model written out, with the journal as the only leave to differ from what it was."""
    proto = model.to_proto()
    onnx.checker.check_model(proto, full_check=True)
    return proto


def ran(model: Model) -> list[np.ndarray]:
    feed = {"x": np.arange(-4, 4, dtype=np.float32).reshape(2, 4)}
    return ReferenceEvaluator(saved(model)).run(None, feed)


def put(model: Model, how: Callable[[Recorder], None], **settings: object) -> Recorder:
    recorder = Recorder(model, model.ir.graph, prefix="w.", **settings)  # type: ignore[arg-type]
    scale = recorder.constant(np.full(4, 2, np.float32), "s")
    recorder.node("Mul", [named(model, "a").outputs[0], scale], "m")
    assert [n.op_type for n in recorder.nodes] == (["Constant"] * recorder.as_nodes + ["Mul"])
    assert "w.s" not in model.ir.graph.initializers  # the graph is as it was
    how(recorder)
    assert recorder.nodes == []
    return recorder


def test_constants_and_nodes_come_together() -> None:
    model = chain()
    recorder = put(model, lambda r: r.put_before(named(model, "b")))
    proto = saved(model)
    assert [n.output[0] for n in proto.graph.node] == ["a", "w.m", "b", "y", "z"]
    assert [t.name for t in proto.graph.initializer] == ["c", "d", "w.s"]
    assert recorder.nbytes == 16
    assert list(proto.graph.node[1].input) == ["a", "w.s"]


def test_constants_are_nodes_where_initializers_would_be_inputs() -> None:
    model = chain(ir_version=3)
    put(model, lambda r: r.put_after(named(model, "a")))
    assert [n.output[0] for n in saved(model).graph.node] == ["a", "w.s", "w.m", "b", "y", "z"]
    assert [v.name for v in model.ir.graph.inputs] == ["x", "c", "d"]


def test_a_function_has_no_initializers() -> None:
    model = Model.from_proto(onnx.parser.parse_model(IN_FUNCTION))
    node = next(n for n in model.nodes if n.op_type == "Add")
    value = surgery.give_constant(model, node, 1, np.ones(4, np.float32), "y.one")
    assert read.array(value).tolist() == [1] * 4  # type: ignore[union-attr]
    assert [n.op_type for n in saved(model).functions[0].node] == ["Constant", "Add"]
    assert ran(model)[0].tolist() == [[-3, -2, -1, 0], [1, 2, 3, 4]]


def test_first_in_a_graph_also_an_empty_one() -> None:
    model = chain()
    recorder = Recorder(model, model.ir.graph)
    recorder.node("Identity", [model.ir.graph.inputs[0]], "first")
    recorder.put_first()
    assert saved(model).graph.node[0].output[0] == "first"
    empty = ir.Graph([], [], nodes=[])
    recorder.node("Identity", [model.ir.graph.inputs[0]], "only")
    recorder.put_first(empty)
    assert [n.op_type for n in empty] == ["Identity"]


def test_names_that_are_taken_get_a_number() -> None:
    model = chain()
    recorder = Recorder(model, model.ir.graph)
    assert recorder.constant(np.zeros(1), "b").name == "b2"
    codes, step = recorder.several("DynamicQuantizeLinear", [None], ["a", "s"])
    assert (codes.name, step.name) == ("a2", "s")


def test_a_node_is_replaced_by_what_takes_its_names() -> None:
    model, before = chain(), ran(chain())
    node = named(model, "b")
    node.outputs[0].type, node.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([2, 4])
    recorder = Recorder(model, model.ir.graph)
    made = recorder.node("Max", [read.input(node, 0), recorder.node("Neg", node.inputs, "n")], "m")
    recorder.put_in_place(node, [made])
    proto = saved(model)
    assert [n.op_type for n in proto.graph.node] == ["Relu", "Neg", "Max", "Add", "Sub"]
    assert [n.output[0] for n in proto.graph.node] == ["a", "n", "b", "y", "z"]
    assert (made.dtype, made.shape) == (ir.DataType.FLOAT, ir.Shape([2, 4]))
    np.testing.assert_array_equal(ran(model), before)


def test_an_older_value_may_take_over_an_output_of_the_graph() -> None:
    """As where a node is folded into the one before it; whoever read that knows its new name."""
    model = Model.from_proto(
        text(
            """g (float[2, 4] x) => (float[2, 4] y, float[2, 4] z) {
                a = Relu(x)  z = Neg(a)  y = Abs(a)
            }"""
        )
    )
    node, before = named(model, "y"), ran(model)
    surgery.replace_node(model, node, [named(model, "a").outputs[0]])
    proto = saved(model)
    assert [list(n.output) for n in proto.graph.node] == [["y"], ["z"]]
    assert list(proto.graph.node[1].input) == ["y"]
    np.testing.assert_array_equal(ran(model), before)


def test_an_output_that_is_read_cannot_go() -> None:
    model = chain()
    with pytest.raises(ValueError, match="still being used"):
        surgery.replace_node(model, named(model, "b"), [])


def test_a_node_behind_takes_the_name() -> None:
    model, before = chain(), ran(chain())
    recorder = Recorder(model, model.ir.graph)
    two = recorder.constant(np.array(2, np.float32), "two")
    recorder.put_behind(named(model, "y").outputs[0], "Mul", [two], "y.whole")
    proto = saved(model)
    assert [n.output[0] for n in proto.graph.node] == ["a", "b", "y.whole", "y", "z"]
    assert list(proto.graph.node[3].input) == ["y.whole", "two"]
    after = ran(model)
    np.testing.assert_array_equal(after[0], 2 * before[0])
    np.testing.assert_array_equal(after[1], before[1])


def test_users_can_be_redirected_and_a_node_removed() -> None:
    model = chain()
    node = named(model, "b")
    surgery.redirect(model, node.outputs[0], named(model, "a").outputs[0])
    surgery.remove(model, node)
    proto = saved(model)
    assert [list(n.input) for n in proto.graph.node] == [["x"], ["a", "c"], ["a", "d"]]


def test_several_nodes_are_fed_at_once_but_only_in_one_graph() -> None:
    model = chain()
    readers = [named(model, "y"), named(model, "z")]
    recorder = Recorder(model, model.ir.graph)
    result = recorder.node("Neg", [named(model, "b").outputs[0]], "n")
    recorder.feed(readers, 0, result)
    assert [n.output[0] for n in saved(model).graph.node] == ["a", "b", "n", "y", "z"]
    assert all(node.inputs[0] is result for node in readers)
    other = ir.node("Relu", [result])
    with pytest.raises(ValueError, match="several graphs"):
        recorder.feed([readers[0], other], 0, result)


def test_an_input_is_added_behind_those_that_are_left_out() -> None:
    model = chain()
    clip = ir.node("Clip", [named(model, "a").outputs[0]])
    surgery.set_input(model, clip, 2, named(model, "b").outputs[0])
    assert [None if v is None else v.name for v in clip.inputs] == ["a", None, "b"]


def test_an_input_is_added_right_behind_the_last() -> None:
    """Clip takes a third input behind the two that it has."""
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]> g (float[4] x) => (float[4] y)
        <float low = {-1}, float high = {1}> { y = Clip (x, low) }"""
    )
    model = Model.from_proto(proto)
    high = next(v for v in model.ir.graph.initializers.values() if v.name == "high")
    surgery.set_input(model, named(model, "y"), 2, high)
    assert [*saved(model).graph.node[0].input] == ["x", "low", "high"]


def stored(**attribute: object) -> tuple[Model, ir.Value]:
    """A constant in a node."""
    model = chain()
    node = ir.node("Constant", [], attribute)
    node.outputs[0].name = "k"
    model.ir.graph.insert_before(next(iter(model.ir.graph)), node)
    model.touch("k")
    surgery.set_input(model, named(model, "y"), 1, node.outputs[0])
    return model, node.outputs[0]


def test_a_constant_gets_other_values_of_its_type() -> None:
    model = chain()
    value = model.ir.graph.initializers["c"]
    assert value.const_value is not None
    value.const_value.metadata_props["kept"] = "yes"
    surgery.set_constant(model, value, np.arange(4.0), {"more": "too"})
    (tensor, _) = saved(model).graph.initializer
    assert onnx.numpy_helper.to_array(tensor).dtype == np.float32
    assert onnx.numpy_helper.to_array(tensor).tolist() == [0, 1, 2, 3]
    assert {p.key: p.value for p in tensor.metadata_props} == {"kept": "yes", "more": "too"}
    surgery.set_constant(model, value, np.ones(1))  # what was said of the other shape is gone
    assert value.shape == ir.Shape([1])
    assert not saved(model).graph.initializer[0].metadata_props


def test_a_constant_written_as_floats_becomes_a_tensor() -> None:
    model, value = stored(value_floats=[1.0, 2.0, 3.0, 4.0])
    surgery.set_constant(model, value, np.zeros(4))
    (attribute,) = saved(model).graph.node[0].attribute
    assert attribute.name == "value"
    assert ran(model)[0].tolist() == [[0, 0, 0, 0], [0, 1, 2, 3]]


def test_only_what_nothing_uses_is_forgotten() -> None:
    model, value = stored(value_floats=[1.0, 2.0, 3.0, 4.0])
    c, d = (model.ir.graph.initializers[name] for name in "cd")
    surgery.forget(model, value)  # it is read
    surgery.forget(model, d)
    surgery.forget(model, named(model, "y").outputs[0])  # it is no constant
    surgery.forget(model, c)
    assert [t.name for t in saved(model).graph.initializer] == ["d"]
    assert [n.output[0] for n in saved(model).graph.node] == ["k", "a", "b", "y", "z"]
    surgery.set_input(model, named(model, "y"), 1, d)
    surgery.forget(model, value)
    assert [n.output[0] for n in saved(model).graph.node] == ["a", "b", "y", "z"]


def test_a_forgotten_constant_of_ir_3_is_no_input_any_more() -> None:
    model = chain(ir_version=3)
    c, d = (model.ir.graph.initializers[name] for name in "cd")
    surgery.set_input(model, named(model, "y"), 1, d)
    surgery.forget(model, c)
    assert [v.name for v in model.ir.graph.inputs] == ["x", "d"]
    assert list(model.ir.graph.initializers) == ["d"]


def test_the_journal_names_every_edit_and_no_other() -> None:
    """What is not in it is put back when the model is written."""
    model = chain()
    recorder = Recorder(model, model.ir.graph)
    recorder.put_behind(named(model, "b").outputs[0], "Neg", [], "b.whole")
    surgery.set_constant(model, model.ir.graph.initializers["c"], np.zeros(4))
    assert model._touched == {"b", "b.whole", "c"}
