"""Masks: which weights to keep, by their importance."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.floating]
Mask = npt.NDArray[np.bool_]


def smallest(scores: Scores, count: int) -> Mask:
    """Mark exactly ``count`` of the smallest scores; of equal ones the first.

    Args:
        scores: Any shape.
        count: From 0 to the number of scores.
    """
    chosen = np.zeros(scores.size, bool)
    flat = scores.reshape(-1)
    if count >= flat.size:
        chosen[:] = True
    elif count > 0:
        limit = np.partition(flat, count - 1)[count - 1]
        chosen[flat < limit] = True
        equal = np.flatnonzero(flat == limit)
        chosen[equal[: count - int(np.count_nonzero(chosen))]] = True
    return chosen.reshape(scores.shape)


def by_ratio(scores: Scores, ratio: float) -> Mask:
    """Keep all but the share ``ratio`` of the smallest scores, rounded to whole weights."""
    return ~smallest(scores, round(ratio * scores.size))


def by_row(scores: Scores, ratio: float) -> Mask:
    """Keep all but the share ``ratio`` of the smallest scores of each row; of equal ones the last.

    Args:
        scores: [rows, columns].
        ratio: From 0 to 1.
    """
    order = np.argsort(scores, axis=1, kind="stable")
    mask = np.ones(scores.shape, bool)
    np.put_along_axis(mask, order[:, : round(ratio * scores.shape[1])], False, 1)
    return mask


def n_of_m(scores: Scores, n: int, m: int) -> Mask:
    """Keep the ``n`` largest of every ``m`` neighbours along the last axis.

    Raises:
        ValueError: ``m`` does not divide the axis.
    """
    if scores.shape[-1] % m:
        raise ValueError(f"{scores.shape[-1]} inputs cannot be taken {m} at a time")
    groups = scores.reshape(-1, m)
    order = np.argsort(-groups, axis=1, kind="stable")
    mask = np.zeros(groups.shape, bool)
    np.put_along_axis(mask, order[:, :n], True, 1)
    return mask.reshape(scores.shape)


def blocks(scores: Scores, block: Sequence[int]) -> Scores:
    """The root mean square of each block of a matrix, what is left at its ends included.

    Args:
        scores: [rows, columns].
        block: Rows and columns of a block.

    Returns:
        One score for each block, [ceil(rows / block rows), ceil(columns / block columns)].
    """
    (height, width), (rows, columns) = block, scores.shape
    first, left = np.arange(0, rows, height), np.arange(0, columns, width)
    squares = np.square(scores, dtype=np.float64)
    sums = np.add.reduceat(np.add.reduceat(squares, first, axis=0), left, axis=1)
    tall = np.minimum(first + height, rows) - first
    wide = np.minimum(left + width, columns) - left
    return np.asarray(np.sqrt(sums / (tall[:, None] * wide)))


def spread(mask: Mask, block: Sequence[int], shape: Sequence[int]) -> Mask:
    """A mask of blocks as a mask of the matrix with this shape."""
    whole = np.repeat(np.repeat(mask, block[0], axis=0), block[1], axis=1)
    return whole[: shape[0], : shape[1]]


def limit(scores: Sequence[Scores], ratio: float) -> float:
    """The score at which the smallest share ``ratio`` of all tensors together ends.

    Found by bisection on counts: no copy of all tensors is made.

    Returns:
        Weights with a score below it are to go; infinity where all are.
    """
    total = sum(score.size for score in scores)
    wanted = round(ratio * total)
    if wanted <= 0:
        return -math.inf
    if wanted >= total:
        return math.inf
    low, high = 0.0, max(float(score.max()) for score in scores)
    for _ in range(60):
        middle = (low + high) / 2
        if sum(int(np.count_nonzero(score < middle)) for score in scores) < wanted:
            low = middle
        else:
            high = middle
    return high


def shares(scores: Sequence[Scores], ratio: float, most: float = 1.0) -> list[float]:
    """The share of each tensor that is among the smallest share ``ratio`` of all together.

    Args:
        scores: One array a tensor, comparable with each other.
        ratio: From 0 to 1.
        most: Largest share of one tensor; what it is spared the others lose.
    """
    found = [min(ratio, most)] * len(scores)
    left = list(range(len(scores)))
    while left:
        total = sum(score.size for score in scores)
        spent = sum(most * scores[i].size for i in range(len(scores)) if i not in left)
        wanted = (ratio * total - spent) / sum(scores[i].size for i in left)
        bound = limit([scores[i] for i in left], min(max(wanted, 0.0), 1.0))
        for i in left:
            found[i] = float(np.count_nonzero(scores[i] < bound)) / scores[i].size
        full = [i for i in left if found[i] > most]
        for i in full:
            found[i] = most
        left = [i for i in left if i not in full] if full else []
    return found


def lamp(scores: Scores) -> Scores:
    """Magnitudes that can be compared between layers (LAMP, 2010.07611).

    Each is squared and divided by the sum of the squares of those that are not smaller: what the
    layer loses with it when all smaller ones are gone. The largest of a layer has 1.

    Args:
        scores: Magnitudes of one layer, any shape.

    Returns:
        float32, like ``scores``; 0 for zeros.
    """
    flat = scores.reshape(-1)
    order = np.argsort(flat, kind="stable")
    squares = np.square(flat[order], dtype=np.float64)
    larger = np.cumsum(squares[::-1])[::-1]
    found = np.zeros(flat.size, np.float32)
    found[order] = np.divide(squares, larger, out=np.zeros_like(squares), where=larger > 0)
    return found.reshape(scores.shape)
