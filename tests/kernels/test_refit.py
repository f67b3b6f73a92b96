from __future__ import annotations

import numpy as np
import pytest

from onnxshrink.kernels.refit import DAMPINGS, FeatureSums, choose, refit


def _moments(samples: np.ndarray) -> FeatureSums:
    moments = FeatureSums(samples.shape[1])
    for part in np.array_split(samples, 3):
        moments.add(part)
    return moments


def test_moments_are_sums_of_products():
    x = np.random.default_rng(0).standard_normal((50, 4))
    moments = _moments(x)
    full = np.hstack([x, np.ones((50, 1))])
    np.testing.assert_allclose(moments.sums, full.T @ full, rtol=1e-12)
    np.testing.assert_allclose(moments.variances(), x.var(0), rtol=1e-10)
    np.testing.assert_allclose(moments.mean_squares(), (x**2).mean(0), rtol=1e-12)
    assert moments.count == 50


def test_refit_equals_least_squares():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((400, 6)) @ rng.standard_normal((6, 6)) + rng.standard_normal(6)
    w = rng.standard_normal((3, 6))
    kept = np.array([1, 1, 0, 1, 0, 1], bool)
    fitted, shift = refit(w, _moments(x).sums, kept, damping=1e-12)
    design = np.hstack([x[:, kept], np.ones((400, 1))])
    expected = np.linalg.lstsq(design, x @ w.T, rcond=None)[0]
    np.testing.assert_allclose(fitted[:, kept], expected[:-1].T, rtol=1e-6)
    np.testing.assert_allclose(shift, expected[-1], rtol=1e-6)
    assert not fitted[:, ~kept].any()


def test_a_duplicated_channel_is_made_up_for_exactly():
    rng = np.random.default_rng(2)
    x = rng.standard_normal((100, 3))
    x = np.hstack([x, 2 * x[:, :1] + 3])  # the last is a function of the first
    w = rng.standard_normal((2, 4))
    kept = np.array([1, 1, 1, 0], bool)
    fitted, shift = refit(w, _moments(x).sums, kept, damping=1e-12)
    np.testing.assert_allclose(x @ fitted.T + shift, x @ w.T, rtol=1e-6, atol=1e-6)


def test_strong_damping_leaves_the_weights():
    rng = np.random.default_rng(3)
    x, w = rng.standard_normal((50, 4)), rng.standard_normal((2, 4))
    kept = np.array([1, 0, 1, 1], bool)
    fitted, _ = refit(w, _moments(x).sums, kept, damping=1e9, bias=False)
    np.testing.assert_allclose(fitted[:, kept], w[:, kept], atol=1e-6)


@pytest.mark.parametrize("bias", [False, True])
def test_the_damping_is_the_best_on_held_out_samples(bias):
    rng = np.random.default_rng(4)
    x, w = rng.standard_normal((40, 12)) + 0.5, rng.standard_normal((3, 12))
    kept = np.arange(12) % 3 > 0
    moments = FeatureSums(12)
    moments.add(x[:9])
    moments.add(x[9:], held=True)
    found = choose(w, moments, kept, bias=bias)

    def error(matrix, shift):
        gap = x[9:] @ w.T - x[9:] @ matrix.T - shift
        return np.linalg.norm(gap) / np.linalg.norm(x[9:] @ w.T)

    tried = {d: error(*refit(w, _moments(x[:9]).sums, kept, d, bias=bias)) for d in DAMPINGS}
    assert found.damping == min(tried, key=tried.get)
    assert found.damping >= 0.1  # there are fewer samples than features
    assert found.after == pytest.approx(tried[found.damping], rel=1e-4)
    assert found.before == pytest.approx(error(np.where(kept, w, 0), 0), rel=1e-4)


def test_what_held_out_samples_do_not_confirm_is_not_refitted():
    """The fitted samples have a relation between features that the others have turned round."""
    x = np.random.default_rng(5).standard_normal((60, 2))
    x[:30, 1], x[30:, 1] = x[:30, 0], -x[30:, 0]
    moments = FeatureSums(2)
    moments.add(x[:30] - x[:30].mean(0))
    moments.add(x[30:], held=True)
    assert choose(np.ones((1, 2)), moments, np.array([True, False]), bias=False) is None


def test_too_few_samples_or_none_that_are_finite_choose_nothing():
    kept = np.array([True, False])
    few, wrong, alone = FeatureSums(2), FeatureSums(2), FeatureSums(2)
    few.add(np.ones((1, 2)))
    wrong.add(np.full((5, 2), np.nan))
    assert choose(np.ones((1, 2)), few, kept) is None
    assert choose(np.ones((1, 2)), wrong, kept) is None
    alone.add(np.random.default_rng(6).standard_normal((9, 1)) * np.ones(2))
    assert choose(np.ones((1, 2)), alone, kept).damping == 0.1  # nothing to try it on


def test_an_endless_damping_moves_means_only():
    rng = np.random.default_rng(7)
    x, w = rng.standard_normal((50, 4)) + 2, rng.standard_normal((2, 4))
    kept = np.array([1, 0, 1, 1], bool)
    fitted, shift = refit(w, _moments(x).sums, kept, np.inf)
    np.testing.assert_array_equal(fitted, np.where(kept, w, 0))
    np.testing.assert_allclose(shift, w[:, 1] * x[:, 1].mean())
