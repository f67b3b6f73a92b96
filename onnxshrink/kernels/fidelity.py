"""How much of a model's answers is left, in one number that a search can steer by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from onnxshrink.kernels.metrics import (
    Agreement,
    are_probabilities,
    as_log_probabilities,
    is_discrete,
)

Measure = Literal["auto", "agreement", "cosine"]
Outputs = Sequence[Sequence[np.ndarray]]
Floats = npt.NDArray[np.float64]

_CONFIDENCE = 0.95
_UNSEEN = 64  # places between a tie and the closest row at which the unseen one is tried


class Fidelity:
    """Compares answers with those of a reference, output by output, over all feeds.

    An output is one of classes when its rows are probabilities (or when ``measure`` is
    ``agreement`` and it has rows of two or more); integers are labels; the rest are values.

    Args:
        reference: For each feed, the outputs of the reference.
        measure: What to hold outputs of floats to.
        others: The same for more feeds, which nothing else will be run on: how close the reference
            comes to ties there counts too.
    """

    def __init__(self, reference: Outputs, measure: Measure = "auto", others: Outputs = ()):
        self._reference = reference
        self._others = others
        self._free_scale = measure == "cosine"
        self._kinds = [
            _kind([feed[i] for feed in reference], measure)
            for i in range(len(reference[0]) if reference else 0)
        ]

    @property
    def has_classes(self) -> bool:
        """Whether any output is classes."""
        return "classes" in self._kinds

    def distortion(self, outputs: Outputs) -> float:
        """A squared distance that grows smoothly with the noise in a model, summed over outputs.

        The divergence of probabilities, else the squared relative error.
        """
        total = 0.0
        for i, kind in enumerate(self._kinds):
            agreement = self._agreement(outputs, i)
            divergence = agreement.kl if kind == "classes" and self._given(i) else None
            total += agreement.relative_error**2 if divergence is None else divergence
        return total

    def score(self, outputs: Outputs) -> float:
        """The least of any output, 1 at best: agreement of classes and labels, else likeness.

        Likeness is the cosine, less what the scale is off; the measure ``cosine`` lets scale go.

        Few inputs have few near ties, and a count over them says little of the next. So the
        agreement is what is to be expected: each row flips when noise of the size seen exceeds the
        margin between its two likeliest classes. It is a careful expectation: the noise is taken
        at the upper end of its 95 % confidence interval, and one row is added that has not been
        seen, closer to a tie than any. A count that is lower by more than one row wins.
        """
        scores = [1.0]
        for i, kind in enumerate(self._kinds):
            agreement = self._agreement(outputs, i)
            counted = 1.0 if agreement.top1 is None else agreement.top1
            if kind == "values":
                scores.append(agreement.cosine if self._free_scale else agreement.likeness)
            elif kind == "labels":
                scores.append(counted)
            else:
                pairs = [(x[i], y[i]) for x, y in zip(self._reference, outputs, strict=True)]
                rows = sum(x.size // x.shape[-1] for x, _ in pairs)
                margins = [_margins(x[i]) for x in (*self._reference, *self._others) if x[i].size]
                scores += [_expected_agreement(pairs, margins), counted + 1 / max(rows, 1)]
        return min(scores)

    def _given(self, output: int) -> bool:
        return all(are_probabilities(feed[output]) for feed in self._reference)

    def _agreement(self, outputs: Outputs, output: int) -> Agreement:
        agreement = Agreement()
        for x, y in zip(self._reference, outputs, strict=True):
            agreement.add(x[output], y[output])
        return agreement


def _kind(arrays: Sequence[np.ndarray], measure: Measure) -> Literal["labels", "classes", "values"]:
    if any(is_discrete(array) for array in arrays):
        return "labels"
    rows = all(array.ndim > 1 and array.shape[-1] > 1 for array in arrays)
    if measure == "cosine" or not rows:
        return "values"
    classes = measure == "agreement" or all(are_probabilities(array) for array in arrays)
    return "classes" if classes else "values"


def _top_two(values: np.ndarray) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Log-probabilities, [rows, classes], and the places of the two likeliest classes."""
    logs = as_log_probabilities(values)
    return logs, np.argpartition(logs, -2, axis=1)[:, -2:]


def _gap(logs: Floats, top: npt.NDArray[np.int64]) -> Floats:
    pair = np.take_along_axis(logs, top, 1)
    gap: Floats = pair[:, 1] - pair[:, 0]
    return gap


def _margins(values: np.ndarray) -> Floats:
    """By how much the likeliest class of each row leads."""
    return np.abs(_gap(*_top_two(values)))


def _expected_agreement(
    pairs: Sequence[tuple[np.ndarray, np.ndarray]], margins: Sequence[Floats]
) -> float:
    """The share of rows that will keep their likeliest class.

    Args:
        pairs: Rows before and after, which tell the noise.
        margins: Of these and more rows.
    """
    from scipy.special import ndtr
    from scipy.stats import chi2

    was, changes = [], []
    for x, y in pairs:
        if x.shape == y.shape and x.size:
            before, top = _top_two(x)
            was.append(_gap(before, top))
            changes.append(_gap(as_log_probabilities(y), top) - was[-1])
    if not was:
        return 1.0
    margin, change = np.abs(np.concatenate(was)), np.concatenate(changes)
    # Rows far from a tie have larger noise of their own, which says nothing about the close ones.
    close = np.square(change[margin <= np.median(margin)])
    noise = float(np.sqrt(close.sum() / chi2.ppf(1 - _CONFIDENCE, close.size)))
    if noise == 0:
        return 1.0
    every = np.concatenate(margins)
    # The next row is closer than all n with probability 1 / (n + 1), anywhere below the closest.
    unseen = ndtr(np.linspace(0, every.min(), _UNSEEN) / noise).mean()
    return float((ndtr(every / noise).sum() + unseen) / (every.size + 1))
