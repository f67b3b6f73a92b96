"""Weights: found wherever they live, seen as a matrix, and left alone where they must be."""

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from weight_models import HEADER, Case, homes, normal, operators, parsed

from onnxshrink.graph import weights
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.operators import TABLE, Axes, OneByOne
from onnxshrink.graph.weights.views import WeightView
from onnxshrink.runtime.session import SessionOptions, open_session, run_session

EXACT = SessionOptions(optimization="disable", accuracy_level=0)


def found(model: onnx.ModelProto) -> dict[str, WeightView]:
    return {view.name: view for view in weights.find(Model.from_proto(model))}


def free(model: onnx.ModelProto) -> dict[str, WeightView]:
    return {name: view for name, view in found(model).items() if not view.why_not and view.uses}


@pytest.mark.parametrize("case", operators(), ids=repr)
def test_the_matrix_is_what_the_operator_multiplies_with(case: Case) -> None:
    views = free(case.model)
    assert set(case.weights) <= set(views)
    assert views[case.weights[0]].matrix.shape == case.dims
    if case.formula is not None:
        answer = run_session(open_session(case.model.SerializeToString(), EXACT), case.feed)[-1]
        expected = case.formula({name: views[name].matrix for name in case.weights}, case.feed)
        assert expected.shape == answer.shape
        assert np.linalg.norm(answer - expected) <= 2e-6 * np.linalg.norm(expected)


def test_every_operator_of_the_table_has_a_model() -> None:
    shown = {(node.domain, node.op_type) for case in operators() for node in case.model.graph.node}
    kinds = {type(row) for key, row in TABLE.items() if key in shown}
    for key, row in TABLE.items():
        shows = type(row) in kinds if isinstance(row, OneByOne) else key in shown
        assert shows or not row.weights, key


@pytest.mark.parametrize("case", operators() + homes(), ids=repr)
def test_the_stored_layout_comes_back(case: Case) -> None:
    for view in free(case.model).values():
        assert view.matrix.size == view.size
        np.testing.assert_array_equal(view.from_matrix(view.matrix), view.array())
        if view.axes.groups == 1:  # a row is a place along the output axes, whatever the layout
            rows = np.arange(len(view.matrix))[:, None] + np.zeros(view.matrix.shape)
            moved, contract = view.from_matrix(rows), view.axes.contract
            np.testing.assert_array_equal(moved.min(contract), moved.max(contract))


@pytest.mark.parametrize("case", homes(), ids=repr)
def test_every_home(case: Case) -> None:
    views = free(case.model)
    assert set(views) >= set(case.weights)
    for name in case.weights:
        assert views[name].uses
        assert views[name].is_node == (views[name].value.producer() is not None)
        assert views[name].op_type in {use.op_type for use in views[name].uses}


def test_uses_and_activations() -> None:
    cases = {case.name: found(case.model) for case in homes()}
    tied = cases["tied"]["W"]
    assert [use.op_type for use in tied.uses] == ["MatMul", "MatMul"]
    assert tied.activation is not None
    assert tied.activation.name == "x"
    turned = cases["tied, turned"]["W"]
    assert {use.op_type: (use.axes.out, use.direct) for use in turned.uses} == {
        "Gather": ((0,), True), "MatMul": ((0,), False),
    }  # fmt: skip
    assert turned.op_type == "MatMul"  # a product decides before a lookup
    both = cases["shared by Gemm both ways"]["W"]
    assert [use.axes.out for use in both.uses] == [(1,), (0,)]
    argument = cases["function argument"]["W"]
    assert argument.activation is not None
    assert argument.activation.name == "a"
    assert cases["also used elsewhere"]["W"].others == ("ReduceMax",)
    joined = cases["LSTM put together"]
    assert joined["W"].axes.out == (0,)
    assert joined["W"].axes.contract == (1,)
    assert joined["W"].op_type == joined["R"].op_type == "LSTM"


def test_the_largest_come_first() -> None:
    sizes = [
        view.nbytes for case in operators() for view in weights.find(Model.from_proto(case.model))
    ]
    model = parsed(
        "g (float[3, 8] x) => (float[3, 64] y) { h = MatMul(x, small) y = MatMul(h, large) }",
        small=normal(8, 32), large=normal(32, 64),
    )  # fmt: skip
    assert [view.name for view in weights.find(Model.from_proto(model))] == ["large", "small"]
    assert min(sizes) > 0


