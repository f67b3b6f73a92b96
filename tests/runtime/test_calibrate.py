"""Statistics of a model's values, wherever they are, without an activation leaving the worker."""

from pathlib import Path

import numpy as np
import pytest
from onnx import parser

from onnxshrink.graph import weights
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.weights import second_moments
from onnxshrink.kernels.observers import Extremes, Histogram, Lookups, Need, SecondMoment
from onnxshrink.kernels.rows import Rows
from onnxshrink.runtime.calibrate import calibrate
from onnxshrink.runtime.worker import Worker
from onnxshrink.trials import Exchange

HEADER = '<ir_version: 8, opset_import: ["": 17, "local": 1]> '


def model(text: str) -> Model:
    return Model.from_proto(parser.parse_model(HEADER + text))


def rows(count: int = 4, width: int = 3) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [{"x": rng.standard_normal((5, width)).astype(np.float32)} for _ in range(count)]


PLAIN = """g (float[n, 3] x) => (float[n, 3] y) {
    h = Relu(x)  y = Neg(h)
}"""


def test_one_run_collects_every_statistic(worker: Worker) -> None:
    feeds = rows()
    moment, histogram = Need("h", SecondMoment(3)), Need("h", Histogram())
    needs = [moment, histogram, Need("x", Extremes(-1)), Need("y", Extremes()), moment]
    found = calibrate(model(PLAIN), needs, feeds, worker)
    assert list(found) == needs[:4]
    x = np.concatenate([feed["x"] for feed in feeds]).astype(np.float64)
    h = np.maximum(x, 0)
    np.testing.assert_allclose(found[moment].mean()[0], h.T @ h / len(h), rtol=1e-5)
    even = np.concatenate([h[0:5], h[10:15]])
    np.testing.assert_allclose(found[moment].mean(0)[0], even.T @ even / 10, rtol=1e-5)
    np.testing.assert_array_equal(found[needs[2]].low, x.min(0))
    assert found[needs[3]].high[0] == 0
    assert found[histogram].counts.sum() == h.size


def test_values_in_branches_and_loops(worker: Worker) -> None:
    nested = model("""g (float[n, 3] x, bool c) => (float[n, 3] y) {
        y = If (c) <then_branch = t () => (float[n, 3] p) {
            p = If (c) <then_branch = tt () => (float[n, 3] q) { a = Relu(x)  q = Neg(a) },
                        else_branch = te () => (float[n, 3] q) { q = Identity(x) }>
        }, else_branch = e () => (float[n, 3] p) { b = Abs(x)  p = Neg(b) }>
    }""")
    feeds = [{**feed, "c": np.array(i != 1)} for i, feed in enumerate(rows(3))]
    a, b = Need("a", SecondMoment(3)), Need("b", SecondMoment(3))
    found = calibrate(nested, [a, b], feeds, worker)
    taken = np.concatenate([np.maximum(feeds[i]["x"], 0) for i in (0, 2)]).astype(np.float64)
    np.testing.assert_allclose(found[a].mean()[0], taken.T @ taken / 10, rtol=1e-5)
    other = np.abs(feeds[1]["x"]).astype(np.float64)
    np.testing.assert_allclose(found[b].mean()[0], other.T @ other / 5, rtol=1e-5)

    loop = model("""g (float[n, 3] x, int64 k, bool c) => (float[n, 3] y) {
        y = Loop (k, c, x) <body = b (int64 i, bool go, float[n, 3] v)
            => (bool more, float[n, 3] w) { more = Identity(go)  u = Relu(v)  w = Sub(u, x) }>
    }""")
    feed = {**rows(1)[0], "k": np.array(3), "c": np.array(True)}
    u, v = Need("u", SecondMoment(3)), Need("v", Extremes())
    found = calibrate(loop, [u, v], [feed], worker)
    x = feed["x"].astype(np.float64)
    states = [x]
    for _ in range(2):
        states.append(np.maximum(states[-1], 0) - x)
    inner = np.maximum(np.concatenate(states), 0)
    np.testing.assert_allclose(found[u].mean()[0], inner.T @ inner / 15, rtol=1e-5, atol=1e-6)
    assert found[v].count[0] == 45
    channels = Need("u", Extremes(1))  # axes are those of the value, not of the stacked iterations
    found = calibrate(loop, [channels], [feed], worker)
    np.testing.assert_allclose(found[channels].mean, inner.mean(0), rtol=1e-5)


