"""What the commands share: options of a run, the report at its end, and a command for every pass.

A pass's command is generated from the pass's options. Nothing heavy is imported before a command
needs it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from onnxshrink.errors import RecipeError

if TYPE_CHECKING:
    from onnxshrink.api import Options
    from onnxshrink.options import Option
    from onnxshrink.pipeline import Pass
    from onnxshrink.report import Report, Table

F = TypeVar("F", bound=Callable[..., Any])


def shape_option(text: str) -> tuple[str, tuple[int, ...]]:
    """The input and the shape that a ``--shape`` names.

    Raises:
        RecipeError: It is not of the form ``NAME:1,3,224,224``.
    """
    name, _, dims = text.rpartition(":")
    sizes = dims.split(",")
    if not name or not all(size.strip().isdecimal() for size in sizes):
        raise RecipeError(f"--shape takes NAME:1,3,224,224, not {text!r}")
    return name, tuple(map(int, sizes))


def run_options(command: F) -> F:
    """Options of every command that writes a model."""
    for decorate in reversed(
        (
            click.argument("source", metavar="IN"),
            click.argument("out", metavar="OUT", required=False),
            click.option("-o", "--output", "out_option", metavar="OUT", help="Same as OUT."),
            click.option(
                "--calibration", metavar="DATA", multiple=True,
                help="Real inputs: .npz, .npy, a folder, or module.py:function. Repeatable.",
            ),
            click.option(
                "--check", type=click.Choice(["full", "quick", "off"]), default="full",
                help="Compare outputs on up to 64 inputs, on two, or not at all.",
            ),
            click.option(
                "--shape", multiple=True, metavar="NAME:DIMS",
                help="Shape of a generated input, as in x:1,3,224,224. Repeatable.",
            ),
            click.option("--seed", default=0, help="For everything that is random."),
            click.option(
                "--storage", default="auto",
                type=click.Choice(["auto", "single", "external", "packed"]),
                help="One file, external data, external above 2 GB only, or a packed sidecar.",
            ),
            click.option(
                "--report", "report_file", metavar="FILE",
                help="Write the whole report as .json, .md or .html.",
            ),
            click.option("--json", "as_json", is_flag=True, help="Print the report as JSON."),
            click.option("--strict", is_flag=True, help="Exit 1 when nothing was changed."),
        )
    ):  # fmt: skip
        command = decorate(command)
    return command


def measure_options(command: F) -> F:
    """Options of the commands that run models and write none."""
    for decorate in reversed(
        (
            click.option(
                "--calibration", "--inputs", metavar="DATA", multiple=True,
                help="Real inputs: .npz, .npy, a folder, or module.py:function. Repeatable.",
            ),
            click.option(
                "--shape", multiple=True, metavar="NAME:DIMS", help="Shape of a generated input.",
            ),
            click.option("--seed", default=0, help="For generated inputs and the order of turns."),
            click.option(
                "--provider", default="CPUExecutionProvider",
                help="Where the models run; in 'compare', where OTHER does.",
            ),
            click.option(
                "--threads", default=1, help="Threads inside one operator; 0: one for each core.",
            ),
            click.option(
                "--accuracy-level", type=int, help="ONNX Runtime's for MatMulNBits; 0 is exact.",
            ),
            click.option("--json", "as_json", is_flag=True, help="Print JSON."),
        )
    ):  # fmt: skip
        command = decorate(command)
    return command


class Run:
    """The values of the shared options, taken out of a command's.

    Raises:
        RecipeError: The report cannot be written as asked; better said before than after.
    """

    def __init__(self, values: dict[str, Any]):
        self.source: str = values.pop("source")
        positional, named = values.pop("out"), values.pop("out_option")
        if (positional is None) == (named is None):
            raise click.UsageError("name the output once: IN OUT, or IN -o OUT")
        self.out: str = positional or named
        report_file = values.pop("report_file")
        self.report_file = None if report_file is None else _report_file(report_file)
        self.as_json: bool = values.pop("as_json")
        self.strict: bool = values.pop("strict")
        self.calibration = list(values.pop("calibration")) or None
        self.shapes = dict(map(shape_option, values.pop("shape")))
        self.rest = {name: values.pop(name) for name in ("check", "seed", "storage")}

    def options(self, progress: Callable[[str, int, int], None]) -> Options:
        """How to run, for ``onnxshrink.api``."""
        from onnxshrink.api import Options

        calibration = self.calibration
        return Options(
            calibration=calibration[0] if calibration and len(calibration) == 1 else calibration,
            shapes=self.shapes, progress=progress, **self.rest,
        )  # fmt: skip

    def finish(self, report: Report) -> None:
        """Print and write the report; exit 1 under --strict when nothing was done."""
        if self.report_file:
            _write_report(report, self.report_file)
        if self.as_json:
            click.echo(report.to_json())
        else:
            for table in report.tables():
                show(table)
            for name, rung in report.moved.items():
                click.echo(f"kept at {rung}: {name}")
            for warning in report.warnings:
                click.secho(f"warning: {warning}", err=True, fg="yellow", bold=True)
            click.echo(report.headline())
        if self.strict and not report.changed:
            click.echo("error: nothing was changed", err=True)
            sys.exit(1)


_VIEWS = {".json": "to_json", ".md": "to_markdown", ".html": "to_html"}


def _report_file(text: str) -> Path:
    path = Path(text)
    if path.suffix not in _VIEWS:
        raise RecipeError(f"--report {path}: takes a .json, .md or .html file")
    if not path.absolute().parent.is_dir():
        raise RecipeError(f"--report {path}: there is no folder {path.parent}")
    return path


def _write_report(report: Report, path: Path) -> None:
    from onnxshrink.graph.model import atomic_write

    with atomic_write(path) as file:
        file.write(getattr(report, _VIEWS[path.suffix])().encode())


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


def _click_option(option: Option) -> Callable[[F], F]:
    """The command-line form of an option; unset means that the pass's default holds."""
    import typing

    flags = [f"--{name.replace('_', '-')}" for name in (option.name, *option.also)]
    default = option.default
    shown = "" if default in (None, (), {}) else f"  [default: {default}]"
    settings: dict[str, Any] = {"default": None, "help": option.help + shown}
    kinds = [part for part in typing.get_args(option.kind) if part is not type(None)]
    kind = kinds[0] if kinds and type(None) in typing.get_args(option.kind) else option.kind
    if kind is bool:
        positive = flags[0]
        flags = ["/".join((positive, positive.replace("--", "--no-", 1)))]
    elif option.many:
        settings["multiple"] = True
    if option.choices:
        settings["type"] = click.Choice([*option.choices, *option.spellings])
    elif kind in (int, float):
        settings["type"] = kind
    else:
        settings["metavar"] = "YAML" if isinstance(default, dict) else "TEXT"
    return click.option(*flags, option.name, **settings)


