"""The command that checks a packed, coded or certified model."""

from __future__ import annotations

from typing import Any

import click

from onnxshrink.cli._command import Command
from onnxshrink.cli._inputs import Inputs, input_options
from onnxshrink.cli._packed import base_option, limit_option
from onnxshrink.cli._places import places, where_options
from onnxshrink.cli._terminal import say
from onnxshrink.cli._values import size_option, worker_limits, worker_options


@click.command(cls=Command)
@click.argument("source", metavar="IN")
@base_option
@limit_option
@click.option(
    "--certificate",
    metavar="FILE",
    help="By default IN.certificate.json, where that is there.",
)
@click.option("--key", metavar="FILE", help="The public key (Ed25519, PEM) that must fit.")
@click.option(
    "--original",
    metavar="MODEL",
    help="With --calibration: measure again what is certified.",
)
@where_options
@input_options
@worker_options[0]
@worker_options[1]
@worker_options[2]
def command(
    source: str, base: str | None, limit: str | None, certificate: str | None, key: str | None,
    original: str | None, providers: str | None, python: str | None, node: str | None,
    web: str | None, timeout: float | None, memory_limit: str | None,
    custom_ops: tuple[str, ...], **values: Any,
) -> None:  # fmt: skip
    """Check a model: every checksum of packed or coded weights, and its certificate.

    Of a bundle (a folder), the manifest and every file that it names.

    \b
    onnxshrink verify packed.onnx
    onnxshrink verify small.onnx --original model.onnx --calibration inputs.npz

    The second measures the figures again, and those of places that 'certify' has put there.
    """
    from onnxshrink import commands
    from onnxshrink.api import Options

    inputs = Inputs.take(values)
    done = commands.verify(
        source,
        Options(**inputs.options, worker=worker_limits(timeout, memory_limit, custom_ops)),
        base=base,
        limit=size_option(limit, "--limit") if limit else None, certificate=certificate, key=key,
        original=original, places=places(providers, python, node, web),
    )  # fmt: skip
    if done.files:
        say(f"{source}: {done.files} files, all as in the manifest")
    if done.certificate is not None:
        signed = f"signed with {key}" if key else "signed" if done.signed else "not signed"
        say(f"{source}: the files are those of {done.certificate}, which is intact and {signed}")
    if done.feeds:
        say(f"measured again on {done.feeds} inputs: no worse than certified")
    if done.latency is not None:
        now, then = done.latency
        say(f"a run takes {now:.2f} times the original's here, {then:.2f} where it was certified")
    if done.where:
        say(f"{done.where}: {done.tensors} tensors, every checksum is right")
