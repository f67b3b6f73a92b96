"""The command that checks a packed or coded model."""

from __future__ import annotations

import click

from onnxshrink.cli._packed import base_option, limit_option
from onnxshrink.cli._terminal import say
from onnxshrink.cli._values import size_option


@click.command()
@click.argument("source", metavar="IN")
@base_option
@limit_option
def command(source: str, base: str | None, limit: str | None) -> None:
    """Decode all of a packed or coded model and check every checksum.

    \b
    onnxshrink verify packed.onnx
    """
    from onnxshrink.graph.forms import coded_read, packed

    if coded_read.names(source):
        click.echo(f"{source}: {coded_read.verify(source)} coded tensors, every checksum is right")
        return
    most = size_option(limit, "--limit") if limit else None
    with packed.open_pack(source, base=base, limit=most) as opened:
        opened.verify()
        say(f"{opened.path}: {len(opened)} tensors, every checksum is right")
