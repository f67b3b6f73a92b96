"""Shapes are what ONNX Runtime finds, without a look at weights."""

import numpy as np
import onnx
import pytest
from hard_models import text

from onnxshrink.errors import DataError
from onnxshrink.graph.analysis.shapes import walk
from onnxshrink.graph.file.model import Model
from onnxshrink.runtime.session import open_session

REST = np.array([-1])
RESHAPED = """g (float[n, 3, len] x) => (float[a, b] y) {
    s = Shape (x)  i = Constant <value = int64[1] {0}> ()  m = Gather (s, i)
    t = Concat <axis = 0> (m, rest)  y = Reshape (x, t) }"""
INSIDE = """g (bool c, float[n, 4] x) => (float[a, b] y) {
    y = If (c) <then_branch = t () => (float[a, b] u) { u = Relu (x) },
                else_branch = e () => (float[a, b] v) { v = Concat <axis = 0> (x, x) }> }"""


def shapes(proto: onnx.ModelProto, **given: list[int]) -> dict[str, tuple[int | None, ...] | None]:
    found = walk(Model.from_proto(proto), given or None)
    return {value.name or "": shape for value, shape in found.shapes.items()}


@pytest.mark.parametrize("size", [2, 7])
def test_a_target_computed_from_a_shape_is_followed(size: int) -> None:
    proto = text(RESHAPED, rest=REST)
    found = shapes(proto, x=[2, 3, size])
    feed = {"x": np.zeros((2, 3, size), np.float32)}
    (answer,) = open_session(proto.SerializeToString()).run(None, feed)
    assert found["y"] == answer.shape == (2, 3 * size)
    assert found["s"] == (3,)


def test_an_open_batch_is_taken_as_one_and_said() -> None:
    model = Model.from_proto(text(RESHAPED, rest=REST))
    found = walk(model)
    of = {value.name: shape for value, shape in found.shapes.items()}
    assert (of["x"], of["m"]) == ((1, 3, None), (1,))
    assert [note for note in found.notes if "taken as 1" in note]
    free = walk(model, open_batch=True)
    assert {value.name: shape for value, shape in free.shapes.items()}["x"] == (None, 3, None)


def test_branches_agree_on_what_they_have_in_common() -> None:
    found = shapes(text(INSIDE), x=[3, 4])
    assert (found["u"], found["v"], found["y"]) == ((3, 4), (6, 4), (None, 4))


def test_sizes_are_computed_and_large_constants_are_not() -> None:
    source = """g (float[2, 3] x) => (float[4] y) {
        n = Size (x)  s = Shape <start = 1> (x)  k = Mul (n, s)
        z = Add (w, w)  y = Identity (z) }"""
    found = walk(Model.from_proto(text(source, w=np.ones(4000, np.float32)))).known
    known = {value.name: array.tolist() for value, array in found.items()}
    assert (known["n"], known["s"], known["k"]) == (6, [3], [18])
    assert "z" not in known


@pytest.mark.parametrize("domain", ["", "com.example."])
def test_only_operators_of_the_standard_are_computed(domain: str) -> None:
    """Another domain's Add may do anything."""
    header = '<ir_version: 8, opset_import: ["": 17, "com.example": 1]>'
    source = f"""{header} g (float[2, 3] x) => (int64[2] y) <int64[2] a> {{
        s = Shape (x)  a = {domain}Add (s, s)  y = Identity (a) }}"""
    known = {
        value.name: array.tolist()
        for value, array in walk(Model.from_proto(text(source))).known.items()
    }
    assert known.get("a") == (None if domain else [4, 6])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"z": [1]}, "no input 'z'"),
        ({"x": [2, 4, 5]}, "takes"),
        ({"x": [2, 3]}, "takes"),
        ({"x": [2, 3, -1]}, "takes"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(given: dict[str, list[int]], said: str) -> None:
    with pytest.raises(DataError, match=said):
        shapes(text(RESHAPED, rest=REST), **given)
