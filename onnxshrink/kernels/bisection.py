"""How many of a list are enough, and how many can stand together: asked as rarely as possible."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def fewest(most: int, enough: Callable[[int], bool]) -> int:
    """The smallest count that is enough, where more than enough is enough, too.

    Args:
        most: A count that is known to be enough; 0 is known not to be.
        enough: Whether a count between the two is.
    """
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def most_tolerated(
    order: Sequence[T], tolerated: Callable[[Sequence[T]], bool], most: int,
    tell: Callable[[int], None] = lambda tries: None,
    worth: Callable[[Sequence[T]], bool] = lambda left: True,
) -> list[T]:  # fmt: skip
    """As many as are tolerated together, found by halving what is too much.

    Args:
        order: The most welcome first; all of them together are too much.
        tolerated: Whether some of them are tolerated together.
        most: How often to ask; what is undecided by then is left out.
        tell: Is told the number of each question.
        worth: Whether it is worth asking on for these, which are all that is undecided.
    """
    taken: list[T] = []
    parts, tries = _halves(order), 0
    while parts and tries < most and worth([one for part in parts for one in part]):
        part = parts.pop(0)
        tries += 1
        tell(tries)
        if tolerated([*taken, *part]):
            taken += part
        else:
            parts += _halves(part)
    return taken


def _halves(part: Sequence[T]) -> list[Sequence[T]]:
    middle = len(part) // 2
    return [part[:middle], part[middle:]] if middle else []
