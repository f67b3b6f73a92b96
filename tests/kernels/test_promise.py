"""Intervals hold as often as they say."""

import math

import numpy as np
import pytest
from scipy.special import bdtr

from onnxshrink.kernels import promise


def test_a_share_is_kept_as_often_as_is_said() -> None:
    """The chance that the lower end lies above the truth is at most 10 %, whatever the truth."""
    count = 60
    ends = np.array([promise.share_at_least(kept, count) for kept in range(count + 1)])
    for truth in (0.5, 0.9, 0.95, 0.99):
        share = np.diff(bdtr(np.arange(count + 1), count, truth), prepend=0)
        over = share[ends > truth].sum()
        assert over <= 0.1
    assert ends[0] == 0


@pytest.mark.parametrize("least", [0.9, 0.99])
def test_the_rows_that_a_share_takes(least: float) -> None:
    rows = promise.rows_for(least)
    assert promise.share_at_least(rows, rows) >= least
    assert promise.share_at_least(rows - 1, rows - 1) < least
    assert promise.rows_for(1.0) == 0


def test_a_ratio_is_kept_about_as_often_as_is_said() -> None:
    rng = np.random.default_rng(0)
    kept = sum(promise.ratio_at_most(rng.gamma(2, 0.5, 16), np.ones(16)) >= 1 for _ in range(200))
    assert 0.82 < kept / 200 < 0.95  # skewed as errors are, a little less often


def test_what_a_few_inputs_do_not_say() -> None:
    assert promise.ratio_at_most([1, 1, 1], [2, 2, 2]) == math.inf
    assert promise.ratio_at_most([0] * 5, [2] * 5) == 0
    assert promise.ratio_at_most([1] * 5, [2] * 5) == pytest.approx(0.5)
    assert promise.ratio_at_most([math.inf] * 5, [2] * 5) == math.inf
    assert promise.ratio_at_most([1] * 5, [0] * 5) == math.inf


def test_of_four_inputs_something_can_be_said_and_of_three_nothing() -> None:
    parts, wholes = [1.0, 2.0, 3.0, 4.0], [10.0] * 4
    assert promise.ratio_at_most(parts[:3], wholes[:3]) == math.inf
    assert 0.25 < promise.ratio_at_most(parts, wholes) < math.inf
