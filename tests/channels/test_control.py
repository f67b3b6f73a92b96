"""Channels go into bodies of If, Loop and Scan, and out of them again."""

from __future__ import annotations

import channel_oracle as oracle
import numpy as np
import onnx
import pytest

from onnxshrink.channels.plan import blocked
from onnxshrink.contract import Settings
from onnxshrink.graph.file.model import Model
from onnxshrink.passes.prune_channels import PruneChannels
from onnxshrink.pipeline import run

_HEAD = '<ir_version: 8, opset_import: ["": 17]> g '


def _build(text: str, **tensors: object) -> Model:
    """A model in text; tensors whose name begins with ``in_`` are stored in the body that uses it.

    Those that begin with ``in_node`` are there as Constant nodes.
    """
    model = oracle.build(_HEAD + text, check=False, **tensors)
    proto = model.to_proto()
    _move_in(proto.graph, proto.graph)
    onnx.checker.check_model(proto)
    return Model.from_proto(proto)


def _move_in(graph: onnx.GraphProto, main: onnx.GraphProto) -> None:
    wanted = {name for node in graph.node for name in node.input if name.startswith("in_")}
    for tensor in [t for t in main.initializer if t.name in wanted]:
        main.initializer.remove(tensor)
        if tensor.name.startswith("in_node"):
            graph.node.insert(0, onnx.helper.make_node("Constant", [], [tensor.name], value=tensor))
        else:
            graph.initializer.append(tensor)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _move_in(attribute.g, main)


def _feeds(n: int, t: int = 4, **more: object) -> dict[str, np.ndarray]:
    rng = np.random.default_rng([n, t])
    x = rng.standard_normal((n, t, 6)).astype(np.float32)
    return {"x": x, **{name: np.asarray(value) for name, value in more.items()}}


_CONDITION = [dict(c=True), dict(c=False)]
_TURNS = [dict(m=3), dict(m=1), dict(m=0)]

