"""What goes to a terminal."""

from __future__ import annotations

import logging
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from onnxshrink.cli._command import level
from onnxshrink.progress import Progress, silent

if TYPE_CHECKING:
    from rich.console import Console

    from onnxshrink.report import Table

_log = logging.getLogger(__name__)


_PAUSE = 10.0  # seconds between two lines of progress where there is no terminal
_SOON = 1.0  # second before which no bar is worth the flicker


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Progress on stderr: bars on a terminal once a second has passed, else lines with -v."""
    if level() < 0:
        yield silent
    elif not sys.stderr.isatty():
        yield _lines()
    else:
        from rich.console import Console

        with _bars(Console(stderr=True)) as update:
            yield update


class _Going:
    """What goes on, the outermost first: what is told of one ends all that began within it."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def told(self, name: str, over: bool) -> list[str]:
        """Those that have ended by now.

        Args:
            name: What was told.
            over: Whether that was its end.
        """
        place = self.names.index(name) if name in self.names else len(self.names)
        first = place if over else place + 1
        ended = self.names[first:]
        self.names[place:] = [] if over else [name]
        return ended


def _lines() -> Progress:
    """A line now and then, to the log."""
    going = _Going()
    last = time.monotonic()
    begun: dict[str, float] = {}

    def update(what: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        name, _, beside = what.partition(": ")
        over = done >= total
        for ended in going.told(name, over):
            begun.pop(ended, None)
        if over:
            return
        begun.setdefault(name, now)
        if now - last < _PAUSE:
            return
        last = now
        line = f"{name}, {done} of {total}"
        if done:
            line += f", {(now - begun[name]) / done * (total - done):.0f} s left"
        _log.info("%s", f"{line}: {beside}" if beside else line)

    return update


@contextmanager
def _bars(console: Console) -> Iterator[Progress]:
    """A bar for each thing that goes on: count, total and time left; one that is done goes."""
    from rich import progress

    columns = (
        progress.TextColumn("{task.description}", markup=False), progress.BarColumn(),
        progress.MofNCompleteColumn(), progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
    )  # fmt: skip
    started = time.monotonic()
    going = _Going()
    tasks: dict[str, progress.TaskID] = {}
    with progress.Progress(*columns, console=console, transient=True) as bars:

        def update(what: str, done: int, total: int) -> None:
            name = what.partition(": ")[0]
            over = done >= total
            for ended in going.told(name, over):
                if ended in tasks:
                    bars.remove_task(tasks.pop(ended))
            if over or time.monotonic() - started < _SOON:
                return
            if name not in tasks:
                tasks[name] = bars.add_task(what, total=total)
            bars.update(tasks[name], description=what, completed=done, total=total)

        yield update


class Terminated(KeyboardInterrupt):
    """Somebody asked this process to end: it does as after Ctrl-C, and cleans up."""

    exit_code = 143


@contextmanager
def stoppable() -> Iterator[None]:
    """Let SIGTERM unwind what runs in this block, as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def say(text: str, *, err: bool = False) -> None:
    """Print one line; what names in it would do to a terminal is shown, not done."""
    from onnxshrink.report import printable

    if err or level() >= 0:
        click.echo(printable(text), err=err)


def warn(text: str) -> None:
    """Print a warning to stderr."""
    from onnxshrink.report import printable

    if level() >= 0:
        click.secho(f"warning: {printable(text)}", err=True, fg="yellow", bold=True)


class PlainFormatter(logging.Formatter):
    """Log records as one line each, with the seconds since the start."""

    def format(self, record: logging.LogRecord) -> str:
        """The message; a traceback below it keeps its lines."""
        from onnxshrink.report import printable

        seconds = record.relativeCreated / 1e3
        message = f"[{seconds:.1f} s] {printable(record.getMessage())}"
        return f"{message}\n{self.formatException(record.exc_info)}" if record.exc_info else message


def show(table: Table) -> None:
    """Print a table: drawn for a terminal, in Markdown for a pipe."""
    if not table.rows or level() < 0:
        return
    if not sys.stdout.isatty():
        click.echo(table.to_markdown() + "\n")
        return
    from rich.console import Console
    from rich.table import Table as Drawn
    from rich.text import Text

    from onnxshrink.report import printable

    def plain(text: str) -> Text:  # rich takes '[/x]' in a str for its markup
        return Text(printable(text))

    drawn = Drawn(title=plain(table.title), title_justify="left")
    for index, column in enumerate(table.columns):
        numeric = all(row[index][:1].isdigit() or not row[index] for row in table.rows)
        drawn.add_column(plain(column), justify="right" if numeric else "left")
    for row in table.rows:
        drawn.add_row(*map(plain, row))
    Console().print(drawn)
