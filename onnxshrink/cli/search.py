"""The command that lets recipes evolve."""

from __future__ import annotations

from typing import Any, get_args

import click

from onnxshrink.cli._budget import Budget, budget_options
from onnxshrink.cli._command import Command
from onnxshrink.cli._run import RunOptions, run_options
from onnxshrink.cli._terminal import progress_bar
from onnxshrink.cli._values import COUNT, number
from onnxshrink.errors import BudgetMissed
from onnxshrink.search.platform import Name


@click.command(cls=Command)
@run_options
@budget_options
@click.option(
    "--trials", type=COUNT, default=100, show_default=True,
    help="Recipes that the study shall have tried in the end, those of earlier runs included.",
)  # fmt: skip
@click.option("--time-limit", type=number, metavar="S", help="Seconds to search.")
@click.option("--latency", is_flag=True, help="Make the least of the latency, too; it is measured.")
@click.option(
    "--target", type=click.Choice(get_args(Name)), default="cpu", show_default=True,
    help="Where the results shall run: they have no operators that are not there.",
)  # fmt: skip
@click.option("--jobs", type=COUNT, default=1, show_default=True, help="Processes to search in.")
@click.option(
    "--scheduler", metavar="URL",
    help="Evaluate on the workers of this Dask scheduler, as in tcp://host:8786.",
)  # fmt: skip
@click.option(
    "--database", metavar="URL",
    help="Keep the study there, as in postgresql://host/name  [default: OUT/study.db]",
)  # fmt: skip
@click.option(
    "--study", metavar="NAME", default="onnxshrink", show_default=True,
    help="Its name in the database.",
)  # fmt: skip
def command(**values: Any) -> None:
    """Let recipes evolve, on as many machines as there are, and write the best of each size.

    OUT is a folder. A search that was stopped or killed goes on where it was.

    \b
    onnxshrink search model.onnx results --calibration inputs.npz --jobs 2
    """
    run = RunOptions(values)
    budget = Budget.take(values)
    from onnxshrink.evolving import evolve

    missed: BudgetMissed | None = None
    with progress_bar() as progress:
        options = run.options(progress, budget.reads)
        try:
            report = evolve(
                run.source, run.out, options, goal=budget.goal(), **budget.sizes, **values
            )
        except BudgetMissed as error:
            missed, report = error, error.report  # type: ignore[assignment]
    run.finish(report)
    if missed is not None:
        raise missed