def test_values_that_grow_in_a_loop_are_refused_and_the_others_observed(worker: Worker) -> None:
    loop = model("""g (float[n, 3] x, int64 k, bool c) => (float[m, 3] y) {
        a = Abs(x)
        y = Loop (k, c, a) <body = b (int64 i, bool go, float[p, 3] v)
            => (bool more, float[q, 3] w) { more = Identity(go)  u = Relu(v)
                w = Concat<axis=0>(u, x) }>
    }""")
    feed = {**rows(1)[0], "k": np.array(3), "c": np.array(True)}
    a, u = Need("a", Extremes()), Need("u", Extremes())
    found = calibrate(loop, [a, u], [feed], worker)
    assert list(found) == [a]
    assert found[a].high[0] == np.abs(feed["x"]).max()
    assert found.refused["u"] == "its shape is not the same in every iteration of a loop"


def test_a_branch_never_taken_has_no_statistics(worker: Worker) -> None:
    branches = model("""g (float[n, 3] x, bool c) => (float[n, 3] y) {
        y = If (c) <then_branch = t () => (float[n, 3] u) { u = Relu(x) },
                    else_branch = e () => (float[n, 3] w) { w = Abs(x) }>
    }""")
    needs = [Need("u", Extremes(1)), Need("w", Extremes(1))]
    found = calibrate(branches, needs, [{**rows(1)[0], "c": np.array(True)}], worker)
    assert list(found) == needs[:1], found.refused
    assert found.refused["w"] == "is never reached with these inputs, or always empty"


def test_the_state_of_a_scan_is_observed_as_it_is(worker: Worker) -> None:
    scan = model("""g (float[3, 4] x) => (float[4] y) {
        h = ReduceMax <axes = [0], keepdims = 0> (x)
        y = Scan <num_scan_inputs = 1, body = b (float[4] s, float[4] v) => (float[4] t)
            { r = Relu(v)  t = Add(s, r) }> (h, x)
    }""")
    x = rows(1, 4)[0]["x"][:3]
    state = Need("t", SecondMoment(4))
    found = calibrate(scan, [state], [{"x": x}], worker)
    states = (x.max(0) + np.maximum(x, 0).cumsum(0)).astype(np.float64)
    np.testing.assert_allclose(found[state].mean()[0], states.T @ states / 3, rtol=1e-5)


def test_what_cannot_be_observed_is_named(worker: Worker) -> None:
    called = model("""g (float[n, 3] x) => (float[n, 3] y) { y = local.twice(x) }
        <domain: "local", opset_import: ["": 17]> twice (p) => (q) { r = Abs(p)  q = Add(r, r) }
    """)
    needs = [Need("r", Extremes()), Need("y", SecondMoment(7)), Need("y", Extremes())]
    found = calibrate(called, needs, rows(), worker)
    assert list(found) == [needs[2]]
    assert found.refused["r"] == "is inside a function"
    assert "an activation of shape (5, 3)" in found.refused["y"]
    assert not calibrate(called, [], rows(), worker)
    assert not calibrate(called, needs, [], worker)


