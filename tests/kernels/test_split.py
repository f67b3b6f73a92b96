"""No input is fitted to and judges, as long as there are two."""

import pytest

from onnxshrink.kernels.split import Split, half


@pytest.mark.parametrize("count", range(1, 40))
def test_every_input_has_its_part(count: int) -> None:
    split = Split(count)
    assert split.by_itself == (count == 1)
    if count == 1:
        assert (list(split.fit), list(split.judge), list(split.held)) == ([0], [0], [])
        return
    assert sorted([*split.fit, *split.judge]) == list(range(count))
    assert {half(number) for number in split.fit} == {0}
    assert {half(number) for number in split.judge} == {1}
    assert len(split.fit) - len(split.judge) in (0, 1)
    assert 1 <= len(split.held) <= max(count // 4, 1)
    if count >= 4:
        assert set(split.held) <= set(split.judge)


def test_nothing_splits_into_nothing() -> None:
    split = Split(0)
    assert [*split.fit, *split.judge, *split.held] == []
    assert not split.by_itself


def test_items_by_their_numbers() -> None:
    assert Split.of("abcde", Split(5).judge) == ["b", "d"]
