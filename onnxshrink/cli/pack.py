"""The command that packs a model's weights into a sidecar."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxshrink.cli._packed import removal_said, say_sizes


@click.command()
@click.argument("source", metavar="IN")
@click.argument("out", metavar="OUT")
@click.option(
    "--form",
    type=click.Choice(["sidecar", "graph"]),
    default="sidecar",
    help="A sidecar for readers of packs, or one plain .onnx that every runtime opens.",
)
@click.option(
    "--base", metavar="OLD", help="A pack, or a packed model: store only what it does not hold."
)
@click.option(
    "--with-reader", type=click.Choice(["c", "js"]), multiple=True,
    help="Write the reader for C99 or JavaScript beside OUT. Repeatable.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    source: str, out: str, form: str, base: str | None, with_reader: tuple[Any, ...], as_json: bool
) -> None:
    """Entropy-code the weights, without loss: in a sidecar, or in the graph.

    A sidecar is smallest and decoded by our readers. In the graph, standard operators rebuild the
    weights, which runtimes fold when they load the model.

    \b
    onnxshrink pack small.onnx packed.onnx --with-reader js
    onnxshrink pack small.onnx coded.onnx --form graph
    """
    from onnxshrink import files
    from onnxshrink.graph.forms import coded, coded_read, packed
    from onnxshrink.runtime.worker import blamed

    if form == "graph" and (base is not None or with_reader):
        raise click.UsageError("--base and --with-reader are for --form sidecar")
    model, _ = coded_read.load(source)
    before = model.stored_bytes()
    readers = [packed.reader_path(kind, Path(out).parent) for kind in with_reader]
    bases = [] if base is None else [Path(base), packed.base_path(base)]
    files.check([*model.own_files, *bases], [Path(out), *readers])
    with removal_said(out), blamed(source):  # nobody has checked the graph
        if form == "graph":
            after, coding = coded.save(model, out)
            for line in coding.warnings():
                click.echo(line, err=True)
        else:
            after = packed.save(model, out, base=base)
    for kind in with_reader:
        packed.write_reader(kind, Path(out).parent)
    say_sizes(out, before, after, as_json)
