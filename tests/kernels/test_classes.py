"""Top-1 is counted along the axis that holds classes, among what is one."""

import numpy as np
import pytest

from onnxshrink.kernels import metrics
from onnxshrink.kernels.classes import classes

RNG = np.random.default_rng(0)


def softmax(x: np.ndarray, axis: int) -> np.ndarray:
    e = np.exp(x)
    return e / e.sum(axis, keepdims=True)


def boxes(*shape: int, axis: int) -> np.ndarray:
    """Four pixels and some scores along an axis."""
    found = RNG.random(shape)
    np.moveaxis(found, axis, 0)[:4] *= 640
    return found


@pytest.mark.parametrize(
    ("output", "axis", "count"),
    [
        (RNG.normal(size=(4, 10)), 1, 10),
        (RNG.normal(size=10), 0, 10),
        (RNG.normal(size=(2, 7, 10)), 2, 10),
        (RNG.normal(size=(2, 21, 16, 24)), 1, 21),
        (RNG.normal(size=(2, 16, 16, 21)), 3, 21),
        (softmax(RNG.normal(size=(2, 5, 16, 24)), 3), 3, 24),
        (softmax(RNG.normal(size=(2, 5, 300)), 1), 1, 5),
        (boxes(1, 84, 600, axis=1), 1, 80),
        (boxes(1, 600, 84, axis=2), 2, 80),
    ],
)
def test_the_axis_of_the_classes(output: np.ndarray, axis: int, count: int) -> None:
    found = classes(output)
    assert found.axis == axis
    assert found.rows(output).shape == (output.size // output.shape[axis], count)


def test_top1_of_masks_and_of_boxes_beside_scores() -> None:
    masks = RNG.normal(size=(2, 3, 8, 8))
    other = masks.copy()
    other[0, :, 0, 0] = [0, 9, 0]
    masks[0, :, 0, 0] = [9, 0, 0]
    assert metrics.top1_agreement(masks, other) == 1 - 1 / 128
    detections = boxes(1, 84, 600, axis=1)
    other = detections.copy()
    other[0, 4:, :6] = detections[0, :3:-1, :6]  # the scores of six of them the other way round
    assert metrics.top1_agreement(detections, other) == 1 - 6 / 600


def test_the_worst_input_counts_and_one_that_is_next_to_nothing_does_not() -> None:
    answers = [np.full((1, 4), size) for size in (1.0, 1.0, 1e-3)]
    others = [answers[0] * 1.3, answers[1], answers[2] * 2]
    (row,) = metrics.compare_outputs(["y"], [[a] for a in answers], [[o] for o in others])
    assert row.worst_input == pytest.approx(0.3)
    assert row.relative_error == pytest.approx(0.3 / np.sqrt(2), rel=1e-3)
