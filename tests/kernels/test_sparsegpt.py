"""Pruning with least squares against brute force, and by its properties."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxshrink.kernels import masks, obs, sparsegpt
from onnxshrink.kernels.moments import damped, loss


def problem(
    seed: int, rows: int, width: int, groups: int = 1, samples: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Weights, and second moments of correlated inputs."""
    rng = np.random.default_rng(seed)
    inputs = rng.standard_normal((groups, samples or 4 * width, width))
    inputs = inputs @ rng.standard_normal((groups, width, width))
    moments = np.einsum("gni,gnj->gij", inputs, inputs) / inputs.shape[1]
    return rng.standard_normal((groups, rows, width)).astype(np.float32), moments


def least_squares(row: np.ndarray, kept: np.ndarray, h: np.ndarray) -> np.ndarray:
    """The best weights on some places: the normal equations of these places alone."""
    found = np.zeros(len(row))
    found[kept] = np.linalg.solve(h[np.ix_(kept, kept)], h[kept] @ row)
    return found


def by_row(ratio: float) -> sparsegpt.Keep:
    return lambda scores, part: masks.by_row(scores, ratio * part)


def two_of_four(scores: np.ndarray, part: float) -> np.ndarray:
    return masks.n_of_m(scores, 4 - round(2 * part), 4)


def test_scores_are_what_a_removal_costs() -> None:
    weights, moments = problem(0, 4, 6, groups=2)
    h = damped(moments, 0.05)
    found = sparsegpt.scores(weights, h)
    for g, row, j in np.ndindex(2, 4, 6):
        kept = np.arange(6) != j
        error = weights[g, row] - least_squares(weights[g, row], kept, h[g])
        assert found[g, row, j] ** 2 == pytest.approx(error @ h[g] @ error, rel=1e-6)


@pytest.mark.parametrize(("rows", "width", "groups"), [(4, 6, 1), (5, 1, 2), (3, 40, 3)])
def test_refit_solves_the_normal_equations(rows: int, width: int, groups: int) -> None:
    weights, moments = problem(1, rows, width, groups)
    h = damped(moments, 0.01)
    kept = np.random.default_rng(0).random(weights.shape) < 0.6
    found = sparsegpt.refit(weights, kept, h)
    assert (found[~kept] == 0).all()
    for g, row in np.ndindex(groups, rows):
        best = least_squares(weights[g, row], kept[g, row], h[g])
        error, least = weights[g, row] - found[g, row], weights[g, row] - best
        assert error @ h[g] @ error <= (least @ h[g] @ least) * 1.01 + 1e-9
        if width < 10:
            np.testing.assert_allclose(found[g, row], best, rtol=1e-4, atol=1e-4)


def test_one_removal_is_the_best_of_all() -> None:
    """With one weight of six to go, the choice and the update are those of brute force."""
    weights, moments = problem(2, 4, 6)
    h = damped(moments, 0.05)
    found = sparsegpt.prune(weights, moments, by_row(1 / 6), 0.05, steps=1)[0]
    for row, pruned in zip(weights[0], found, strict=True):
        tried = [least_squares(row, np.arange(6) != j, h[0]) for j in range(6)]
        best = min(tried, key=lambda w: (row - w) @ h[0] @ (row - w))
        np.testing.assert_allclose(pruned, best, rtol=1e-4, atol=1e-4)


def test_close_to_the_best_of_all_masks() -> None:
    ratios, plain = [], []
    for seed in range(12):
        weights, moments = problem(seed, 4, 6)
        h = damped(moments, 0.1)[0]
        found = sparsegpt.prune(weights, moments, by_row(0.5), 0.1)[0]
        for row, pruned in zip(weights[0], found, strict=True):
            best = min(
                (row - w) @ h @ (row - w)
                for chosen in itertools.combinations(range(6), 3)
                for w in [least_squares(row, np.isin(np.arange(6), chosen), h)]
            )
            small = row * masks.by_row(np.abs(row)[None], 0.5)[0]
            ratios.append((row - pruned) @ h @ (row - pruned) / best)
            plain.append((row - small) @ h @ (row - small) / best)
    assert min(ratios) > 1 - 1e-4
    assert np.median(ratios) < 1.2
    assert np.median(plain) > 1.5


