"""Fidelity: what counts as classes, and an agreement that few rows can be trusted with."""

import itertools
from typing import Any

import numpy as np
import pytest
from scipy.special import softmax

from onnxshrink.kernels import metrics
from onnxshrink.kernels.fidelity import Fidelity
from onnxshrink.kernels.kinds import Known


def probabilities(rows: int, classes: int = 5, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return softmax(2 * rng.standard_normal((rows, classes)), axis=-1)


def test_values_go_by_likeness_and_relative_error() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((2, 4, 7))
    fidelity = Fidelity([[x[:2]], [x[2:]]])
    assert not fidelity.has_classes
    other = [[x[:2] + 0.1 * y[:2]], [x[2:] + 0.1 * y[2:]]]
    assert fidelity.score(other) == pytest.approx(metrics.likeness(x, x + 0.1 * y))
    expected = metrics.relative_error(x, x + 0.1 * y) ** 2
    assert fidelity.distortion(other) == pytest.approx(expected)
    assert fidelity.score([[x[:2]], [x[2:]]]) == 1
    larger = [[1.5 * x[:2]], [1.5 * x[2:]]]
    assert fidelity.score(larger) == pytest.approx(12 / 13)
    assert Fidelity([[x[:2]], [x[2:]]], "cosine").score(larger) == pytest.approx(1)


def test_the_worst_output_counts() -> None:
    x = np.ones((2, 3))
    labels = np.array([1, 2, 3, 4])
    fidelity = Fidelity([[x, labels]])
    assert fidelity.score([[x, np.array([1, 2, 3, 5])]]) == 0.75
    assert fidelity.score([[np.array([[1.0, 0, 0], [1, 0, 0]]), labels]]) < 0.6


def test_probabilities_are_classes_and_logits_are_when_asked() -> None:
    p = probabilities(50)
    assert Fidelity([[p]]).has_classes
    assert not Fidelity([[p]], "cosine").has_classes
    assert Fidelity([[np.log(p)]]).has_classes
    assert not Fidelity([[np.log(p) + 1]]).has_classes
    assert Fidelity([[np.log(p) + 1]], "agreement").has_classes
    assert Fidelity([[p]]).distortion([[p]]) == 0
    noisy = softmax(np.log(p) + 0.1 * np.random.default_rng(2).standard_normal(p.shape), axis=-1)
    assert Fidelity([[p]]).distortion([[noisy]]) == pytest.approx(metrics.kl(p, noisy))


def test_expected_agreement_predicts_the_count_on_other_rows() -> None:
    """From 200 rows, within a point of the agreement over 100,000, and on the careful side."""
    rng = np.random.default_rng(3)

    def noisy(p: np.ndarray, size: float) -> np.ndarray:
        return softmax(np.log(p) + size * rng.standard_normal(p.shape), axis=-1)

    many = probabilities(100_000, seed=4)
    for size in (0.02, 0.1):
        true = metrics.top1_agreement(many, noisy(many, size))
        few = probabilities(200, seed=5)
        expected = Fidelity([[few]]).score([[noisy(few, size)]])
        assert true - 0.015 < expected < true + 0.005


def test_a_count_that_is_much_lower_wins() -> None:
    p = probabilities(100)
    turned = np.roll(p, 1, axis=-1)
    assert Fidelity([[p]]).score([[turned]]) < 0.3


def test_margins_of_more_rows_count_too() -> None:
    """What is seen of other feeds is how close they are to a tie."""
    p, clear = probabilities(100, seed=6), np.tile([[0.97, 0.01, 0.01, 0.01]], (900, 1))
    noisy = softmax(np.log(p) + 0.05 * np.random.default_rng(7).standard_normal(p.shape), axis=-1)
    alone = Fidelity([[p]]).score([[noisy]])
    assert Fidelity([[p]], others=[[clear]]).score([[noisy]]) > alone
    tied = np.tile([[0.5, 0.5]], (300, 1))
    assert Fidelity([[p]], others=[[tied]]).score([[noisy]]) < 0.66


def test_noise_of_rows_far_from_a_tie_says_nothing_of_the_close_ones() -> None:
    """Rows that nothing can turn may be as noisy as they like."""
    rng = np.random.default_rng(9)
    lead = np.concatenate([np.full(200, 0.5), np.full(200, 9.0)])  # of the likelier of two classes
    p = softmax(np.stack([lead, np.zeros(400)], axis=-1), axis=-1)
    size = np.concatenate([np.full(200, 0.05), np.full(200, 1.0)])
    change = np.stack([size * rng.standard_normal(400), np.zeros(400)], axis=-1)
    noisy = softmax(np.log(p) + change, axis=-1)
    assert Fidelity([[p]]).score([[noisy]]) > 0.999


def test_few_rows_are_trusted_less() -> None:
    """The noise of 4 close rows may be twice what it seems; the next row may be nearer a tie."""
    rng = np.random.default_rng(8)
    row = np.array([[np.e, 1.0, 0.1]]) / (np.e + 1.1)

    def score(count: int) -> float:
        p = np.tile(row, (count, 1))
        return Fidelity([[p]]).score(
            [[softmax(np.log(p) + 0.1 * rng.standard_normal(p.shape), axis=-1)]]
        )

    assert score(4) < score(40) < score(4000) <= 1
    assert score(4000) > 0.999


class Patterns:
    """In place of a generator: every pattern of signs once."""

    def __init__(self, count: int):
        self._left = itertools.product([-1.0, 1.0], repeat=count)

    def choice(self, signs: list[float], shape: tuple[int, ...]) -> np.ndarray:
        return np.array(next(self._left)).reshape(shape)


def test_directions_tell_the_distortion_of_small_noise() -> None:
    p, rng = probabilities(3, 3), np.random.default_rng(1)
    noise = 1e-5 * rng.standard_normal((3, 3))
    on_shares = noise - noise.mean(-1, keepdims=True)
    logs, values = np.log(p), rng.standard_normal((3, 3))
    tokens = [Known("tokens", "")]
    cases = [
        (Fidelity([[p]]), p + on_shares), (Fidelity([[logs]]), np.log(p + on_shares)),
        (Fidelity([[values]]), values + noise),
        (Fidelity([[values]], kinds=tokens), values + noise),
    ]  # fmt: skip
    for fidelity, after in cases:
        before = fidelity._reference[0][0]
        signs: Any = Patterns(before.size)
        found = [
            float((next(fidelity.directions(signs))[0] * (after - before)).sum()) ** 2
            for _ in range(2**before.size)
        ]
        assert np.mean(found) == pytest.approx(fidelity.distortion([[after]]), rel=1e-4)


def test_labels_and_zeros_have_no_direction() -> None:
    fidelity = Fidelity([[np.array([1, 2]), np.zeros((2, 3)), np.ones((2, 3))]])
    assert [*next(fidelity.directions(np.random.default_rng(0)))] == [2]


def test_a_symbol_is_turned_not_a_row_of_which_most_say_nothing() -> None:
    """Two symbols of fifty are wrong: 4 %, of rows it is 1 %."""
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((1, 200, 40))
    scores[..., 0] += 8
    scores[:, ::4, 0] -= 16
    wrong = scores.copy()
    wrong[:, [4, 8]] = np.roll(scores[:, [4, 8]], 1, axis=-1)
    told = Fidelity([[scores]]).estimate([[wrong]], 0, "agreement")
    assert told.figure == pytest.approx(0.96)
    assert told.units == 50
    assert told.careful <= 0.98
