"""How many answers noise turns is told from few rows, within what is said of it."""

import numpy as np
import pytest
from scipy.special import softmax

from onnxshrink.kernels import ties

RNG = np.random.default_rng(0)


def rows(count: int, noise: float, spread: float = 4.0) -> tuple[np.ndarray, np.ndarray]:
    scores = spread * RNG.standard_normal((count, 5))
    return scores, scores + noise * RNG.standard_normal(scores.shape)


def told(before: np.ndarray, after: np.ndarray, seen: int) -> ties.Turned:
    lead, top = ties.lead(softmax(before, axis=-1))
    change = ties.moved(softmax(after, axis=-1), lead, top)
    units = [*zip(np.split(lead, len(lead)), np.split(change, len(lead)), strict=True)]
    return ties.turned([unit for unit, _ in units], units[:seen])


@pytest.mark.parametrize("noise", [0.05, 0.2, 0.8])
def test_the_share_of_many_rows_is_the_count(noise: float) -> None:
    before, after = rows(50_000, noise)
    counted = (before.argmax(1) != after.argmax(1)).mean()
    assert told(before, after, len(before)).share == pytest.approx(counted, rel=0.15)


def test_the_interval_of_few_rows_holds_about_as_often_as_it_says() -> None:
    before, after = rows(200_000, 0.1)
    counted = (before.argmax(1) != after.argmax(1)).mean()
    ends = [
        told(*(part[i : i + 64] for part in (before, after)), 16).at_most(0.9)
        for i in range(0, 64 * 200, 64)
    ]
    assert 0.85 < np.mean(np.array(ends) >= counted) < 0.98
    assert np.median(ends) < 2.5 * counted


def test_rows_of_one_sequence_are_one_witness() -> None:
    leads = np.abs(4 * np.random.default_rng(0).standard_normal(400))
    change = np.repeat([0.02, 0.05, 0.1, 0.3], 100)  # the noise of a sequence is one
    units = [*zip(np.split(leads, 4), np.split(change, 4), strict=True)]
    apart = [*zip(np.split(leads, 400), np.split(change, 400), strict=True)]
    together, alone = (ties.turned([u for u, _ in each], each) for each in (units, apart))
    assert together.share == alone.share
    assert together.spread > 1.5 * alone.spread


def test_clear_steps_say_nothing_of_the_noise_of_close_ones() -> None:
    rng = np.random.default_rng(0)
    units, turned = [], 0
    for _ in range(400):
        close, clear = rng.uniform(0, 2, 20), rng.uniform(8, 12, 80)
        change = np.concatenate([0.3 * rng.standard_normal(20), 0.02 * rng.standard_normal(80)])
        units.append((np.concatenate([close, clear]), change))
        turned += int((close + change[:20] < 0).sum())
    found = ties.turned([unit for unit, _ in units], units)
    assert found.share == pytest.approx(turned / 40_000, rel=0.1)


def test_no_noise_turns_nothing_and_ties_are_turned() -> None:
    lead = np.linspace(0.1, 4, 50)
    assert ties.turned([lead], [(lead, np.zeros(50))]).at_most(0.9) == 0
    assert ties.turned([lead], [(lead, np.full(50, np.inf))]).share == 1
    tied = np.zeros(50)
    assert ties.turned([tied], [(lead, np.full(50, 0.1))]).share == 0.5
    far = np.full(50, 9.0)  # nothing is anywhere near: no more than the next row could be
    assert ties.turned([far], [(far, np.full(50, 0.1))]).share < 1e-3
