"""A shift of what a layer adds is seen in its outputs, wherever it can be put."""

import numpy as np
import pytest
from answers import answers, normal
from onnx import numpy_helper, parser

from onnxshrink.graph import weights
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.layers import bias, fitting

AMOUNT = np.array([1.0, -2.0, 3.0])
BODIES = {
    # body, the name that is told, bytes before and after
    "none": ("y = MatMul (x, w)", "y", 0, 12),
    "its own": ("y = Gemm (x, w, b)", "b", 12, 12),
    "behind": ("m = MatMul (x, w)  y = Add (m, b)", "b", 12, 12),
    "gemm without": ("y = Gemm <beta = 3.0> (x, w)", "y", 0, 12),
    "times beta": ("y = Gemm <beta = 4.0> (x, w, b)", "b", 12, 12),
    "shared": ("v = Gemm (x, w, b)  y = Add (v, b)", "v", 0, 12),
    "copied": ("c = Identity (b)  y = Gemm (x, w, c)", "b", 12, 12),
    "converted": ("c = Cast <to = 1> (h)  y = Gemm (x, w, c)", "h", 6, 6),
    "one number": ("y = Gemm (x, w, o)", "y", 0, 12),
}


def model_of(body: str) -> Model:
    proto = parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 17]>
        g (float[n, 5] x) => (float[n, 3] y) {{ {body} }}"""
    )
    held = {
        "w": normal(5, 3), "b": normal(3, seed=1), "o": normal(1, seed=2),
        "h": np.array([0.5, 1.0, -2.0], np.float16),
    }  # fmt: skip
    used = {name for node in proto.graph.node for name in node.input}
    proto.graph.initializer.extend(
        numpy_helper.from_array(array, name) for name, array in held.items() if name in used
    )
    return Model.from_proto(proto)


def outline_of(model: Model) -> fitting.Outline:
    return next(iter(fitting.outlines(model, model)))


@pytest.mark.parametrize("name", BODIES)
def test_the_outputs_shift(name: str) -> None:
    body, told, before, after = BODIES[name]
    model, x = model_of(body), normal(4, 5, seed=3)
    (old,) = answers(model, x=x)
    outline = outline_of(model)
    assert bias.why_not(outline) == ""
    weight = next(view for view in weights.find(model) if view.name == "w")
    assert bias.shift(model, outline, AMOUNT, weight.tensor) == (told, before, after)
    (new,) = answers(model, x=x)
    np.testing.assert_allclose(new - old, np.broadcast_to(AMOUNT, old.shape), atol=1e-5)
    proto = model.to_proto()
    assert [value.name for value in proto.graph.output] == ["y"]
    read = {name for node in proto.graph.node for name in node.input}
    assert {tensor.name for tensor in proto.graph.initializer} <= read  # nothing left dead


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("t = Transpose (x)  m = Transpose (w)  z = MatMul (m, t)  y = Transpose (z)", "left"),
        ("s = ReduceMean <keepdims = 0> (x)  y = Gemm (x, w, s)", "not stored as numbers"),
    ],
)
def test_why_not(body: str, reason: str) -> None:
    assert reason in bias.why_not(outline_of(model_of(body)))
