"""Rounding with error feedback against a brute-force reference and by its properties."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxshrink.kernels import obs
from onnxshrink.kernels.moments import damped, loss


def problem(seed: int, rows: int, width: int, samples: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Weights, and the second moment of correlated inputs."""
    rng = np.random.default_rng(seed)
    inputs = rng.standard_normal((samples or 4 * width, width)) @ rng.standard_normal(
        (width, width)
    )
    weights = rng.standard_normal((rows, width)).astype(np.float32)
    return weights, inputs.T @ inputs / len(inputs)


def eliminated(weights: np.ndarray, moment: np.ndarray, damping: float, step: float) -> np.ndarray:
    """GPTQ as the OBQ paper states it: after each column the inverse loses a row and a column."""
    width = len(moment)
    h = moment + damping * np.trace(moment) / width * np.eye(width)
    left = list(np.argsort(-np.diag(h), kind="stable"))
    inverse = np.linalg.inv(h[np.ix_(left, left)])
    w, out = weights.astype(np.float64)[:, left], np.zeros(weights.shape)
    for column in list(left):
        q = np.rint(w[:, 0] / step) * step
        out[:, column] = q
        w = w[:, 1:] - np.outer((w[:, 0] - q) / inverse[0, 0], inverse[0, 1:])
        inverse = inverse[1:, 1:] - np.outer(inverse[1:, 0], inverse[0, 1:]) / inverse[0, 0]
    return out


