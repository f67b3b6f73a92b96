"""Which inputs are fitted to, and which judge.

A fit says nothing about inputs that it has not seen, so nobody splits them in another way: what one
part of a step was fitted to must not judge the next.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

_TURN = 4  # of so many inputs one is held out where much is fitted to the others


def half(number: int) -> int:
    """The half of the inputs that one belongs to: 0 is fitted to, 1 is held out."""
    return number % 2


def hold_back(count: int, most: int) -> tuple[list[int], list[int]]:
    """Which inputs a search may see, and which it may not: those are for the last word on it.

    Every fourth one is held back; where there are more than a search looks at, all the others. Of
    fewer than four none can be spared.

    Args:
        count: How many inputs there are.
        most: How many a search looks at.
    """
    if count < _TURN:
        return [*range(count)], []
    hidden = {*range(_TURN - 1, count, _TURN)}
    if count - len(hidden) > most:
        hidden = {*range(count)} - {place * count // most for place in range(most)}
    return [number for number in range(count) if number not in hidden], sorted(hidden)


@dataclass(frozen=True)
class Split:
    """A split of the inputs of a run, by their numbers. Every other one is fitted to.

    Attributes:
        count: How many inputs there are.
    """

    count: int

    @property
    def fit(self) -> range:
        """Those that are fitted to, whenever others judge."""
        return range(0, self.count, 2)

    @property
    def judge(self) -> range:
        """Those that judge what was fitted; all where there is only one."""
        return range(1, self.count, 2) if self.count > 1 else range(self.count)

    @property
    def held(self) -> range:
        """Of those that judge every other one, where a half is too little to fit to.

        The last one where there are fewer than four, none where there is only one.
        """
        return range(min(_TURN, self.count) - 1, self.count, _TURN) if self.count > 1 else range(0)

    @property
    def by_itself(self) -> bool:
        """Whether what is fitted has no other inputs to be judged by."""
        return self.count == 1

    @staticmethod
    def of(items: Sequence[T], which: Iterable[int]) -> list[T]:
        """Those of some items."""
        return [items[number] for number in which]
