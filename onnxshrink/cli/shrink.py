"""The command that searches for the smallest form of a model."""

from __future__ import annotations

from typing import Any, get_args

import click

from onnxshrink.cli._budget import Budget, budget_options
from onnxshrink.cli._command import Command
from onnxshrink.cli._run import RunOptions, run_options
from onnxshrink.cli._terminal import progress_bar
from onnxshrink.cli._values import number
from onnxshrink.errors import BudgetMissed
from onnxshrink.goal import Aim
from onnxshrink.search.platform import Name


@click.command(cls=Command)
@run_options
@budget_options
@click.option(
    "--goal",
    "aim",
    type=click.Choice(get_args(Aim)),
    help="What to make the best of: size; or latency or memory, measured on this machine. "
    "Default: size, latency for the preset fastest.",
)
@click.option(
    "--target",
    type=click.Choice(get_args(Name)),
    default="cpu",
    show_default=True,
    help="Where the result shall run: it has no operators that are not there.",
)
@click.option(
    "--pareto", metavar="DIR", help="Also write models from near-lossless to smallest, and a plot."
)
@click.option("--time-limit", type=number, metavar="S", help="Seconds to search.")
@click.option("--recipe-out", metavar="FILE", help="Write the recipe found, for 'apply'.")
@click.option(
    "--keep-best",
    is_flag=True,
    help="Write the best result over an older OUT even where it misses the goal.",
)
@click.option(
    "--keep-metadata",
    is_flag=True,
    help="Keep stack traces, source paths and module names that exporters note at nodes.",
)
@click.option("--bench/--no-bench", "with_bench", default=True, help="Measure latency at the end.")
def command(**values: Any) -> None:
    """Make a model smaller and prove that it still gives the same answers.

    \b
    onnxshrink shrink model.onnx small.onnx --calibration inputs.npz --min-agreement 0.99
    """
    run = RunOptions(values)
    budget, recipe_out = Budget.take(values), values.pop("recipe_out")
    with_bench, time_limit = values.pop("with_bench"), values.pop("time_limit")
    pareto, target = values.pop("pareto"), values.pop("target")
    keep_best: bool = values.pop("keep_best")
    keep_metadata: bool = values.pop("keep_metadata")
    fastest = budget.values["preset"] == "fastest"
    aim: Aim = values.pop("aim") or ("latency" if fastest else "size")
    from onnxshrink import api, commands

    missed: BudgetMissed | None = None
    with progress_bar() as progress:
        options = run.options(progress, budget.reads)
        try:
            report = api.shrink(
                run.source, run.out, options, goal=budget.goal(), recipe_out=recipe_out,
                time_limit=time_limit, aim=aim, target=target, pareto=pareto,
                keep_best=keep_best, keep_metadata=keep_metadata, **budget.sizes,
            )  # fmt: skip
        except BudgetMissed as error:
            missed, report = error, error.report  # type: ignore[assignment]
        if with_bench and options.check != "off" and report.written:
            report.bench = commands.bench_pair(run.source, run.out, options)
    run.finish(report)
    if missed is not None:
        raise missed
    if report.signal:
        click.get_current_context().exit(report.signal)
