"""The command that packs up a model for an application."""

from __future__ import annotations

from typing import Any

import click

from onnxshrink.cli._command import Command, common_option, input_option
from onnxshrink.cli._inputs import Inputs, input_options
from onnxshrink.cli._terminal import say, warn
from onnxshrink.cli._values import SEED, shape_option, worker_limits, worker_options

_TARGETS = ("web", "mobile", "android", "ios", "linux-c", "python")


@click.command(cls=Command)
@click.argument("source", metavar="IN")
@click.argument("out", metavar="OUT")
@click.option(
    "--target",
    type=click.Choice(_TARGETS),
    required=True,
    help="Where the model will run.",
)
@click.option(
    "--runtime",
    "web_runtime",
    metavar="FOLDER",
    help="For web: where npm has installed onnxruntime-web, which goes along.",
)
@click.option(
    "--licence",
    "--license",
    "licences",
    metavar="FILE",
    multiple=True,
    help="Goes along, as LICENSE files beside IN do. Repeatable.",
)
@click.option("--sign", metavar="KEY", help="Sign the manifest with this Ed25519 key (PEM).")
@input_options
@worker_options[0]
@worker_options[1]
@worker_options[2]
@input_option("--shape", multiple=True, metavar="NAME:DIMS", help="Shape of a generated sample.")
@common_option("--seed", default=0, type=SEED, help="For a generated sample.")
def command(
    source: str, out: str, target: str, web_runtime: str | None, licences: tuple[str, ...],
    sign: str | None, timeout: float | None, memory_limit: str | None,
    custom_ops: tuple[str, ...], shape: tuple[str, ...],
    seed: int, **values: Any,
) -> None:  # fmt: skip
    """Put a model into a folder or .zip with what an application needs: an example that runs.

    The example runs on the first input and holds the answer against the one that the model gave
    here. A certificate beside IN goes along, and its figures into the README.

    \b
    onnxshrink bundle small.onnx app --target web --calibration inputs.npz
    onnxshrink bundle small.onnx app.zip --target mobile --calibration inputs.npz
    """
    from onnxshrink import delivery
    from onnxshrink.api import Options

    options = Options(
        **Inputs.take(values).options, shapes=dict(map(shape_option, shape)), seed=seed,
        worker=worker_limits(timeout, memory_limit, custom_ops),
    )  # fmt: skip
    names = delivery.bundle(
        source, out, target, options, web_runtime=web_runtime, licences=licences, sign=sign,
        say=warn,
    )  # fmt: skip
    say(f"{out}: {len(names)} files for {target}: {', '.join(names)}")
