"""Channels that are scaled between two layers change their constants, and no answer."""

import numpy as np
import pytest
from answers import answers, normal, view_of
from onnx import numpy_helper, parser

from onnxshrink.graph.file.model import Model
from onnxshrink.graph.layers import scalable
from onnxshrink.graph.layers.rescale import Rescaling

FACTORS = np.array([2.0, 3.0, 0.5, 0.25, 1.0, 5.0])
BODIES = {
    "relu": "h = Gemm (x, a, c)  r = Relu (h)  y = MatMul (r, b)",
    "clip": "h = Gemm (x, a, c)  r = Clip (h, low, high)  y = MatMul (r, b)",
    "no source": "y = MatMul (s, b)",
}


def model_of(body: str, dtype: type = np.float32) -> Model:
    kind = "float16" if dtype is np.float16 else "float"
    proto = parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 17]>
        g ({kind}[n, 5] x, {kind}[n, 6] s) => ({kind}[n, 4] y) {{ {body} }}"""
    )
    held = {"a": normal(5, 6), "b": normal(6, 4, seed=1), "c": normal(6, seed=2),
            "low": np.float32(0), "high": np.float32(0.7)}  # fmt: skip
    used = {name for node in proto.graph.node for name in node.input}
    proto.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(v, dtype), n) for n, v in held.items() if n in used
    )
    return Model.from_proto(proto)


def scaled(model: Model) -> tuple[np.ndarray, list[str]]:
    """The factors as they were taken, and what was written."""
    (*_, site), unfit = scalable.find(model, norms=False)
    assert not unfit
    rescaling = Rescaling([site])
    rescaling.factors[site] = FACTORS
    written = sorted(view.name for view in rescaling.write(model))
    return rescaling.factors[site], written


@pytest.mark.parametrize("name", BODIES)
def test_no_answer_changes(name: str) -> None:
    model = model_of(BODIES[name])
    feed = {"x": normal(8, 5, seed=3), "s": normal(8, 6, seed=4)}
    (before,), b = answers(model, **feed), view_of(model, "b").array().copy()
    factors, written = scaled(model)
    np.testing.assert_array_equal(factors, FACTORS)
    assert written == (["b"] if name == "no source" else ["a", "b", "c"])
    np.testing.assert_allclose(view_of(model, "b").array(), b * FACTORS[:, None], rtol=1e-6)
    np.testing.assert_allclose(answers(model, **feed)[0], before, rtol=1e-5, atol=1e-5)


def test_constants_of_few_bits_get_powers_of_two() -> None:
    """Their digits stay as they are."""
    model = model_of(BODIES["relu"], np.float16)
    b = view_of(model, "b").array().copy()
    factors, _ = scaled(model)
    np.testing.assert_array_equal(factors, [2, 4, 0.5, 0.25, 1, 4])
    np.testing.assert_array_equal(view_of(model, "b").array(), b * factors[:, None].astype("f2"))


def test_what_is_scaled_by_one_is_not_written() -> None:
    model = model_of(BODIES["relu"])
    before = model.digest()
    (*_, site), _ = scalable.find(model, norms=False)
    assert list(Rescaling([site]).write(model)) == []
    assert model.digest() == before
