from __future__ import annotations

import math

import channel_oracle as oracle
import numpy as np
import pytest

from onnxshrink.channels import groups, readers
from onnxshrink.channels.compensation import compensate
from onnxshrink.channels.facts import Facts
from onnxshrink.channels.labels import analyse
from onnxshrink.channels.plan import Plan
from onnxshrink.channels.probing import moments, observe, probe
from onnxshrink.channels.removal import Cut
from onnxshrink.channels.shares import Allocation
from onnxshrink.graph import read
from onnxshrink.kernels.refit import ChosenDamping

_HEAD = '<ir_version: 8, opset_import: ["": 17]> g '
_STATES = "t = Transpose<perm=[0,2,1,3]>(s) z = Reshape(t, shape) y = MatMul(z, c)}"
_SHAPE = np.array([0, 0, -1])


def _recurrent(op, gates, more, extra="", **tensors):
    """Channels of 10, read by 12 hidden units in two directions."""
    text = f"(float[7,N,6] x) => (float[7,N,4] y) {{h = MatMul(x, a) r = Relu(h) s = {op}<"
    text += f'hidden_size=12, direction="bidirectional"{more}>(r, W, R, B{extra}) {_STATES}'
    shapes = dict(a=(6, 10), W=(2, gates * 12, 10), R=(2, gates * 12, 12), B=(2, gates * 24))
    return oracle.build(_HEAD + text, **shapes, c=(24, 4), shape=_SHAPE, **tensors)


def _image(nodes, out, **shapes):
    return oracle.build(f"{_HEAD}(float[N,3,7,6] x) => (float[N,{out}] y) {{{nodes}}}", **shapes)


MODELS = {
    "grouped": lambda: _image(
        "h = Conv<pads=[1,1,1,1]>(x, a) r = Relu(h)"
        "y = Conv<group=2, kernel_shape=[3,2], strides=[2,1], dilations=[1,2]>(r, b, bb)",
        "6,3,4", a=(16, 3, 3, 3), b=(6, 8, 3, 2), bb=(6,),
    ),
    "transposed": lambda: _image(
        "h = Conv<pads=[1,1,1,1]>(x, a) r = Relu(h)"
        "y = ConvTranspose<strides=[2,3], pads=[1,0,1,1], output_padding=[1,0]>(r, b, bb)",
        "5,14,17", a=(12, 3, 3, 3), b=(12, 5, 3, 3), bb=(5,),
    ),
    "without a bias": lambda: _image(
        "h = Conv<pads=[1,1,1,1]>(x, a) r = Relu(h) y = Conv(r, b)",
        "5,7,6", a=(12, 3, 3, 3), b=(5, 12, 1, 1),
    ),
    "gemm without a bias": lambda: oracle.build(
        _HEAD + "(float[N,6] x) => (float[N,4] y) {h = MatMul(x, a) r = Relu(h)"
        "y = Gemm<transB=1>(r, b)}",
        a=(6, 16), b=(4, 16),
    ),
    "LSTM": lambda: _recurrent("LSTM", 4, ""),
    "GRU": lambda: _recurrent("GRU", 3, ""),
    "GRU that resets behind": lambda: _recurrent("GRU", 3, ", linear_before_reset=1"),
    "RNN with a first state": lambda: _recurrent(
        "RNN", 1, "", ", , h0", h0=np.full((2, 8, 12), 0.5, np.float32)
    ),
}  # fmt: skip
#: Outputs of the matrices that read channels which can go; 24 of a GRU's 36 see the state itself.
HEIGHTS = {
    "grouped": [3, 3], "transposed": [5], "without a bias": [5], "gemm without a bias": [4],
    "LSTM": [48, 48, 48, 48, 4], "GRU": [36, 36, 24, 24, 4],
    "GRU that resets behind": [36] * 4 + [4], "RNN with a first state": [12] * 4 + [4],
}  # fmt: skip


def _feeds(model):
    rng = np.random.default_rng(3)
    shape = [dim if isinstance(dim, int) else 8 for dim in model.ir.graph.inputs[0].shape]
    return [{"x": rng.standard_normal(shape).astype(np.float32)} for _ in range(6)]


def _walk(model, feeds, worker):
    return analyse(model, Facts(model, probe(model, feeds[0], worker)))


def _removed(walk):
    found = groups.find(walk)
    scores = [np.random.default_rng(5).random(len(group)) for group in found]
    plan = Plan(walk, found, scores, [], {})
    removed = Allocation({}, False, 1, 1).choose(plan, 0.25).removed
    assert removed.any()
    return removed


def _read(consumer, model, feed, worker):
    seen = {**feed, **next(observe(model, consumer.values, [feed], worker))}
    return consumer.reads([seen[value.name] for value in consumer.values], 0).astype(float)


@pytest.mark.parametrize("kind", MODELS)
def test_what_is_read_times_the_matrix_is_what_the_operator_makes(kind, worker):
    model = MODELS[kind]()
    feed = {"x": _feeds(model)[0]["x"][:, :1] if "x" in kind else _feeds(model)[0]["x"]}
    walk = _walk(model, [feed], worker)
    found = [c for c in readers.find(walk) if not walk.atoms.is_frozen(c.labels).all()]
    assert [len(c.matrix()) for c in found] == HEIGHTS[kind]
    if found[0].node.op_type in ("LSTM", "GRU", "RNN"):
        return  # what its matrices make does not leave it; see below
    y = next(observe(model, [found[0].node.outputs[0]], [feed], worker))["y"].astype(float)
    bias = found[0].bias
    added = 0.0 if bias is None else read.constant(bias).numpy().astype(float)
    wanted = np.moveaxis(y, 1, -1).reshape(-1, y.shape[1]) - added
    made = [_read(c, model, feed, worker) @ c.matrix().T for c in found]
    places = np.linspace(0, len(wanted), len(made[0]), endpoint=False).astype(int)
    np.testing.assert_allclose(np.hstack(made), wanted[places], atol=1e-5)


