"""Which channels prune-channels takes: one by one, and more where outputs need them less."""

from __future__ import annotations

import channel_oracle as oracle
import numpy as np
import onnx_ir as ir
import pytest

from onnxshrink.channels import groups as grouping
from onnxshrink.channels import ranking
from onnxshrink.channels.facts import Facts
from onnxshrink.channels.labels import Walk, analyse
from onnxshrink.channels.losses import Losses
from onnxshrink.channels.probing import moments, observe, probe
from onnxshrink.contract import Settings
from onnxshrink.graph.file.model import Model
from onnxshrink.kernels.moments import damped
from onnxshrink.passes.prune_channels import PruneChannels
from onnxshrink.pipeline import run

_TWO_LAYERS = (
    '<ir_version: 8, opset_import: ["": 17]> g (float[N,12] x) => (float[N,5] y) {'
    "h = Gemm(x, a, ab) r = Relu(h) y = Gemm(r, b, bb)}"
)
_BRANCHES = (
    '<ir_version: 8, opset_import: ["": 17]> g (float[N,12] x) => (float[N,5] y) {'
    "h = Gemm(x, a, ab) r = Relu(h) p = MatMul(r, b)"
    "i = Gemm(x, c, cb) s = Relu(i) q = MatMul(s, d) y = Add(p, q)}"
)


def _feeds(count=8, rows=64, width=12, seed=9):
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((rows, width)).astype(np.float32)} for _ in range(count)]


def _labelled(model: Model, feed, worker) -> Walk:  # type: ignore[no-untyped-def]
    return analyse(model, Facts(model, probe(model, feed, worker)))


def _step(model, worker, feeds=None, **options):
    settings = Settings(feeds=_feeds() if feeds is None else feeds)
    return run([PruneChannels(**options)], model, settings, worker)


def _error(model: Model, other: Model, worker) -> float:  # type: ignore[no-untyped-def]
    """Relative error of y on inputs that nobody fitted to."""
    feeds = _feeds(2, seed=77)
    wanted, found = (
        np.concatenate([run["y"] for run in observe(m, list(m.ir.graph.outputs), feeds, worker)])
        for m in (model, other)
    )
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def _twins(model: Model) -> Model:
    """Half of the hidden units say what the other half says."""
    a, ab = (model.ir.graph.initializers[name].const_value for name in ("a", "ab"))
    assert a is not None
    assert ab is not None
    weights, shifts = a.numpy(), ab.numpy()
    return oracle.build(
        _TWO_LAYERS, a=np.tile(weights[:, :16], 2), ab=np.tile(shifts[:16], 2), b=(32, 5), bb=(5,)
    )


def test_greedy_leaves_one_of_each_pair_of_twins(worker):
    model = _twins(oracle.build(_TWO_LAYERS, a=(12, 32), ab=(32,), b=(32, 5), bb=(5,)))
    options = {"scope": "local", "ratio": 0.5, "round_to": 1, "damping": 1e-6}
    greedy = _step(model, worker, importance="greedy", **options)
    once = _step(model, worker, importance="hessian", **options)
    kinds, errors = [], []
    for result in (greedy, once):
        kept = result.model.ir.graph.initializers["a"].const_value.numpy()
        kinds.append(len(np.unique(kept.round(6), axis=1).T))
        errors.append(_error(model, result.model, worker))
    assert kinds[0] >= 15  # of 16; damping makes units that hardly matter cheaper than twins
    assert kinds[1] <= 13
    assert errors[0] < 0.1 * errors[1]


def test_greedy_is_what_every_choice_by_least_squares_gives(worker):
    model = oracle.build(_TWO_LAYERS, a=(12, 8), ab=(8,), b=(8, 5), bb=(5,))
    feeds = _feeds()
    walk = _labelled(model, feeds[0], worker)
    groups = grouping.find(walk)
    seen = moments(walk, feeds, worker)
    found = ranking.score(walk, groups, "greedy", seen, np.random.default_rng(0))[0]
    reads = next(v for node in model.nodes for v in node.outputs if v.name == "r")
    rows = np.concatenate([run["r"] for run in observe(model, [reads], feeds, worker)])
    gram = damped(np.cov(rows.T.astype(np.float64), bias=True), 0.01)  # the bias takes the means
    root = np.linalg.cholesky(gram).T
    weights = model.ir.graph.initializers["b"].const_value.numpy().astype(np.float64)
    gone: list[int] = []
    for _ in range(7):
        tried = {}
        for unit in set(range(8)) - set(gone):
            away = [*gone, unit]
            stay = np.setdiff1d(np.arange(8), away)
            wanted = root[:, away] @ weights[away]
            fit = np.linalg.lstsq(root[:, stay], wanted, rcond=None)[0]
            tried[unit] = np.square(wanted - root[:, stay] @ fit).sum()
        gone.append(min(tried, key=lambda unit: tried[unit]))
    np.testing.assert_array_equal(np.argsort(found)[:7], gone)


