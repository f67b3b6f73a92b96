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
    "--base", metavar="OLD", help="A pack, or a packed model: store only what it does not hold."
)
@click.option(
    "--with-reader", type=click.Choice(["c", "js"]), multiple=True,
    help="Write the reader for C99 or JavaScript beside OUT. Repeatable.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    source: str, out: str, base: str | None, with_reader: tuple[Any, ...], as_json: bool
) -> None:
    """Entropy-code the weights into a sidecar that edge readers decode.

    \b
    onnxshrink pack small.onnx packed.onnx --with-reader js
    """
    from onnxshrink import files
    from onnxshrink.graph.file.model import Model
    from onnxshrink.graph.forms import packed
    from onnxshrink.runtime.worker import blamed

    model = Model.load(source)
    before = model.stored_bytes()
    readers = [packed.reader_path(kind, Path(out).parent) for kind in with_reader]
    bases = [] if base is None else [Path(base), packed.base_path(base)]
    files.check([*model.own_files, *bases], [Path(out), *readers])
    with removal_said(out), blamed(source):  # nobody has checked the graph
        after = packed.save(model, out, base=base)
    for kind in with_reader:
        packed.write_reader(kind, Path(out).parent)
    say_sizes(out, before, after, as_json)
