from __future__ import annotations

import channel_oracle as oracle
import numpy as np
import pytest

from onnxshrink.graph.channels.centre import centre
from onnxshrink.graph.channels.facts import Facts
from onnxshrink.graph.channels.walk import analyse
from onnxshrink.runtime.probe import probe

_STREAM = (
    '<ir_version: 8, opset_import: ["": {opset}]> g (int64[N,S] x) => (float[N,S,5] y) {{'
    "e = Gather(t, x) p = Add(e, pos) n1 = LayerNormalization(p, s1, b1)"
    "h = MatMul(n1, a) r = Relu(h) o = MatMul(r, b) q = Add(o, c) z = Add(p, q)"
    "n2 = LayerNormalization<epsilon=0.001>(z, s2, b2) {end}}}"
)
_PLAIN = "y = MatMul(n2, u)"


def _model(end=_PLAIN, opset=17, **more):
    return oracle.build(
        _STREAM.format(opset=opset, end=end), t=(7, 16), pos=(16,), s1=(16,), b1=(16,),
        a=(16, 24), b=(24, 16), c=(16,), s2=(16,), b2=(16,), u=(16, 5), **more,
    )  # fmt: skip


def _walk(model, worker):
    feed = {"x": np.array([[1, 5, 2, 6], [0, 3, 3, 4]])}
    return analyse(model, Facts(model, probe(model, feed, worker))), feed


def _answer(model, feed, worker, folder):
    path = folder / "model.onnx"
    model.save(path)
    worker.check(path)
    return worker.run(path, [feed]).outputs[0][0]


@pytest.mark.parametrize("opset", [17, 18])
def test_answers_stay_and_the_stream_can_lose_channels(opset, worker, tmp_path):
    model = _model(opset=opset)
    walk, feed = _walk(model, worker)
    before = _answer(model, feed, worker, tmp_path)
    changed = centre(walk)
    assert {value.name for value in changed} == {"t", "pos", "b", "c"}
    for value in changed:
        array = value.const_value.numpy()
        np.testing.assert_allclose(array.mean(-1), 0, atol=1e-7)
    assert not [n for n in model.ir.graph if n.op_type == "LayerNormalization"]
    after = _answer(model, feed, worker, tmp_path)
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5)
    verdict = oracle.prune(model, feed, worker, 0.4)
    assert verdict.shape("t") == (7, 10)
    assert verdict.shape("u") == (10, 5)
    assert verdict.error < 1e-5, verdict.where


@pytest.mark.parametrize(
    ("end", "why"),
    [
        ("w = Relu(z) v = MatMul(w, u) k = MatMul(n2, u) y = Add(v, k)", "read without a norm"),
        ("w = MatMul(b, b2) v = MatMul(n2, u) y = Add(v, five)", "a weight used twice"),
        ("w = Mul(n2, s2) m = LayerNormalization(w, s2) y = MatMul(m, u)", "a norm of a norm"),
    ],
)
def test_what_also_feeds_others_stays(end, why, worker):
    more = {"five": (5,)} if "five" in end else {}
    model = _model(end, **more)
    walk, _ = _walk(model, worker)
    centre(walk)
    left = [n for n in model.ir.graph if n.op_type == "LayerNormalization"]
    assert len(left) == (1 if why == "a norm of a norm" else 2), why
