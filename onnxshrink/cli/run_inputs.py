"""The command that prepares a comparison with another machine or environment."""

from __future__ import annotations

from typing import Any

import click

from onnxshrink.cli._command import Command, common_option, input_option
from onnxshrink.cli._inputs import Inputs, input_options
from onnxshrink.cli._terminal import say, warn
from onnxshrink.cli._values import COUNT, SEED, shape_option, worker_limits, worker_options


@click.command(cls=Command)
@click.argument("model", metavar="MODEL")
@click.argument("folder", metavar="FOLDER")
@input_options
@worker_options[0]
@worker_options[1]
@worker_options[2]
@input_option("--shape", multiple=True, metavar="NAME:DIMS", help="Shape of a generated input.")
@input_option("--count", default=64, type=COUNT, help="Use at most this many inputs.")
@common_option("--seed", default=0, type=SEED, help="For generated inputs.")
def command(
    model: str, folder: str, timeout: float | None, memory_limit: str | None,
    custom_ops: tuple[str, ...],
    shape: tuple[str, ...], count: int, seed: int, **values: Any,
) -> None:  # fmt: skip
    """Write what another machine needs to run a model on the same inputs.

    FOLDER gets inputs.json and run_inputs.py, which needs numpy and ONNX Runtime there (or
    OpenVINO), and nothing of onnxshrink. Take both there with the model, run

    \b
    python run_inputs.py small.onnx inputs.json answers.json --provider OpenVINOExecutionProvider

    and bring answers.json back:

    \b
    onnxshrink run-inputs small.onnx there --calibration inputs.npz
    onnxshrink compare model.onnx small.onnx --calibration inputs.npz --results answers.json
    """
    from onnxshrink import delivery
    from onnxshrink.api import Options

    options = Options(
        **Inputs.take(values).options, shapes=dict(map(shape_option, shape)), seed=seed,
        worker=worker_limits(timeout, memory_limit, custom_ops),
    )  # fmt: skip
    written = delivery.run_inputs(model, folder, options, count=count, say=warn)
    say(f"{folder}: inputs.json with {written} inputs, and run_inputs.py")
