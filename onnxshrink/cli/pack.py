"""The command that packs a model."""

from __future__ import annotations

from typing import Any

import click

from onnxshrink.cli._command import Command, common_option
from onnxshrink.cli._packed import removal_said, say_sizes
from onnxshrink.cli._terminal import warn


@click.command(cls=Command)
@click.argument("source", metavar="IN")
@click.argument("out", metavar="OUT")
@click.option(
    "--form",
    type=click.Choice(["sidecar", "graph"]),
    default="sidecar",
    help="One file for readers of packs, or a plain .onnx that every runtime opens.",
)
@click.option("--base", metavar="OLD", help="A packed model: store only what it does not hold.")
@click.option(
    "--with-reader", type=click.Choice(["c", "js"]), multiple=True,
    help="Write the reader for C99 or JavaScript beside OUT. Repeatable.",
)  # fmt: skip
@common_option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    source: str, out: str, form: Any, base: str | None, with_reader: tuple[Any, ...], as_json: bool
) -> None:
    """Entropy-code the weights, without loss: for our readers, or in the graph.

    For readers (Python, C, JavaScript) one file holds the weights and the graph, and is smallest;
    it may have any name. In the graph, standard operators rebuild the weights, which runtimes fold
    when they load the model.

    \b
    onnxshrink pack small.onnx packed.onnx --with-reader js
    onnxshrink pack small.onnx coded.onnx --form graph
    """
    from onnxshrink import commands

    if form == "graph" and (base is not None or with_reader):
        raise click.UsageError("--base and --with-reader are for --form sidecar")
    with removal_said(out):
        done = commands.pack(source, out, form=form, base=base, readers=with_reader)
    for line in done.warnings:
        warn(line)
    say_sizes(done, as_json)
