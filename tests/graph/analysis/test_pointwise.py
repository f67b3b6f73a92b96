"""What becomes of a value number by number, against ONNX Runtime."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hard_models import text

from onnxshrink.graph.analysis.pointwise import behind, bounds
from onnxshrink.graph.file.model import Model

X = np.linspace(-6, 6, 97)
FUNCTIONS = {
    "hard swish": "a = Add(v, three)  b = Clip(a, zero, six)  c = Mul(v, b)  y = Div(c, six)",
    "swish": "a = Sigmoid(v)  y = Mul(v, a)",
    "gelu by erf": "a = Erf(v)  b = Add(a, three)  c = Mul(v, b)  y = Mul(c, half)",
    "tanh": "a = Tanh(v)  y = Sub(three, a)",
    "hard sigmoid": "y = HardSigmoid<alpha = 0.3>(v)",
    "hard swish at once": "y = HardSwish(v)",
    "leaky": "a = LeakyRelu<alpha = 0.2>(v)  y = Neg(a)",
    "elu": "a = Elu<alpha = 0.7>(v)  y = Abs(a)",
    "softplus": "y = Softplus(v)",
    "relu": "a = Relu(v)  y = Identity(a)",
}
CONSTANTS = {"zero": 0.0, "half": 0.5, "three": 3.0, "six": 6.0}


def model_of(body: str) -> onnx.ModelProto:
    used = {n: np.array(v, np.float32) for n, v in CONSTANTS.items() if n in body}
    return text(f"g (float[n, 64] x) => (float[n, 64] y) {{ v = Exp(x)  {body} }}", **used)


def value_of(proto: onnx.ModelProto, name: str):
    model = Model.from_proto(proto)
    return next(v for node in model.nodes for v in node.outputs if v.name == name)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_onnxruntimes(name: str) -> None:
    proto = model_of(FUNCTIONS[name])
    run = behind(value_of(proto, "v"))
    assert run is not None
    (found,) = run(X)
    alone = onnx.ModelProto()
    alone.CopyFrom(proto)
    alone.graph.node[0].op_type = "Identity"
    feed = {"x": np.resize(X, (2, 64)).astype(np.float32)}
    session = ort.InferenceSession(alone.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = session.run(None, feed)[0].ravel()[: X.size]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-6)


def test_every_way_out_is_a_result() -> None:
    proto = model_of("a = Relu(v)  b = Softmax(v)  c = Softmax(a)  y = Add(b, c)")
    run = behind(value_of(proto, "v"))
    assert run is not None
    own, relu = run(X)
    np.testing.assert_array_equal(own, X)
    np.testing.assert_array_equal(relu, np.maximum(X, 0))


def test_nothing_to_follow() -> None:
    for body in ("y = Softmax(v)", "a = MatMul(v, w)  y = Relu(a)", "y = Add(v, x)"):
        constants = {"w": np.eye(64, dtype=np.float32)} if "w" in body else {}
        proto = text(
            f"g (float[n, 64] x) => (float[n, 64] y) {{ v = Exp(x)  {body} }}", **constants
        )
        assert behind(value_of(proto, "v")) is None


def test_bounds_of_relu_and_clip() -> None:
    proto = model_of("a = Relu(v)  b = Clip(a, zero, six)  c = Clip(b)  y = Tanh(c)")
    nodes = {node.outputs[0].name: node for node in Model.from_proto(proto).nodes}
    assert bounds(nodes["a"]) == (0, np.inf)
    assert bounds(nodes["b"]) == (0, 6)
    assert bounds(nodes["c"]) == (-np.inf, np.inf)
    assert bounds(nodes["y"]) is None
