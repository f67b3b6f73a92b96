"""What a model answers, and one distance between answers."""

import math
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hard_models import HARD, rows, text, weight

from onnxshrink.errors import ModelError, OutputError
from onnxshrink.graph import surgery
from onnxshrink.graph.analysis import operands
from onnxshrink.graph.file.model import Model
from onnxshrink.kernels.metrics import relative_error
from onnxshrink.pipeline import Context
from onnxshrink.report import Step
from onnxshrink.runtime.worker import Worker
from onnxshrink.trials import Answers, Exchange, Figures, Reference, answers, distance

FEEDS = rows(3, 16)
W, V = weight(1, 16, 4), weight(2, 16, 5)


def model(factor: float = 1.0) -> Model:
    """Two outputs, of which one is scaled, and one of nothing but zeros."""
    return Model.from_proto(
        text(
            "g (float[n, 16] x) => (float[n, 4] y, float[n, 5] z, float[2, n] none) "
            "{ y = MatMul(x, w)  z = MatMul(x, v)  t = Transpose(x)  none = MatMul(zeros, t) }",
            w=factor * W, v=V, zeros=np.zeros((2, 16), np.float32),
        )
    )  # fmt: skip


def test_answers_are_those_of_numpy_and_fixed_first_axes_are_known(worker: Worker) -> None:
    found = answers(model(), FEEDS, worker, check=True)
    assert (found.names, found.stacked) == (("y", "z", "none"), {"none"})
    for feed, outputs in zip(FEEDS, found.outputs, strict=True):
        np.testing.assert_allclose(outputs[0], feed["x"] @ W, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(outputs[1], feed["x"] @ V, rtol=1e-5, atol=1e-6)
    assert found.silent == {"none": "is 0 throughout"}


def test_the_distance_is_that_of_all_outputs(worker: Worker) -> None:
    wanted = Reference(model(), FEEDS, worker)
    assert wanted.distance(model()) == 0
    assert wanted.distance(model(1.25)) == pytest.approx(0.25, rel=1e-5)
    both = model(1.25)
    for value, _ in operands.constants(both):
        if value.name == "v":
            surgery.set_constant(both, value, 0.9 * V)
    assert wanted.distance(both) == pytest.approx(math.hypot(0.25, 0.1), rel=1e-5)


def test_an_output_that_is_lost_is_far_but_not_beyond_comparison(worker: Worker) -> None:
    found = answers(model(), FEEDS, worker)
    lost = [[np.full_like(y, np.nan), z, none] for y, z, none in found.outputs]
    worse = [[y, 0 * z, none] for y, z, none in lost]
    near, far = (
        distance(found.figures(type(found)(found.names, outputs))) for outputs in (lost, worse)
    )
    assert 1e3 < near <= far < math.inf


def test_rounding_in_an_output_of_zeros_is_no_error(worker: Worker) -> None:
    """Relative to nothing it would be without end; what is more than rounding is told."""
    found = answers(model(), FEEDS, worker)
    for size, alike in ((1e-7, True), (1e-3, False)):
        outputs = [[y, z, none + np.float32(size)] for y, z, none in found.outputs]
        figures = found.figures(type(found)(found.names, outputs))
        assert (distance(figures) == 0) == alike
        assert (Figures.of(figures) == Figures(0.0, 1.0, 1.0)) == alike


def test_figures_are_the_worst_of_any_output(worker: Worker) -> None:
    found, other = (answers(model(factor), FEEDS, worker) for factor in (1.0, 1.25))
    figures = Figures.of(found.figures(other))
    x, y = (np.concatenate([outputs[0] for outputs in a.outputs]) for a in (found, other))
    assert figures.relative_error == pytest.approx(relative_error(x, y))
    assert figures.cosine == pytest.approx(1)
    assert figures.top1 == 1


def test_values_before_a_tail_are_compared_where_both_have_the_same() -> None:
    """Where the tails of two models differ, their outputs alone are."""
    one, two = np.ones((2, 3)), np.full((2, 3), 2.0)
    before = Answers(("y", "value 0 before the tail"), [[one, two]], entering=1)
    same = before.figures(Answers(before.names, [[one, one]], entering=1))
    assert [(row.name, row.relative_error) for row in same] == [("y", 0.0), (before.names[1], 0.5)]
    for other in (Answers(("y",), [[two]]), Answers(("y", "value 1"), [[two, one]], entering=1)):
        assert [(row.name, row.relative_error) for row in before.figures(other)] == [("y", 1.0)]


def test_errors_name_the_model_and_the_folder(worker: Worker, tmp_path: Path) -> None:
    broken = model()
    broken.ir.graph.node(0).op_type = "NoSuchOperator"
    with pytest.raises(ModelError) as raised:
        answers(broken, FEEDS, worker)
    assert ".onnxshrink-" not in str(raised.value)
    with pytest.raises(OutputError, match="cannot be written"):
        answers(broken, FEEDS, worker, folder=tmp_path / "none")


def test_a_context_without_a_run_has_a_worker_of_its_own() -> None:
    ctx = Context(Step("test"), FEEDS)
    assert answers(model(), FEEDS[:1], ctx.worker).outputs[0][0].shape == (3, 4)
    ctx.worker.close()
    assert Context(Step("test")).worker is not ctx.worker


def test_a_split_of_one_input_warns_once() -> None:
    ctx = Context(Step("test"), FEEDS[:1])
    assert ctx.split == ctx.split
    assert len(ctx.step.warnings) == 1
    assert not Context(Step("test"), FEEDS).step.warnings


def test_each_run_has_the_weights_that_it_is_given(worker: Worker) -> None:
    w, v, inputs = weight(1, 64, 32), weight(2, 32, 16), rows(3, 64)
    net = "g (float[n, 64] x) => (float[n, 16] y) { a = MatMul(x, w)  y = MatMul(a, v) }"
    source = Model.from_proto(text(net, w=w, v=v))
    digest = source.digest()
    exchange = Exchange(source, ["w", "v"], worker)
    assert not exchange.refused
    other = weight(3, 64, 32)
    # The second run gives only one: what an earlier run exchanged is not there any more.
    for given in ({}, {"w": other, "v": 2 * v}, {"v": 3 * v}, {}):
        outputs = exchange.answers(inputs, given).outputs
        for feed, (y,) in zip(inputs, outputs, strict=True):
            wanted = feed["x"] @ given.get("w", w) @ given.get("v", v)
            np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-5)
    exchange.close()
    assert source.digest() == digest