@pytest.mark.parametrize("width", [1, 5, 63, 64, 65, 150])
def test_equals_elimination_of_the_inverse(width: int) -> None:
    weights, moment = problem(width, 7, width)
    found = obs.quantize(weights, obs.factor(moment, 0.05), obs.uniform(0.5))
    expected = eliminated(weights, moment, 0.05, 0.5)
    h = moment + 0.05 * np.trace(moment) / width * np.eye(width)
    nearest = np.rint(weights / 0.5) * 0.5
    for row in range(len(weights)):  # a row may be rounded to nearest where that is better
        kept = np.array_equal(found[row], expected[row].astype(np.float32))
        assert kept or np.array_equal(found[row], nearest[row])
        best = min(loss(weights[[row]] - q[[row]], h) for q in (expected, nearest))
        assert loss(weights[[row]] - found[[row]], h) == pytest.approx(best, rel=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_no_row_is_worse_than_to_nearest_on_a_grid_with_ends(seed: int) -> None:
    """What is fed back can push values beyond the ends; such a row is rounded to nearest."""
    rng = np.random.default_rng(seed)
    inputs = rng.standard_normal((400, 24)) + 2 * rng.standard_normal((400, 1))  # alike
    moment = inputs.T @ inputs / 400
    weights = rng.standard_normal((64, 24)).astype(np.float32)
    scale = np.full((64, 24), 0.5, np.float32)
    grid = obs.affine(scale, np.zeros_like(scale), -2, 1)
    found = obs.quantize(weights, obs.factor(moment, 0.01), grid)
    nearest = np.clip(np.rint(weights / 0.5), -2, 1) * 0.5
    h = damped(moment, 0.01)
    losses = [[loss(weights[[row]] - q[[row]], h) for row in range(64)] for q in (found, nearest)]
    assert (np.array(losses[0]) <= np.array(losses[1]) * (1 + 1e-4)).all()
    assert sum(losses[0]) < sum(losses[1])


def test_close_to_the_exhaustive_optimum_on_4x4() -> None:
    ratios = []
    offsets = np.array(list(itertools.product(range(-2, 4), repeat=4)))
    for seed in range(12):
        weights, moment = problem(seed, 4, 4)
        h = moment + 0.3 * np.trace(moment) / 4 * np.eye(4)
        found = obs.quantize(weights, obs.factor(moment, 0.3), obs.uniform(0.5))
        for row in range(4):
            errors = weights[row] - (np.floor(weights[row] / 0.5) + offsets) * 0.5
            best = np.einsum("ij,jk,ik->i", errors, h, errors).min()
            ratios.append(loss(weights[[row]] - found[[row]], h) / best)
    assert min(ratios) > 1 - 1e-5
    assert np.median(ratios) < 1.02
    assert np.mean(ratios) < 1.1


@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(1, 70), st.floats(0.01, 3))
@settings(max_examples=60)
def test_never_worse_than_to_nearest(seed: int, rows: int, width: int, step: float) -> None:
    weights, moment = problem(seed, rows, width, samples=width // 2 + 1)
    known = obs.factor(moment, 0.01)
    h = moment + 0.01 * np.trace(moment) / width * np.eye(width)
    grid = obs.uniform(step)
    found = obs.quantize(weights, known, grid)
    np.testing.assert_allclose(np.rint(found / step) * np.float32(step), found, rtol=1e-5)
    nearest = np.rint(weights / np.float32(step)) * np.float32(step)
    assert loss(weights - found, h) <= loss(weights - nearest, h) * (1 + 1e-4)


@given(st.integers(0, 2**31), st.integers(1, 20), st.integers(1, 80))
@settings(max_examples=30)
def test_independent_inputs_round_to_nearest(seed: int, rows: int, width: int) -> None:
    weights, _ = problem(seed, rows, width)
    found = obs.quantize(weights, obs.factor(np.eye(width)), obs.uniform(0.25))
    np.testing.assert_array_equal(found, np.rint(weights / 0.25) * 0.25)


def test_gain_over_nearest_matches_the_determinant() -> None:
    """At a fine step the loss is step^2 / 12 times the sum of the squared pivots, a row."""
    weights, moment = problem(3, 400, 60)
    known = obs.factor(moment, 1e-6)
    step = 1e-3
    found = obs.quantize(weights, known, obs.uniform(step))
    expected = 400 * step**2 / 12 * known.noise.sum()
    assert loss(weights - found, moment) == pytest.approx(expected, rel=0.1)
    nearest = np.rint(weights / step) * step
    assert loss(weights - nearest, moment) > 2 * expected


def test_affine_grid_keeps_codes_in_range() -> None:
    weights, moment = problem(5, 16, 32)
    scale = np.full((16, 32), 0.2, np.float32)
    zero = np.full((16, 32), 3, np.float32)
    found = obs.quantize(weights, obs.factor(moment), obs.affine(scale, zero, 0, 15))
    codes = found / scale + zero
    np.testing.assert_allclose(codes, np.rint(codes), atol=1e-5)
    assert codes.min() >= 0
    assert codes.max() <= 15


def test_dead_inputs_and_no_inputs() -> None:
    weights, moment = problem(6, 8, 20)
    moment[3] = moment[:, 3] = 0
    found = obs.quantize(weights, obs.factor(moment), obs.uniform(0.5))
    np.testing.assert_allclose(found[:, 3], np.rint(weights[:, 3] / 0.5) * 0.5)
    nothing = obs.quantize(weights, obs.factor(np.zeros((20, 20))), obs.uniform(0.5))
    np.testing.assert_array_equal(nothing, np.rint(weights / 0.5) * 0.5)


def test_bad_moments_are_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        obs.factor(np.full((2, 2), np.nan))
    with pytest.raises(ValueError, match="not positive definite"):
        obs.factor(np.array([[1.0, 3.0], [3.0, 1.0]]))


def test_damping_follows_the_number_of_inputs() -> None:
    """Few inputs want more damping than many."""
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((60, 80)).astype(np.float32)
    mix = rng.standard_normal((80, 80))

    def halves(samples: int) -> tuple[np.ndarray, np.ndarray]:
        x, y = rng.standard_normal((2, samples, 80)) @ mix
        return x.T @ x / samples, y.T @ y / samples

    few = obs.choose_damping(weights, *halves(40), lambda rows: obs.uniform(0.5))
    many = obs.choose_damping(weights, *halves(20000), lambda rows: obs.uniform(0.5))
    assert few > many == min(obs.DAMPINGS)
