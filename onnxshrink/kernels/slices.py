"""The worst part of an output that holds several things: boxes and scores, means and variances.

Errors of one thing vanish in the norm of another that is a thousand times as large. So the slices
along every axis of fixed length are looked at one by one. What a slice's error is held against is
never less than the size of its *kind*: among many alike, one that happens to be next to nothing
need not be right to the last digit.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

LONGEST = 512  # axes of more places hold one thing
_KIND = 10.0  # times as large as the next slice: another kind
_FEW = 16  # a kind of less than one in so many slices is none
_NOTHING = 1e-5  # in share of the whole output: below this nothing is told apart


class Piece(NamedTuple):
    """A part of an array along one axis.

    Attributes:
        axis: The axis.
        places: Where along it.
        whole: The shape of the array.
    """

    axis: int
    places: slice
    whole: tuple[int, ...]

    def of(self, array: np.ndarray) -> np.ndarray:
        """The part, which is no copy."""
        return array[(slice(None),) * self.axis + (self.places,)]


def pieces(shape: tuple[int, ...], most: int, but: int) -> list[Piece | None]:
    """Parts of an array of about ``most`` elements, cut along its longest axis.

    Args:
        shape: Of the array.
        most: Elements of a part.
        but: The axis that stays whole.

    Returns:
        None, for all of it, where it is small or there is nowhere to cut.
    """
    size = math.prod(shape)
    others = [axis for axis in range(len(shape)) if axis != but]
    axis = max(others, key=lambda axis: shape[axis], default=0)
    if size <= most or not others or shape[axis] < 2:
        return [None]
    step = max(1, most * shape[axis] // size)
    starts = range(0, shape[axis], step)
    return [Piece(axis, slice(at, min(at + step, shape[axis])), shape) for at in starts]


class Slices:
    """Adds up errors and squares of slices of one output, over feeds.

    Args:
        stacked: Whether the first axis, too, is of fixed length, and not the batch.

    Attributes:
        rank: Of the output.
    """

    def __init__(self, stacked: bool = False):
        self._stacked = stacked
        self._sums: dict[int, npt.NDArray[np.float64]] | None = None
        self.rank = 0

    def add(self, reference: Floats, error: Floats, piece: Piece | None = None) -> None:
        """Take in one feed's values, finite, and what is wrong with them, in the same shape.

        Args:
            reference: What they should be.
            error: What is wrong with them.
            piece: Which part of the feed they are; None: all of it.
        """
        rank = reference.ndim
        piece = piece or Piece(0, slice(0, reference.shape[0] if rank else 0), reference.shape)
        axes = [
            axis
            for axis in range(0 if self._stacked else 1, rank)
            if 1 < piece.whole[axis] <= LONGEST
        ]
        if self._sums is None:
            self.rank = rank
            self._sums = {axis: np.zeros((2, piece.whole[axis])) for axis in axes}
        for axis in list(self._sums):
            sums = self._sums[axis]
            if rank != self.rank or piece.whole[axis] != sums.shape[1]:
                del self._sums[axis]  # its length is free
                continue
            part = piece.places if axis == piece.axis else slice(None)
            for row, array in zip(sums, (error, reference), strict=True):
                moved = np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)
                row[part] += np.einsum("ij,ij->i", moved, moved)

    @np.errstate(over="ignore", invalid="ignore")
    def worst(self, but: Collection[int | None] = ()) -> tuple[float, str]:
        """The largest relative error of any slice, and which one it is: ``[:, 4]``.

        Args:
            but: Axes whose slices are one thing together.
        """
        found, place = 0.0, ""
        for axis, (error, signal) in (self._sums or {}).items():
            if axis in but:
                continue
            against = _against(signal)
            shares = np.divide(error, against, out=np.zeros(len(error)), where=against > 0)
            at = int(shares.argmax())
            if shares[at] > found:
                found = float(shares[at])
                free = [":"] * self.rank
                free[axis] = str(at)
                place = f"[{', '.join(free)}]"
        return found**0.5, place

    @property
    def alike(self) -> bool:
        """Whether all slices of the last axis are of one kind."""
        signal = (self._sums or {}).get(self.rank - 1)
        return signal is None or len({*kinds(signal[1])}) < 2


def kinds(squares: Floats) -> npt.NDArray[np.int64]:
    """The kind of each slice, 0 for the smallest: slices of one kind lie close, sorted by size."""
    order = np.argsort(squares, kind="stable")
    sizes = np.sqrt(np.maximum(squares[order], _NOTHING**2 * squares.mean()))
    steps = np.flatnonzero(sizes[1:] > _KIND * sizes[:-1]) + 1
    found = np.zeros(len(squares), np.int64)
    begin = 0
    for step in map(int, steps):
        if (step - begin) * _FEW >= len(squares):
            found[order[step:]] += 1
            begin = step
    return found


def _against(squares: Floats) -> Floats:
    """What the squared error of each slice is held against."""
    of = kinds(squares)
    means = np.bincount(of, squares) / np.bincount(of)
    floor = _NOTHING**2 * squares.mean()
    against: Floats = np.maximum(np.maximum(squares, means[of]), floor)
    return against
