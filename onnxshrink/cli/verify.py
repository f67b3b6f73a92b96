"""The command that checks a packed, coded or certified model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxshrink.cli._inputs import Inputs, input_options
from onnxshrink.cli._packed import base_option, limit_option
from onnxshrink.cli._terminal import say
from onnxshrink.cli._values import size_option, worker_limits, worker_options


@click.command()
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
@input_options
@worker_options[0]
@worker_options[1]
def command(
    source: str, base: str | None, limit: str | None, certificate: str | None, key: str | None,
    original: str | None, timeout: float | None, memory_limit: str | None, **values: Any,
) -> None:  # fmt: skip
    """Check a model: every checksum of packed or coded weights, and its certificate.

    Of a bundle (a folder), the manifest and every file that it names.

    \b
    onnxshrink verify packed.onnx
    onnxshrink verify small.onnx --original model.onnx --calibration inputs.npz
    """
    from onnxshrink.api import Options
    from onnxshrink.certificate import check_files, path_of, read, stored
    from onnxshrink.errors import RecipeError
    from onnxshrink.graph.forms import coded_read, packed
    from onnxshrink.reproduce import recheck

    inputs = Inputs.take(values)
    if Path(source).is_dir():
        from onnxshrink.bundle import verify

        say(f"{source}: {verify(source, key)} files, all as in the manifest")
        return
    if (original is None) != (inputs.source is None):
        raise RecipeError("--original and --calibration go together: figures need both")
    certified = certificate is not None or path_of(source).exists()
    if not certified and (key is not None or original is not None):
        raise RecipeError(f"{path_of(source)}: is not there; name the --certificate")
    if certified:
        found = read(certificate or path_of(source), key)
        check_files(found, stored(source))
        signed = "signed" if found.content.get("signature") else "not signed"
        signed = f"signed with {key}" if key else signed
        say(f"{source}: the files are those of {found.path}, which is intact and {signed}")
        if original is not None:
            options = Options(**inputs.options, worker=worker_limits(timeout, memory_limit))
            again = recheck(found, original, source, options)
            say(f"measured again on {again.feeds} inputs: no worse than certified")
    if coded_read.names(source):
        click.echo(f"{source}: {coded_read.verify(source)} coded tensors, every checksum is right")
    elif not certified or packed.pack_name(Path(source)) is not None:
        most = size_option(limit, "--limit") if limit else None
        with packed.open_pack(source, base=base, limit=most) as opened:
            opened.verify()
            say(f"{opened.path}: {len(opened)} tensors, every checksum is right")
