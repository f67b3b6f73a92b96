"""The command that measures models side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from onnxshrink.cli._command import Command
from onnxshrink.cli._measure import MeasureOptions, measure_options, settings
from onnxshrink.cli._terminal import say, show, warn
from onnxshrink.cli._values import COUNT

if TYPE_CHECKING:
    from onnxshrink.report import Table
    from onnxshrink.runtime.bench import ModelBench


@click.command(cls=Command)
@click.argument("models", nargs=-1, required=True, metavar="MODEL [MODEL ...]")
@measure_options
@click.option("--rounds", default=25, type=COUNT, help="How often each is timed, taking turns.")
@click.option(
    "--operators",
    is_flag=True,
    help="Also what each operator takes, by ONNX Runtime's profiler.",
)
def command(models: tuple[str, ...], rounds: int, operators: bool, **values: Any) -> None:
    """Measure size, latency, load time and memory of models, side by side.

    \b
    onnxshrink bench model.onnx small.onnx --calibration inputs.npz
    onnxshrink bench model.onnx small.onnx --calibration inputs.npz --operators
    """
    measured = MeasureOptions.take(values)
    from onnxshrink import commands
    from onnxshrink.report import Table, size

    found = commands.bench(
        models, measured.options(), rounds=rounds, session=measured.session, operators=operators,
        say=warn,
    )  # fmt: skip
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
    if operators:
        show(_operators(found.models))
    say(f"{found.rounds} rounds; {settings(found.options)}")


def _operators(models: Sequence[ModelBench]) -> Table:
    """What each operator takes of a run of each model."""
    from onnxshrink.report import Table

    table = Table("time of operators in one run", ("operator", *(model.path for model in models)))
    known = [{each.operator: each for each in model.operators} for model in models]
    for name in dict.fromkeys(name for row in known for name in row):
        cells = []
        for row in known:
            whole = sum(each.seconds for each in row.values()) or 1.0
            found = row.get(name)
            cells.append("" if found is None else (
                f"{found.seconds * 1e3:.3f} ms in {found.nodes} ({found.seconds / whole:.0%})"
            ))  # fmt: skip
        table.add(name, *cells)
    return table
