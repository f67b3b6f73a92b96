"""A goal is spread over groups, and what is said of some of them holds."""

from __future__ import annotations

import channel_oracle as oracle
import numpy as np
import pytest

from onnxshrink.channels.plan import Plan
from onnxshrink.channels.request import ChannelGoal, Request
from onnxshrink.channels.shares import Allocation
from onnxshrink.channels.survey import survey
from onnxshrink.pipeline import Context
from onnxshrink.report import Step
from onnxshrink.runtime.worker import Worker

_TEXT = (
    '<ir_version: 8, opset_import: ["": 17]> g (float[N,12] x) => (float[N,5] y) '
    "{h = Gemm(x, a, ab) r = Relu(h) i = Gemm(r, b, bb) s = Relu(i) y = MatMul(s, c)}"
)


@pytest.fixture(scope="module")
def plan(worker: Worker) -> Plan:
    """Two groups, of 64 and of 32 units."""
    model = oracle.build(_TEXT, 0, a=(12, 64), ab=(64,), b=(64, 32), bb=(32,), c=(32, 5))
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.standard_normal((32, 12)).astype(np.float32)} for _ in range(2)]
    request = Request(goal=ChannelGoal("units", 0.5), scope="local")
    return survey(model, request, Context(Step("prune-channels"), feeds, worker=worker)).plan


def gone(plan: Plan, ratios: dict[str, float], ratio: float = 0.25) -> dict[int, int]:
    """How many units go from each group, by its size."""
    chosen = Allocation(ratios, everywhere=False, round_to=1, minimum=1).choose(plan, ratio)
    pairs = zip(chosen.groups, chosen.choice, strict=True)
    return {len(group): len(units) for group, units in pairs}


def test_of_several_patterns_the_later_one_counts(plan: Plan) -> None:
    assert gone(plan, {}) == {64: 16, 32: 8}
    assert gone(plan, {"*": 0.5, "a": 0.125}) == {64: 8, 32: 16}
    assert gone(plan, {"a": 0.125, "*": 0.5}) == {64: 32, 32: 16}
    assert gone(plan, {"ab": 0.0, "bb": 0.75}) == {64: 0, 32: 24}


@pytest.mark.parametrize("before", [1.0, 1.25])
def test_units_of_all_groups_compete_for_a_share_of_what_they_cost(
    before: float, plan: Plan
) -> None:
    """What is gone from earlier steps counts: the ratio is that of the groups' first sizes."""
    sizes = {group.name: int(before * len(group)) for group in plan.groups}
    costs = {group.name: float(place + 1) for place, group in enumerate(plan.groups)}
    shares = Allocation({}, True, round_to=1, minimum=1, sizes=sizes, costs=costs)
    chosen = shares.choose(plan, 0.4)
    pairs = list(zip(plan.groups, chosen.choice, strict=True))
    whole = sum(costs[group.name] * sizes[group.name] for group, _ in pairs)
    left = sum(costs[group.name] * (len(group) - len(gone)) for group, gone in pairs)
    assert abs(left / whole - 0.6) <= max(costs.values()) / whole


def test_the_least_important_units_go(plan: Plan) -> None:
    chosen = Allocation({}, everywhere=False, round_to=1, minimum=1).choose(plan, 0.25)
    for scores, units in zip(chosen.scores, chosen.choice, strict=True):
        assert set(units) == set(np.argsort(scores)[: len(units)])


@pytest.mark.parametrize("least", [0.1, 0.3, 0.6])
def test_the_smallest_ratio_that_is_enough_is_reached(least: float, plan: Plan) -> None:
    shares = Allocation({}, everywhere=False, round_to=1, minimum=1)
    asked = []

    def enough(trial: Plan) -> bool:
        asked.append(sum(map(len, trial.choice)))
        return asked[-1] >= least * 96

    found, reached = shares.reach(plan, enough)
    assert reached
    assert 0 <= sum(map(len, found.choice)) - least * 96 < 2  # two groups are rounded
    assert shares.reach(plan, lambda trial: False)[1] is False
