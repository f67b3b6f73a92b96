"""Feeds held against what the model declares, and what looks wrong about them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from onnxshrink.errors import DataError
from onnxshrink.options import nearest
from onnxshrink.runtime.decoding.steps import DecodingStep
from onnxshrink.runtime.inputs.ports import Feed, Port

Note = Callable[[str], None]

_CHANNELS = (1, 3, 4)
_MOST_SHADES = 255
_LEAST_SHADES = 16  # fewer values may be labels, masks or counts


def as_array(value: Any, where: str) -> np.ndarray:
    """An array of what may be a list, or a tensor of torch on any device.

    Raises:
        DataError: It is neither.
    """
    try:
        if hasattr(value, "detach"):  # torch has it; numpy takes no tensor with gradients
            value = value.detach().cpu()
        return np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:  # ragged lists, foreign types
        raise DataError(f"{where}: not an array: {error}") from error


def fitted(feed: Mapping[str, Any], where: str, wanted: Mapping[str, Port], note: Note) -> Feed:
    """The feed with the model's inputs, each checked and cast.

    Args:
        feed: Arrays by name.
        where: Where they come from, for messages.
        wanted: The model's inputs.
        note: Told what was done to make them fit.

    Raises:
        DataError: One is missing, or does not fit.
    """
    if isinstance(feed, DecodingStep):  # made for this model
        return feed
    feed = renamed(feed, wanted, note)
    surplus = [str(name) for name in feed if name not in wanted]
    for name in wanted:
        if name not in feed:
            given = ", ".join(map(repr, feed)) or "nothing"
            raise DataError(
                f"{where}: input {name!r} is missing; given: {given}{nearest(name, surplus)}"
            )
    if surplus:
        note(f"the model has no input {', '.join(surplus)}; ignored")
    found = {name: fit(feed[name], port, where) for name, port in wanted.items()}
    if not any(array.size for array in found.values() if array.ndim):
        shapes = ", ".join(f"{name!r} {list(array.shape)}" for name, array in found.items())
        if any(array.ndim for array in found.values()):
            raise DataError(f"{where}: holds no rows ({shapes}): nothing can be seen on them")
    return found


def renamed(feed: Mapping[str, Any], wanted: Mapping[str, Port], note: Note) -> Mapping[str, Any]:
    """One array for a model of one input is taken for it, whatever its name."""
    if len(feed) != 1 or len(wanted) != 1 or feed.keys() == wanted.keys():
        return feed
    ((given, value),) = feed.items()
    (name,) = wanted
    note(f"{given!r} is taken for the model's only input, {name!r}")
    return {name: value}


def doubts(feeds: Sequence[Feed], wanted: Mapping[str, Port]) -> list[str]:
    """What looks wrong about inputs that the model takes, one line each."""
    lines = []
    for name, port in wanted.items():
        arrays = [feed[name] for feed in feeds]
        if _like_pixels(arrays, port):
            lines.append(
                f"input {name!r} takes {port.dtype} and gets whole numbers of 0 to 255, as pixels "
                "that nobody scaled; if the model does not scale them itself, give scaled ones"
            )
        if port.dims is not None and len(port.dims) == 4 and _transposed(arrays[0].shape, port):
            lines.append(
                f"input {name!r} gets {list(arrays[0].shape)}, whose last axis looks like "
                "channels; most models take them before the rows: transpose(0, 3, 1, 2)"
            )
    if len(feeds) > 1 and all(_same(feeds[0], feed) for feed in feeds[1:]):
        lines.append(f"all {len(feeds)} inputs are alike: they show no more than one would")
    return lines


def _like_pixels(arrays: Sequence[np.ndarray], port: Port) -> bool:
    """Whether floats are those of a picture as it is stored."""
    if port.dtype.kind not in "fV" or arrays[0].ndim < 3:
        return False
    for array in arrays:
        values = array.astype(np.float32, copy=False)
        if values.size and not (
            (values >= 0).all() and (values <= _MOST_SHADES).all() and (values % 1 == 0).all()
        ):
            return False
    return len(np.unique(np.concatenate([a.reshape(-1)[:4096] for a in arrays]))) > _LEAST_SHADES


def _transposed(shape: tuple[int, ...], port: Port) -> bool:
    """Whether free axes let channels through that come last, into a model that has them first."""
    _, channels, _, last = shape
    free = not any(isinstance(dim, int) for dim in (port.dims or ())[1:])
    return free and last in _CHANNELS and channels not in _CHANNELS


def _same(first: Feed, other: Feed) -> bool:
    return all(np.array_equal(array, other[name]) for name, array in first.items())


def fit(value: Any, port: Port, where: str) -> np.ndarray:
    """An array as an input takes it, or an error that names both."""
    where = f"{where}: input {port.name!r}"
    array = _cast(as_array(value, where), port.dtype, where)
    if port.dims is not None and not _has_shape(array.shape, port):
        raise DataError(
            f"{where} has shape {list(array.shape)}, but the model takes {port.shown_dims}"
            f"{_moved(array.shape, port)}"
        )
    if array.dtype.kind not in "biuO" and not np.isfinite(array).all():
        raise DataError(f"{where} holds NaN or infinity")
    return array


def _has_shape(shape: tuple[int, ...], port: Port) -> bool:
    dims = port.dims or ()
    return len(shape) == len(dims) and all(
        not isinstance(d, int) or d == n for n, d in zip(shape, dims, strict=True)
    )


def _moved(shape: tuple[int, ...], port: Port) -> str:
    """A hint, where channels that are moved make a shape fit."""
    if len(shape) == 4:
        for axes, words in (((0, 3, 1, 2), "last"), ((0, 2, 3, 1), "before the rows")):
            if _has_shape(tuple(shape[axis] for axis in axes), port):
                return f"; its channels are {words}, transpose{axes} makes it fit"
    return ""


def _cast(array: np.ndarray, dtype: np.dtype[Any], where: str) -> np.ndarray:
    """Change the type where that loses nothing, or only the rounding of a float."""
    if array.dtype == dtype and dtype.kind != "O":
        return array
    if array.dtype.kind == "V" and array.dtype.itemsize == dtype.itemsize:
        return array.view(dtype)  # .npy files forget that bits are a bfloat16
    if dtype.kind == "O":
        if array.dtype.kind in "USOT" and all(isinstance(v, str | bytes) for v in array.flat):
            return array.astype(str).astype(object)
    elif array.dtype.kind in "biu" and dtype.kind in "biu":
        cast = array.astype(dtype)
        if (cast == array).all():
            return cast
        raise DataError(f"{where} holds values that do not fit {dtype}")
    elif (array.dtype.kind == "f" and dtype.kind in "fV") or np.can_cast(array.dtype, dtype):
        with np.errstate(over="ignore"):
            cast = array.astype(dtype)
        if np.isfinite(cast).all() or not np.isfinite(array).all():
            return cast
        raise DataError(f"{where} holds values that do not fit {dtype}")
    wanted = "strings" if dtype.kind == "O" else dtype
    raise DataError(f"{where} is {array.dtype}, but the model takes {wanted}")
