"""The command that lists the recipes of the package."""

from __future__ import annotations

import json

import click

from onnxshrink.cli._command import Command, common_option
from onnxshrink.cli._terminal import show


@click.command(cls=Command)
@common_option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_json: bool) -> None:
    """List the recipes that come with the package; `explain NAME` shows one.

    \b
    onnxshrink recipes
    """
    from onnxshrink.recipe import recipe_names, recipe_summary
    from onnxshrink.report import Table

    if as_json:
        click.echo(json.dumps({name: recipe_summary(name) for name in recipe_names()}, indent=1))
        return
    table = Table("recipes", ("recipe", "what it is for"))
    for name in recipe_names():
        table.add(name, recipe_summary(name))
    show(table)