def pass_command(name: str) -> click.Command:
    """The command of one pass, whose module is imported."""
    from onnxshrink.options import options_of
    from onnxshrink.recipe import find_pass, summary

    kind = find_pass(name)

    def command(**values: Any) -> None:
        run = Run(values)
        given = {key: value for key, value in values.items() if value not in (None, ())}
        step = _build(kind, given)
        from onnxshrink import api
        from onnxshrink.recipe import Recipe

        with progress_bar() as progress:
            report = api.apply_recipe(Recipe((step,)), run.source, run.out, run.options(progress))
        run.finish(report)

    for option in reversed(options_of(kind)):
        command = _click_option(option)(command)
    command.__doc__ = f"{summary(name)}\n\n\b\nonnxshrink {name} model.onnx small.onnx"
    return click.command(name)(run_options(command))


def _build(kind: type[Pass], given: dict[str, Any]) -> Pass:
    """A pass from the values of its command; mappings are written in YAML there."""
    import yaml

    from onnxshrink.options import build, options_of

    for option in options_of(kind):
        if isinstance(option.default, dict) and isinstance(given.get(option.name), str):
            where = f"--{option.name}"
            try:
                given[option.name] = yaml.safe_load(given[option.name])
            except yaml.YAMLError as error:
                raise RecipeError(f"{where}: not YAML: {given[option.name]!r}") from error
    return build(kind, given, kind.name)
