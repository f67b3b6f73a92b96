"""Distillation: the loss in numpy, labels, layers, and answers that come back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from weight_models import normal, parsed

from onnxshrink.contract import Settings
from onnxshrink.errors import RecipeError
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.gradients import Aim, Soft, with_losses
from onnxshrink.passes.distill import Distill
from onnxshrink.passes.prune_channels import PruneChannels
from onnxshrink.passes.prune_magnitude import PruneMagnitude
from onnxshrink.pipeline import Context, Pass, Result, run
from onnxshrink.report import Step
from onnxshrink.runtime.session import open_session, run_session
from onnxshrink.runtime.worker import Worker
from onnxshrink.trials import Reference


def classifier() -> Model:
    return Model.from_proto(parsed(
        """g (float[N, 12] x) => (float[N, 5] y) {
            t = MatMul(x, w)  u = Add(t, b)  h = Relu(u)
            v = MatMul(h, w2)  z = Add(v, b2)  y = Softmax(z)
        }""",
        w=normal(12, 24) / 3, b=normal(24, seed=1) / 4, w2=normal(24, 5, seed=2) / 2,
        b2=normal(5, seed=3) / 4,
    ))  # fmt: skip


FEEDS = [{"x": normal(8, 12, seed=100 + number)} for number in range(64)]
UNSEEN = [{"x": normal(8, 12, seed=900 + number)} for number in range(16)]


def distilled(worker: Worker, before: Pass, *after: Pass) -> Result:
    return run([before, *after], classifier(), Settings(feeds=FEEDS), worker)


@pytest.mark.parametrize(
    "before",
    [PruneMagnitude(ratio=0.6, max_error=9), PruneChannels(ratio=0.3, max_error=9)],
    ids=["zeros", "channels"],
)
def test_answers_come_back_on_inputs_that_nothing_has_seen(before: Pass, worker: Worker) -> None:
    held = Reference(classifier(), UNSEEN, worker)
    lost = held.distance(distilled(worker, before).model)
    done = distilled(worker, before, Distill(steps=60, batch=8, layers=0.1))
    assert done.report.steps[1].status == "done"
    assert held.distance(done.model) < 0.8 * lost


@pytest.mark.parametrize("probabilities", [False, True])
def test_the_loss_is_that_of_the_paper(probabilities: bool) -> None:
    """T^2 times the cross-entropy of shares at temperature T, less the entropy of those wanted."""
    model = Model.from_proto(parsed("g (float[N, 4] x) => (float[N, 4] y) { y = Identity(x) }"))
    ours, theirs = normal(3, 4), normal(3, 4, seed=1)

    def shares(scores: np.ndarray, temperature: float) -> np.ndarray:
        powers = np.exp(scores.astype(np.float64) / temperature)
        return powers / powers.sum(-1, keepdims=True)

    p, q = shares(theirs, 3.0), shares(ours, 3.0)
    wanted = 9.0 * np.sum(p * np.log(p / q))
    given = [shares(each, 1.0).astype(np.float32) if probabilities else each
             for each in (ours, theirs)]  # fmt: skip
    made = with_losses(model, {"y": Aim("y", Soft(3.0, probabilities))})
    session = open_session(made.model.to_proto().SerializeToString())
    (loss,) = run_session(session, {"x": given[0], made.targets["y"]: given[1]})
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)


def test_labels_pull_answers_to_themselves(worker: Worker, tmp_path: Path) -> None:
    """All labels say class 3: with them alone, every answer becomes that."""
    np.save(tmp_path / "labels.npy", np.full(8 * 64, 3))
    step = Distill(labels=str(tmp_path / "labels.npy"), alpha=1.0, steps=80, batch=8, rate=0.05)
    done = run([step], classifier(), Settings(feeds=FEEDS), worker)
    (y,) = run_session(open_session(done.model.to_proto().SerializeToString()), UNSEEN[0])
    assert (y.argmax(-1) == 3).mean() > 0.9


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros(7, np.int64), "7 labels for 512 rows of the output"),
        (np.full(512, 5), "labels from 5 to 5 for 5 classes"),
        (np.zeros(512), "labels are an .npy file of integers, one for each row"),
    ],
)
def test_labels_that_do_not_fit_are_refused(
    labels: np.ndarray, message: str, worker: Worker, tmp_path: Path
) -> None:
    np.save(tmp_path / "labels.npy", labels)
    done = distilled(
        worker, PruneMagnitude(max_error=9), Distill(labels=str(tmp_path / "labels.npy"))
    )
    assert message in done.report.steps[1].reason


def test_more_inputs_take_the_place_of_those_of_the_run(worker: Worker, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    for number in range(10):
        np.save(tmp_path / "more" / f"{number}.npy", FEEDS[number]["x"][:3])
    np.save(tmp_path / "labels.npy", np.zeros(7, np.int64))
    options = {"train_on": str(tmp_path / "more"), "labels": str(tmp_path / "labels.npy")}
    done = distilled(worker, PruneMagnitude(max_error=9), Distill(most_inputs=9, **options))
    assert "7 labels for 27 rows of the output" in done.report.steps[1].reason


@pytest.mark.parametrize(
    ("weights", "message"),
    [({"nowhere": 1.0}, "nowhere"), ({"u": -1.0}, "layer-weights of 'u' is -1.0, no weight")],
)
def test_weights_of_layers_that_say_nothing_are_refused(
    weights: dict[str, float], message: str, worker: Worker
) -> None:
    with pytest.raises(RecipeError, match=message):
        distilled(worker, PruneMagnitude(max_error=9), Distill(layers=1.0, layer_weights=weights))


def test_layers_share_their_weight_as_asked(worker: Worker) -> None:
    ctx = Context(Step("distill"), FEEDS[:4], worker=worker)
    aims = {}
    for weights in ({}, {"[uz]": 3.0, "z": 0.0}):
        step = Distill(layers=2.0, layer_weights=weights)
        aims[len(weights)] = step.goal(classifier(), classifier(), ctx).weights
    assert aims[0].keys() == {"u", "z", "y"}
    assert aims[2]["u"] == pytest.approx(2 * aims[0]["u"])
    assert (aims[2]["z"], aims[2]["y"]) == (0.0, aims[0]["y"])
