"""Measuring points: a value inside a body is what it is there, and the model answers as before."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
from onnx import parser

from onnxshrink.graph.analysis.instrument import Instrumented, instrument
from onnxshrink.graph.file.model import Model

NESTED = """<ir_version: 8, opset_import: ["": 17]>
g (float[2] x, bool c) => (float[2] y) <float[2] w = {3, 4}> {
    n = Constant <value = int64 {3}> ()
    t = Constant <value = bool {1}> ()
    l = Loop (n, t, x) <body = b (int64 i, bool ok, float[2] s) => (bool ok_out, float[2] s_out) {
        ok_out = Identity (ok)  k = Constant <value = float[2] {1, 2}> ()  s_out = Add (s, k)
    }>
    y = If (c) <then_branch = p () => (float[2] q) { m = Mul (l, w)  q = Neg (m) },
                else_branch = e () => (float[2] z) { z = Identity (l) }>
}"""
X = np.array([10, 20], np.float32)


def made(tmp_path: Path, **asked: list[str]) -> tuple[Instrumented, ort.InferenceSession]:
    model = Model.from_proto(parser.parse_model(NESTED))
    done = instrument(model, tmp_path / "model.onnx", **asked)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return done, ort.InferenceSession(tmp_path / "model.onnx", options)


def test_values_are_handed_out_of_bodies(tmp_path: Path) -> None:
    done, session = made(tmp_path, watch=["m", "s_out", "s", "y", "l"])
    assert done.outputs["y"] == "y"
    assert done.stacked == {done.outputs["s_out"]: 1, done.outputs["s"]: 1}
    assert not done.refused
    for taken in (True, False):
        names = ["y", *(done.outputs[name] for name in ("m", "s", "s_out", "l"))]
        y, m, s, s_out, last = session.run(names, {"x": X, "c": np.array(taken)})
        np.testing.assert_array_equal(s, X + np.outer([0, 1, 2], [1, 2]))
        np.testing.assert_array_equal(s_out, X + np.outer([1, 2, 3], [1, 2]))
        np.testing.assert_array_equal(last, s_out[-1])
        np.testing.assert_array_equal(m, last * [3, 4] if taken else [])
        np.testing.assert_array_equal(y, -m if taken else last)


def test_freed_constants_have_their_values_until_they_are_fed(tmp_path: Path) -> None:
    done, session = made(tmp_path, free=["w", "k"])
    assert done.inputs == {"w", "k"}
    feed = {"x": X, "c": np.array(True)}
    last = np.add(X, [3, 6])
    np.testing.assert_array_equal(session.run(["y"], feed)[0], -last * [3, 4])
    other = {"w": np.ones(2, np.float32), "k": np.zeros(2, np.float32)}
    np.testing.assert_array_equal(session.run(["y"], feed | other)[0], -X)


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    done, _ = made(tmp_path, watch=["nowhere"], free=["x", "l"])
    assert set(done.refused) == {"nowhere", "x", "l"}
    assert not done.outputs
    assert not done.inputs
