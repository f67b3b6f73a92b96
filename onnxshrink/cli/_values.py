"""Values as people write them on a command line."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from onnxshrink.cli._command import common_option, input_option
from onnxshrink.errors import RecipeError

F = TypeVar("F", bound=Callable[..., Any])
_MOST_ELEMENTS = 2**31
_DIGITS = 18


def decorated(command: F, options: Sequence[Callable[[F], F]]) -> F:
    """A command with these options, which its help shows in this order."""
    for option in reversed(options):
        command = option(command)
    return command


def number(text: str) -> float:
    """A finite number of at least zero.

    Raises:
        BadParameter: It is no number, NaN, infinite or negative.
    """
    _refuse_percent(text)
    try:
        found = float(text)
    except (ValueError, OverflowError):
        found = math.nan
    if not 0 <= found < math.inf:
        raise click.BadParameter(f"{text[:60]!r} is not a finite number of at least 0")
    return found


data_limit_option = input_option(
    "--data-limit", metavar="SIZE",
    help="Refuse an array of an .npz that unpacks to more  [default: 4GiB]",
)  # fmt: skip
#: Of the process that runs models.
worker_options = (
    common_option(
        "--timeout", type=number, metavar="SECONDS",
        help="Let a load or a run take no longer; 0: for ever  [default: 1800]",
    ),
    common_option(
        "--memory-limit", metavar="SIZE",
        help="Address space for models that run  [default: the machine's memory and 16GiB]",
    ),
    common_option(
        "--custom-ops", multiple=True, metavar="LIB",
        help="A shared library with custom operators of the model. Repeatable.",
    ),
)  # fmt: skip


class Number(click.types.FloatParamType):
    """Any number."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The number of a text."""
        _refuse_percent(str(value))
        found: float = super().convert(value, param, ctx)
        return found


def _refuse_percent(text: str) -> None:
    """Say how a percentage is written as a share."""
    with contextlib.suppress(ValueError):
        if text.endswith("%"):
            share = float(text[:-1]) / 100
            raise click.BadParameter(f"{text[:60]!r} is written as {share:g}")


class WholeNumber(click.IntRange):
    """A whole number; help shows its least value, since nobody comes near the largest."""

    name = "N"

    def __init__(self, least: int, bits: int):
        super().__init__(min=least)
        self._largest = 2**bits - 1

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number of a text."""
        found: int = super().convert(value, param, ctx)
        if found > self._largest:
            self.fail(f"{found} is more than {self._largest}", param, ctx)
        return found


#: How many inputs to use: at least one.
COUNT = WholeNumber(1, 31)
#: Of generators of random numbers.
SEED = WholeNumber(0, 63)


def shape_option(text: str) -> tuple[str, tuple[int, ...]]:
    """The input and the shape that a ``--shape`` names.

    Raises:
        RecipeError: It is not of the form ``NAME:1,3,224,224``.
    """
    name, _, dims = text.rpartition(":")
    sizes = dims.split(",")
    if not name or not all(size.strip().isdecimal() for size in sizes):
        raise RecipeError(f"--shape takes NAME:1,3,224,224, not {text!r}")
    if any(len(size.strip()) > _DIGITS for size in sizes):
        raise RecipeError(f"--shape {name}: a size has more than {_DIGITS} digits")
    shape = tuple(map(int, sizes))
    if math.prod(shape) > _MOST_ELEMENTS:
        raise RecipeError(f"--shape {name}: asks for {math.prod(shape):,} numbers")
    return name, shape


def function_files(text: str | None) -> list[str]:
    """The file that ``FILE.py:FUNCTION`` names, if it is given."""
    return [] if text is None else [text.rpartition(":")[0]]


def worker_limits(
    timeout: float | None, memory_limit: str | None, custom_ops: Sequence[str]
) -> dict[str, Any]:
    """What ``Worker`` is told of these options: nothing where its defaults hold.

    Raises:
        RecipeError: The limit is no size, or a library is no file.
    """
    limits: dict[str, Any] = {}
    if timeout is not None:
        limits["timeout"] = timeout or None
    if memory_limit is not None:
        limits["memory_limit"] = size_option(memory_limit, "--memory-limit")
    for library in custom_ops:
        if not os.path.isfile(library):
            raise RecipeError(f"--custom-ops {library}: no such file")
    if custom_ops:
        limits["custom_ops"] = custom_ops
    return limits


def size_option(text: str, option: str) -> int:
    """The bytes that a size such as ``5MB`` means.

    Raises:
        RecipeError: It is no size.
    """
    units = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9,
             "kib": 2**10, "mib": 2**20, "gib": 2**30}  # fmt: skip
    number = text.rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ ")
    unit = text[len(number) :].strip().lower()
    try:
        size = int(float(number) * units[unit])
        if size <= 0:
            raise ValueError
        return size
    except (KeyError, ValueError, OverflowError) as error:
        raise RecipeError(f"{option} takes a size such as 5MB, not {text[:60]!r}") from error
