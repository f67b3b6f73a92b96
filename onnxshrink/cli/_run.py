"""What the commands that write a model share: their options, and the report at the end."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from onnxshrink.cli._command import common_option, input_option
from onnxshrink.cli._inputs import Inputs, input_options
from onnxshrink.cli._terminal import say, show, warn
from onnxshrink.cli._values import (
    SEED,
    decorated,
    shape_option,
    worker_limits,
    worker_options,
)
from onnxshrink.errors import RecipeError

if TYPE_CHECKING:
    from onnxshrink.api import Options
    from onnxshrink.report import Report

_PASSWORD = re.compile(r"(://[^:/@\s]*:)[^@\s]+@")  # of a URL
F = TypeVar("F", bound=Callable[..., Any])


_KEPT = (
    "check", "seed", "storage", "calibration_cache", "max_opset", "keep_names", "compare_at",
    "certificate", "sign",
)  # fmt: skip


def run_options(command: F) -> F:
    """Options of every command that writes a model."""
    return decorated(
        command,
        (
            click.argument("source", metavar="IN"),
            click.argument("out", metavar="OUT", required=False),
            click.option("-o", "--output", "out_option", metavar="OUT", help="Same as OUT."),
            input_options,
            *worker_options,
            common_option(
                "--calibration-cache", metavar="FILE",
                help="Keep what calibration finds, for later runs on the same model and inputs.",
            ),
            common_option(
                "--check", type=click.Choice(["full", "quick", "off"]), default="full",
                help="Compare outputs on up to 64 inputs, on two, or not at all.",
            ),
            input_option(
                "--shape", multiple=True, metavar="NAME:DIMS",
                help="Shape of a generated input, as in x:1,3,224,224. Repeatable.",
            ),
            common_option(
                "--compare-at", multiple=True, metavar="VALUE",
                help="Compare this value in place of the outputs behind it. Repeatable.",
            ),
            common_option("--seed", default=0, type=SEED, help="For everything that is random."),
            common_option(
                "--storage", type=click.Choice(["auto", "single", "external", "packed", "coded"]),
                help="One file, external data, external above 2 GB only (auto), a packed "
                "file for readers, or one file whose weights are coded; by default what the recipe "
                "says, or auto.",
            ),
            common_option(
                "--max-opset", type=click.IntRange(min=1), metavar="N",
                help="Roll back steps that would raise the operator set beyond this one.",
            ),
            common_option(
                "--runtime", metavar="VERSION",
                help="The same for what an older ONNX Runtime, such as 1.16, has to load.",
            ),
            common_option(
                "--keep-names", is_flag=True,
                help="Keep names of values and nodes, which else are shortened where it pays.",
            ),
            common_option(
                "--report", "report_file", metavar="FILE",
                help="Write the whole report as .json, .md or .html.",
            ),
            common_option(
                "--certificate", is_flag=True,
                help="Write OUT.certificate.json: what OUT was made from, and measured figures.",
            ),
            common_option(
                "--sign", metavar="KEY",
                help="Sign the certificate with this Ed25519 private key (PEM).",
            ),
            common_option("--json", "as_json", is_flag=True, help="Print the report as JSON."),
            common_option(
                "--strict", is_flag=True,
                help="Exit 1 when nothing was changed, or no output shows a difference.",
            ),
        ),
    )  # fmt: skip


class RunOptions:
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
        self.inputs = Inputs.take(values)
        self.shapes = dict(map(shape_option, values.pop("shape")))
        self.worker = worker_limits(
            *(values.pop(name) for name in ("timeout", "memory_limit", "custom_ops"))
        )
        if values["sign"] is not None and not values["certificate"]:
            raise RecipeError("--sign signs a certificate: ask for one with --certificate")
        runtime = values.pop("runtime")
        self.rest = {name: values.pop(name) for name in _KEPT}
        if runtime is not None:
            from onnxshrink.graph.rewrite.opset import newest_for

            most = [newest_for(runtime), self.rest["max_opset"] or sys.maxsize]
            self.rest["max_opset"] = min(most)

    def options(
        self, progress: Callable[[str, int, int], None], reads: Iterable[str] = ()
    ) -> Options:
        """How to run, for ``onnxshrink.api``.

        Args:
            progress: What to tell of the progress.
            reads: Other files that the command line names to be read.
        """
        from onnxshrink.api import Options

        return Options(
            **self.inputs.options, worker=self.worker,
            shapes=self.shapes, progress=progress, reads=tuple(reads), command=_typed(),
            writes=() if self.report_file is None else (self.report_file,), **self.rest,
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
            for line in report.kept():
                say(line)
            for promise in report.promises:
                say(promise)
            for warning in report.warnings:
                warn(warning)
            say(report.headline())
            say(report.next_step())
        if self.strict and not report.changed:
            click.echo("error: nothing was changed", err=True)
            sys.exit(1)
        if self.strict and report.unproven:
            click.echo("error: the inputs could not have shown a difference", err=True)
            sys.exit(1)


def _typed() -> str:
    """The command as it was typed, without the passwords of URLs."""
    return _PASSWORD.sub(r"\1***@", shlex.join(["onnxshrink", *sys.argv[1:]]))


_VIEWS = {".json": "to_json", ".md": "to_markdown", ".html": "to_html"}


def _report_file(text: str) -> Path:
    path = Path(text)
    if path.suffix not in _VIEWS:
        raise RecipeError(f"--report {path}: takes a .json, .md or .html file")
    return path


def _write_report(report: Report, path: Path) -> None:
    from onnxshrink.files import output

    with output(path) as file:
        file.write(getattr(report, _VIEWS[path.suffix])().encode())
