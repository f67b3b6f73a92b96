"""What the commands of packed models share."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import click

from onnxshrink.cli._terminal import say, warn

base_option = click.option(
    "--base", metavar="OLD", help="The pack, or packed model, that this one updates."
)
limit_option = click.option(
    "--limit", metavar="SIZE", help="Refuse to unpack more  [default: 16GiB]"
)


@contextlib.contextmanager
def removal_said(out: str) -> Iterator[None]:
    """Say which data of the model that was there are gone, once another model is."""
    from onnxshrink.graph.file.data_files import data_files, superseded

    old = data_files(Path(out))
    yield
    for said in superseded(old, Path(out)):
        warn(said)


def say_sizes(out: str, before: int, after: int, as_json: bool) -> None:
    """Print what became of a model's bytes."""
    from onnxshrink.report import size, times

    if as_json:
        click.echo(json.dumps({"result": out, "bytes_before": before, "bytes_after": after}))
    else:
        ratio = f", {times(before, after)} smaller" if after < before else ""
        say(f"{out}: {size(before)} -> {size(after)}{ratio}")
