"""The command that lists the passes."""

from __future__ import annotations

import json

import click

from onnxshrink.cli._command import Command, common_option
from onnxshrink.cli._terminal import show


@click.command(cls=Command)
@common_option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_json: bool) -> None:
    """List the passes.

    \b
    onnxshrink passes
    """
    from onnxshrink.recipe import pass_names, summary
    from onnxshrink.report import Table

    if as_json:
        click.echo(json.dumps({name: summary(name) for name in pass_names()}, indent=1))
        return
    table = Table("passes", ("pass", "what it does"))
    for name in pass_names():
        table.add(name, summary(name))
    show(table)