W = normal(64, 40)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("(float[3, 64] x, float[64, 40] W) => (float y) { y = MatMul(x, W) }", "override"),
        ("(float[3, 64] x) => (float y, float[64, 40] W) { y = MatMul(x, W) }", "output"),
        ("(float[3, 64] x) => (float y, float t) { t = Transpose(W) y = MatMul(x, W) }", "output"),
        ("(float[3, 64] x) => (float y) { y = local.Custom(x, W) }", "Custom"),
        ("(float[3, 64] x) => (float y) { t = Pow(x, W) y = Relu(t) }", "Pow"),
        (
            "(float[3, 64] x, bool c) => (float y) { y = If(c) "
            "<then_branch = t () => (float W) { },"
            " else_branch = e () => (float q) { q = Relu(x) }> }",
            "",
        ),
    ],
)
def test_what_must_stay(text: str, reason: str) -> None:
    if not reason:  # a branch cannot hand out an outer value: not a model
        with pytest.raises(Exception, match="'W'"):
            Model.from_proto(parsed("g " + text, W=W))
        return
    view = found(parsed("g " + text, W=W))["W"]
    assert reason in view.why_not


@pytest.mark.parametrize(("version", "reason"), [(3, ""), (4, "override"), (5, "override")])
def test_initializers_that_are_inputs_are_defaults_since_ir_4(version: int, reason: str) -> None:
    header = f'<ir_version: {version}, opset_import: ["": 8]>'
    text = "g (float[3, 64] x, float[64, 40] W) => (float[3, 40] y) { y = MatMul(x, W) }"
    why_not = found(parsed(text, header, W=W))["W"].why_not
    assert reason in why_not
    assert bool(reason) == bool(why_not)


def test_a_weight_is_not_followed_where_it_becomes_integers() -> None:
    """What is multiplied there are other numbers, and codes in its place would be others again."""
    text = "g (int32[3, 64] x) => (int32 y) { c = Cast<to = %d>(W) y = MatMul(x, c) }"
    for kind in (onnx.TensorProto.INT32, onnx.TensorProto.INT8):
        view = found(parsed(text % kind, W=W))["W"]
        assert (view.uses, view.others) == ((), ("Cast",))
    floats = found(parsed(text % onnx.TensorProto.FLOAT16, W=W))["W"]
    assert [use.op_type for use in floats.uses] == ["MatMul"]


def test_an_activation_is_not_followed_through_concat() -> None:
    """The tokens of a class, joined with patches: a product behind it is not the constant's."""
    model = parsed(
        "g (float[3, 40] x) => (float[67, 20] y) { t = Concat<axis = 0>(W, x) y = MatMul(t, V) }",
        W=W, V=normal(40, 20),
    )  # fmt: skip
    views = found(model)
    assert [use.op_type for use in views["W"].uses] == ["Concat"]
    assert views["W"].axes == Axes((0,), (1,))
    assert not views["V"].why_not


@pytest.mark.parametrize(
    ("text", "name", "how"),
    [
        ("{ w = DequantizeLinear(Q, s, z) y = MatMul(x, w) }", "Q", "DequantizeLinear"),
        ("{ c = Cast<to = 1>(Q) w = Mul(c, s) y = MatMul(x, w) }", "Q", "Cast, Mul"),
        ("{ c = Cast<to = 1>(Q) d = Sub(c, f) w = Mul(d, s) y = MatMul(x, w) }", "Q", "Cast, Mul"),
        ("{ t = Transpose(Q) w = DequantizeLinear(t, s, z) y = MatMul(x, w) }", "Q", "Dequantize"),
        ("{ q, a, b = DynamicQuantizeLinear(x) p = MatMulInteger(q, Q, b, z) y = Cast<to = 1>(p) }",
         "Q", "MatMulInteger"),
        ("{ y = com.microsoft.DynamicQuantizeMatMul(x, Q, s, z) }", "Q", "DynamicQuantizeMatMul"),
        ("{ y = com.microsoft.MatMulNBits<K = 64, N = 40, bits = 4, block_size = 32>(x, N, n) }",
         "N", "MatMulNBits"),
        ("{ q, a, b = DynamicQuantizeLinear(x) p = ConvInteger(q, Q) y = Cast<to = 1>(p) }",
         "Q", "ConvInteger"),
        ("{ y = com.microsoft.DynamicQuantizeLSTM<hidden_size = 10>"
         "(x, Q, Q, , , , , , s, z, s, z) }",
         "Q", "DynamicQuantizeLSTM"),
    ],
)  # fmt: skip
def test_what_is_quantized_already(text: str, name: str, how: str) -> None:
    model = parsed(
        "g (float[3, 64] x) => (float y) " + text,
        Q=np.ones((64, 40), np.int8), z=np.zeros((), np.int8), s=np.full((), 0.5, np.float32),
        f=np.zeros((), np.float32), N=np.zeros((40, 2, 16), np.uint8), n=normal(80),
    )  # fmt: skip
    views = found(model)
    assert how in views[name].why_not
    assert "already quantized" in views[name].why_not
    assert all(view.why_not for view in views.values())


