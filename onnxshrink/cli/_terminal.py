"""What goes to a terminal."""

from __future__ import annotations

import sys
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


def show(table: Table) -> None:
    """Print a table: drawn for a terminal, in Markdown for a pipe."""
    if not table.rows:
        return
    if not sys.stdout.isatty():
        click.echo(table.to_markdown() + "\n")
        return
    from rich.console import Console
    from rich.table import Table as Drawn

    drawn = Drawn(title=table.title, title_justify="left")
    for index, column in enumerate(table.columns):
        numeric = all(row[index][:1].isdigit() or not row[index] for row in table.rows)
        drawn.add_column(column, justify="right" if numeric else "left")
    for row in table.rows:
        drawn.add_row(*row)
    Console().print(drawn)
