"""What goes to a terminal."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from onnxshrink.report import Table


@contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on stderr, on a terminal only, and only once a second has passed."""
    if not sys.stderr.isatty():
        yield lambda what, done, total: None
        return
    import time

    from rich.console import Console
    from rich.progress import Progress

    started = time.monotonic()
    tasks: dict[str, Any] = {}
    with Progress(console=Console(stderr=True), transient=True) as bars:

        def update(what: str, done: int, total: int) -> None:
            if time.monotonic() - started < 1:
                return
            task = tasks.get(what)
            if task is None:
                task = tasks[what] = bars.add_task(what, total=total or None)
            bars.update(task, completed=done, total=total or None)

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

    click.echo(printable(text), err=err)


def warn(text: str) -> None:
    """Print a warning to stderr."""
    from onnxshrink.report import printable

    click.secho(f"warning: {printable(text)}", err=True, fg="yellow", bold=True)


class PlainFormatter(logging.Formatter):
    """Log records as one line each."""

    def format(self, record: logging.LogRecord) -> str:
        """The message; a traceback below it keeps its lines."""
        from onnxshrink.report import printable

        message = printable(record.getMessage())
        return f"{message}\n{self.formatException(record.exc_info)}" if record.exc_info else message


def show(table: Table) -> None:
    """Print a table: drawn for a terminal, in Markdown for a pipe."""
    if not table.rows:
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
