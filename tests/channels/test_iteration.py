"""A plan is a value: what carries it out depends on nothing that was planned after it."""

from __future__ import annotations

import channel_oracle as oracle
import numpy as np
import pytest

from onnxshrink.channels.iteration import Iteration
from onnxshrink.channels.request import ChannelGoal, Request
from onnxshrink.channels.shares import Start
from onnxshrink.channels.survey import survey
from onnxshrink.graph.file.model import Model
from onnxshrink.pipeline import Context
from onnxshrink.report import Step
from onnxshrink.runtime.worker import Worker

_TEXT = (
    '<ir_version: 8, opset_import: ["": 17]> g (float[N,12] x) => (float[N,5] y) '
    "{h = Gemm(x, a, ab) r = Relu(h) y = MatMul(r, b)}"
)


def _model() -> Model:
    return oracle.build(_TEXT, 0, a=(12, 64), ab=(64,), b=(64, 5))


def _context(worker: Worker) -> Context:
    rng = np.random.default_rng(0)
    return Context(Step("prune-channels"), [
        {"x": rng.standard_normal((32, 12)).astype(np.float32)} for _ in range(4)
    ], worker=worker)  # fmt: skip


def test_a_plan_is_carried_out_whatever_was_planned_since(worker: Worker) -> None:
    def digest(between: Model | None) -> str:
        model, ctx = _model(), _context(worker)
        request = Request(goal=ChannelGoal("units", 0.5), scope="local")
        found = survey(model, request, ctx)
        iteration = Iteration(request, found, Start.of(found.plan), 1.0, ctx)
        plan = iteration.choose()
        if between is not None:
            other = survey(between, request, ctx, 1)
            Iteration(request, other, Start.of(other.plan), 0.5, ctx).choose()
        iteration.removal(plan).carry_out()
        return model.digest()

    smaller = oracle.build(_TEXT, 1, a=(12, 16), ab=(16,), b=(16, 5))
    assert digest(None) == digest(smaller) != _model().digest()


@pytest.mark.parametrize(("of", "left"), [("units", 0.8), ("macs", 0.6), ("bytes", 0.5)])
def test_the_parts_of_the_way_leave_equal_shares(of: str, left: float) -> None:
    goal = ChannelGoal(of, left)  # type: ignore[arg-type]
    ways = [goal.after(part) for part in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert ways[0] == 1.0
    assert ways[-1] == left
    np.testing.assert_allclose(np.divide(ways[1:], ways[:-1]), left**0.25, rtol=1e-12)
