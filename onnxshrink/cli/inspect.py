"""The command that shows what models are made of."""

from __future__ import annotations

import json

import click

from onnxshrink.cli._command import Command, common_option
from onnxshrink.cli._terminal import show
from onnxshrink.cli._values import shape_option


@click.command(cls=Command)
@click.argument("models", nargs=-1, required=True, metavar="MODEL [MODEL ...]")
@click.option("--layer", metavar="NAME", help="One weight in detail, with its distribution.")
@click.option("--shape", multiple=True, metavar="NAME:DIMS", help="Shape of an input, for MACs.")
@common_option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    models: tuple[str, ...], layer: str | None, shape: tuple[str, ...], as_json: bool
) -> None:
    """Show what a model is made of, or several side by side.

    \b
    onnxshrink inspect model.onnx small.onnx
    """
    from onnxshrink import commands
    from onnxshrink.graph.forms import coded_read
    from onnxshrink.graph.inspect import statistics as look
    from onnxshrink.graph.inspect.packs import PackInspection
    from onnxshrink.runtime.worker import blamed

    shapes = dict(map(shape_option, shape))
    found: list[look.Inspection | PackInspection] = []
    for path in models:
        if layer is None:
            found.append(commands.inspect(path, shapes=shapes))
            continue
        with blamed(path):
            for table in look.layer_table(coded_read.load(path)[0], layer):
                show(table)
    if layer is not None:
        return
    if as_json:
        data = [inspection.to_dict() for inspection in found]
        click.echo(json.dumps(data if len(data) > 1 else data[0], indent=1, default=str))
        return
    plain = [each for each in found if isinstance(each, look.Inspection)]
    if len(plain) > 1:
        for table in look.compare_models(plain):
            show(table)
    for each in found:
        if len(plain) == 1 or isinstance(each, PackInspection):
            for table in each.tables():
                show(table)
