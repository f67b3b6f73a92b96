"""Calibration and comparison inputs, in every form in which people have them."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from onnxshrink.errors import DataError
from onnxshrink.reading import Reading
from onnxshrink.runtime.inputs.fitting import doubts, fitted
from onnxshrink.runtime.inputs.ports import Feed, Found, Port, ports
from onnxshrink.runtime.inputs.reader import FUNCTION, SPLIT_OF_FILE, Reader, files_of
from onnxshrink.runtime.inputs.showing import show
from onnxshrink.runtime.shelf import Shelf

if TYPE_CHECKING:
    from onnxshrink.graph.file.model import Model

__all__ = [
    "Chosen", "Feed", "Port", "choose_inputs", "load_inputs", "ports", "source_files",
    "stored_inputs",
]  # fmt: skip

_MOST_BYTES = 4 * 2**30
_AT_ONCE = 64  # feeds of many that are in memory
_FARTHEST = 64  # times as many feeds as are wanted are looked at, to choose from

_log = logging.getLogger(__name__)


class Chosen(NamedTuple):
    """Inputs out of all that were given.

    Attributes:
        feeds: Those that were taken.
        left: How many more there were.
        notes: What was taken for granted about them, left out, or looks wrong.
        places: Where each was found.
    """

    feeds: list[Feed]
    left: int
    notes: tuple[str, ...] = ()
    places: tuple[str, ...] = ()


def load_inputs(
    source: object, model: Model, *, limit: int | None = None, batch: int | None = None,
    most_bytes: int | None = None, reading: Reading | None = None,
) -> list[Feed]:  # fmt: skip
    """Read inputs for a model and hold them against what it declares.

    Args:
        source: An object with ``get_next()`` (ONNX Runtime's CalibrationDataReader); an iterable
            of dicts; a dict of stacked arrays; a ``.npz`` (keys are input names, or
            ``index|name``, or ``split|index|name``: then the ``calibration`` split, or the one
            that ``file.npz:split`` names); a ``.npy`` or ``.pb`` for a model of one input; a
            folder of such files, of one ``.npy`` for each input, or of ONNX's
            ``test_data_set_*/input_0.pb``; pictures, ``.wav``, lines of a ``.txt``, columns of a
            ``.csv`` or ``.parquet``, or a folder of these at any depth; ``module.py:function``,
            which returns any of these; a pattern of file names; or an iterable of any of these, of
            rows as data sets have them (pictures of Pillow and texts among their values, too), or
            of batches as torch's loaders give them. Stacked arrays are cut along axis 0 into feeds
            of the model's fixed batch size, else of up to 32 rows and about as many each (where
            they are all that is given, into at least 8 feeds: see
            :class:`onnxshrink.kernels.split.Split`); an array of one axis more than the
            input has is a stack of feeds.
        model: The model to feed.
        limit: Take no more feeds than this. They are spread over all that there are; only of
            generators and readers, which are not asked for more, they are the first.
        batch: Rows of one feed of stacked arrays, where the model takes any number.
        most_bytes: Bytes that one array of an ``.npz`` may unpack to; 4 GiB by default.
        reading: How pictures, sentences, sounds and tables become inputs.

    Returns:
        Feeds with exactly the model's inputs. Arrays are cast where that loses nothing but
        rounding: float64 to float32, int32 to int64, integers in range. Rows that do not fill a
        fixed batch are left out. Names that the model does not have are dropped when it lacks
        nothing (tokenizers give more than models take).

    Raises:
        DataError: Nothing there, or no rows; a name is missing; a type, rank, fixed dimension or
            value (NaN, infinity) does not fit. The message names the file and the input.
        UnsupportedModel: The model has an input that is not a tensor.
    """
    chosen = choose_inputs(
        source, model, limit=limit, batch=batch, most_bytes=most_bytes, reading=reading
    )
    for note in chosen.notes:
        _log.warning("%s", note)
    return chosen.feeds


def choose_inputs(
    source: object, model: Model, *, limit: int | None = None, batch: int | None = None,
    most_bytes: int | None = None, reading: Reading | None = None,
) -> Chosen:  # fmt: skip
    """As :func:`load_inputs`; with what the user must know of the choice."""
    from onnxshrink.runtime.decoding import rolling

    wanted = ports(model)
    if not wanted:
        return Chosen([{}], 0)
    reading = reading or Reading()
    reader = Reader(wanted, batch, most_bytes or _MOST_BYTES, limit, reading)
    with contextlib.closing(reader.read(source, "the inputs")) as found:
        taken, left = _spread(found, limit, reader)
    feeds, places = [], []
    made = [(where, item() if callable(item) else item) for where, item in taken]
    for where, item in rolling.rolled_out(model, made, limit):
        feed = fitted(item, where, wanted, reader.note)
        # One empty input is a cache at its start; nothing but empty ones is no input.
        if not any(array.size for array in feed.values()):
            raise DataError(f"{where}: holds no values: every input is empty")
        feeds.append(feed)
        places.append(where)
    if not feeds:
        label = source if isinstance(source, str | os.PathLike) else "the inputs"
        raise DataError(f"{label}: holds no inputs")
    if reading.show_inputs is not None:
        show(feeds, Path(reading.show_inputs), reader.maker)
    return Chosen(feeds, left, (*reader.notes, *doubts(feeds, wanted)), tuple(places))


def stored_inputs(source: object, model: Model, most: int, reading: Reading) -> list[Feed]:
    """As many inputs as one likes: they are read one after the other, and lie in a file.

    Args:
        source: See :func:`load_inputs`.
        model: The model to feed.
        most: How many at most: the first ones.
        reading: How pictures, sentences, sounds and tables become inputs.

    Raises:
        DataError: See :func:`load_inputs`.
        UnsupportedModel: The model has an input that is not a tensor.
    """
    from onnxshrink.runtime.decoding import rolling

    wanted, feeds = ports(model), list[Feed]()
    reader = Reader(wanted, None, _MOST_BYTES, None, reading)
    with Shelf() as shelf, contextlib.closing(reader.read(source, "the inputs")) as found:
        first = itertools.islice(found, most)
        while part := list(itertools.islice(first, _AT_ONCE)):
            made = [(where, item() if callable(item) else item) for where, item in part]
            for where, item in rolling.rolled_out(model, made, None):
                feed = fitted(item, where, wanted, reader.note)
                # A part of a stack would keep all of it in memory.
                own = (np.array(array) if array.base is not None else array
                       for array in feed.values())  # fmt: skip
                feed.update(zip(feed, shelf.keep(own), strict=True))
                feeds.append(feed)
    for note in reader.notes:
        _log.warning("%s", note)
    if not feeds:
        raise DataError(f"{source}: holds no inputs")
    return feeds


def _spread(found: Iterator[Found], limit: int | None, reader: Reader) -> tuple[list[Found], int]:
    """So many of what is found, at even distances, and how many were left.

    Of what may be endless, or dear to make, these are the first. Never more than twice as many are
    held: whenever that many are, every other one goes.
    """
    if limit is None:
        return list(found), 0
    kept: list[Found] = []
    seen, stride = 0, 1
    for number, item in enumerate(itertools.islice(found, _FARTHEST * limit)):
        seen = number + 1
        if number % stride == 0:
            kept.append(item)
        if reader.streams and len(kept) == limit:
            return kept, 0
        if len(kept) == 2 * limit:
            kept, stride = kept[::2], 2 * stride
    if len(kept) > limit:
        kept = [kept[place * len(kept) // limit] for place in range(limit)]
    return kept, seen - len(kept)


def source_files(source: object) -> list[Path]:
    """The files that a source of inputs names, as far as it names any; see :func:`load_inputs`."""
    if isinstance(source, str | os.PathLike):
        text = os.fspath(source)
        named = FUNCTION.fullmatch(text) or SPLIT_OF_FILE.fullmatch(text)
        paths = [Path(named[1])] if named else files_of(text)
        inside = (f for path in paths if path.is_dir() for f in path.rglob("*") if f.is_file())
        return [*paths, *inside]
    if isinstance(source, list | tuple):
        return [file for each in source for file in source_files(each)]
    return []