def test_states_are_those_before_each_step(worker):
    """A plain RNN written out, from what its consumers say that they read."""
    model = MODELS["RNN with a first state"]()
    feed = _feeds(model)[0]
    walk = _walk(model, [feed], worker)
    inputs, states = ([c for c in readers.find(walk) if c.weight.name == n] for n in "WR")
    node = inputs[0].node
    y = next(observe(model, [node.outputs[0]], [feed], worker))["s"].astype(float)
    b = read.constant(node.inputs[3]).numpy().astype(float)
    for direction, (w, r) in enumerate(zip(inputs, states, strict=True)):
        x, h = (_read(each, model, feed, worker) for each in (w, r))
        if direction:  # its rows are in the order of time all the same
            assert np.all(h.reshape(7, 8, 12)[-1] == 0.5)
        else:
            assert np.all(h.reshape(7, 8, 12)[0] == 0.5)
        made = np.tanh(x @ w.matrix().T + h @ r.matrix().T + b[direction].reshape(2, -1).sum(0))
        np.testing.assert_allclose(made, y[:, direction].reshape(-1, 12), atol=1e-5)


@pytest.mark.parametrize("kind", MODELS)
def test_refitted_weights_are_least_squares(kind, worker):
    model = MODELS[kind]()
    feeds = _feeds(model)
    walk = _walk(model, feeds, worker)
    seen, removed = moments(walk, feeds, worker), _removed(walk)
    before = {each.name: each.matrix() for each in seen}
    rows = {each.name: _read_all(each, model, feeds, worker) for each in seen}
    kept = {
        each.name: walk.atoms.kept(each.labels, removed).repeat(each.features // each.channels)
        for each in seen
    }
    old_bias = {each.name: _bias(each) for each in seen}
    touched = [each for each in seen if not kept[each.name].all()]
    assert touched
    sums = {each.name: moment.sums for each, moment in seen.items()}
    compensate(walk, sums, removed, {each.name: ChosenDamping(1e-12, 0, 0) for each in touched})
    for consumer in readers.find(walk):
        name = consumer.name
        if name not in kept or kept[name].all():
            continue
        x, stay = rows[name], kept[name]
        wanted = x @ before[name].T + old_bias[name]
        design = np.column_stack([x[:, stay], np.ones(len(x))])
        shifted = consumer.bias is not None
        design = design if shifted else design[:, :-1]
        best = design @ np.linalg.lstsq(design, wanted, rcond=None)[0]
        fitted = consumer.matrix()
        assert not fitted[:, ~stay].any()
        found = x @ fitted.T + _bias(consumer)
        np.testing.assert_allclose(found, best, atol=1e-6 * np.abs(best).max() + 1e-7)
        assert shifted == (consumer.node.op_type != "MatMul")
    Cut(walk, removed).apply()
    for seen in observe(model, model.ir.graph.outputs, feeds, worker):
        assert np.isfinite(seen["y"]).all()


def _bias(consumer):
    if consumer.bias is None:
        return 0.0
    return read.constant(consumer.bias).numpy().astype(float)[consumer.bias_at]


def _read_all(consumer, model, feeds, worker):
    runs = observe(model, consumer.values, feeds, worker)
    return np.concatenate(
        [
            consumer.reads([{**feed, **seen}[v.name] for v in consumer.values], number)
            for number, (feed, seen) in enumerate(zip(feeds, runs, strict=True))
        ]
    ).astype(float)


def test_depthwise_convolutions_and_what_callers_override_are_left_alone(worker):
    model = _image(
        "h = Conv(x, a) r = Relu(h) d = Conv<group=12>(r, w) y = Conv(d, b)",
        "5,7,6", a=(12, 3, 1, 1), w=(12, 1, 1, 1), b=(5, 12, 1, 1),
    )  # fmt: skip
    feeds = _feeds(model)
    assert [c.weight.name for c in readers.find(_walk(model, feeds, worker))] == ["a", "b"]
    value = model.ir.graph.initializers["b"]
    model.ir.graph.inputs.append(value)
    model.touch("b")
    assert [c.weight.name for c in readers.find(_walk(model, feeds, worker))] == ["a"]


def test_a_norm_behind_takes_the_shift_in_its_mean(worker):
    model = _image(
        "h = Conv(x, a) r = Relu(h) d = Conv(r, b) y = BatchNormalization(d, s, t, m, v)",
        "5,7,6", a=(12, 3, 1, 1), b=(5, 12, 1, 1), s=(5,), t=(5,), m=(5,),
        v=np.full(5, 2, np.float32),
    )  # fmt: skip
    feeds = _feeds(model)
    walk = _walk(model, feeds, worker)
    (consumer,) = (c for c in readers.find(walk) if c.weight.name == "b")
    assert (consumer.bias.name, consumer.sign) == ("m", -1)
    before, removed = read.constant(consumer.bias).numpy().copy(), _removed(walk)
    seen = moments(walk, feeds, worker)
    (moment,) = (m for c, m in seen.items() if c.name == consumer.name)
    matrix = consumer.matrix()
    compensate(walk, {consumer.name: moment.sums}, removed,
               {consumer.name: ChosenDamping(math.inf, 0, 0)})  # fmt: skip
    lost = np.where(walk.atoms.kept(consumer.labels, removed), 0, matrix)
    means = moment.sums[-1, :-1] / moment.count
    np.testing.assert_allclose(consumer.matrix(), matrix - lost)
    np.testing.assert_allclose(
        read.constant(consumer.bias).numpy(), before - lost @ means, rtol=1e-6
    )
