"""Two models on the same inputs: sums of the values of both, against numpy."""

from pathlib import Path

import numpy as np
from weight_models import normal, parsed

from onnxshrink.graph.file.model import Model
from onnxshrink.kernels.pairs import PairNeed, Regression
from onnxshrink.kernels.rows import Rows
from onnxshrink.runtime.compare_values import compute, regress
from onnxshrink.runtime.worker import Worker

TEXT = "g (float[n, 6] x) => (float[n, 4] y) { h = MatMul(x, A) t = Tanh(h) y = MatMul(t, B) }"


def model(seed: int, text: str = TEXT) -> Model:
    return Model.from_proto(parsed(text, A=normal(6, 5, seed=seed), B=normal(5, 4, seed=seed + 1)))


def need(value: str, source: str, width: int, outputs: int) -> PairNeed:
    return PairNeed(value, source, Regression(1, width, outputs, Rows()))


def test_sums_of_both_models(worker: Worker) -> None:
    feeds = [{"x": normal(7, 6, seed=seed)} for seed in range(4)]
    needs = [need("h", "x", 6, 5), need("y", "t", 5, 4), need("y", "x", 6, 4)]
    told: list[tuple[str, int, int]] = []
    one, other = model(1), model(5)
    found = regress(one, other, needs, feeds, worker, lambda *now: told.append(now))
    assert set(found) == set(needs)
    assert told == [("calibrating", i, 4) for i in range(5)]
    for half in (0, 1):
        x = np.concatenate([feed["x"] for feed in feeds[half::2]])
        t = np.tanh(x @ normal(6, 5, seed=1))
        h = x @ normal(6, 5, seed=5)
        y = np.tanh(h) @ normal(5, 4, seed=6)
        for wanted, (a, b) in zip(needs, [(x, h), (t, y), (x, y)], strict=True):
            seen = found[wanted].halves[half]
            np.testing.assert_allclose(seen.xy[0, :, :-1], b.T @ a, rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(seen.xx[0, :-1, :-1], a.T @ a, rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(seen.yy[0], (b**2).sum(0), rtol=1e-4)
            assert seen.samples == len(x)


def test_what_cannot_be_observed_says_why(worker: Worker) -> None:
    feeds = [{"x": normal(7, 6)}]
    other = model(5, TEXT.replace("h = ", "k = ").replace("(h)", "(k)"))
    lost, misfit = need("h", "x", 6, 5), need("y", "t", 5, 3)
    found = regress(model(1), other, [lost, misfit], feeds, worker)
    assert not len(found)
    assert found.refused == {
        "h": "is inside a function",
        "y": "values of shapes (7, 5) and (7, 4) do not fit the layer",
    }


def test_nothing_wanted_runs_nothing(worker: Worker) -> None:
    assert not len(regress(model(1), model(2), [], [{}], worker))
    assert not len(regress(model(1), model(2), [need("h", "x", 6, 5)], [], worker))


def test_a_small_model_is_computed(worker: Worker, tmp_path: Path) -> None:
    proto = parsed("g (float[2] x) => (float[2] y) { y = Mul(x, A) }", A=np.float32([2, 3]))
    feeds = [{"x": np.float32([1, 1])}, {"x": np.float32([0, 5])}]
    made = compute(proto, feeds, worker)
    np.testing.assert_array_equal(made, [[2, 3], [0, 15]])
