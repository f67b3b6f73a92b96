"""Options of every command that takes inputs: where they are, and how they become numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from onnxshrink.cli._command import input_option
from onnxshrink.cli._values import data_limit_option, size_option
from onnxshrink.options import Option, options_of
from onnxshrink.reading import Reading

if TYPE_CHECKING:
    from onnxshrink.graph.file.model import Model
    from onnxshrink.runtime.inputs import Chosen

F = TypeVar("F", bound=Callable[..., Any])

#: How values of several numbers are written.
_METAVARS = {
    "image_size": "HxW", "scale": "X", "mean": "R,G,B", "std": "R,G,B", "tokenizer": "FILE",
    "max_length": "N", "rate": "HZ", "show_inputs": "FOLDER",
}  # fmt: skip

#: Names that hold where a pass has an option of the first one.
_ALSO = {"scale": "--pixel-scale", "rate": "--sample-rate"}
_PREFIX = "reading_"  # a pass may have an option of the same name


def _reading_option(option: Option) -> Callable[[F], F]:
    kind: Any = click.Choice(option.choices) if option.choices else str
    if option.name in ("max_length", "rate"):
        kind = click.IntRange(min=1)
    flags = [f"--{option.name.replace('_', '-')}"]
    if option.name in _ALSO:
        flags.append(_ALSO[option.name])
    return input_option(
        *flags, _PREFIX + option.name, type=kind, metavar=_METAVARS.get(option.name),
        help=f"{option.help[0].upper()}{option.help[1:]}.",
    )  # fmt: skip


#: How pictures, sentences, sounds and tables become inputs.
reading_options = tuple(map(_reading_option, options_of(Reading)))
READING = tuple(option.name for option in options_of(Reading))


def input_options(command: F) -> F:
    """Where real inputs are, and how they are read."""
    calibration = input_option(
        "--calibration", "--inputs", metavar="DATA", multiple=True,
        help="Real inputs: .npz or .npy; pictures, sentences, sounds or a table; a folder, a "
        "pattern, or module.py:function. Repeatable.",
    )  # fmt: skip
    for decorate in reversed((calibration, *reading_options, data_limit_option)):
        command = decorate(command)
    return command


@dataclass(frozen=True)
class Inputs:
    """The values of these options.

    Attributes:
        source: What ``runtime.inputs`` reads; None where nothing is given.
        reading: How to read it.
        data_limit: Bytes that one array may unpack to.
    """

    source: str | Sequence[str] | None
    reading: Reading
    data_limit: int | None

    @classmethod
    def take(cls, values: dict[str, Any]) -> Inputs:
        """Take the values out of a command's.

        Raises:
            RecipeError: One of them is not what its option takes.
        """
        given = list(values.pop("calibration"))
        reading = {name: values.pop(_PREFIX + name) for name in READING}
        limit = values.pop("data_limit")
        return cls(
            given[0] if len(given) == 1 else given or None,
            Reading(**{name: value for name, value in reading.items() if value is not None}),
            size_option(limit, "--data-limit") if limit else None,
        )

    @property
    def options(self) -> dict[str, Any]:
        """Them as ``onnxshrink.Options`` takes them."""
        return {
            "calibration": self.source, "reading": self.reading, "data_limit": self.data_limit,
        }  # fmt: skip

    def choose(self, model: Model, count: int) -> Chosen:
        """Inputs for a model."""
        from onnxshrink.runtime.inputs import choose_inputs

        return choose_inputs(
            self.source, model, limit=count, most_bytes=self.data_limit, reading=self.reading
        )
