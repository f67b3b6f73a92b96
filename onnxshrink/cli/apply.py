"""The command that applies a recipe."""

from __future__ import annotations

from typing import Any

import click

from onnxshrink.cli._command import Command
from onnxshrink.cli._run import Run, run_options
from onnxshrink.cli._terminal import progress_bar


@click.command(cls=Command)
@click.argument("recipe", metavar="RECIPE")
@run_options
def command(recipe: str, **values: Any) -> None:
    """Apply a recipe to a model: a file, or one of `onnxshrink recipes` by its name.

    \b
    onnxshrink apply recipe.yaml model.onnx small.onnx --calibration inputs.npz
    onnxshrink apply web model.onnx small.onnx --calibration inputs.npz
    """
    run = Run(values)
    from onnxshrink import api
    from onnxshrink.recipe import Recipe

    with progress_bar() as progress:
        report = api.apply_recipe(Recipe.find(recipe), run.source, run.out, run.options(progress))
    run.finish(report)
