"""Weights exchanged from run to run, against numpy."""

import numpy as np
from hard_models import HARD, rows, text, weight

from onnxshrink.graph.file.model import Model
from onnxshrink.runtime.trial import Trial
from onnxshrink.runtime.worker import Worker

FEEDS = rows(3, 64)
W, V = weight(1, 64, 32), weight(2, 32, 16)


def model() -> Model:
    source = "g (float[n, 64] x) => (float[n, 16] y) { a = MatMul(x, w)  y = MatMul(a, v) }"
    return Model.from_proto(text(source, w=W, v=V))


def test_each_run_has_the_weights_that_it_is_given(worker: Worker) -> None:
    source = model()
    digest = source.digest()
    trial = Trial(source, ["w", "v"], worker)
    assert not trial.refused
    other = weight(3, 64, 32)
    # The second run gives only one: what an earlier run exchanged is not there any more.
    for given in ({}, {"w": other, "v": 2 * V}, {"v": 3 * V}, {}):
        outputs = trial.run(FEEDS, given)
        for feed, (y,) in zip(FEEDS, outputs, strict=True):
            wanted = feed["x"] @ given.get("w", W) @ given.get("v", V)
            np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-5)
    trial.close()
    assert source.digest() == digest


def test_what_cannot_be_exchanged_is_said(worker: Worker) -> None:
    """A weight that a body or a function holds has no place in the main graph."""
    hard = HARD["function"]()
    trial = Trial(Model.from_proto(hard.proto), ["v", "own"], worker)
    assert set(trial.refused) <= {"v", "own"}
    assert all(trial.refused.values())
    trial.close()
