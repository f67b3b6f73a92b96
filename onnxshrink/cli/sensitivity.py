"""The command that measures which weights a step may change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from onnxshrink.cli._command import Command, common_option, input_option
from onnxshrink.cli._inputs import Inputs, input_options
from onnxshrink.cli._terminal import progress_bar, say, show, warn
from onnxshrink.cli._values import COUNT, SEED, shape_option, worker_limits, worker_options
from onnxshrink.errors import RecipeError


@click.command(cls=Command)
@click.argument("model", metavar="MODEL")
@click.option("--step", default="quantize-weights", metavar="PASS", show_default=True,
              help="What to do to each weight; any pass with --only.")  # fmt: skip
@click.option("--set", "given", multiple=True, metavar="OPTION=VALUE",
              help="An option of that pass, as in dtype=int4. Repeatable.")  # fmt: skip
@input_options
@worker_options[0]
@worker_options[1]
@worker_options[2]
@input_option("--shape", multiple=True, metavar="NAME:DIMS", help="Shape of a generated input.")
@input_option(
    "--count", default=16, type=COUNT, show_default=True, help="Use at most this many inputs."
)
@common_option("--seed", default=0, type=SEED, help="For everything that is random.")
@click.option("--by", type=click.Choice(["weight", "node"]), default="weight",
              help="Measure every weight, or all of one operator as one.")  # fmt: skip
@click.option("--plot", metavar="FILE.svg", help="Draw it.")
@common_option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    model: str, step: str, given: tuple[str, ...], shape: tuple[str, ...], count: int, seed: int,
    by: Any, plot: str | None, as_json: bool, timeout: float | None, memory_limit: str | None,
    custom_ops: tuple[str, ...],
    **values: Any,
) -> None:  # fmt: skip
    """Measure what a step does to the outputs, weight by weight, alone and with others.

    \b
    onnxshrink sensitivity model.onnx --set dtype=int4 --calibration inputs.npz --plot layers.svg
    """
    if plot is not None and not plot.endswith(".svg"):
        raise RecipeError(f"--plot {plot}: takes an .svg file")
    inputs = Inputs.take(values)
    from onnxshrink import commands, files
    from onnxshrink.api import Options
    from onnxshrink.graph.forms import coded_read
    from onnxshrink.runtime.inputs import source_files

    if plot is not None:
        own = coded_read.load(model)[0].own_files
        files.check([*own, *source_files(inputs.source)], [plot])
    with progress_bar() as progress:
        options = Options(
            **inputs.options, shapes=dict(map(shape_option, shape)), seed=seed, progress=progress,
            worker=worker_limits(timeout, memory_limit, custom_ops),
        )  # fmt: skip
        found = commands.sensitivity(
            model, step, options, settings=_options(given), count=count, by=by, say=warn
        )
    if plot is not None:
        with files.output(Path(plot)) as file:
            file.write(found.to_svg().encode())
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=1))
    elif found.parts:
        show(found.table())
    else:
        say(f"{step} changes nothing in {model}")


def _options(given: tuple[str, ...]) -> dict[str, Any]:
    """Options as they are written in a recipe."""
    from onnxshrink import plain_yaml

    options = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise RecipeError(f"--set takes OPTION=VALUE, not {text!r}")
        options[name] = plain_yaml.parse(value, f"--set {name}")
    return options