@pytest.mark.parametrize(
    ("text", "shape", "tensors"),
    [
        # Kernel taps, a second reader of the same channels, and one that reads them behind others.
        (
            "a = Conv(x, w) r = Relu(a) b = Conv(r, u) c = Conv(r, v) d = Concat<axis=1>(b, r)"
            "e = Conv(d, t) y = Add(e, c)}",
            (2, 3, 6, 6),
            {"w": (16, 3, 1, 1), "u": (8, 16, 1, 1), "v": (4, 16, 1, 1), "t": (4, 24, 1, 1)},
        ),
        # Groups of a convolution, which lose alike.
        (
            "a = Conv(x, w) r = Relu(a) b = Conv<group=2>(r, u) y = Conv(b, v)}",
            (2, 3, 6, 6),
            {"w": (16, 3, 1, 1), "u": (16, 8, 3, 3), "v": (4, 16, 1, 1)},
        ),
    ],
)  # fmt: skip
def test_greedy_ranks_units_that_several_weights_read(text, shape, tensors, worker):
    header = '<ir_version: 8, opset_import: ["": 17]> g (float[N,3,6,6] x) => (float[N,4,H,W] y) {'
    model = oracle.build(header + text, **tensors)
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.standard_normal(shape).astype(np.float32)} for _ in range(4)]
    walk = _labelled(model, feeds[0], worker)
    groups = grouping.find(walk)
    seen = moments(walk, feeds, worker)
    for group, scores in zip(
        groups, ranking.score(walk, groups, "greedy", seen, rng), strict=True
    ):  # fmt: skip
        assert len(scores) == len(group)
        assert len(np.unique(scores)) == len(scores)
        assert (scores > 0).all()
        assert np.isfinite(scores).all()
    result = _step(model, worker, feeds, ratio=0.25, round_to=1, importance="greedy")
    assert result.report.steps[0].status == "done"


def test_measured_takes_more_of_what_the_outputs_need_less(worker):
    rng = np.random.default_rng(4)
    small = (0.02 * rng.standard_normal((64, 5))).astype(np.float32)
    model = oracle.build(
        _BRANCHES, a=(12, 64), ab=(64,), b=(64, 5), c=(12, 64), cb=(64,), d=small
    )  # fmt: skip
    equal = _step(model, worker, ratio=0.25, scope="local")
    measured = _step(model, worker, ratio=0.25, scope="measured")
    left = {
        name: value.const_value.size for name, value in measured.model.ir.graph.initializers.items()
    }
    assert left["a"] == 12 * 64
    assert left["c"] <= 12 * 40
    sizes = [
        sum(v.const_value.size for v in each.model.ir.graph.initializers.values())
        for each in (equal, measured)
    ]
    assert sizes[1] <= sizes[0]
    errors = [_error(model, each.model, worker) for each in (equal, measured)]
    assert errors[1] < 0.3 * errors[0]


def test_auto_measures_where_there_are_inputs(worker, monkeypatch):
    calls = []
    curves = Losses.curves
    monkeypatch.setattr(Losses, "curves", lambda *a: calls.append(1) or curves(*a))
    model = oracle.build(
        _BRANCHES, a=(12, 64), ab=(64,), b=(64, 5), c=(12, 64), cb=(64,), d=(64, 5)
    )
    _step(model, worker)
    assert calls == [1]
    _step(model, worker, feeds=[])
    assert calls == [1]


