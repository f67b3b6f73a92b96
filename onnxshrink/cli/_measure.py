"""What the commands that run models, and write none, share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from onnxshrink.cli._command import common_option, input_option
from onnxshrink.cli._inputs import Inputs, input_options
from onnxshrink.cli._values import (
    SEED,
    decorated,
    shape_option,
    worker_limits,
    worker_options,
)

if TYPE_CHECKING:
    from onnxshrink.api import Options
    from onnxshrink.runtime.session import SessionOptions

CPU = "CPUExecutionProvider"
F = TypeVar("F", bound=Callable[..., Any])


def measure_options(command: F) -> F:
    """Options of the commands that run models and write none."""
    return decorated(
        command,
        (
            input_options,
            *worker_options,
            input_option(
                "--shape", multiple=True, metavar="NAME:DIMS", help="Shape of a generated input.",
            ),
            common_option(
                "--seed", default=0, type=SEED, help="For generated inputs and the order of turns.",
            ),
            common_option(
                "--provider", default=CPU,
                help="Where the models run; in 'compare', where OTHER does.",
            ),
            common_option(
                "--threads", default=1, type=click.IntRange(0, 1024), metavar="N",
                help="Threads inside one operator; 0: one for each core.",
            ),
            common_option(
                "--accuracy-level", type=click.IntRange(0, 4), metavar="N",
                help="ONNX Runtime's for MatMulNBits; 0 is exact.",
            ),
            common_option("--json", "as_json", is_flag=True, help="Print JSON."),
        ),
    )  # fmt: skip


def settings(options: Mapping[str, object]) -> str:
    """Options of sessions in one line."""
    return ", ".join(f"{key}: {value}" for key, value in options.items())


@dataclass(frozen=True)
class MeasureOptions:
    """The values of these options.

    Attributes:
        inputs: Where inputs are, and how they are read.
        provider: Where the models run.
        as_json: Whether to print JSON.
    """

    inputs: Inputs
    shapes: dict[str, tuple[int, ...]]
    seed: int
    limits: dict[str, Any]
    provider: str
    threads: int
    accuracy_level: int | None
    as_json: bool

    @classmethod
    def take(cls, values: dict[str, Any]) -> MeasureOptions:
        """Take the values out of a command's.

        Raises:
            RecipeError: One of them is not what its option takes.
        """
        return cls(
            Inputs.take(values), dict(map(shape_option, values.pop("shape"))), values.pop("seed"),
            worker_limits(*(values.pop(n) for n in ("timeout", "memory_limit", "custom_ops"))),
            values.pop("provider"), values.pop("threads"), values.pop("accuracy_level"),
            values.pop("as_json"),
        )  # fmt: skip

    def options(self) -> Options:
        """Them as :mod:`onnxshrink.commands` takes them."""
        from onnxshrink.api import Options

        return Options(
            **self.inputs.options, shapes=self.shapes, seed=self.seed, worker=self.limits
        )

    @property
    def session(self) -> SessionOptions:
        """How the models run."""
        from onnxshrink.runtime.session import SessionOptions

        return SessionOptions(
            provider=self.provider, threads=self.threads, accuracy_level=self.accuracy_level
        )
