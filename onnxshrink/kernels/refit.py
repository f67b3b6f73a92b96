"""Weights that make up for inputs that were removed, by least squares."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


class Moments:
    """Sums over samples of the products of features, gathered in batches.

    Args:
        features: How many features a sample has. A constant 1 is added behind them, so that means
            are known too.
    """

    def __init__(self, features: int):
        self.sums: Array = np.zeros((features + 1, features + 1))

    def add(self, samples: npt.NDArray[np.floating]) -> None:
        """Take in samples of shape [count, features]."""
        rows = np.ones((len(samples), self.sums.shape[0]), np.float64)
        rows[:, :-1] = samples
        self.sums += rows.T @ rows

    @property
    def count(self) -> float:
        """Samples so far."""
        return float(self.sums[-1, -1])

    def mean_squares(self) -> Array:
        """Mean square of every feature."""
        return np.diagonal(self.sums)[:-1] / max(self.count, 1.0)

    def variances(self) -> Array:
        """Variance of every feature."""
        means = self.sums[-1, :-1] / max(self.count, 1.0)
        return np.maximum(self.mean_squares() - means**2, 0.0)


def refit(
    weights: npt.NDArray[np.floating], moments: Array, kept: npt.NDArray[np.bool_],
    damping: float = 0.01, *, bias: bool = True,
) -> tuple[Array, Array]:  # fmt: skip
    """The weights on the kept features that come closest to what all features gave.

    Minimises ``E ||W x - W' x_kept - b||^2 + damping * m ||W' - W_kept||^2``, where m is the mean
    of the kept features' mean squares: with few samples the weights stay where they were (as in
    ThiNet, 1707.06342, and channel pruning, 1707.06168, here with a prior and a constant).

    Args:
        weights: [outputs, features].
        moments: [features + 1, features + 1], sums of products; the last feature is the constant 1.
        kept: Which features stay.
        damping: Strength of the prior.
        bias: Whether the outputs can be shifted.

    Returns:
        Weights of the original shape, zero where features go; and the shift of each output.
    """
    full = np.zeros_like(weights, np.float64)
    samples, features = max(moments[-1, -1], 1.0), np.flatnonzero(kept)
    known = np.append(features, len(kept)) if bias else features
    gram = moments[np.ix_(known, known)] / samples
    ridge = np.full(len(known), damping * np.diagonal(gram)[: len(features)].mean() + 1e-12)
    ridge[len(features) :] = 0.0  # the constant is free
    # What the removed features contributed is what the kept ones are to explain.
    missing = moments[np.ix_(known, np.flatnonzero(~kept))] @ weights[:, ~kept].T / samples
    change = np.linalg.solve(gram + np.diag(ridge), missing).T
    full[:, kept] = weights[:, kept] + change[:, : len(features)]
    shift = change[:, -1] if bias else np.zeros(len(weights))
    return full, shift