def test_what_cannot_be_exchanged_is_said(worker: Worker) -> None:
    """A weight that a body or a function holds has no place in the main graph."""
    hard = HARD["function"]()
    exchange = Exchange(Model.from_proto(hard.proto), ["v", "own"], worker)
    assert set(exchange.refused) <= {"v", "own"}
    assert all(exchange.refused.values())
    exchange.close()


def test_weights_are_exchanged_without_the_noise_of_a_random_model(worker: Worker) -> None:
    drawing = Model.from_proto(
        text(
            "g (float[n, 8] x) => (float[n, 8] y) "
            "{ h = MatMul(x, w)  r = RandomNormalLike(h)  y = Add(h, r) }",
            w=weight(1, 8, 8),
        )
    )  # fmt: skip
    feeds = [{"x": weight(n, 4, 8)} for n in range(3)]
    with closing(Exchange(drawing, ["w"], worker)) as exchange:
        before = exchange.answers(feeds).outputs
        same = exchange.answers(feeds, {"w": weight(1, 8, 8)}).outputs
        other = exchange.answers(feeds, {"w": weight(2, 8, 8)}).outputs
    np.testing.assert_array_equal(before, same)
    for feed, (a,), (b,) in zip(feeds, before, other, strict=True):
        moved = feed["x"] @ (weight(2, 8, 8) - weight(1, 8, 8))
        np.testing.assert_allclose(b - a, moved, rtol=1e-4, atol=1e-5)
