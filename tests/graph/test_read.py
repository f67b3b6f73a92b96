"""Attributes and constants are read one way, and what is not known is not the default."""

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from onnxshrink.graph import read

FUNCTION = """
<ir_version: 10, opset_import: ["": 21, "f": 1]>
main (float[1,4,8] x, float[4,2,3] w) => (float[1,4,6] y) { y = f.conv <group: int = 2>(x, w) }
<domain: "f", opset_import: ["": 21]>
conv <group, pads, mode> (x, w) => (y) {
    a = Conv <group: int = @group, pads: ints = @pads, strides = [1]> (x, w)
    y = Pad <mode: string = @mode> (a, a)
}
"""


def node(op_type: str = "Any", *inputs: ir.Value | None, **attributes: object) -> ir.Node:
    return ir.node(op_type, inputs, attributes)


def of_function() -> list[ir.Node]:
    proto = onnx.parser.parse_model(FUNCTION)
    return list(next(iter(ir.from_proto(proto).functions.values())))


def initializer(array: np.ndarray) -> ir.Value:
    return ir.Value(name="c", const_value=ir.Tensor(array))


def written(**attribute: object) -> ir.Value:
    """The value of a Constant node."""
    return node("Constant", **attribute).outputs[0]


def test_attributes_have_their_values_and_left_out_ones_their_defaults():
    some = node(group=3, pads=[1, 2], alpha=0.5, scales=[1.5], mode="edge", keys=["a", "b"])
    assert read.integer(some, "group", 1) == 3
    assert read.integers(some, "pads") == (1, 2)
    assert read.number(some, "alpha", 1.0) == 0.5
    assert read.number(some, "group", 1.0) == 3.0
    assert read.numbers(some, "scales") == (1.5,)
    assert read.text(some, "mode", "") == "edge"
    assert read.texts(some, "keys") == ("a", "b")
    assert read.attributes(some) == {
        "group": 3, "pads": (1, 2), "alpha": 0.5, "scales": (1.5,), "mode": "edge",
        "keys": ("a", "b"),
    }  # fmt: skip
    none = node()
    assert read.integer(none, "group", 7) == 7
    assert read.number(none, "alpha", 0.25) == 0.25
    assert read.text(none, "mode", "x") == "x"
    assert read.integers(none, "pads") is read.numbers(none, "s") is read.texts(none, "k") is None
    assert read.attributes(none) == {}


def test_a_parameter_of_a_function_is_unknown_and_not_the_default():
    conv, pad = of_function()
    for ask in (
        lambda: read.integer(conv, "group", 1),
        lambda: read.number(conv, "group", 1.0),
        lambda: read.integers(conv, "pads"),
        lambda: read.text(pad, "mode", "constant"),
        lambda: read.attributes(conv),
    ):
        with pytest.raises(read.Unknown, match="from the call of the function that it is in"):
            ask()
    assert "'group'" in read.obstacle(conv)
    assert "'mode'" in read.obstacle(pad)
    assert read.obstacle(node(group=2)) == ""
    assert read.integers(conv, "strides") == (1,)  # what it says itself is known


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda some: read.integer(some, "real", 0), "'real' is of type FLOAT, not INT"),
        (lambda some: read.integer(some, "several", 0), "INTS"),
        (lambda some: read.integers(some, "whole"), "'whole' is of type INT, not INTS"),
        (lambda some: read.number(some, "name", 0.0), "STRING"),
        (lambda some: read.numbers(some, "several"), "INTS"),
        (lambda some: read.text(some, "whole", ""), "not STRING"),
        (lambda some: read.texts(some, "name"), "not STRINGS"),
    ],
)
def test_another_type_is_unknown(ask, said):
    with pytest.raises(read.Unknown, match=said):
        ask(node(real=1.0, whole=1, several=[1], name="n"))


def test_inputs_may_be_left_out_in_the_middle_and_at_the_end():
    x = ir.Value(name="x")
    clip = node("Clip", x, None)
    assert read.input(clip, 0) is x
    assert read.input(clip, 1) is None
    assert read.input(clip, 2) is None


@pytest.mark.parametrize(
    ("attribute", "expected"),
    [
        ({"value": ir.Tensor(np.array([[1, 2]], np.int8))}, np.array([[1, 2]], np.int8)),
        ({"value_float": 1.5}, np.array(1.5, np.float32)),
        ({"value_floats": [1.5, 2.5]}, np.array([1.5, 2.5], np.float32)),
        ({"value_int": 3}, np.array(3, np.int64)),
        ({"value_ints": [3, 4]}, np.array([3, 4], np.int64)),
        ({"value_string": "a"}, np.array(b"a", object)),
        ({"value_strings": ["a", "b"]}, np.array([b"a", b"b"], object)),
    ],
)
def test_every_way_to_write_a_constant_is_read(attribute, expected):
    value = written(**attribute)
    found = read.array(value)
    assert found is not None
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    np.testing.assert_array_equal(found, expected)
    tensor = read.constant(value)
    assert tensor is not None
    assert tuple(tensor.shape) == expected.shape


def test_what_is_no_constant_has_no_tensor():
    computed = node("Relu", ir.Value(name="x")).outputs[0]
    filled = node("ConstantOfShape", computed, value=ir.Tensor(np.zeros(1, np.float32))).outputs[0]
    elsewhere = ir.Node("f", "Constant", [], [ir.AttrInt64("value_int", 1)]).outputs[0]
    passed = ir.Node("", "Constant", [], [ir.RefAttr("value_ints", "n", ir.AttributeType.INTS)])
    empty = node("Constant").outputs[0]
    for value in (None, ir.Value(name="x"), computed, filled, elsewhere, passed.outputs[0], empty):
        assert read.constant(value) is None
        assert read.array(value) is None
        assert read.scalar(value) is None
        assert read.integer_list(value) is None


def test_a_scalar_is_one_number_of_any_rank():
    assert read.scalar(initializer(np.float16([[2.5]]))) == 2.5
    assert read.scalar(initializer(np.int64(-3))) == -3.0
    assert read.scalar(written(value_float=-np.inf)) == -np.inf
    assert read.scalar(initializer(np.zeros(2))) is None
    assert read.scalar(initializer(np.zeros(0))) is None
    assert read.scalar(written(value_string="1")) is None


def test_a_list_of_integers_is_of_integers():
    assert read.integer_list(initializer(np.array([[1], [-2]], np.int32))) == [1, -2]
    assert read.integer_list(initializer(np.array(5))) == [5]
    assert read.integer_list(written(value_ints=[])) == []
    assert read.integer_list(initializer(np.array([1.0]))) is None
    assert read.integer_list(written(value_strings=["1"])) is None


def test_axes_are_an_attribute_once_and_an_input_now():
    x = ir.Value(name="x")
    assert read.axes(node("Squeeze", x, axes=[0, -1])) == (0, -1)
    assert read.axes(node("Squeeze", x, initializer(np.array([0, -1])))) == (0, -1)
    assert read.axes(node("Squeeze", x, written(value_ints=[2]))) == (2,)
    assert read.axes(node("Resize", x, x, initializer(np.array([1]))), index=2) == (1,)
    assert read.axes(node("Squeeze", x)) is None
    assert read.axes(node("Squeeze", x, None)) is None
    with pytest.raises(read.Unknown, match="computed"):
        read.axes(node("Squeeze", x, x))
