"""What an output is said to be decides about that output, and about no other."""

import numpy as np
import pytest

from onnxshrink.goal import Goal
from onnxshrink.trials import Answers

NAMES = ("scores", "boxes", "classes", "embedding")


@pytest.fixture
def answers() -> Answers:
    """Of a detector: three boxes in one picture, two in another, and a vector of each picture."""
    boxes = np.array([[0, 0, 10, 10], [20, 20, 40, 40], [50, 0, 60, 10]], np.float32)
    scores, classes = np.array([0.9, 0.8, 0.5], np.float32), np.array([1, 0, 1])
    vectors = np.random.default_rng(0).standard_normal((2, 1, 64)).astype(np.float32)
    feeds = [[scores, boxes, classes, vectors[0]], [scores[:2], boxes[1:], classes[1:], vectors[1]]]
    return Answers(NAMES, feeds)


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ({}, ("states", "detections", "states", "embeddings")),
        ({"embedding": "values"}, ("states", "detections", "states", "values")),
        ({"scores": "values"}, ("values", "detections", "states", "embeddings")),
        ({"classes": "labels"}, ("states", "detections", "labels", "embeddings")),
    ],
)  # fmt: skip
def test_the_boxes_stand_whatever_is_said_of_others(
    answers: Answers, said: dict, found: tuple[str, ...]
) -> None:
    kinds = Goal(measures=said).kinds(answers)
    assert tuple(kinds[name].kind for name in NAMES) == found
    asked = Goal(measures=said).asked(answers)
    assert set(asked["boxes"]) == {"matched"}
    assert all(bool(asked[name]) == (kinds[name].kind != "states") for name in NAMES)


def test_what_is_said_of_the_boxes_themselves_decides(answers: Answers) -> None:
    goal = Goal(measures={"boxes": "values"})
    assert goal.kinds(answers)["boxes"].kind == "values"
    assert "matched" not in {figure for limits in goal.asked(answers).values() for figure in limits}
