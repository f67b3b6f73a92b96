from __future__ import annotations

import channel_oracle as oracle
import numpy as np

from onnxshrink.contract import Settings
from onnxshrink.passes.prune_channels import PruneChannels
from onnxshrink.pipeline import run

_MLP = (
    '<ir_version: 8, opset_import: ["": 17]> g (float[N,12] x) => (float[N,5] y) {'
    "h = Gemm(x, a, ab) r = Relu(h) i = Gemm(r, b, bb) s = Relu(i) m = MatMul(s, c)"
    "y = Add(m, cb)}"
)
_CNN = (
    '<ir_version: 8, opset_import: ["": 17]> g (float[N,3,8,8] x) => (float[N,5] y) {'
    "h = Conv<pads=[1,1,1,1]>(x, a) n = BatchNormalization(h, s, t, mean, var) r = Relu(n)"
    "d = Conv<group=16, pads=[1,1,1,1], strides=[2,2]>(r, w) q = Relu(d)"
    "g1 = Conv<group=4, auto_pad=\"SAME_UPPER\">(q, v, vb) p = Relu(g1)"
    "z = GlobalAveragePool(p) f = Flatten(z) y = Gemm<transB=1>(f, c, cb)}"
)  # fmt: skip


def _mlp():
    sizes = dict(a=(12, 64), ab=(64,), b=(64, 48), bb=(48,), c=(48, 5), cb=(5,))
    return oracle.build(_MLP, **sizes)


def _cnn():
    return oracle.build(
        _CNN, a=(16, 3, 3, 3), s=np.ones(16, np.float32), t=(16,), mean=np.zeros(16, np.float32),
        var=np.full(16, 2, np.float32), w=(16, 1, 3, 3), v=(16, 4, 3, 3), vb=(16,), c=(5, 16),
        cb=(5,),
    )  # fmt: skip


def _feeds(*shape: int):
    rng = np.random.default_rng(9)
    return [{"x": rng.standard_normal(shape).astype(np.float32)} for _ in range(4)]


def _stored(model):
    return {n: np.asarray(v.const_value.numpy(), float) for n, v in model.initializers.items()}


def test_each_layer_is_the_least_squares_of_what_reaches_it(worker):
    model, feeds = _mlp(), _feeds(128, 12)
    step = PruneChannels(ratio=0.5, stages=10, damping=1e-6, max_error=10)
    pruned = run([step], model, Settings(feeds=feeds), worker).model
    old, new = _stored(model.ir.graph), _stored(pruned.ir.graph)
    x = np.concatenate([feed["x"] for feed in feeds]).astype(float)

    def layers(w):
        one = np.maximum(x @ w["a"] + w["ab"], 0)
        two = one @ w["b"] + w["bb"]
        return one, two, np.maximum(two, 0) @ w["c"] + w["cb"]

    before, after = layers(old), layers(new)
    kept = [
        next(i for i in range(64) if np.array_equal(old["a"][:, i], column))
        for column in new["a"].T
    ]
    np.testing.assert_allclose(after[0], before[0][:, kept], atol=1e-5)  # nothing to fit here
    design = np.hstack([np.maximum(after[1], 0), np.ones((len(x), 1))])
    best = design @ np.linalg.lstsq(design, before[2], rcond=None)[0]
    np.testing.assert_allclose(after[2], best, atol=2e-3 * np.abs(best).max())


def test_stages_come_closer_than_each_weight_for_itself(worker):
    errors = []
    for stages in (0, 3):
        step = PruneChannels(ratio=0.5, stages=stages, round_to=1, max_error=10)
        result = run([step], _mlp(), Settings(feeds=_feeds(64, 12)), worker)
        assert result.report.steps[0].status == "done"
        errors.append(result.report.steps[0].max_error)
    assert errors[1] < 0.95 * errors[0]


def test_grouped_convolutions_and_norms_take_part(worker):
    step = PruneChannels(ratio=0.5, stages=4, round_to=1, max_error=10)
    changes = run([step], _cnn(), Settings(feeds=_feeds(32, 3, 8, 8)), worker).report.steps[0]
    assert {"w", "v", "vb", "c", "cb"} <= {change.what for change in changes.changes}


def test_what_lacks_nothing_stays_as_it_was(worker):
    model = _mlp()
    step = PruneChannels(ratio=0.5, stages=4, keep=("a", "b"), max_error=10)
    pruned = run([step], model, Settings(feeds=_feeds(64, 12)), worker).model
    assert pruned.digest() == model.digest()
