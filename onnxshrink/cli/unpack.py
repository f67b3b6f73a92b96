"""The command that makes a packed or coded model a plain one."""

from __future__ import annotations

from typing import Any

import click

from onnxshrink.cli._packed import base_option, limit_option, removal_said, say_sizes
from onnxshrink.cli._values import size_option


@click.command()
@click.argument("source", metavar="IN")
@click.argument("out", metavar="OUT")
@base_option
@limit_option
@click.option(
    "--storage", type=click.Choice(["auto", "single", "external"]), default="auto",
    help="One file, external data beside it, or external above 2 GB only.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    source: str, out: str, base: str | None, limit: str | None, storage: Any, as_json: bool
) -> None:
    """Turn a packed or coded model into a plain one, bit for bit.

    \b
    onnxshrink unpack packed.onnx plain.onnx
    """
    from onnxshrink.graph.forms import coded_read, packed

    if coded_read.names(source):
        model, _ = coded_read.load(source)
        before = model.stored_bytes()
        say_sizes(out, before, model.save(out, storage), as_json)
        return
    most = size_option(limit, "--limit") if limit else None
    with removal_said(out):
        after = packed.unpack(source, out, storage, base=base, limit=most)
    say_sizes(out, packed.stored_bytes(source), after, as_json)
