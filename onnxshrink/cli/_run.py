"""What the commands that write a model share: their options, and the report at the end."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from onnxshrink.cli._terminal import show
from onnxshrink.cli._values import shape_option
from onnxshrink.errors import RecipeError

if TYPE_CHECKING:
    from onnxshrink.api import Options
    from onnxshrink.report import Report

F = TypeVar("F", bound=Callable[..., Any])


_KEPT = ("check", "seed", "storage", "calibration_cache")


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
                "--calibration-cache", metavar="FILE",
                help="Keep what calibration finds, for later runs on the same model and inputs.",
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
                "--storage", type=click.Choice(["auto", "single", "external", "packed"]),
                help="One file, external data, external above 2 GB only (auto), or a packed "
                "sidecar; by default what the recipe says, or auto.",
            ),
            click.option(
                "--report", "report_file", metavar="FILE",
                help="Write the whole report as .json, .md or .html.",
            ),
            click.option("--json", "as_json", is_flag=True, help="Print the report as JSON."),
            click.option(
                "--strict", is_flag=True,
                help="Exit 1 when nothing was changed, or no output shows a difference.",
            ),
        )
    ):  # fmt: skip
        command = decorate(command)
    return command


class Run:
    """The values of the shared options, taken out of a command's.

    Args:
        values: All values of the command.
        writes: Whether a model is to be written.

    Raises:
        RecipeError: The report cannot be written as asked; better said before than after.
    """

    def __init__(self, values: dict[str, Any], *, writes: bool = True):
        self.source: str = values.pop("source")
        positional, named = values.pop("out"), values.pop("out_option")
        if writes and (positional is None) == (named is None):
            raise click.UsageError("name the output once: IN OUT, or IN -o OUT")
        if not writes and (positional or named):
            raise click.UsageError("nothing is written: name no output")
        self.out: str = positional or named or ""
        report_file = values.pop("report_file")
        self.report_file = None if report_file is None else _report_file(report_file)
        self.as_json: bool = values.pop("as_json")
        self.strict: bool = values.pop("strict")
        self.calibration = list(values.pop("calibration")) or None
        self.shapes = dict(map(shape_option, values.pop("shape")))
        self.rest = {name: values.pop(name) for name in _KEPT}

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
        if self.strict and report.unproven:
            click.echo("error: the inputs could not have shown a difference", err=True)
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
    from onnxshrink.graph.file.model import atomic_write

    with atomic_write(path) as file:
        file.write(getattr(report, _VIEWS[path.suffix])().encode())
