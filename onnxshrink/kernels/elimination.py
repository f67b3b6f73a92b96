"""The order in which channels go, when after each the weights that read it make up for it anew.

Weights W read features x of second moment H. Removing the features S of a channel, and giving the
others values that make up for it best, costs ``trace(W_S [(H^-1)_SS]^-1 W_S^T)`` (Optimal Brain
Surgeon, Hassibi and Stork, 1993). Then W and H^-1 become those of what is left by one product
each, so the next channel is judged by what the weights are *by then*: of two channels that say the
same, one goes for nothing, and the other has become dear. A single ranking would remove both.
(Optimal Brain Compression, 2208.11580; for structures ZipLM, 2302.04089.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

_EXACT = 192  # features that are looked at one by one; of more, the cheapest are
_PARTS = 32  # of what is left, one goes before all others are judged anew
_SHORTLIST = 3  # times as many are candidates for it


@dataclass(frozen=True)
class ChannelReader:
    """Weights that read channels.

    Attributes:
        weights: [outputs, features].
        moment: Second moment of the features, positive definite, [features, features].
        columns: The features that go with each channel, [channels, features of one]; no feature
            goes with two.
    """

    weights: npt.NDArray[np.floating]
    moment: npt.NDArray[np.floating]
    columns: Indices


def eliminate(readers: Sequence[ChannelReader]) -> tuple[Indices, Array]:
    """Remove one channel after the other, each time the one that is cheapest to lose.

    Args:
        readers: All that reads these channels; what a channel costs is the sum over them.

    Returns:
        The channels in the order in which they go, and by how much the squared error of what the
        readers make grows with each.

    Raises:
        ValueError: A moment is not positive definite.
    """
    states = [_Remaining.of(reader) for reader in readers]
    left = np.arange(len(readers[0].columns))
    order: list[int] = []
    costs: list[float] = []
    while len(left):
        total = np.sum([state.costs() for state in states], 0)
        if max(state.features for state in states) <= _EXACT:
            count, listed = len(left), np.arange(len(left))
        else:
            count = -(-len(left) // _PARTS)
            listed = np.argsort(total, kind="stable")[: _SHORTLIST * count]
        gone, lost = _one_by_one([state.only(listed) for state in states], count)
        order += left[listed[gone]].tolist()
        costs += lost
        left = np.delete(left, listed[gone])
        if len(left):
            states = [state.without(listed[gone]) for state in states]
    return np.array(order, np.int64), np.array(costs)


def _one_by_one(states: Sequence[_Remaining], count: int) -> tuple[list[int], list[float]]:
    """The channels that go first, of few: their own part of H^-1 is all that it takes."""
    left = np.arange(len(states[0].columns))
    gone: list[int] = []
    lost: list[float] = []
    for _ in range(count):
        total = np.sum([state.costs() for state in states], 0)
        cheapest = int(total.argmin())
        gone.append(int(left[cheapest]))
        lost.append(max(float(total[cheapest]), 0.0))
        left = np.delete(left, cheapest)
        if len(left):
            states = [state.without(np.array([cheapest])) for state in states]
    return gone, lost


@dataclass(frozen=True)
class _Remaining:
    """Weights that make up for what is gone, and the inverse moment of what is left."""

    weights: Array
    inverse: Array
    columns: Indices

    @classmethod
    def of(cls, reader: ChannelReader) -> _Remaining:
        from scipy.linalg import LinAlgError, cho_factor, cho_solve

        # Features that stay in any case make up for others, but nothing more is asked of them.
        try:
            factor = cho_factor(np.asarray(reader.moment, np.float64), lower=True)
        except LinAlgError as error:
            raise ValueError("the moment is not positive definite; damp it more") from error
        inverse = cho_solve(factor, np.eye(len(reader.moment)))
        return cls(np.asarray(reader.weights, np.float64), inverse, reader.columns).only(
            np.arange(len(reader.columns))
        )

    @property
    def features(self) -> int:
        return len(self.inverse)

    def costs(self) -> Array:
        """What each channel costs."""
        weights = self.weights[:, self.columns].transpose(1, 2, 0)
        blocks = self.inverse[self.columns[:, :, None], self.columns[:, None, :]]
        if blocks.shape[-1] == 1:
            return np.asarray(np.square(weights[:, 0]).sum(-1) / blocks[:, 0, 0])
        return np.asarray((weights * np.linalg.solve(blocks, weights)).sum((1, 2)))

    def only(self, channels: Indices) -> _Remaining:
        """The part of this that some channels are judged by."""
        features = self.columns[channels].ravel()
        weights = self.weights[:, features]
        if len(weights) > len(features):  # as many outputs as it takes for the same W^T W
            weights = np.asarray(np.linalg.qr(weights, mode="r"))
        columns = np.arange(len(features)).reshape(len(channels), -1)
        return _Remaining(weights, self.inverse[np.ix_(features, features)], columns)

    def without(self, channels: Indices) -> _Remaining:
        """What is left when channels go and the others make up for them."""
        gone = self.columns[channels].ravel()
        left = np.delete(self.columns, channels, axis=0)
        stay = left.ravel()
        share = np.linalg.solve(self.inverse[np.ix_(gone, gone)], self.inverse[np.ix_(gone, stay)])
        weights = self.weights[:, stay] - self.weights[:, gone] @ share
        inverse = self.inverse[np.ix_(stay, stay)] - self.inverse[np.ix_(stay, gone)] @ share
        return _Remaining(weights, inverse, np.arange(len(stay)).reshape(left.shape))
