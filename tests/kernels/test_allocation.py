"""Bytes shared out: against every combination there is."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxshrink.kernels import allocation

WEIGHTS = st.lists(
    st.lists(st.tuples(st.integers(1, 30), st.floats(0, 10)), min_size=1, max_size=4),
    min_size=1, max_size=4,
)  # fmt: skip


def split(weights: list[list[tuple[int, float]]]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    sizes = [np.array([float(size) for size, _ in choices]) for choices in weights]
    return sizes, [np.array([error for _, error in choices]) for choices in weights]


@given(WEIGHTS, st.integers(0, 120))
def test_it_fits_and_little_is_lost(weights: list[list[tuple[int, float]]], budget: int) -> None:
    sizes, errors = split(weights)
    chosen = allocation.choose(sizes, errors, budget)
    size = sum(s[i] for s, i in zip(sizes, chosen, strict=True))
    error = sum(e[i] for e, i in zip(errors, chosen, strict=True))
    least = sum(s.min() for s in sizes)
    if least > budget:
        assert size == least
        return
    assert size <= budget
    every = [
        sum(e[i] for e, i in zip(errors, picks, strict=True))
        for picks in itertools.product(*(range(len(s)) for s in sizes))
        if sum(s[i] for s, i in zip(sizes, picks, strict=True)) <= budget
    ]
    # What does not divide evenly costs less than the largest step of one weight.
    assert error <= min(every) + max(e.max() - e.min() for e in errors) + 1e-9


@given(st.integers(1, 3), st.integers(0, 2**32 - 1), st.integers(3, 12))
def test_equal_steps_that_help_less_and_less_are_shared_out_best(
    count: int, seed: int, budget: int
) -> None:
    rng = np.random.default_rng(seed)
    gains = [np.sort(rng.random(4))[::-1] for _ in range(count)]
    errors = [np.concatenate([[0.0], np.cumsum(-gain)]) + 4 for gain in gains]
    sizes = [np.arange(5.0) for _ in range(count)]
    chosen = allocation.choose(sizes, errors, budget)
    best = np.sort(np.concatenate(gains))[::-1][:budget].sum()
    saved = sum(4 - e[i] for e, i in zip(errors, chosen, strict=True))
    assert saved == pytest.approx(best)


def test_nothing_to_share_out() -> None:
    assert allocation.choose([], [], 10) == []
    assert allocation.choose([np.array([3.0, 1.0])], [np.array([0.0, 1.0])], 100) == [0]
    assert allocation.choose([np.array([3.0, 1.0])], [np.array([0.0, 1.0])], 2) == [1]
