"""What the commands of packed models share."""

from __future__ import annotations

import json

import click

base_option = click.option("--base", metavar="PACK", help="The pack that this one updates.")
limit_option = click.option(
    "--limit", metavar="SIZE", help="Refuse to unpack more  [default: 16GiB]"
)


def say_sizes(out: str, before: int, after: int, as_json: bool) -> None:
    """Print what became of a model's bytes."""
    from onnxshrink.report import size, times

    if as_json:
        click.echo(json.dumps({"result": out, "bytes_before": before, "bytes_after": after}))
    else:
        ratio = f", {times(before, after)} smaller" if after < before else ""
        click.echo(f"{out}: {size(before)} -> {size(after)}{ratio}")
