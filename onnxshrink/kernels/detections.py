"""Boxes with scores and classes: which of them are found again.

Detectors pick boxes, and say them in any number and order: values cannot be held against each other
place by place. A detection is found again where the other model has one of its class that overlaps
it by a half (intersection over union, as in PASCAL VOC, Everingham et al. 2010).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxshrink.kernels.probabilities import is_discrete

Outputs = Sequence[Sequence[np.ndarray]]
Floats = npt.NDArray[np.float64]

_OVERLAP = 0.5
_SEEN = 0.3  # score of what an application would show
_NEARLY = 0.5  # times that score: one that is found again may be a little less certain
_CORNERS, _BESIDE = 4, (6, 7)  # columns: boxes alone; with score and class, and perhaps the picture


@dataclass(frozen=True)
class Detector:
    """Which outputs say what.

    Attributes:
        boxes: Number of the output with boxes; it may hold scores and classes, too.
        scores: Number of the output with scores; of columns of ``boxes`` where ``beside``.
        classes: The same of classes.
        beside: Whether scores and classes are columns.
        first: The first column of the box.
        corners: Whether boxes are two corners, and not centre and size.
    """

    boxes: int
    scores: int | None
    classes: int | None
    beside: bool
    first: int
    corners: bool

    @property
    def outputs(self) -> frozenset[int]:
        """Numbers of all outputs that it is about."""
        others = () if self.beside else (self.scores, self.classes)
        return frozenset({self.boxes, *(each for each in others if each is not None)})


def layout(outputs: Outputs, boxes: int | None = None) -> Detector | None:
    """What the outputs of a detector say, by shapes and values; None where they are no detections.

    Args:
        outputs: For each feed.
        boxes: The number of the output with boxes, where it is known.
    """
    count = len(outputs[0]) if outputs else 0
    for number in range(count) if boxes is None else (boxes,):
        arrays = [feed[number] for feed in outputs]
        floats = all(array.dtype.kind == "f" and array.ndim in (2, 3) for array in arrays)
        if floats and any(map(_rows, arrays)):
            width = {a.shape[-1] for a in arrays}
            where = None
            if width == {_CORNERS}:
                where = _apart(outputs, number)
            elif len(width) == 1 and max(width) in _BESIDE:
                where = _beside(arrays, number)
            if where is not None:
                return where
    return None


def found(outputs: Outputs, *, picks: bool) -> Detector | None:
    """The same as :func:`layout`, where the model picks: the number of boxes varies.

    Args:
        outputs: For each feed.
        picks: Whether the graph says that it does.
    """
    where = layout(outputs)
    varies = where is not None and len({feed[where.boxes].shape for feed in outputs}) > 1
    return where if picks or varies else None


def matched(before: Outputs, after: Outputs, where: Detector) -> tuple[int, int]:
    """Detections that are found again in the other model's, and all; of both models.

    Args:
        before: For each feed, the outputs of one model.
        after: Those of the other.
        where: Of ``before``.
    """
    again = total = 0
    for x, y in zip(before, after, strict=True):
        pictures = [list(_pictures(feed, where)) for feed in (x, y)]
        longest = max(map(len, pictures))
        nothing = np.zeros((0, 4)), np.zeros(0), np.zeros(0)
        mine, its = (each + [nothing] * (longest - len(each)) for each in pictures)
        for one, other in zip(mine, its, strict=True):
            pairs = _pairs(one, other)
            total += int((one[1] >= _SEEN).sum() + (other[1] >= _SEEN).sum())
            again += int((one[1][pairs[0]] >= _SEEN).sum() + (other[1][pairs[1]] >= _SEEN).sum())
    return again, total


Shown = tuple[Floats, Floats, npt.NDArray[np.generic]]


def _rows(array: np.ndarray) -> int:
    return array.size // array.shape[-1] if array.size else 0


def _apart(outputs: Outputs, boxes: int) -> Detector | None:
    """Boxes, scores and classes in outputs of their own, one of the last two at least."""
    scores = classes = None
    for number in range(len(outputs[0])):
        pairs = [(feed[boxes].shape[:-1], feed[number]) for feed in outputs]
        if number == boxes or any(array.size != np.prod(shape) for shape, array in pairs):
            continue
        arrays = [array for _, array in pairs]
        if all(map(is_discrete, arrays)):
            classes = number if classes is None else classes
        elif all(array.dtype.kind == "f" and _are_shares(array) for array in arrays):
            scores = number if scores is None else scores
    if scores is None:
        return None
    corners = all(_are_corners(feed[boxes]) for feed in outputs)
    return Detector(boxes, scores, classes, False, 0, corners)


def _beside(arrays: Sequence[np.ndarray], number: int) -> Detector | None:
    """Boxes whose score and class, in either order, are the last two columns."""
    rows = np.concatenate([array.reshape(-1, array.shape[-1]) for array in arrays])
    width = rows.shape[1]
    for first in dict.fromkeys((width - 6, 0)):
        others = [column for column in range(width) if not first <= column < first + 4][-2:]
        for score, kind in (others, others[::-1]):
            whole = rows[:, kind]
            kinds = bool((whole == np.rint(whole)).all()) and whole.min() >= -1
            if kinds and _are_shares(rows[:, score]):
                corners = _are_corners(rows[:, first : first + 4])
                if corners or width == max(_BESIDE) - 1:
                    return Detector(number, score, kind, True, first, corners)
    return None


def _are_shares(array: np.ndarray) -> bool:
    return bool(((array >= 0) & (array <= 1)).all())


def _are_corners(boxes: np.ndarray) -> bool:
    return bool((boxes[..., 2:4] >= boxes[..., :2]).all())


def _pictures(feed: Sequence[np.ndarray], where: Detector) -> Iterator[Shown]:
    """Boxes as corners, scores and classes of each picture."""
    whole = feed[where.boxes].astype(np.float64)
    for number, rows in enumerate(whole if whole.ndim == 3 else whole[None]):
        boxes = rows[:, where.first : where.first + 4]
        if where.beside:
            scores, classes = rows[:, where.scores], rows[:, where.classes]
        else:
            scores, classes = (
                np.ones(len(rows)) if output is None
                else feed[output].reshape(len(whole) if whole.ndim == 3 else 1, -1)[number]
                for output in (where.scores, where.classes)
            )  # fmt: skip
        if not where.corners:
            half = boxes[:, 2:] / 2
            boxes = np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], 1)
        yield boxes, scores.astype(np.float64), classes


def _pairs(one: Shown, other: Shown) -> tuple[list[int], list[int]]:
    """Places of detections that are each other's, the best overlap first."""
    overlap = _overlaps(one[0], other[0])
    overlap[one[2][:, None] != other[2][None]] = 0
    sure = np.maximum(one[1][:, None], other[1][None]) >= _SEEN
    certain = np.minimum(one[1][:, None], other[1][None]) >= _SEEN * _NEARLY
    overlap[~(sure & certain)] = 0
    mine: list[int] = []
    its: list[int] = []
    while overlap.size and overlap.max() >= _OVERLAP:
        i, j = np.unravel_index(overlap.argmax(), overlap.shape)
        mine.append(int(i))
        its.append(int(j))
        overlap[i], overlap[:, j] = 0, 0
    return mine, its


def _overlaps(a: Floats, b: Floats) -> Floats:
    """Intersection over union of every box of one with every box of the other."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    both = np.clip(high - low, 0, None).prod(-1)
    sizes = [np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(-1) for boxes in (a, b)]
    union = sizes[0][:, None] + sizes[1][None] - both
    shares: Floats = np.divide(both, union, out=np.zeros_like(both), where=union > 0)
    return shares