def test_large_sums_are_collected_in_rounds(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxshrink.runtime.calibrate.LEAST_SUMS_BYTES", 1)
    needs = [Need("h", SecondMoment(3)), Need("y", SecondMoment(3)), Need("x", SecondMoment(3))]
    feeds = rows()
    found = calibrate(model(PLAIN), needs, feeds, worker)
    np.testing.assert_array_equal(found[needs[0]].sums, found[needs[1]].sums)
    assert found[needs[2]].rows.sum() == 20


WEIGHTS = {
    "matmul": ("float[n, 3] x", "y = MatMul(x, w)", (3, 4)),
    "matmul on the left": ("float[3, n] x", "y = MatMul(w, x)", (4, 3)),
    "batched": ("float[2, n, 3] x", "y = MatMul(x, w)", (2, 3, 4)),
    "gemm": ("float[n, 3] x", "y = Gemm<transB = 1>(x, w)", (4, 3)),
    "gemm of a transpose": ("float[3, n] x", "y = Gemm<transA = 1>(x, w)", (3, 4)),
    "conv": ("float[n, 4, 6, 5] x", "y = Conv<group = 2, pads = [1, 0, 1, 0]>(x, w)", (6, 2, 3, 3)),
    "through a transpose": ("float[n, 3] x", "t = Transpose(w)  y = MatMul(x, t)", (4, 3)),
}


@pytest.mark.parametrize("case", list(WEIGHTS))
def test_a_moment_gives_the_error_of_the_outputs(case: str, worker: Worker, tmp_path: Path) -> None:
    """trace(E H E^T) of a weight's error is the mean squared change of the answers."""
    declared, body, shape = WEIGHTS[case]
    rng = np.random.default_rng(1)
    source = model(f"g ({declared}) => (float[a, b] y) <float{list(shape)} w = "
                   f"{{{','.join(['1.0'] * int(np.prod(shape)))}}}> {{ {body} }}")  # fmt: skip
    source.ir.graph.outputs[0].shape = None
    dims = [4 if part.strip() == "n" else int(part)
            for part in declared.split("[")[1].split("]")[0].split(",")]  # fmt: skip
    feeds = [{"x": rng.standard_normal(dims).astype(np.float32)} for _ in range(3)]
    view = next(weights.find(source))
    found = calibrate(source, second_moments.needs(view), feeds, worker)
    known = second_moments.of(found, view)
    moment = None if known is None else known.mean()
    assert moment is not None
    error = rng.standard_normal(shape).astype(np.float32)
    exchange = Exchange(source, ["w"], worker)
    before = exchange.answers(feeds, {"w": np.zeros(shape, np.float32)}).outputs
    after = exchange.answers(feeds, {"w": error}).outputs
    exchange.close()
    change = np.concatenate([(b[0] - a[0]).ravel() for a, b in zip(before, after, strict=True)])
    folded = view.to_matrix(error).reshape(len(moment), -1, moment.shape[1]).astype(np.float64)
    expected = np.einsum("gni,gij,gnj->", folded, moment, folded)
    outputs = folded.shape[0] * folded.shape[1]
    positions = change.size / outputs
    assert np.square(change, dtype=np.float64).sum() / positions == pytest.approx(
        expected, rel=1e-4
    )


def test_recurrent_weights_have_moments_too() -> None:
    w, r = (",".join(["1.0"] * size) for size in (24, 36))
    lstm = model(f"""g (float[t, b, 2] x) => (float[t, 1, b, 3] y)
        <float[1, 12, 2] w = {{{w}}}, float[1, 12, 3] r = {{{r}}}>
        {{ y = LSTM<hidden_size = 3>(x, w, r) }}""")
    found = {view.name: second_moments.needs(view) for view in weights.find(lstm)}
    assert found["w"] == (Need("x", SecondMoment(2)),)
    assert found["r"] == (Need("y", SecondMoment(3, Rows(batch=(1,)))),)


def test_lookups_of_a_table(worker: Worker) -> None:
    table = model("""g (int64[n] x) => (float[n, 2] y)
        <float[5, 2] w = {1,2,3,4,5,6,7,8,9,10}> { y = Gather(w, x) }""")
    need = second_moments.lookups(next(weights.find(table)))
    assert need == Need("x", Lookups(5))
    assert second_moments.needs(next(weights.find(table))) == ()
    found = calibrate(table, [need], [{"x": np.array([1, 4, 1])}], worker)
    np.testing.assert_array_equal(found[need].counts, [0, 2, 0, 0, 1])


def test_a_trial_exchanges_constants_wherever_they_are(worker: Worker) -> None:
    hidden = model("""g (float[n, 2] x, bool c) => (float[n, 2] y)
        <float[2, 2] w = {1,0,0,1}> {
        k = Constant<value = float[2, 2] {1,0,0,1}>()
        h = MatMul(x, w)
        y = If (c) <then_branch = t () => (float[n, 2] p) {
            z = Constant<value = float[2, 2] {1,0,0,1}>()  i = MatMul(h, k)  p = MatMul(i, z)
        }, else_branch = e () => (float[n, 2] p) { p = Identity(h) }>
    }""")
    feed = {"x": np.array([[1, 2]], np.float32), "c": np.array(True)}
    exchange = Exchange(hidden, ["w", "k", "z", "nowhere"], worker)
    assert exchange.refused == {"nowhere": "is inside a function"}
    np.testing.assert_array_equal(exchange.answers([feed]).outputs[0][0], [[1, 2]])
    twice = 2 * np.eye(2, dtype=np.float32)
    for names, factor in ((["w"], 2), (["w", "k"], 4), (["w", "k", "z"], 8), ([], 1)):
        found = exchange.answers([feed], dict.fromkeys(names, twice)).outputs
        np.testing.assert_array_equal(found[0][0], [[factor, 2 * factor]])
    exchange.close()
