"""How pictures, sentences, sounds and tables become inputs: what the user says of it."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from onnxshrink.errors import RecipeError
from onnxshrink.options import check, option, shown

Normalize = Literal["imagenet", "clip", "yolo", "zero-one"]
Resize = Literal["fit", "fill", "stretch"]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How pictures, sentences, sounds and tables become inputs.

    What is not said is read off the model's inputs, and the run says what it took them for. Text
    is taken for several numbers, too: ``image_size="224x320"``, ``mean="0.5,0.5,0.5"``,
    ``scale="1/255"``.

    Raises:
        RecipeError: An option has a value that it does not take.
    """

    normalize: Normalize | None = option(
        None, help="how pictures become numbers: a mean and deviation by name, yolo's 0 to 1 in a "
        "grey frame, or plain 0 to 1",
    )  # fmt: skip
    image_size: tuple[int, ...] = option(
        (), help="height and width of pictures, as in 224 or 480x640, where the model takes any"
    )
    resize: Resize | None = option(
        None, help="make pictures fit with a grey frame, fill and lose their rims, or stretch"
    )
    layout: Literal["nchw", "nhwc"] | None = option(
        None, help="whether channels come before the rows of a picture or last"
    )
    color: Literal["rgb", "bgr"] | None = option(None, help="order of the channels of a picture")
    scale: float | None = option(
        None, help="what pixels of 0 to 255 are multiplied by first, as in 1/255"
    )
    mean: tuple[float, ...] = option((), help="then taken off each channel, as in 0.5,0.5,0.5")
    std: tuple[float, ...] = option((), help="what each channel is divided by last")
    tokenizer: str | None = option(None, help="a tokenizer.json, which makes sentences numbers")
    max_length: int | None = option(
        None, help="most tokens of a sentence, or samples of a sound", ge=1
    )
    rate: int | None = option(None, help="samples a second that sounds are brought to", ge=1)
    show_inputs: str | None = option(
        None, help="a folder in which to show what the model will see: pictures, sounds, texts"
    )

    def __post_init__(self) -> None:
        for name in ("image_size", "mean", "std"):
            object.__setattr__(self, name, _numbers(getattr(self, name), name))
        if isinstance(self.scale, str):
            (scale,) = _numbers(self.scale, "scale")
            object.__setattr__(self, "scale", scale)
        if self.tokenizer is not None:
            object.__setattr__(self, "tokenizer", str(self.tokenizer))
        if self.show_inputs is not None:
            object.__setattr__(self, "show_inputs", str(self.show_inputs))
        check(self, "inputs")
        if len(self.image_size) > 2 or any(not 1 <= side <= 2**15 for side in self.image_size):
            raise RecipeError(f"image_size takes 224 or 480x640, not {self.image_size}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) > 4:
                raise RecipeError(f"{name} takes a number for each channel, not {len(values)}")
        if 0 in (*self.std, self.scale):
            raise RecipeError("std and scale are not 0")

    @property
    def given(self) -> tuple[str, ...]:
        """Names of the options that say something."""
        fields = dataclasses.fields(self)
        return tuple(field.name for field in fields if getattr(self, field.name) != field.default)

    @property
    def files(self) -> tuple[str, ...]:
        """The files that it names to be read."""
        return () if self.tokenizer is None else (self.tokenizer,)


def _numbers(value: Any, name: str) -> tuple[Any, ...]:
    """Several numbers, however they are given: ``224``, ``"480x640"``, ``"0.5,0.5"``, a list."""
    kind = int if name == "image_size" else float
    try:
        if isinstance(value, str):
            parts = [part for part in re.split(r"[x,;\s]+", value.strip(), flags=re.I) if part]
            if not parts:
                raise ValueError
            return tuple(_number(part, kind) for part in parts)
        return (value,) if isinstance(value, int | float) else tuple(_each(value))
    except (ValueError, TypeError, ZeroDivisionError) as error:
        example = "224 or 480x640" if kind is int else "0.485,0.456,0.406"
        raise RecipeError(f"{name} takes numbers such as {example}, not {shown(value)}") from error


def _number(text: str, kind: type[int] | type[float]) -> float:
    """One number; a fraction is one, too."""
    if kind is int:
        return int(text)
    above, slash, below = text.partition("/")
    value = float(above) / (float(below) if slash else 1.0)
    if not math.isfinite(value):
        raise ValueError
    return value


def _each(values: Iterable[Any]) -> Iterable[Any]:
    """Numbers of Python, also of numpy's and torch's arrays."""
    return (getattr(value, "item", lambda value=value: value)() for value in values)
