"""Arrays from files: .npz, .npy and .pb."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from onnxshrink.errors import DataError

_INDEXED_KEY = re.compile(r"(?:(\w+)\|)?(\d+)\|(.+)", re.DOTALL)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """An array or an archive of arrays, for as long as its file is open.

    Raises:
        DataError: It is neither, or damaged.
    """
    with contextlib.ExitStack() as stack:
        with _readable(path):
            file = stack.enter_context(open(path, "rb"))
            if not file.peek(2).startswith((b"PK", b"\x93N")):
                raise ValueError("it is neither an .npz nor an .npy file")
            archive = np.load(file, allow_pickle=False)
        yield archive


def indexed(
    archive: Any, split: str | None, path: Path
) -> dict[tuple[str, int], dict[str, str]] | None:
    """The feeds of an archive whose keys number them: by split and number, its keys by input name.

    Args:
        archive: An .npz that is open.
        split: The split to take; None is ``calibration`` where there is one, else all.
        path: Its file, for messages.

    Returns:
        None where keys are not numbered.

    Raises:
        DataError: It has no such split.
    """
    keys = [found for key in archive.files if (found := _INDEXED_KEY.fullmatch(key))]
    if not keys:
        if split is not None:
            raise DataError(f"{path}: has no splits, only {', '.join(archive.files)}")
        return None
    splits = sorted({key[1] for key in keys if key[1]})
    if split is None and "calibration" in splits:
        split = "calibration"
    elif split is not None and split not in splits:
        raise DataError(f"{path}: has no split {split!r}; it has {', '.join(splits)}")
    feeds: dict[tuple[str, int], dict[str, str]] = {}
    for key in keys:
        if split in (None, key[1]):
            feeds.setdefault((key[1] or "", int(key[2])), {})[key[3]] = key[0]
    return dict(sorted(feeds.items()))


def array_of(archive: Any, key: str, path: Path, most_bytes: int) -> np.ndarray:
    """One array of an .npz.

    Raises:
        DataError: It cannot be read, or unpacks to more than it may.
    """
    with _readable(path):
        member = key if key in archive.zip.namelist() else f"{key}.npy"
        if (nbytes := archive.zip.getinfo(member).file_size) > most_bytes:
            raise DataError(
                f"{path}: {key!r} unpacks to {nbytes:,} bytes, more than "
                f"{most_bytes:,}; --data-limit allows more"
            )
        array = archive[key]
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path}: {key!r} is no array of numpy")
    return array


def load_npy(path: Path) -> np.ndarray:
    """The array of an .npy."""
    with _readable(path):
        array: np.ndarray = np.load(path, allow_pickle=False)
        return array


def load_pb(path: Path) -> np.ndarray:
    """The tensor of a .pb, as ONNX's test data have it."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        tensor = onnx.TensorProto.FromString(path.read_bytes())
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise ValueError("it names another file")
        return onnx.numpy_helper.to_array(tensor)
    except (
        DecodeError, OSError, ValueError, TypeError, LookupError, OverflowError, MemoryError,
    ) as error:  # fmt: skip
        raise DataError(f"{path}: not a tensor of ONNX: {error}") from error


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn what numpy and zipfile raise about a damaged file into one error."""
    import struct
    import tokenize
    import zipfile
    import zlib

    try:
        yield
    except DataError:
        raise
    except MemoryError as error:
        raise DataError(f"{path}: asks for more memory than there is") from error
    except ValueError as error:
        objects = "holds Python objects; save strings with dtype 'U'"
        reason = objects if "allow_pickle" in str(error) else f"cannot be read: {error}"
        raise DataError(f"{path}: {reason}") from error
    except (
        OSError,
        EOFError,
        zipfile.BadZipFile,
        zlib.error,
        struct.error,
        LookupError,
        TypeError,
        OverflowError,
        SyntaxError,
        RuntimeError,
        tokenize.TokenError,
    ) as error:  # fmt: skip  (also encrypted, of an unknown method, with a header of nonsense)
        raise DataError(f"{path}: cannot be read: {error}") from error
