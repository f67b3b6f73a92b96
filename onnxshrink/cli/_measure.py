"""What the commands that run models, and write none, share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import click

from onnxshrink.cli._inputs import Inputs, input_options
from onnxshrink.cli._terminal import warn
from onnxshrink.cli._values import (
    SEED,
    decorated,
    shape_option,
    worker_options,
)

F = TypeVar("F", bound=Callable[..., Any])


def measure_options(command: F) -> F:
    """Options of the commands that run models and write none."""
    return decorated(
        command,
        (
            input_options,
            *worker_options,
            click.option(
                "--shape", multiple=True, metavar="NAME:DIMS", help="Shape of a generated input.",
            ),
            click.option(
                "--seed", default=0, type=SEED, help="For generated inputs and the order of turns.",
            ),
            click.option(
                "--provider", default="CPUExecutionProvider",
                help="Where the models run; in 'compare', where OTHER does.",
            ),
            click.option(
                "--threads", default=1, type=click.IntRange(0, 1024),
                help="Threads inside one operator; 0: one for each core.",
            ),
            click.option(
                "--accuracy-level", type=click.IntRange(0, 4),
                help="ONNX Runtime's for MatMulNBits; 0 is exact.",
            ),
            click.option("--json", "as_json", is_flag=True, help="Print JSON."),
        ),
    )  # fmt: skip


def settings(options: Mapping[str, object]) -> str:
    """Options of sessions in one line."""
    return ", ".join(f"{key}: {value}" for key, value in options.items())


def feeds_for(
    path: str, inputs: Inputs, shape: Sequence[str], count: int, seed: int, worker: Any
) -> list[dict[str, Any]]:  # fmt: skip
    """Real inputs for a model where there are some, else generated ones with a warning."""
    from onnxshrink.graph.forms import coded_read
    from onnxshrink.runtime.generate import generated_inputs
    from onnxshrink.runtime.worker import blamed

    worker.start()
    model, _ = coded_read.load(path)
    if inputs.source is not None:
        chosen = inputs.choose(model, count)
        for note in chosen.notes:
            warn(note)
        return chosen.feeds
    warn("inputs are generated; pass --calibration")
    shapes = dict(map(shape_option, shape))
    with blamed(path, worker):
        return generated_inputs(model, 4, seed, shapes=shapes, worker=worker)
