"""The command that makes a packed or coded model a plain one."""

from __future__ import annotations

from typing import Any

import click

from onnxshrink.cli._command import Command, common_option
from onnxshrink.cli._packed import base_option, limit_option, removal_said, say_sizes
from onnxshrink.cli._values import size_option


@click.command(cls=Command)
@click.argument("source", metavar="IN")
@click.argument("out", metavar="OUT")
@base_option
@limit_option
@click.option(
    "--storage", type=click.Choice(["auto", "single", "external"]), default="auto",
    help="One file, external data beside it, or external above 2 GB only.",
)  # fmt: skip
@common_option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    source: str, out: str, base: str | None, limit: str | None, storage: Any, as_json: bool
) -> None:
    """Turn a packed or coded model into a plain one, bit for bit.

    \b
    onnxshrink unpack packed.onnx plain.onnx
    """
    from onnxshrink import commands

    most = size_option(limit, "--limit") if limit else None
    with removal_said(out):
        done = commands.unpack(source, out, base=base, limit=most, storage=storage)
    say_sizes(done, as_json)
