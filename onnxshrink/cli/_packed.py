"""What the commands of packed models share."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxshrink.cli._terminal import say, warn

if TYPE_CHECKING:
    from onnxshrink.commands import Stored

base_option = click.option("--base", metavar="OLD", help="The packed model that this one updates.")
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


def say_sizes(done: Stored, as_json: bool) -> None:
    """Print what became of a model's bytes."""
    from onnxshrink.report import size, times

    before, after = done.bytes_before, done.bytes_after
    if as_json:
        found = {"result": done.result, "bytes_before": before, "bytes_after": after}
        click.echo(json.dumps(found))
    else:
        ratio = f", {times(before, after)} smaller" if after < before else ""
        say(f"{done.result}: {size(before)} -> {size(after)}{ratio}")
