"""Constants that are no weights of products are stored where it pays, or told by what they are."""

from collections.abc import Callable
from functools import partial

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from answers import normal, view_of
from hard_models import text
from numpy.lib.stride_tricks import sliding_window_view

from onnxshrink.graph.file.model import Model
from onnxshrink.graph.weights import find
from onnxshrink.options import build
from onnxshrink.passes.quantize_weights import QuantizeWeights
from onnxshrink.pipeline import Context
from onnxshrink.report import Step

Array = np.ndarray
SCAN = """(float[9] s, float[5, 9] x) => (float[9] last, float[5, 9] y) {
  last, y = Scan <num_scan_inputs = 2, scan_input_axes = [0, AXIS], body = step
    (float[9] a, float[9] v, float[9, 9] m) => (float[9] b, float[9] c) {
      p = MatMul(v, m)  b = Add(a, p)  c = Identity(b)
    }> (s, x, w)
}"""
DEFORMED = """(float[1, 4, 6, 6] x, float[1, 18, 4, 4] o) => (float[1, 8, 4, 4] y) {
  y = DeformConv <kernel_shape = [3, 3]> (x, w, o)
}"""
CHOSEN = "(float[4, 32] x, bool[4, 32] c) => (float[4, 32] y) { y = Where(c, x, w) }"


STEPS = {"s": normal(9, seed=1), "x": normal(5, 9, seed=2)}


def scanned(w: Array, s: Array, x: Array, axis: int) -> Array:
    return s + np.cumsum(np.einsum("ti,tio->to", x, np.moveaxis(w, axis, 0)), axis=0)


def convolved(w: Array, x: Array, o: Array) -> Array:  # no place is moved: o is 0
    return np.einsum("nchwij,ocij->nohw", sliding_window_view(x, (3, 3), (2, 3)), w)


@pytest.mark.parametrize(
    ("source", "weight", "feed", "expected"),
    [
        (SCAN.replace("AXIS", "0"), normal(5, 9, 9), STEPS, partial(scanned, axis=0)),
        (SCAN.replace("AXIS", "-2"), normal(9, 5, 9), STEPS, partial(scanned, axis=1)),
        (DEFORMED, normal(8, 4, 3, 3),
         {"x": normal(1, 4, 6, 6, seed=1), "o": np.zeros((1, 18, 4, 4), np.float32)}, convolved),
        (CHOSEN, normal(4, 32), {"x": normal(4, 32, seed=1), "c": normal(4, 32, seed=2) > 0},
         lambda w, x, c: np.where(c, x, w)),
    ],
    ids=["Scan", "Scan along another axis", "DeformConv", "Where"],
)  # fmt: skip
def test_they_are_stored_as_integers(
    source: str, weight: Array, feed: dict[str, Array], expected: Callable[..., Array]
) -> None:
    header = '<ir_version: 10, opset_import: ["": 22]> g '
    model = Model.from_proto(text(header + source, w=weight))
    step = build(QuantizeWeights, {"min_size": 0}, "here")
    step.apply(model, ctx := Context(Step("here")))
    assert [change.what for change in ctx.step.changes] == ["w"]
    proto = model.to_proto()
    onnx.checker.check_model(proto)
    (user,) = [node for node in proto.graph.node if "y" in node.output]
    (used,) = [name for name in user.input if name not in feed]
    proto.graph.output.add(name=used)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    answer, stored = session.run(["y", used], feed)
    assert 0 < np.abs(stored - weight).max() < np.abs(weight).max() / 100
    np.testing.assert_allclose(answer, expected(stored, **feed), atol=1e-5)


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ("y = Conv(x, k, c)", "is the bias of Conv"),
        ("y = InstanceNormalization(x, c, c)",
         "is the gain of InstanceNormalization and the shift of InstanceNormalization"),
        ("y = PRelu(x, p)", "is the slope of PRelu"),
        ("y = Concat <axis = 1> (x, p4)", "is moved by Concat, and no weight of a product"),
        ("y = Pow(x, c4)", "not a weight of a known operator (Pow)"),
    ],
)  # fmt: skip
def test_the_reason_is_what_it_is(nodes: str, reason: str) -> None:
    constants = {
        "k": normal(4, 4, 1, 1), "c": normal(4), "p": normal(4, 1, 1), "p4": normal(1, 1, 5, 1),
        "c4": normal(1, 4, 5, 5),
    }  # fmt: skip
    source = f"g (float[1, 4, 5, 5] x) => (float[a, b, c, d] y) {{ {nodes} }}"
    used = {name: array for name, array in constants.items() if name in nodes.replace(",", ")")}
    model = Model.from_proto(text(source, **used))
    assert reason in [view.why_not for view in find(model)]
    assert view_of(model, next(v.name for v in find(model) if v.why_not)).roles
