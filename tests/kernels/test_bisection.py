"""What is enough, and what is tolerated, is found; and with few questions."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxshrink.kernels.bisection import fewest, most_tolerated


@pytest.mark.parametrize("most", [0, 1, 2, 3, 64, 100])
def test_the_fewest_that_are_enough(most: int) -> None:
    for least in range(min(most, 1), most + 1):
        asked: list[int] = []

        def enough(count: int, least: int = least, asked: list[int] = asked) -> bool:
            asked.append(count)
            return count >= least

        assert fewest(most, enough) == least
        assert len(asked) <= max(most - 1, 0).bit_length()
        assert not {0, most} & set(asked)  # these are known


@given(st.sets(st.integers(0, 19)), st.integers(0, 40))
def test_halving_finds_all_that_is_tolerated_when_it_may_ask_often_enough(
    bad: set[int], most: int
) -> None:
    asked, told = [], []

    def tolerated(chosen: Sequence[int]) -> bool:
        asked.append(tuple(chosen))
        return not bad & set(chosen)

    found = most_tolerated(range(20), tolerated, most, told.append)
    assert not bad & set(found)
    assert told == [*range(1, len(asked) + 1)]
    assert len(asked) <= most
    if bad and most == 40:
        assert set(found) == set(range(20)) - bad


def test_halving_ends_where_the_rest_is_not_worth_a_question() -> None:
    left: list[list[int]] = []

    def worth(undecided: Sequence[int]) -> bool:
        left.append(sorted(undecided))
        return len(undecided) > 2

    assert most_tolerated(range(8), lambda chosen: 0 not in chosen, 40, worth=worth) == [
        4, 5, 6, 7, 2, 3,
    ]  # fmt: skip
    assert left[-1] == [0, 1]  # these two were never tried apart
