"""The command that is the gate of a pipeline."""

from __future__ import annotations

import json
from typing import Any

import click

from onnxshrink.cli._command import Command, input_option
from onnxshrink.cli._measure import MeasureOptions, measure_options
from onnxshrink.cli._terminal import say, show, warn
from onnxshrink.cli._values import COUNT, number, size_option
from onnxshrink.errors import BudgetMissed, RecipeError


@click.command(cls=Command)
@click.argument("model", metavar="MODEL")
@click.option("--baseline", metavar="OLD", help="The model whose place it is to take.")
@click.option("--max-size", metavar="SIZE", help="Largest files, as in 5MB or 800kB.")
@click.option("--min-agreement", type=number, help="Least top-1 agreement with OLD, 0 to 1.")
@click.option("--max-error", type=number, help="Largest relative L2 error of an output.")
@click.option(
    "--max-latency", metavar="12ms|1.1x",
    help="Largest median latency: in milliseconds, or in times OLD's.",
)  # fmt: skip
@click.option(
    "--metric", metavar="FILE.py:FUNCTION",
    help="Called with the outputs of every input; gives a number, higher is better.",
)  # fmt: skip
@click.option("--max-drop", type=number, metavar="D", help="Largest drop of --metric.")
@measure_options
@input_option("--count", default=64, type=COUNT, help="Use at most this many inputs.")
def command(model: str, baseline: str | None, count: int, **values: Any) -> None:
    """Say whether a model may go out: exit code 0, or 1 with what it misses.

    It must be valid, load and give finite numbers on every input, and hold what is asked for.

    \b
    onnxshrink check small.onnx --baseline model.onnx --calibration inputs.npz --max-size 1MB
    onnxshrink check small.onnx --baseline model.onnx --calibration inputs.npz --min-agreement 0.9
    """
    measured = MeasureOptions.take(values)
    metric, max_size = values.pop("metric"), values.pop("max_size")
    latency, slowdown = _latency(values.pop("max_latency"))
    from onnxshrink.functions import load_metric
    from onnxshrink.gate import check

    found = check(
        model, measured.options(), baseline=baseline, count=count, session=measured.session,
        metric=load_metric(metric) if metric else None, max_latency=latency,
        max_size=size_option(max_size, "--max-size") if max_size else None,
        max_slowdown=slowdown, say=warn, **values,
    )  # fmt: skip
    if measured.as_json:
        click.echo(json.dumps(found.to_dict(), indent=1))
    else:
        show(found.table())
    if found.missed:
        raise BudgetMissed("; ".join(found.missed))
    if not measured.as_json:
        say(f"{model}: passed")


def _latency(text: str | None) -> tuple[float | None, float | None]:
    """Milliseconds, or times the baseline's.

    Raises:
        RecipeError: It is neither.
    """
    if text is None:
        return None, None
    try:
        if text.endswith("x"):
            return None, number(text[:-1])
        return number(text.removesuffix("ms").strip()), None
    except click.BadParameter as error:
        raise RecipeError(f"--max-latency takes 12ms or 1.1x, not {text[:60]!r}") from error
