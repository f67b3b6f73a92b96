"""What is no graph is refused as it is read, with the place named."""

from collections.abc import Callable

import onnx
import pytest
from onnx import helper, parser

from onnxshrink.errors import ModelError
from onnxshrink.graph.file.wellformed import check

GOOD = """<ir_version: 8, opset_import: ["": 17]> g (bool c, float[2] x) => (float[2] y)
    <float[2] w = {1, 2}> {
    a = Add (x, w)
    y = If (c) <then_branch = t () => (float[2] u) { u = Relu (a) },
                else_branch = e () => (float[2] v) { v = Identity (x) }>
}"""

Edit = Callable[[onnx.GraphProto], None]


def _inner(graph: onnx.GraphProto) -> onnx.GraphProto:
    return graph.node[1].attribute[0].g


def _twice(graph: onnx.GraphProto) -> None:
    graph.initializer.append(graph.initializer[0])


def _unnamed(graph: onnx.GraphProto) -> None:
    graph.initializer[0].name = ""


def _cycle(graph: onnx.GraphProto) -> None:
    graph.node[0].input[0] = "y"


def _nothing(graph: onnx.GraphProto) -> None:
    graph.node[0].input[0] = "nobody"


def _made_twice(graph: onnx.GraphProto) -> None:
    graph.node.append(helper.make_node("Relu", ["x"], ["a"]))


def _later(graph: onnx.GraphProto) -> None:
    """A branch may use what comes before its If, not what comes behind."""
    _inner(graph).node[0].input[0] = "late"
    graph.node.append(helper.make_node("Relu", ["x"], ["late"]))


def _output(graph: onnx.GraphProto) -> None:
    graph.output[0].name = "z"


def _no_value(graph: onnx.GraphProto) -> None:
    graph.node[1].attribute[0].ClearField("g")


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (_twice, "initializer 'w' is there twice"),
        (_unnamed, "an initializer has no name"),
        (_cycle, "node Add '' uses 'y' before it is made: a cycle"),
        (_nothing, "uses 'nobody', which nothing makes"),
        (_made_twice, "value 'a' is made twice"),
        (_later, "node If '', .*node Relu '' uses 'late'"),
        (_output, "nothing in its graph makes the output 'z'"),
        (_no_value, "attribute '.*_branch' has no value"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_wrong_is_named(edit: Edit, said: str) -> None:
    model = parser.parse_model(GOOD)
    check(model, "m.onnx")
    edit(model.graph)
    with pytest.raises(ModelError, match=f"^m.onnx: (.*)?{said}"):
        check(model, "m.onnx")


def test_bytes_that_are_no_text_are_found_wherever_they_are() -> None:
    model = parser.parse_model(GOOD)
    broken = onnx.ModelProto.FromString(model.SerializeToString().replace(b"Relu", b"Re\xffu"))
    with pytest.raises(ModelError, match="is not text: damaged"):
        check(broken, "m.onnx")
