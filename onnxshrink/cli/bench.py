"""The command that measures models side by side."""

from __future__ import annotations

import json
from typing import Any

import click

from onnxshrink.cli._command import Command
from onnxshrink.cli._measure import Measured, measure_options, settings
from onnxshrink.cli._terminal import say, show, warn
from onnxshrink.cli._values import COUNT


@click.command(cls=Command)
@click.argument("models", nargs=-1, required=True, metavar="MODEL [MODEL ...]")
@measure_options
@click.option("--rounds", default=25, type=COUNT, help="How often each is timed, taking turns.")
def command(models: tuple[str, ...], rounds: int, **values: Any) -> None:
    """Measure size, latency, load time and memory of models, side by side.

    \b
    onnxshrink bench model.onnx small.onnx --calibration inputs.npz
    """
    measured = Measured.take(values)
    from onnxshrink import commands
    from onnxshrink.report import Table, size

    found = commands.bench(
        models, measured.options(), rounds=rounds, session=measured.session, say=warn
    )
    if measured.as_json:
        click.echo(json.dumps(found.to_dict(), indent=1, default=str))
        return
    columns = ("model", "file", "latency", "ratio", "95 % interval", "load", "steady", "peak")
    table = Table("latency, memory beyond an empty session", columns)
    for row in found.models:
        table.add(
            row.path, size(row.file_bytes), f"{row.seconds * 1e3:.3f} ms", f"{row.ratio:.3f}",
            f"{row.ratio_low:.3f} to {row.ratio_high:.3f}", f"{row.load_seconds * 1e3:.0f} ms",
            size(row.steady_bytes), size(row.peak_bytes),
        )  # fmt: skip
    show(table)
    say(f"{found.rounds} rounds; {settings(found.options)}")
