"""How much of a model's answers is left, in one number that a search can steer by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from onnxshrink.kernels.metrics import Agreement, as_log_probabilities, is_discrete

Measure = Literal["auto", "agreement", "cosine"]
Outputs = Sequence[Sequence[np.ndarray]]
Floats = npt.NDArray[np.float64]

_SLACK = 1e-3  # by which probabilities may miss a sum of 1


class Fidelity:
    """Compares answers with those of a reference, output by output, over all feeds.

    An output is one of classes when its rows are probabilities (or when ``measure`` is
    ``agreement`` and it has rows of two or more); integers are labels; the rest are values.

    Args:
        reference: For each feed, the outputs of the reference.
        measure: What to hold outputs of floats to.
    """

    def __init__(self, reference: Outputs, measure: Measure = "auto"):
        self._reference = reference
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
        """The least of any output, 1 at best: agreement of classes and labels, cosine of values.

        Few inputs have few near ties, and a count over them says little of the next. So the
        agreement is what is to be expected: each row flips when noise of the size seen exceeds the
        margin between its two likeliest classes; unless the count is lower by more than one row.
        """
        scores = [1.0]
        for i, kind in enumerate(self._kinds):
            agreement = self._agreement(outputs, i)
            counted = 1.0 if agreement.top1 is None else agreement.top1
            if kind == "values":
                scores.append(agreement.cosine)
            elif kind == "labels":
                scores.append(counted)
            else:
                pairs = [(x[i], y[i]) for x, y in zip(self._reference, outputs, strict=True)]
                rows = sum(x.size // x.shape[-1] for x, _ in pairs)
                scores += [_expected_agreement(pairs), counted + 1 / max(rows, 1)]
        return min(scores)

    def _given(self, output: int) -> bool:
        return all(_are_probabilities(feed[output]) for feed in self._reference)

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
    classes = measure == "agreement" or all(_are_probabilities(array) for array in arrays)
    return "classes" if classes else "values"


def _are_probabilities(values: np.ndarray) -> bool:
    if values.ndim < 2 or values.shape[-1] < 2 or not values.size:
        return False
    rows = values.astype(np.float64)
    return bool(rows.min() >= -1e-6 and np.abs(rows.sum(-1) - 1).max() <= _SLACK)


def _expected_agreement(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    from scipy.special import ndtr

    margins, changes = [], []
    for x, y in pairs:
        if x.shape != y.shape or not x.size:
            continue
        before, after = as_log_probabilities(x), as_log_probabilities(y)
        top = np.argpartition(before, -2, axis=1)[:, -2:]
        was = np.take_along_axis(before, top, 1)
        now = np.take_along_axis(after, top, 1)
        margins.append(np.abs(was[:, 1] - was[:, 0]))
        changes.append((now[:, 1] - now[:, 0]) - (was[:, 1] - was[:, 0]))
    if not margins:
        return 1.0
    margin, change = np.concatenate(margins), np.concatenate(changes)
    # Rows far from a tie have larger noise of their own, which says nothing about the close ones.
    close = margin <= np.median(margin)
    noise = float(np.sqrt(np.square(change[close]).mean()))
    # So many rows tell the noise's size to one part in sqrt(2 n) only; be wary by twice as much.
    noise *= 1 + 2 / np.sqrt(2 * np.count_nonzero(close))
    return float(ndtr(margin / noise).mean()) if noise > 0 else 1.0
