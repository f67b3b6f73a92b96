"""AdaRound against every choice of roundings, and by its properties."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxshrink.kernels import adaround, obs
from onnxshrink.kernels.moments import loss


def problem(seed: int, rows: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights, and the second moment of correlated inputs."""
    rng = np.random.default_rng(seed)
    inputs = rng.standard_normal((4 * width, width)) @ rng.standard_normal((width, width))
    weights = rng.standard_normal((rows, width)).astype(np.float32)
    return weights, inputs.T @ inputs / len(inputs)


def errors(weights: np.ndarray, codes: np.ndarray, moment: np.ndarray, scale: float) -> np.ndarray:
    off = weights.astype(np.float64) - codes * scale
    return np.einsum("ij,jk,ik->i", off, moment, off)


def test_close_to_the_best_of_all_roundings_up_and_down() -> None:
    ratios, gains = [], []
    choices = np.array(list(itertools.product((0, 1), repeat=6)))
    for seed in range(8):
        weights, moment = problem(seed, 5, 6)
        scale = np.full(weights.shape, 0.5, np.float32)
        found = adaround.quantize(weights, moment, scale, np.zeros_like(scale), -8, 7)
        reached = errors(weights, found, moment, 0.5)
        for row in range(5):
            every = np.floor(weights[row] / 0.5) + choices
            best = errors(np.tile(weights[row], (64, 1)), every, moment, 0.5).min()
            ratios.append(reached[row] / best)
        gains.append(reached.sum() / errors(weights, np.rint(weights / 0.5), moment, 0.5).sum())
    assert min(ratios) > 1 - 1e-4
    assert np.median(ratios) < 1.2
    assert np.mean(gains) < 0.7


@given(st.integers(0, 2**31), st.integers(1, 12), st.integers(1, 30), st.floats(0.05, 2))
@settings(max_examples=25)
def test_never_worse_than_to_nearest(seed: int, rows: int, width: int, step: float) -> None:
    weights, moment = problem(seed, rows, width)
    scale = np.full(weights.shape, step, np.float32)
    zero = np.full(weights.shape, 3, np.float32)
    found = adaround.quantize(weights, moment, scale, zero, 0, 15, iterations=60)
    np.testing.assert_array_equal(found, np.rint(found))
    assert found.min() >= 0
    assert found.max() <= 15
    exact = weights / scale + zero
    inside = (exact > 0) & (exact < 15)
    assert (np.abs(found - exact)[inside] <= 1 + 1e-4).all()
    nearest = np.clip(np.rint(exact), 0, 15)
    ours, plain = (errors(weights, c - 3, moment, float(scale.flat[0])) for c in (found, nearest))
    assert (ours <= plain * (1 + 1e-3) + 1e-9).all()


def test_as_good_as_error_feedback_on_a_layer() -> None:
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((96, 96)) * np.geomspace(1, 0.02, 96)[:, None]
    inputs = rng.standard_normal((1000, 96)) @ mix
    moment = inputs.T @ inputs / 1000 + 1e-3 * np.eye(96)
    weights = rng.standard_normal((40, 96)).astype(np.float32)
    scale = np.full(weights.shape, 0.35, np.float32)
    found = adaround.quantize(weights, moment, scale, np.zeros_like(scale), -8, 7)
    fed = obs.quantize(
        weights, obs.factor(moment, 0), obs.affine(scale, np.zeros_like(scale), -8, 7)
    )
    assert loss(weights - found * scale, moment) < 0.9 * loss(weights - fed, moment)


def test_weights_on_the_grid_stay() -> None:
    codes = np.random.default_rng(1).integers(-8, 8, (4, 9)).astype(np.float32)
    scale = np.full(codes.shape, 0.25, np.float32)
    found = adaround.quantize(codes * scale, np.eye(9), scale, np.zeros_like(scale), -8, 7)
    np.testing.assert_array_equal(found, codes)
    dead = adaround.quantize(codes * 0.1, np.zeros((9, 9)), scale, np.zeros_like(scale), -8, 7)
    np.testing.assert_array_equal(dead, np.rint(codes * np.float32(0.1) / 0.25))


@pytest.mark.parametrize("seed", [3])
def test_the_same_codes_twice(seed: int) -> None:
    weights, moment = problem(seed, 6, 10)
    scale = np.full(weights.shape, 0.4, np.float32)
    first, second = (
        adaround.quantize(weights, moment, scale, np.zeros_like(scale), -8, 7) for _ in range(2)
    )
    np.testing.assert_array_equal(first, second)
