"""How many answers noise turns: from the size of the noise, and how close answers are to a tie.

Of a hundred rows, one is turned when a hundredth may be: a count says next to nothing. But noise
shows on every row, and so does how dense rows lie near a tie. Noise z turns the rows whose lead is
less than z. Where the lead has a density p at 0, that is a share of ``p E[max(z, 0)]``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxshrink.kernels.probabilities import as_log_probabilities

Floats = npt.NDArray[np.float64]

_NEAR = 0.25  # of the rows, those with the smallest lead, tell the density at 0
_FEWEST = 8  # rows that tell it at least, where there are as many
_ENOUGH = 30  # rows: to go by each that is within reach of the noise, and to tell the noise
_REACH = 2.0  # standard deviations
_CLEAR = 2 * math.sqrt(3)  # two standard deviations of the rise of even leads
_MODEL = 0.2  # what the law itself may be off: .2 where every input is one row,
_OF_SEQUENCES = 0.3  # and .3 of sequences, on four models each
_CLOSE = 0.1  # of the rows that show noise, those whose noise counts
_MOST = 0.5  # the same where rows are few
_SPREAD = 0.57  # of the size of normal noise: its variance over its squared mean
_TO_DEVIATION = math.sqrt(math.pi / 2)  # of the mean size of normal noise


@dataclass(frozen=True)
class Turned:
    """The share of answers that is turned.

    Attributes:
        share: What is to be expected.
        spread: Standard deviation of its logarithm, for what the inputs do not tell.
    """

    share: float
    spread: float

    def at_most(self, confidence: float) -> float:
        """The end of the one-sided interval."""
        from scipy.special import ndtri

        return min(self.share * math.exp(float(ndtri(confidence)) * self.spread), 1.0)


def lead(scores: np.ndarray) -> tuple[Floats, npt.NDArray[np.int64]]:
    """By how much the likelier of the two likeliest classes of each row leads, and which they are.

    Args:
        scores: Classes along the last axis; probabilities, their logarithms, or scores.

    Returns:
        [rows] of differences of log-probabilities, some negative, and [rows, 2].
    """
    logs = as_log_probabilities(scores)
    top = np.argpartition(logs, -2, axis=1)[:, -2:]
    return _difference(logs, top), top


def moved(scores: np.ndarray, lead_before: Floats, top: npt.NDArray[np.int64]) -> Floats:
    """By how much the lead of each row has changed."""
    return _difference(as_log_probabilities(scores), top) - lead_before


def _difference(logs: Floats, top: npt.NDArray[np.int64]) -> Floats:
    pair = np.take_along_axis(logs, top, 1)
    found: Floats = pair[:, 1] - pair[:, 0]
    return found


def turned(leads: Sequence[Floats], noisy: Sequence[tuple[Floats, Floats]]) -> Turned:
    """The share of rows whose answer noise turns.

    Args:
        leads: How far rows are from a tie, one array for all rows of one unit: rows of a sequence
            are no independent witnesses.
        noisy: The same for the rows that show the noise, and by how much their lead changed.
    """
    every = np.concatenate([np.abs(unit) for unit in leads])
    # Rows far from a tie have noise of their own, which says nothing about the close ones: in most
    # steps of a sequence next to nothing moves.
    reach = _reach(np.concatenate([np.abs(unit) for unit, _ in noisy]))
    sizes = [np.abs(change[np.abs(unit) <= reach]) for unit, change in noisy]
    sizes = [unit for unit in sizes if unit.size]
    noise = float(np.concatenate(sizes).mean()) if sizes else 0.0
    if noise == 0 or not every.size:
        return Turned(0.0, 0.0)
    if not math.isfinite(noise):
        return Turned(1.0, 0.0)
    deviation = _TO_DEVIATION * noise
    within = int((every <= _REACH * deviation).sum())
    if within >= _ENOUGH:
        from scipy.special import ndtr

        share, height = float(ndtr(-every / deviation).mean()), _REACH * deviation
    else:
        count = min(max(math.ceil(_NEAR * every.size), _FEWEST), every.size)
        height = max(float(np.partition(every, count - 1)[count - 1]), _REACH * deviation)
        near = every[every <= height]
        # At least as dense as if the next row were the only one so near.
        density = max(near.size / every.size * _at_zero(near, height), 1 / (every.size + 1))
        share = density / height * noise / 2
    law = _OF_SEQUENCES if any(unit.size > 1 for unit in leads) else _MODEL
    spread = math.hypot(_of_leads(leads, height), _of_noise(sizes, noise), law)
    return Turned(min(share, 1.0), spread)


def _reach(leads: Floats) -> float:
    """The lead up to which rows tell the noise: of the closest, but of enough of them."""
    count = min(max(_CLOSE * leads.size, _ENOUGH), _MOST * leads.size)
    place = min(max(math.ceil(count), 1), leads.size) - 1
    return float(np.partition(leads, place)[place]) if leads.size else 0.0


def _at_zero(near: Floats, height: float) -> float:
    """The density at 0 of leads between 0 and some height, over their mean density.

    It is taken to be even, unless it clearly falls towards 0: that of a line with the same mean.
    """
    rise = 6 * (float(near.mean()) / height - 0.5)
    clear = rise - _CLEAR / math.sqrt(near.size)
    return max(1 - max(clear, 0.0), 0.0)


def _of_leads(leads: Sequence[Floats], height: float) -> float:
    """What the density near a tie may be off: a ratio of sums over units."""
    near = np.array([(np.abs(unit) <= height).sum() for unit in leads], np.float64)
    sizes = np.array([unit.size for unit in leads], np.float64)
    total = float(near.sum())
    left = near - total / sizes.sum() * sizes
    return max(float(np.sqrt(np.square(left).sum())) / total, 1 / math.sqrt(total) / 2)


def _of_noise(sizes: Sequence[Floats], noise: float) -> float:
    """What the mean size of the noise may be off; no unit says more than one normal number."""
    left = np.array([(unit - noise).sum() for unit in sizes])
    rows = sum(unit.size for unit in sizes)
    return max(
        float(np.sqrt(np.square(left).sum())) / (rows * noise),
        math.sqrt(_SPREAD / rows),
        math.sqrt(_SPREAD / len(sizes)) / 2,
    )
