"""The command that makes a certified model again."""

from __future__ import annotations

from typing import Any

import click

from onnxshrink.cli._command import Command
from onnxshrink.cli._inputs import Inputs, input_options
from onnxshrink.cli._terminal import progress_bar, say
from onnxshrink.cli._values import worker_limits, worker_options


@click.command(cls=Command)
@click.argument("certificate", metavar="CERTIFICATE")
@click.argument("source", metavar="IN")
@click.argument("out", metavar="OUT")
@input_options
@worker_options[0]
@worker_options[1]
@worker_options[2]
def command(
    certificate: str, source: str, out: str, timeout: float | None, memory_limit: str | None,
    custom_ops: tuple[str, ...],
    **values: Any,
) -> None:  # fmt: skip
    """Make a certified model again from the original, and hold it against the certificate.

    \b
    onnxshrink reproduce small.onnx.certificate.json model.onnx again.onnx --calibration inputs.npz
    """
    from onnxshrink import delivery
    from onnxshrink.api import Options

    inputs = Inputs.take(values)
    with progress_bar() as progress:
        options = Options(
            **inputs.options,
            progress=progress,
            worker=worker_limits(timeout, memory_limit, custom_ops),
        )
        delivery.reproduce(certificate, source, out, options)
    say(f"{out}: the certified bytes")
