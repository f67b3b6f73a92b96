"""What is told of progress: it ends when its loop does, and so does its bar."""

import io
import logging
import re

import pytest
from rich.console import Console

from onnxshrink.cli import _terminal
from onnxshrink.progress import counted

SEARCH = "searching"


def test_what_is_counted_ends_however_its_loop_does() -> None:
    told: list[tuple[str, int, int]] = []
    for item in counted(lambda *words: told.append(words), "looking", "abcd"):
        if item == "b":
            break
    assert told == [("looking", 0, 4), ("looking", 1, 4), ("looking", 4, 4)]


def tell_of_a_search(update: _terminal.Progress) -> None:
    """Of its steps the first fails in the middle, and the second is over."""
    update(f"{SEARCH}: the first", 0, 4)
    update("calibrating", 3, 8)
    update("deeper", 1, 2)
    update(f"{SEARCH}: the second; best so far 6.0 MB", 1, 4)
    update("calibrating", 0, 8)
    update("calibrating", 8, 8)
    update("pruning", 1, 3)


def test_a_bar_goes_with_what_it_is_part_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_terminal, "_SOON", 0.0)
    seen = io.StringIO()
    with _terminal._bars(Console(file=seen, force_terminal=True, width=120)) as update:
        tell_of_a_search(update)
        before = seen.tell()
    drawn = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.getvalue()[before:])
    assert "the second; best so far 6.0 MB" in drawn
    assert "1/4" in drawn
    assert "pruning" in drawn
    assert "calibrating" not in drawn
    assert "deeper" not in drawn
    assert drawn.count(SEARCH) == drawn.count("pruning")


def test_without_a_terminal_there_are_lines(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_terminal, "_PAUSE", -1.0)
    now = iter(range(100))
    monkeypatch.setattr(_terminal.time, "monotonic", lambda: float(next(now)))
    with caplog.at_level(logging.INFO):
        update = _terminal._lines()
        tell_of_a_search(update)
        update(f"{SEARCH}: the third", 2, 4)
    lines = [record.getMessage() for record in caplog.records]
    assert lines[1] == "calibrating, 3 of 8, 0 s left"
    assert lines[3] == f"{SEARCH}, 1 of 4, 9 s left: the second; best so far 6.0 MB"
    assert lines[4:6] == ["calibrating, 0 of 8", "pruning, 1 of 3, 0 s left"]
    assert lines[6].startswith(f"{SEARCH}, 2 of 4, ")