#: Name -> text, tensors, what the other inputs are in turn, shapes that are left.
CASES = {
    "branches": (
        "(float[N,T,6] x, bool c) => (float[N,T,4] y) {h = MatMul(x, a)"
        "s = If(c)<then_branch=t () => (float[N,T,8] p) {p = Relu(h)},"
        "else_branch=e () => (float[N,T,8] q) {q = Neg(h)}> y = MatMul(s, b)}",
        dict(a=(6, 8), b=(8, 4)), _CONDITION, dict(a=(6, 6), b=(6, 4)),
    ),
    "weights_of_branches": (
        "(float[N,T,6] x, bool c) => (float[N,T,4] y) {h = MatMul(x, a)"
        "s, z = If(c)<then_branch=t () => (float[N,T,9] p, float[N,T,8] i)"
        " {k = MatMul(h, in_w) r = Relu(k) p = MatMul(r, in_v) i = Identity(h)},"
        "else_branch=e () => (float[N,T,9] q, float[N,T,8] j)"
        " {u = MatMul(h, in_node) q = Add(u, in_node_bias) j = Neg(h)}>"
        "d = MatMul(s, b) f = MatMul(z, b2) y = Add(d, f)}",
        dict(a=(6, 8), in_w=(8, 10), in_v=(10, 9), in_node=(8, 9), in_node_bias=(9,), b=(9, 4),
             b2=(8, 4)), _CONDITION,
        dict(a=(6, 6), in_w=(6, 7), in_v=(7, 6), in_node=(6, 6), in_node_bias=(6,), b=(6, 4)),
    ),
    "shared_with_the_outside": (
        "(float[N,T,6] x, bool c) => (float[N,T,4] y) {h = MatMul(x, a) o = MatMul(h, w)"
        "s = If(c)<then_branch=t () => (float[N,T,9] p) {i = MatMul(h, w) p = Add(i, v)},"
        "else_branch=e () => (float[N,T,9] q) {q = Identity(o)}>"
        "r = Add(s, v) g = Add(r, o) y = MatMul(g, b)}",
        dict(a=(6, 8), w=(8, 9), v=(9,), b=(9, 4)), _CONDITION,
        dict(a=(6, 6), w=(6, 6), v=(6,), b=(6, 4)),
    ),
    "reshaped_in_a_branch": (
        "(float[N,T,6] x, bool c) => (float[N,T,4] y) {h = MatMul(x, a)"
        "s = If(c)<then_branch=t () => (float[N,T,12] p) {"
        "n = Shape<start=0, end=2>(h) to = Concat<axis=0>(n, split)"
        "r = Reshape(h, to) f = Transpose<perm=[0,1,3,2]>(r) g = Transpose<perm=[0,1,3,2]>(f)"
        "k = Shape(h) p = Reshape(g, k)},"
        "else_branch=e () => (float[N,T,12] q) {i, j = Split<axis=2>(h, parts) k2 = Neg(i)"
        "q = Concat<axis=2>(k2, j)}> y = MatMul(s, b)}",
        dict(a=(6, 12), b=(12, 4), split=np.array([3, 4]), parts=np.array([5, 7])), _CONDITION,
        dict(a=(6, 6), b=(6, 4)),
    ),
    "recurrent_cell": (
        "(float[N,T,6] x, int64 m) => (float[N,4] y, float[K,N,3] z) {"
        "n = Shape<start=0, end=1>(x) to = Concat<axis=0>(n, width) h0 = ConstantOfShape(to)"
        "h, hs = Loop(m, , h0)<body=b (int64 i, bool g, float[N,10] s) =>"
        " (bool g2, float[N,10] s2, float[N,10] o) {g2 = Identity(g) xt = Gather<axis=1>(x, zero)"
        " k = MatMul(xt, in_w) r = MatMul(s, in_u) l = Add(k, r) l2 = Add(l, in_b) s2 = Tanh(l2)"
        " o = Relu(s2)}> y = MatMul(h, b2) z = MatMul(hs, v)}",
        dict(in_w=(6, 10), in_u=(10, 10), in_b=(10,), b2=(10, 4), v=(10, 3), width=np.array([10]),
             zero=np.array(0)), _TURNS,
        dict(in_w=(6, 7), in_u=(7, 7), in_b=(7,), b2=(7, 4), v=(7, 3)),
    ),
    "state_that_is_not_zero": (
        "(float[N,T,6] x, int64 m) => (float[N,4] y) {"
        "xt = Gather<axis=1>(x, zero) h0 = MatMul(xt, a)"
        "h = Loop(m, , h0)<body=b (int64 i, bool g, float[N,10] s) => (bool g2, float[N,10] s2)"
        " {g2 = Identity(g) r = MatMul(s, in_u) s2 = Sigmoid(r)}> y = MatMul(h, b)}",
        dict(a=(6, 10), in_u=(10, 10), b=(10, 4), zero=np.array(0)), _TURNS,
        dict(a=(6, 7), in_u=(7, 7), b=(7, 4)),
    ),
    "state_and_its_square": (  # S @ S^T: the terms of channels that go would not be zero
        "(float[N,T,6] x, int64 m) => (float[N,4] y) {"
        "xt = Gather<axis=1>(x, zero) h0 = MatMul(xt, a)"
        "h = Loop(m, , h0)<body=b (int64 i, bool g, float[N,10] s) => (bool g2, float[N,10] s2)"
        " {g2 = Identity(g) t = Transpose(s) q = MatMul(s, t) r = MatMul(q, s) s2 = Sigmoid(r)}>"
        "y = MatMul(h, b)}",
        dict(a=(6, 10), b=(10, 4), zero=np.array(0)), _TURNS, dict(a=(6, 10), b=(10, 4)),
    ),
    "gated_scan": (
        "(float[N,T,6] x) => (float[N,4] y, float[N,T,3] z) {"
        "n = Shape<start=0, end=1>(x) to = Concat<axis=0>(n, width) h0 = ConstantOfShape(to)"
        "h, hs = Scan<num_scan_inputs=1, scan_input_axes=[1], scan_output_axes=[1],"
        "scan_input_directions=[1], body=b (float[N,10] s, float[N,6] xt) =>"
        " (float[N,10] s2, float[N,10] o) {k = MatMul(xt, w) u = MatMul(s, in_u) l = Add(k, u)"
        " f, c = Split<axis=1>(l) g = Sigmoid(f) n2 = Tanh(c)"
        " one = Constant<value_float=1.0>() e = Sub(one, g) k1 = Mul(e, n2) k2 = Mul(g, s)"
        " s2 = Add(k1, k2) o = Identity(s2)}>(h0, x) y = MatMul(h, b2) z = MatMul(hs, v)}",
        dict(w=(6, 20), in_u=(10, 20), b2=(10, 4), v=(10, 3), width=np.array([10])), [{}],
        dict(w=(6, 14), in_u=(7, 14), b2=(7, 4), v=(7, 3)),
    ),
    "scanned_features": (  # channels of what is scanned, scanned along another axis
        "(float[N,T,6] x) => (float[N,4] y) {e = MatMul(x, a)"
        "h0 = ReduceMax<axes=[1], keepdims=0>(e)"
        "h = Scan<num_scan_inputs=1, scan_input_axes=[-2], body=b (float[N,8] s, float[N,8] xt) =>"
        " (float[N,8] s2) {r = Relu(xt) s2 = Add(s, r)}>(h0, e) y = MatMul(h, b2)}",
        dict(a=(6, 8), b2=(8, 4)), [{}], dict(a=(6, 6), b2=(6, 4)),
    ),
    "loop_in_a_branch": (
        "(float[N,T,6] x, bool c, int64 m) => (float[N,T,4] y) {h = MatMul(x, a)"
        "s = If(c)<then_branch=t () => (float[N,T,8] p) {"
        "p = Loop(m, , h)<body=b (int64 i, bool g, float[N,T,8] l) => (bool g2, float[N,T,8] l2)"
        " {g2 = Identity(g) k = MatMul(l, in_u) k2 = Relu(k) k3 = MatMul(k2, in_v)"
        " l2 = Add(l, k3)}>},"
        "else_branch=e () => (float[N,T,8] q) {q = MatMul(h, in_w)}> y = MatMul(s, b2)}",
        dict(a=(6, 8), in_u=(8, 12), in_v=(12, 8), in_w=(8, 8), b2=(8, 4)),
        [dict(c=True, m=2), dict(c=False, m=2), dict(c=True, m=0)],
        dict(a=(6, 6), in_u=(6, 8), in_v=(8, 6), in_w=(6, 6), b2=(6, 4)),
    ),
    "norm_in_a_loop": (
        "(float[N,T,6] x, int64 m) => (float[N,T,4] y) {h = MatMul(x, a)"
        "s = Loop(m, , h)<body=b (int64 i, bool g, float[N,T,10] l) => (bool g2, float[N,T,10] l2)"
        " {g2 = Identity(g) n = LayerNormalization(l, in_s, in_b) k = MatMul(n, in_u)"
        " k2 = Relu(k) k3 = MatMul(k2, in_v) l2 = Add(l, k3)}> y = MatMul(s, b2)}",
        dict(a=(6, 10), in_s=(10,), in_b=(10,), in_u=(10, 12), in_v=(12, 10), b2=(10, 4)), _TURNS,
        dict(a=(6, 7), in_u=(7, 8), in_v=(8, 7), b2=(7, 4)),
    ),
    "squeezed_where_it_is_one": (  # as torch exports squeeze(1)
        "(float[N,T,6] x) => (float[N,4] y) {h = MatMul(x, a)"
        "m = ReduceMean<axes=[1]>(h) k = Shape<start=1, end=2>(m) c = Equal(k, one)"
        "s = If(c)<then_branch=t () => (float[N,8] p) {p = Squeeze(m, one)},"
        "else_branch=e () => (float[N,1,8] q) {q = Identity(m)}> r = Relu(s) y = MatMul(r, b)}",
        dict(a=(6, 8), b=(8, 4), one=np.array([1])), [{}], dict(a=(6, 6), b=(6, 4)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_bodies_agree_with_the_zeroed_original(name, worker):
    text, tensors, others, left = CASES[name]
    model = _build(text, **tensors)
    feeds = [_feeds(n, t, **other) for other in others for n, t in ((2, 4), (3, 5))]
    verdict = oracle.prune(model, feeds[0], worker, also=feeds[1:])
    assert verdict.error < 1e-5, verdict.where
    assert not verdict.walk.barriers
    assert verdict.compared > 2 * len(feeds)
    assert {each: verdict.shape(each) for each in left} == left
    onnx.checker.check_model(verdict.model.to_proto(), full_check=True)


def test_what_grows_in_a_loop_keeps_that_axis_and_loses_channels(worker):
    """Keys and values of all turns are kept, as a decoder does."""
    model = _build(
        "(float[N,T,6] x, int64 m) => (float[N,T,4] y) {h = MatMul(x, a)"
        "n = Shape<start=0, end=1>(x) to = Concat<axis=0>(n, tail) c0 = ConstantOfShape(to)"
        "s, c = Loop(m, , h, c0)<body=b (int64 i, bool g, float[N,T,8] l, float[N,K,10] k) =>"
        " (bool g2, float[N,T,8] l2, float[N,L,10] k2) {g2 = Identity(g) u = MatMul(l, in_u)"
        " k2 = Concat<axis=1>(k, u) q = MatMul(l, in_q) kt = Transpose<perm=[0,2,1]>(k2)"
        " d = MatMul(q, kt) p = Softmax(d) v = MatMul(p, k2) o = MatMul(v, in_o) l2 = Add(l, o)}>"
        "y = MatMul(s, b2)}",
        a=(6, 8), in_u=(8, 10), in_q=(8, 10), in_o=(10, 8), b2=(8, 4), tail=np.array([0, 10]),
    )  # fmt: skip
    feeds = [_feeds(2, 4, m=3), _feeds(3, 5, m=3), _feeds(2, 3, m=1)]
    verdict = oracle.prune(model, feeds[0], worker, also=feeds[1:], inside=False)
    assert verdict.error < 1e-5
    assert not verdict.walk.barriers
    left = {name: verdict.shape(name) for name in ("a", "in_u", "in_q", "in_o", "b2")}
    assert left == dict(a=(6, 6), in_u=(6, 7), in_q=(6, 7), in_o=(7, 6), b2=(6, 4))


def test_what_goes_into_a_list_stays_whole(worker):
    model = _build(
        "(float[N,T,6] x, int64 m) => (float[K,4] y) {h = MatMul(x, a) l = MatMul(h, v)"
        "e = SequenceEmpty() s = Loop(m, , e)<body=b (int64 i, bool g, seq(float[N,T,8]) k) =>"
        " (bool g2, seq(float[N,T,8]) k2) {g2 = Identity(g) k2 = SequenceInsert(k, l)}>"
        "c = ConcatFromSequence<axis=0>(s) r = ReduceMean<axes=[1], keepdims=0>(c)"
        "y = MatMul(r, b2)}",
        a=(6, 8), v=(8, 8), b2=(8, 4),
    )  # fmt: skip
    feeds = [_feeds(2, 4, m=3), _feeds(3, 5, m=3)]
    verdict = oracle.prune(model, feeds[0], worker, also=feeds[1:], inside=False)
    assert verdict.error < 1e-5
    assert (verdict.shape("a"), verdict.shape("v")) == ((6, 6), (6, 8))
    assert any(why.startswith("SequenceInsert") for why in verdict.walk.barriers)


def test_branches_that_are_not_alike_keep_what_they_return(worker):
    model = _build(
        "(float[N,T,6] x, bool c) => (float[N,T,1] y) {h = MatMul(x, a)"
        "s = If(c)<then_branch=t () => (float[N,T,8] p) {p = Relu(h)},"
        "else_branch=e () => (float[N,T,3] q) {q = MatMul(h, v)}> y = ReduceMax<axes=[2]>(s)}",
        a=(6, 8), v=(8, 3),
    )  # fmt: skip
    verdict = oracle.prune(model, _feeds(2, c=True), worker, also=[_feeds(3, c=False)])
    assert verdict.after == verdict.before
    assert any("an axis of varying length" in why for why in blocked(verdict.walk))


def test_models_with_bodies_go_through_the_pass(worker, tmp_path):
    """The file says nothing but what changed, and the report what that is."""
    text, tensors, others, _ = CASES["recurrent_cell"]
    model, path = _build(text, **tensors), tmp_path / "out.onnx"
    feeds = [_feeds(n, 4, **other) for n in (2, 3) for other in others]
    step = PruneChannels(ratio=0.3, round_to=1, scope="local")
    result = run([step], model, Settings(feeds=feeds), worker)
    result.model.save(path)
    onnx.checker.check_model(str(path), full_check=True)
    notes = {change.what: change.note for change in result.report.steps[0].changes}
    assert notes["in_u"] == "[10, 10] -> [7, 7]"
    assert notes["in_w"] == "[6, 10] -> [6, 7]"
    skips = {skip.what: skip.reason for skip in result.report.steps[0].skips}
    assert skips["in_u"] == "in a body of If, Loop or Scan, where nothing is refitted"
    assert "in_w" not in skips