@given(st.integers(0, 2**31), st.integers(1, 20), st.integers(2, 40), st.floats(0, 1))
@settings(max_examples=50)
def test_never_above_the_same_mask_without_updates(
    seed: int, rows: int, width: int, ratio: float
) -> None:
    weights, moments = problem(seed, rows, width, samples=width // 2 + 1)
    h = damped(moments, 0.01)
    kept = masks.by_row(np.abs(weights[0]), ratio)[None]
    found = sparsegpt.refit(weights, kept, h)
    assert (found[~kept] == 0).all()
    plain = loss(weights - weights * kept, h)
    assert loss(weights - found, h) <= plain * (1 + 1e-4) + 1e-9
    pruned = sparsegpt.prune(weights, moments, by_row(ratio), 0.01)
    assert ((pruned == 0).sum(2) >= round(ratio * width)).all()
    assert np.isfinite(pruned).all()


@given(st.integers(0, 2**31), st.integers(1, 12), st.integers(1, 10))
@settings(max_examples=30)
def test_patterns_are_exact(seed: int, rows: int, fours: int) -> None:
    weights, moments = problem(seed, rows, 4 * fours)
    found = sparsegpt.prune(weights, moments, two_of_four)
    assert ((found.reshape(-1, 4) != 0).sum(1) <= 2).all()
    assert ((found.reshape(-1, 4) != 0).sum(1) == 2).mean() > 0.99


@given(st.integers(0, 2**31), st.integers(1, 20), st.integers(2, 80))
@settings(max_examples=30)
def test_rounding_keeps_zeros_and_stays_on_the_grid(seed: int, rows: int, width: int) -> None:
    weights, moments = problem(seed, rows, width)
    pruned = sparsegpt.prune(weights, moments, by_row(0.5))[0]
    scale = np.full(pruned.shape, np.abs(pruned).max() / 7, np.float32)
    grid = obs.affine(scale, np.zeros_like(scale), -8, 7)
    found = obs.quantize(pruned, obs.factor(moments[0], 0.1), grid)
    assert (found[pruned == 0] == 0).all()
    codes = found / scale
    np.testing.assert_allclose(codes, np.rint(codes), atol=1e-4)
    assert np.abs(codes).max() <= 8.001


def test_steps_help() -> None:
    losses = []
    for steps in (1, 4):
        total = 0.0
        for seed in range(4):
            weights, moments = problem(seed, 30, 60)
            pruned = sparsegpt.prune(weights, moments, by_row(0.6), 0.05, steps)
            total += loss(weights - pruned, damped(moments, 0.05))
        losses.append(total)
    assert losses[1] < 0.9 * losses[0]


def test_everything_and_nothing() -> None:
    weights, moments = problem(3, 5, 8)
    np.testing.assert_array_equal(sparsegpt.prune(weights, moments, by_row(0.0)), weights)
    assert (sparsegpt.prune(weights, moments, by_row(1.0)) == 0).all()


def test_dead_inputs_go_first_and_no_inputs_at_all() -> None:
    weights, moments = problem(4, 6, 10)
    weights += np.sign(weights)  # none so small that it would go before a dead one
    moments[:, [2, 7]] = moments[:, :, [2, 7]] = 0
    found = sparsegpt.prune(weights, moments, by_row(0.2), 1e-4)
    assert (found[:, :, [2, 7]] == 0).all()
    assert loss(weights - found, moments) < 1e-6 * loss(weights, moments)
    nothing = sparsegpt.prune(weights, np.zeros_like(moments), by_row(0.5))
    np.testing.assert_array_equal(nothing, weights * masks.by_row(np.abs(weights[0]), 0.5))


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_numbers_of_any_size(scale: float) -> None:
    weights, moments = problem(5, 6, 12)
    plain = sparsegpt.prune(weights, moments, by_row(0.5))
    inputs = sparsegpt.prune(weights, moments * scale, by_row(0.5))
    np.testing.assert_allclose(inputs, plain, rtol=1e-4, atol=1e-5)
    sized = sparsegpt.prune(weights * np.float32(scale), moments, by_row(0.5)) / np.float32(scale)
    np.testing.assert_allclose(sized, plain, rtol=1e-4, atol=1e-5)


def test_ill_conditioned_moments() -> None:
    """One direction of inputs, and weights that look into all others."""
    direction = np.ones((1, 1, 20))
    weights, _ = problem(6, 4, 20)
    moments = np.einsum("gni,gnj->gij", direction, direction) * 1e6
    found = sparsegpt.prune(weights, moments, by_row(0.5), 1e-6)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found.sum(2), weights.sum(2), atol=1e-3)
    assert np.abs(found).max() < 3 * np.abs(weights).max()


def test_bad_moments_are_refused() -> None:
    weights, moments = problem(7, 2, 3)
    with pytest.raises(ValueError, match="not finite"):
        sparsegpt.prune(weights, moments * np.nan, by_row(0.5))
    indefinite = np.array([[[1.0, 3.0, 0], [3.0, 1.0, 0], [0, 0, 1]]])
    with pytest.raises(ValueError, match="not positive definite"):
        sparsegpt.prune(weights, indefinite, by_row(0.5), 1e-3)


def test_damping_follows_the_number_of_inputs() -> None:
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((3, 20, 40)).astype(np.float32)
    mix = rng.standard_normal((3, 40, 40))

    def halves(samples: int) -> list[np.ndarray]:
        x = rng.standard_normal((2, 3, samples, 40)) @ mix
        return list(np.einsum("hgni,hgnj->hgij", x, x) / samples)

    few = sparsegpt.choose_damping(weights, *halves(20), by_row(0.5))
    many = sparsegpt.choose_damping(weights, *halves(10000), by_row(0.5))
    assert few > many
