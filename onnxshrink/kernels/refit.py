"""Weights that make up for inputs that were removed, by least squares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxshrink.kernels.moments import ridge

Array = npt.NDArray[np.float64]

#: Strengths of the prior that are tried; at infinity only the outputs' means are set right.
DAMPINGS = (1e-3, 1e-2, 1e-1, 1.0, 10.0, math.inf)
_UNTRIED = 0.1  # where there is nothing to try them on


class FeatureSums:
    """Sums over samples of the products of features, gathered in batches.

    Args:
        features: How many features a sample has. A constant 1 is added behind them, so that means
            are known too.

    Attributes:
        sums: Of all samples.
        held: Of those that were held out, to try on them what was fitted to the others.
    """

    def __init__(self, features: int):
        self.sums: Array = np.zeros((features + 1, features + 1))
        self.held: npt.NDArray[np.float32] = np.zeros((0, 0), np.float32)

    def add(self, samples: npt.NDArray[np.floating], *, held: bool = False) -> None:
        """Take in samples of shape [count, features]."""
        rows = np.ones((len(samples), self.sums.shape[0]), np.float64)
        rows[:, :-1] = samples
        products = rows.T @ rows
        self.sums += products
        if held:
            self.held = self.held if self.held.size else np.zeros_like(products, np.float32)
            self.held += products.astype(np.float32)

    @property
    def count(self) -> float:
        """Samples so far."""
        return float(self.sums[-1, -1])

    @property
    def fitted(self) -> Array:
        """Sums of the samples that were not held out."""
        return self.sums - self.held if self.held.size else self.sums

    def second_moments(self, *, centred: bool = False) -> Array:
        """Mean products of the features, [features, features]; about the means if asked."""
        count = max(self.count, 1.0)
        found = self.sums[:-1, :-1] / count
        if centred:
            means = self.sums[-1, :-1] / count
            found = found - np.outer(means, means)
        return found

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
    from scipy.linalg import cho_factor, cho_solve

    samples = max(moments[-1, -1], 1.0)
    stay, go = np.flatnonzero(kept), np.flatnonzero(~kept)
    h = moments[np.ix_(stay, stay)] / samples
    # What the removed features contributed is what the kept ones are to explain.
    missing = moments[np.ix_(stay, go)] @ weights[:, go].T / samples
    means = moments[-1, :-1] / samples
    lost = weights[:, go] @ means[go]
    prior = ridge(h, damping)
    if bias:
        h -= np.outer(means[stay], means[stay])
        missing -= np.outer(means[stay], lost)
    change = np.zeros((len(weights), len(stay)))
    if np.isfinite(prior):
        h[np.diag_indices_from(h)] += prior
        change = cho_solve(cho_factor(h, overwrite_a=True), missing).T
    full = np.zeros_like(weights, np.float64)
    full[:, stay] = weights[:, stay] + change
    shift = lost - change @ means[stay] if bias else np.zeros(len(weights))
    return full, shift


@dataclass(frozen=True)
class ChosenDamping:
    """How strongly a weight is held to what it was.

    Attributes:
        damping: Strength of the prior.
        before: Error of the outputs without the removed features on held-out samples, in share of
            the outputs.
        after: The same of the refitted weight.
    """

    damping: float
    before: float
    after: float


def choose(
    weights: npt.NDArray[np.floating], moments: FeatureSums, kept: npt.NDArray[np.bool_],
    dampings: Sequence[float] = DAMPINGS, *, bias: bool = True,
) -> ChosenDamping | None:  # fmt: skip
    """The damping that is best on the samples that were held out.

    Args:
        weights: [outputs, features].
        moments: Of what they read.
        kept: Which features stay.
        dampings: What to try.
        bias: Whether the outputs can be shifted.

    Returns:
        None where nothing is to be done: on the held-out samples no damping comes closer than the
        kept weights as they are, or there were not two samples to fit to.
    """
    fitted = moments.fitted
    if fitted[-1, -1] < 2 or not np.isfinite(moments.sums).all():
        return None
    judges: npt.NDArray[np.floating] = moments.held if moments.held.size else fitted
    if not moments.held.size and len(dampings) > 1:
        dampings = (_UNTRIED,)

    def error(matrix: Array, shift: Array) -> float:
        full = np.column_stack([matrix, shift])
        return float(np.einsum("oi,oi->", full @ judges, full))

    none = np.zeros(len(weights))
    total = error(weights.astype(np.float64), none)
    before = error(np.where(kept, 0.0, weights), none)
    if not total > 0:
        return None
    errors = {}
    for damping in dampings:
        matrix, shift = refit(weights, fitted, kept, damping, bias=bias)
        errors[damping] = error(weights - matrix, -shift)
    best = min(errors, key=lambda damping: errors[damping])
    if not errors[best] < before:
        return None
    return ChosenDamping(best, *((max(e, 0.0) / total) ** 0.5 for e in (before, errors[best])))
