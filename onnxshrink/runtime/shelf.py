"""Answers that are too many for memory lie in a file, and are read as they are compared."""

from __future__ import annotations

import contextlib
import mmap
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import IO

import numpy as np

#: Bytes of the answers to one set of inputs that stay in memory.
IN_MEMORY = 2**26


class Shelf:
    """Keeps arrays: the first in memory, all others in a file that nobody else sees.

    What lies in the file reads as any array does, also once the shelf is closed. It takes memory
    from when it is looked at until :func:`put_back`, and even then the system may take it away.
    """

    def __init__(self) -> None:
        self._nbytes = 0
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Shelf:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def keep(self, arrays: Iterable[np.ndarray]) -> list[np.ndarray]:
        """The same arrays, as they are kept; they live as long as anybody holds them."""
        return [self._keep(array) for array in arrays]

    def _keep(self, array: np.ndarray) -> np.ndarray:
        self._nbytes += array.nbytes
        if self._nbytes <= IN_MEMORY or array.dtype.hasobject or not array.size:
            return array
        if self._file is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115  (closed at the end)
        place = self._file.seek(0, 2)
        self._file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        self._file.flush()
        found = np.memmap(self._file, np.uint8, "r", place, (array.nbytes,))
        kept: np.ndarray = np.asarray(found).view(array.dtype).reshape(array.shape)
        return kept


def read(answers: Iterable[Sequence[np.ndarray]]) -> Iterator[Sequence[np.ndarray]]:
    """Answers one after the other, each put back when the next one is asked for."""
    for arrays in answers:
        yield arrays
        for array in arrays:
            put_back(array)


def put_back(array: np.ndarray) -> None:
    """Give the memory of an array that lies in a file back to the system, where it has a way."""
    owner: object = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if isinstance(owner, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        with contextlib.suppress(OSError, ValueError):
            owner.madvise(mmap.MADV_DONTNEED)
