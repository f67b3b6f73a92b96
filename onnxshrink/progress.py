"""What goes on, and how much of it is done: told to whoever shows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")
#: Called with what is done, how much of it, and out of how much; equal numbers end it. What stands
#: behind a colon is told beside it, and changes.
Progress = Callable[[str, int, int], None]


def silent(what: str, done: int, total: int) -> None:
    """Tell nobody."""


def counted(progress: Progress, what: str, items: Sequence[T]) -> Iterator[T]:
    """Each of some items, told before its turn; the end is told too, however the loop ends.

    Args:
        progress: Whom to tell.
        what: What is done with the items.
        items: What takes time, one after another.
    """
    total = len(items)
    try:
        for done, item in enumerate(items):
            progress(what, done, total)
            yield item
    finally:
        progress(what, total, total)
