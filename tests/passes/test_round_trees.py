"""Rounded trees answer as numpy does with the rounded numbers."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from forests import FEATURES, ensemble, trees
from hypothesis import given
from hypothesis import strategies as st

from onnxshrink.contract import Settings
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.rewrite import tree_values
from onnxshrink.graph.rewrite.trees import Forest
from onnxshrink.kernels.short_numbers import shortest_between
from onnxshrink.pipeline import run
from onnxshrink.recipe import find_pass
from onnxshrink.runtime.worker import Worker

X = np.random.default_rng(1).standard_normal((400, FEATURES)).astype(np.float32)
SPLITS = ("BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT")
REGRESSION = ensemble(
    "Regressor", **trees("target", 8, 9, (0,), modes=SPLITS, values=5000), n_targets=1
)
CLASSES = ensemble(
    "Classifier", **trees("class", 6, 6, (0, 1, 2), low=0.0, values=300),
    classlabels_int64s=[3, 1, 4],
)  # fmt: skip


def _merged(proto: onnx.ModelProto, worker: Worker) -> Model:
    return run((find_pass("merge-trees")(),), Model.from_proto(proto), Settings(), worker).model


def _forest(model: Model) -> Forest:
    ((_, stored),) = tree_values.find(model)
    assert not isinstance(stored, str)
    return stored.forest


def _sums(forest: Forest, x: np.ndarray) -> np.ndarray:
    """What the trees say, [rows, targets], in plain Python."""
    below = [np.less_equal, np.less, np.greater_equal, np.greater]
    found = np.zeros((len(x), forest.rows.shape[1]))
    for total, row in zip(found, x, strict=True):
        for at in forest.roots.tolist():
            while at >= 0:
                true = below[forest.mode[at]](row[forest.feature[at]], forest.threshold[at])
                at = int(forest.children[at, 0 if true else 1])
            total += forest.rows[~at]
    return found


@pytest.mark.parametrize("proto", [REGRESSION, CLASSES], ids=["values", "rows of a table"])
def test_leaves_take_few_values(proto: onnx.ModelProto, worker: Worker) -> None:
    model = _merged(proto, worker)
    before = _forest(model)
    result = run(
        (find_pass("round-trees")(bits=3, max_error=0.5),), model, Settings(feeds=[{"x": X}]),
        worker,
    )  # fmt: skip
    (step,) = result.report.steps
    assert step.status == "done", step.reason
    assert step.bytes_after < step.bytes_before
    after, most = _forest(result.model), np.abs(before.rows).max(axis=0)
    codes = after.rows / most * 7
    np.testing.assert_allclose(codes, np.rint(codes), atol=1e-5)
    assert len(after.rows) < len(before.rows)
    session = onnxruntime.InferenceSession(result.model.to_proto().SerializeToString())
    found = session.run(["y"], {"x": X})[0]
    np.testing.assert_allclose(found, _sums(after, X), rtol=1e-5, atol=1e-5)
    # Each leaf moves by no more than half a step, and so the sum of trees by no more than that.
    assert (np.abs(found - _sums(before, X)) <= len(before.roots) * most / 14 + 1e-5).all()


def test_short_thresholds_send_every_row_the_same_way(worker: Worker) -> None:
    rng = np.random.default_rng(2)
    before = _forest(_merged(REGRESSION, worker))
    ends = (before.threshold + rng.normal(0, 0.01, before.threshold.shape)).astype(np.float32)
    before = Forest(**{**vars(before), "threshold": ends})
    after = tree_values.with_short_thresholds(before, X)
    assert (_sums(after, X) == _sums(before, X)).all()

    def digits(values: np.ndarray) -> float:
        return float(np.mean([bin(int(v)).rstrip("0").count("1") for v in values.view(np.uint32)]))

    assert digits(after.threshold) < 0.7 * digits(before.threshold)


@given(st.integers(-(10**9), 10**9), st.integers(0, 10**6))
def test_the_shortest_number_lies_between(start: int, width: int) -> None:
    low, high = start / 1000, (start + width) / 1000
    found = shortest_between(low, high)
    assert low <= found <= high
    if found and low < high:  # no multiple of the next power of two would have done
        above, below = abs(found).as_integer_ratio()
        step = 2 * (above & -above) / below
        assert np.floor(high / step) < np.ceil(low / step)


def test_older_ensembles_are_for_merge_trees(worker: Worker) -> None:
    model = Model.from_proto(REGRESSION)
    (step,) = run((find_pass("round-trees")(),), model, Settings(), worker).report.steps
    assert step.status == "nothing to do"
    assert "merge-trees" in step.skips[0].reason