def test_the_number_that_a_pad_fills_in_is_no_part_of_what_it_makes() -> None:
    text = "g (float[3, 62] x, int64[4] p) => (float y) { t = Pad(x, p, c) y = MatMul(t, W) }"
    view = found(parsed(text, W=W, c=np.float32(2)))["c"]
    assert (view.uses, view.others) == ((), ("Pad",))


def test_one_kernel_of_convolutions_with_other_groups_says_so() -> None:
    text = """g (float[1, 4, 6, 6] x) => (float y, float z) {
        y = ConvTranspose(x, K)  z = ConvTranspose<group = GROUPS>(x, K) }"""
    kernel = normal(4, 2, 3, 3)
    assert "channel groups" in found(parsed(text.replace("GROUPS", "2"), K=kernel))["K"].why_not
    assert found(parsed(text.replace("GROUPS", "1"), K=kernel))["K"].why_not == ""


def test_a_scan_of_operator_set_8_is_not_looked_into() -> None:
    """Its inputs begin with lengths, and all have a batch."""
    text = """g (float[1, 9] s) => (float[1, 9] last, float[1, 5, 9] y) {
        last, y = Scan <num_scan_inputs = 1, body = step
            (float[9] a, float[9, 9] m) => (float[9] b, float[9] c) {
                b = MatMul(a, m)  c = Identity(b)
            }> ("", s, w) }"""
    model = parsed(text, '<ir_version: 8, opset_import: ["": 8]>', w=normal(1, 5, 9, 9))
    assert (found(model)["w"].uses, found(model)["w"].others) == ((), ("Scan",))


def test_nothing_is_found_where_nothing_is() -> None:
    assert found(parsed("g (float[3] x) => (float[3] y) { y = Relu(x) }")) == {}
    assert (
        found(parsed("g (float[3, 0] x) => (float y) { y = MatMul(x, W) }", W=normal(0, 4))) == {}
    )
    unused = parsed("g (float[3] x) => (float[3] y) { y = Relu(x) }", W=W)
    assert found(unused) == {}


@pytest.mark.parametrize(
    "node",
    [
        helper.make_node("Einsum", ["x", "W"], ["y"]),
        helper.make_node("Einsum", ["x", "W"], ["y"], equation="..."),
        helper.make_node("Einsum", ["x", "W"], ["y"], equation="ij"),
        helper.make_node("Einsum", ["x", "W"], ["y"], equation=3),
        helper.make_node("Einsum", ["x", "W"], ["y"], equation="ij,jj->ij"),
        helper.make_node("Transpose", ["W"], ["y"], perm=[5, 0]),
        helper.make_node("Transpose", ["W"], ["y"], perm="no"),
        helper.make_node("Unsqueeze", ["W"], ["y"]),
        helper.make_node("Unsqueeze", ["W", "x"], ["y"]),
        helper.make_node("Cast", ["W"], ["y"], to=99),
        helper.make_node("LSTM", ["x", "W", "W"], ["y"]),
    ],
)
def test_damaged_nodes_are_no_uses(node: onnx.NodeProto) -> None:
    """Models are also inspected without the checker: what makes no sense is no weight."""
    model = parsed("g (float[3, 64] x) => (float y) { y = Identity(x) }", HEADER, W=W)
    model.graph.node[0].CopyFrom(node)
    assert not any(view.uses for view in found(model).values())


def test_tensors_are_shared_not_copied() -> None:
    model = parsed("g (float[3, 64] x) => (float y) { y = MatMul(x, W) }", W=W)
    view = found(model)["W"]
    assert numpy_helper.to_array(model.graph.initializer[0]).tobytes() == view.array().tobytes()
    assert (view.shape, view.size, view.nbytes, view.op_type) == ((64, 40), 2560, 10240, "MatMul")


def test_the_value_of_constant_of_shape_is_no_constant() -> None:
    """Its attribute has the same name and holds one element of what comes out."""
    text = """g (int64[2] s) => (float[a, b] y, float[1] z) {
        y = ConstantOfShape<value = float[1] {3}>(s)  z = Constant<value = float[1] {4}>()
    }"""
    nodes = Model.from_proto(parsed(text)).nodes
    of_shape, plain = (weights.constant(node.outputs[0]) for node in nodes)
    assert of_shape is None
    assert plain is not None
    assert plain.numpy() == 4