def test_equal_shares_are_taken_where_they_lose_less(worker, monkeypatch):
    rng = np.random.default_rng(4)
    small = (0.02 * rng.standard_normal((64, 5))).astype(np.float32)
    model = oracle.build(
        _BRANCHES, a=(12, 64), ab=(64,), b=(64, 5), c=(12, 64), cb=(64,), d=small
    )  # fmt: skip
    wrong = {"a[1]": np.linspace(0, 1e-6, 65), "c[1]": np.linspace(0, 1, 65)}
    monkeypatch.setattr(Losses, "curves", lambda *_: wrong)
    result = _step(model, worker, ratio=0.25, scope="measured")
    stored = result.model.ir.graph.initializers
    assert [stored[name].const_value.shape[1] for name in ("a", "c")] == [48, 48]


def test_nothing_is_measured_for_nothing(worker, monkeypatch):
    monkeypatch.setattr(Losses, "curves", lambda *_: pytest.fail("measured"))
    model = oracle.build(_TWO_LAYERS, a=(12, 32), ab=(32,), b=(32, 5), bb=(5,))
    result = _step(model, worker, scope="measured", ratio=0.0)
    assert result.report.steps[0].status == "nothing to do"


@pytest.mark.parametrize("goal", ["flops", "bytes"])
def test_measured_reaches_goals(goal, worker):
    model = oracle.build(
        _BRANCHES, a=(12, 64), ab=(64,), b=(64, 5), c=(12, 64), cb=(64,), d=(64, 5)
    )
    walk = _labelled(model, _feeds()[0], worker)
    result = _step(model, worker, scope="measured", **{goal: 0.6})
    after = grouping.cost(_labelled(result.model, _feeds()[0], worker))
    before = grouping.cost(walk)
    name = {"flops": "macs", "bytes": "nbytes"}[goal]
    assert 0.4 < getattr(after, name) / getattr(before, name) <= 0.6


def test_layers_are_followed_where_shares_are_measured(worker):
    model = oracle.build(
        _BRANCHES, a=(12, 64), ab=(64,), b=(64, 5), c=(12, 64), cb=(64,), d=(64, 5)
    )
    result = _step(model, worker, scope="measured", ratio=0.25, layers={"a": 0.5})
    assert result.model.ir.graph.initializers["a"].const_value.shape[1] == 32
    only = _step(model, worker, scope="measured", ratio=0.0, layers={"a": 0.5})
    stored = only.model.ir.graph.initializers
    assert [stored[name].const_value.shape[1] for name in ("a", "c")] == [32, 64]


def test_groups_of_a_convolution_are_measured_together(worker):
    text = (
        '<ir_version: 8, opset_import: ["": 17]> g (float[N,3,6,6] x) => (float[N,4,6,6] y) {'
        "a = Conv(x, w) r = Relu(a) b = Conv(x, v) s = Relu(b) c = Concat<axis=1>(r, s)"
        "d = Conv<group=2>(c, u) y = Conv(d, t)}"
    )
    model = oracle.build(
        text, w=(16, 3, 1, 1), v=(8, 3, 1, 1), u=(24, 12, 1, 1), t=(4, 24, 1, 1)
    )  # fmt: skip
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.standard_normal((4, 3, 6, 6)).astype(np.float32)} for _ in range(4)]
    options = {"scope": "measured", "ratio": 0.3, "round_to": 1, "keep": ("t",)}
    result = _step(model, worker, feeds, **options)
    step = result.report.steps[0]
    assert step.status == "done"
    shape = result.model.ir.graph.initializers["u"].const_value.shape
    assert shape[1] < 12


@pytest.mark.parametrize("importance", ["hessian", "greedy"])
def test_a_channel_that_never_changes_is_the_first_to_go(importance, worker):
    """Its large mean costs nothing: the bias of what reads it takes it over."""
    model = oracle.build(_TWO_LAYERS, a=(12, 16), ab=(16,), b=(16, 5), bb=(5,))
    stored = model.ir.graph.initializers
    weight, bias = (np.array(stored[name].const_value.numpy()) for name in ("a", "ab"))
    weight[:, 3], bias[3] = 0, 50
    for name, array in (("a", weight), ("ab", bias)):
        stored[name].const_value = ir.Tensor(array, name=name)
        model.touch(name)
    result = _step(model, worker, ratio=0.0625, round_to=1, importance=importance, max_error=1)
    left = result.model.ir.graph.initializers["ab"].const_value.numpy()
    np.testing.assert_array_equal(left, np.delete(bias, 3))
    assert result.report.steps[0].max_error < 1e-5
