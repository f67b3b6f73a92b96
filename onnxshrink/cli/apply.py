"""The command that applies a recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from onnxshrink.cli._budget import Budget, budget_options, finish, lifting_option
from onnxshrink.cli._command import Command
from onnxshrink.cli._run import RunOptions, run_options
from onnxshrink.cli._terminal import progress_bar

if TYPE_CHECKING:
    from onnxshrink.report import Report


@click.command(cls=Command)
@click.argument("recipe", metavar="RECIPE")
@run_options
@budget_options
@lifting_option
def command(recipe: str, **values: Any) -> None:
    """Apply a recipe to a model: a file, or one of `onnxshrink recipes` by its name.

    \b
    onnxshrink apply recipe.yaml model.onnx small.onnx --calibration inputs.npz
    onnxshrink apply web model.onnx small.onnx --calibration inputs.npz
    """
    run, budget = RunOptions(values), Budget.take(values)
    from onnxshrink import api
    from onnxshrink.recipe import Recipe

    def produce() -> Report:
        with progress_bar() as progress:
            options = run.options(progress, budget.reads)
            return api.apply_recipe(
                Recipe.find(recipe), run.source, run.out, options, goal=budget.goal(),
                **budget.sizes,
            )  # fmt: skip

    finish(run, produce)
