"""The command that adds other places to a certificate."""

from __future__ import annotations

from typing import Any

import click

from onnxshrink.cli._command import Command
from onnxshrink.cli._inputs import Inputs, input_options
from onnxshrink.cli._places import places, show_findings, where_options
from onnxshrink.cli._terminal import say
from onnxshrink.cli._values import worker_limits, worker_options
from onnxshrink.errors import RecipeError


@click.command(cls=Command)
@click.argument("source", metavar="IN")
@click.argument("original", metavar="ORIGINAL")
@where_options
@click.option("--certificate", metavar="FILE", help="By default IN.certificate.json.")
@click.option("--sign", metavar="KEY", help="Sign it with this Ed25519 key (PEM).")
@input_options
@worker_options[0]
@worker_options[1]
@worker_options[2]
def command(
    source: str, original: str, providers: str | None, python: str | None, node: str | None,
    web: str | None, certificate: str | None, sign: str | None, timeout: float | None,
    memory_limit: str | None, custom_ops: tuple[str, ...], **values: Any,
) -> None:  # fmt: skip
    """Put what a model does in other places into its certificate.

    The figures there are of the inputs that the certificate was made with. What is signed is signed
    anew; a place that does not run the model is certified not to.

    \b
    onnxshrink certify small.onnx model.onnx --calibration inputs.npz --providers CPU,reference
    """
    from onnxshrink import delivery
    from onnxshrink.api import Options

    inputs, where = Inputs.take(values), places(providers, python, node, web)
    if not where or inputs.options["calibration"] is None:
        raise RecipeError(
            "certify takes places (--providers, --node, --web) and the --calibration inputs that "
            "the certificate was made with"
        )
    findings = delivery.certify(
        source, original, where,
        Options(**inputs.options, worker=worker_limits(timeout, memory_limit, custom_ops)),
        certificate=certificate, key=sign,
    )  # fmt: skip
    show_findings(f"{source} against {original}", findings, as_json=False)
    say(f"{certificate or source}: certified in {', '.join(one.label for one in findings)}")
