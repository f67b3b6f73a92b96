"""The command that makes a certified model again."""

from __future__ import annotations

from typing import Any

import click

from onnxshrink.cli._terminal import progress_bar, say
from onnxshrink.cli._values import data_limit_option, size_option, worker_limits, worker_options


@click.command()
@click.argument("certificate", metavar="CERTIFICATE")
@click.argument("source", metavar="IN")
@click.argument("out", metavar="OUT")
@click.option("--calibration", metavar="DATA", multiple=True, help="The inputs. Repeatable.")
@data_limit_option
@worker_options[0]
@worker_options[1]
def command(
    certificate: str, source: str, out: str, calibration: tuple[str, ...], data_limit: str | None,
    **limits: Any,
) -> None:  # fmt: skip
    """Make a certified model again from the original, and hold it against the certificate.

    \b
    onnxshrink reproduce small.onnx.certificate.json model.onnx again.onnx --calibration inputs.npz
    """
    from onnxshrink import api
    from onnxshrink.certificate import read
    from onnxshrink.reproduce import reproduce

    found = read(certificate)
    data = calibration[0] if len(calibration) == 1 else list(calibration) or None
    with progress_bar() as progress:
        options = api.Options(
            calibration=data, progress=progress, reads=(certificate,),
            data_limit=size_option(data_limit, "--data-limit") if data_limit else None,
            worker=worker_limits(**limits),
        )  # fmt: skip
        reproduce(found, source, out, options)
    say(f"{out}: the certified bytes")
