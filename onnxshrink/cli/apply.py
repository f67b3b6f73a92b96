"""The command that applies a recipe."""

from __future__ import annotations

from typing import Any

import click

from onnxshrink.cli._run import Run, run_options
from onnxshrink.cli._terminal import progress_bar


@click.command()
@click.argument("recipe", metavar="RECIPE")
@run_options
def command(recipe: str, **values: Any) -> None:
    """Apply a recipe file to a model.

    \b
    onnxshrink apply recipe.yaml model.onnx small.onnx --calibration inputs.npz
    """
    run = Run(values)
    from onnxshrink import api
    from onnxshrink.recipe import Recipe

    with progress_bar() as progress:
        report = api.apply_recipe(Recipe.load(recipe), run.source, run.out, run.options(progress))
    run.finish(report)
