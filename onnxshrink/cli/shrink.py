"""The command that searches for the smallest form of a model."""

from __future__ import annotations

from typing import Any

import click

from onnxshrink.cli._command import Command
from onnxshrink.cli._run import Run, run_options
from onnxshrink.cli._terminal import progress_bar
from onnxshrink.cli._values import function_files, number, size_option
from onnxshrink.errors import BudgetMissed, RecipeError
from onnxshrink.goal import PRESETS


@click.command(cls=Command)
@run_options
@click.option(
    "--min-agreement", type=number, metavar="SHARE", help="Least top-1 agreement, 0 to 1."
)
@click.option("--max-error", type=number, metavar="E", help="Largest relative error of an output.")
@click.option(
    "--max-kl",
    type=number,
    metavar="NATS",
    help="Largest mean divergence of tokens or classes from the original's.",
)
@click.option(
    "--max-drop", type=number, metavar="D", help="Largest drop of --metric, or of top-1 agreement."
)
@click.option(
    "--metric", metavar="FILE.py:FUNCTION",
    help="Called with the outputs of every calibration input; gives a number, higher is better.",
)  # fmt: skip
@click.option(
    "--measure",
    "measures",
    multiple=True,
    metavar="OUTPUT=KIND",
    help="What an output is, where it is not told right: labels, classes, tokens, embeddings, "
    "vectors or values. Repeatable.",
)
@click.option(
    "--preset",
    type=click.Choice(PRESETS),
    default="balanced",
    show_default=True,
    help="How much may be lost where nothing above says.",
)
@click.option("--time-limit", type=number, metavar="S", help="Seconds to search.")
@click.option("--max-size", metavar="SIZE", help="Largest result, as in 5MB or 800kB.")
@click.option("--target-ratio", type=number, metavar="X", help="At least this many times smaller.")
@click.option("--recipe-out", metavar="FILE", help="Write the recipe found, for 'apply'.")
@click.option("--bench/--no-bench", "with_bench", default=True, help="Measure latency at the end.")
def command(**values: Any) -> None:
    """Make a model smaller and prove that it still gives the same answers.

    \b
    onnxshrink shrink model.onnx small.onnx --calibration inputs.npz --min-agreement 0.99
    """
    run = Run(values)
    metric, max_size = values.pop("metric"), values.pop("max_size")
    target_ratio, recipe_out = values.pop("target_ratio"), values.pop("recipe_out")
    with_bench, time_limit = values.pop("with_bench"), values.pop("time_limit")
    from onnxshrink import api
    from onnxshrink.functions import load_metric
    from onnxshrink.goal import Goal

    goal = Goal(
        metric=load_metric(metric) if metric else None,
        measures=dict(map(_measure, values.pop("measures"))), **values,
    )  # fmt: skip
    missed: BudgetMissed | None = None
    with progress_bar() as progress:
        options = run.options(progress, function_files(metric))
        try:
            report = api.shrink(
                run.source, run.out, options, goal=goal, target_ratio=target_ratio,
                max_size=size_option(max_size, "--max-size") if max_size else None,
                recipe_out=recipe_out, time_limit=time_limit,
            )  # fmt: skip
        except BudgetMissed as error:
            missed, report = error, error.report  # type: ignore[assignment]
        if with_bench and options.check != "off":
            report.bench = api.bench_pair(run.source, run.out, options)
    run.finish(report)
    if missed is not None:
        raise missed


def _measure(text: str) -> tuple[str, Any]:
    output, equals, kind = text.rpartition("=")
    if not equals:
        raise RecipeError(f"--measure takes OUTPUT=KIND, not {text!r}")
    return output, kind
