"""Values as people write them on a command line."""

from __future__ import annotations

from onnxshrink.errors import RecipeError


def shape_option(text: str) -> tuple[str, tuple[int, ...]]:
    """The input and the shape that a ``--shape`` names.

    Raises:
        RecipeError: It is not of the form ``NAME:1,3,224,224``.
    """
    name, _, dims = text.rpartition(":")
    sizes = dims.split(",")
    if not name or not all(size.strip().isdecimal() for size in sizes):
        raise RecipeError(f"--shape takes NAME:1,3,224,224, not {text!r}")
    return name, tuple(map(int, sizes))


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
        return int(float(number) * units[unit])
    except (KeyError, ValueError) as error:
        raise RecipeError(f"{option} takes a size such as 5MB, not {text!r}") from error
