from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxshrink.kernels import elimination
from onnxshrink.kernels.elimination import ChannelReader, eliminate
from onnxshrink.kernels.moments import damped


def _reader(rng, channels, size=1, outputs=5, more=0, samples=64):
    """Weights over correlated features, ``more`` of which always stay."""
    width = channels * size + more
    rows = rng.standard_normal((samples, width)) @ rng.standard_normal((width, width))
    columns = rng.permutation(width)[: channels * size].reshape(channels, size)
    moment = damped(rows.T @ rows / samples, 0.01)
    return ChannelReader(rng.standard_normal((outputs, width)), moment, columns)


def _lost(reader, channels):
    """The least squared error without some channels, solved for as it stands."""
    gone = np.sort(reader.columns[list(channels)].ravel())
    stay = np.setdiff1d(np.arange(len(reader.moment)), gone)
    root = np.linalg.cholesky(reader.moment).T  # E ||D x||^2 = ||root D^T||^2
    wanted = root[:, gone] @ reader.weights[:, gone].T
    if not len(stay):
        return float(np.square(wanted).sum())
    found = np.linalg.lstsq(root[:, stay], wanted, rcond=None)[0]
    return float(np.square(wanted - root[:, stay] @ found).sum())


def _greedy(readers, count):
    """Every choice tried by least squares, one channel after the other."""
    gone: list[int] = []
    losses = [0.0]
    for _ in range(count):
        left = [c for c in range(len(readers[0].columns)) if c not in gone]
        tried = [sum(_lost(reader, [*gone, c]) for reader in readers) for c in left]
        gone.append(left[int(np.argmin(tried))])
        losses.append(min(tried))
    return gone, np.diff(losses)


@given(
    st.integers(0, 2**32 - 1), st.integers(1, 7), st.integers(1, 3), st.integers(1, 3),
    st.integers(0, 3), st.integers(1, 12),
)  # fmt: skip
@settings(max_examples=40)
def test_each_step_is_the_best_that_least_squares_finds(seed, channels, size, count, more, outputs):
    rng = np.random.default_rng(seed)
    readers = [_reader(rng, channels, size, outputs, more) for _ in range(count)]
    order, costs = eliminate(readers)
    wanted, losses = _greedy(readers, channels)
    np.testing.assert_array_equal(order, wanted)
    np.testing.assert_allclose(costs, losses, rtol=1e-6, atol=1e-9 * losses.sum())


def test_of_twins_only_one_is_free():
    """A ranking by what each costs alone would remove both."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((256, 4))
    x[:, 1] = x[:, 0]
    reader = ChannelReader(
        np.diag([3.0, 3.0, 1.0, 2.0]), damped(x.T @ x / 256, 1e-6), np.arange(4)[:, None]
    )
    order, costs = eliminate([reader])
    assert order[0] in (0, 1)
    assert costs[0] < 1e-4
    assert order.tolist()[1:] == [2, 3, 1 - order[0]]
    np.testing.assert_allclose(costs[1:3], [1.0, 4.0], rtol=0.2)


def test_shortlists_lose_little_against_looking_at_everything(monkeypatch):
    rng = np.random.default_rng(1)
    readers = [_reader(rng, 60, 2, 20, 10, samples=150) for _ in range(2)]
    exact = eliminate(readers)
    monkeypatch.setattr(elimination, "_EXACT", 20)
    order, costs = eliminate(readers)
    assert sorted(order.tolist()) == list(range(60))
    half = sum(_lost(reader, order[:30]) for reader in readers)
    np.testing.assert_allclose(costs[:30].sum(), half, rtol=1e-6)  # what is told is what is lost
    assert half <= 1.02 * exact[1][:30].sum()


def test_removing_half_loses_as_little_as_nearly_any_choice():
    rng = np.random.default_rng(2)
    reader = _reader(rng, 8)
    losses = sorted(_lost(reader, c) for c in itertools.combinations(range(8), 4))
    assert eliminate([reader])[1][:4].sum() <= losses[3]  # of 70


def test_features_that_are_always_zero_go_first():
    rng = np.random.default_rng(3)
    x = rng.standard_normal((64, 6))
    x[:, 2] = 0
    reader = ChannelReader(
        rng.standard_normal((3, 6)), damped(x.T @ x / 64, 0.01), np.arange(6)[:, None]
    )
    order, costs = eliminate([reader])
    assert order[0] == 2
    assert costs[0] < 0.05 * costs[1]


def test_a_moment_without_damping_is_refused():
    with pytest.raises(ValueError, match="damp it more"):
        eliminate([ChannelReader(np.ones((1, 2)), np.ones((2, 2)), np.arange(2)[:, None])])
