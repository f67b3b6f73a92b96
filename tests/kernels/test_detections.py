"""Detections that are found again, against counts made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from onnxshrink.kernels.detections import found, layout, matched

BOXES = np.array([[0, 0, 10, 10], [20, 20, 40, 40], [50, 0, 60, 10]], np.float32)
SCORES = np.array([0.9, 0.8, 0.5], np.float32)
CLASSES = np.array([1, 0, 1])
FEED = [SCORES, BOXES, CLASSES]


def _other(boxes: object = BOXES, scores: object = SCORES, classes: object = CLASSES) -> list:
    return [np.asarray(scores, np.float32), np.asarray(boxes, np.float32), np.asarray(classes)]


@pytest.mark.parametrize(
    ("other", "again", "total"),
    [
        (_other(), 6, 6),
        (_other(BOXES[::-1], SCORES[::-1], CLASSES[::-1]), 6, 6),  # any order
        (_other(BOXES + 2), 2, 6),  # overlaps are 64 of 136, 324 of 476, and 64 of 136
        (_other(classes=[1, 1, 1]), 4, 6),
        (_other(scores=[0.9, 0.8, 0.2]), 5, 5),  # found again, though it is less certain
        (_other(scores=[0.9, 0.8, 0.1]), 4, 5),
        (_other(BOXES[:2], SCORES[:2], CLASSES[:2]), 4, 5),
        (_other(BOXES[:0], SCORES[:0], CLASSES[:0]), 0, 3),
        # Two boxes on one are one that is found again, and one that is not.
        (_other(BOXES[[0, 0, 1, 2]], SCORES[[0, 0, 1, 2]], CLASSES[[0, 0, 1, 2]]), 6, 7),
    ],
)  # fmt: skip
def test_each_is_found_once_by_overlap_and_class(other: list, again: int, total: int) -> None:
    where = layout([FEED])
    assert where is not None
    assert (where.boxes, where.scores, where.classes) == (1, 0, 2)
    assert matched([FEED], [other], where) == (again, total)


def test_columns_pictures_and_centres_say_the_same() -> None:
    columns = np.concatenate([BOXES, SCORES[:, None], CLASSES[:, None]], 1)
    centres = columns.copy()
    centres[:, :2], centres[:, 2:4] = (BOXES[:, :2] + BOXES[:, 2:]) / 2, BOXES[:, 2:] - BOXES[:, :2]
    numbered = np.concatenate([np.zeros((3, 1), np.float32), columns], 1)
    batch = [a[None] for a in FEED]
    for feed in ([columns], [columns[None]], [centres], [numbered], batch):
        where = layout([feed])
        assert where is not None
        cut = [a[..., :2, :] if a.ndim > 1 and a.shape[-1] > 3 else a[..., :2] for a in feed]
        assert matched([feed], [feed], where) == (6, 6)
        assert matched([feed], [cut], where) == (4, 5)


def test_other_outputs_are_none() -> None:
    rng = np.random.default_rng(0)
    assert layout([[rng.standard_normal((5, 4)).astype(np.float32)]]) is None
    assert layout([[rng.standard_normal((5, 6)).astype(np.float32)]]) is None
    assert layout([[a[:0] for a in FEED]]) is None
    assert found([FEED, FEED], picks=False) is None  # as many in each: places can be compared
    assert found([FEED, FEED], picks=True) is not None
    assert found([FEED, [a[:2] for a in FEED]], picks=False) is not None
