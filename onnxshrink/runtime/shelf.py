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
_AT_ONCE = 2**26  # bytes of a file that are mapped together: each map takes a file descriptor
_ALIGNED = 64


class Shelf:
    """Keeps arrays: the first in memory, all others in a file that nobody else sees.

    What lies in the file reads as any array does, also once the shelf is closed. It takes memory
    from when it is looked at until :func:`put_back`, and even then the system may take it away.
    """

    def __init__(self) -> None:
        self._nbytes = 0
        self._file: IO[bytes] | None = None
        self._map: np.ndarray = np.zeros(0, np.uint8)  # what was mapped last
        self._start = self._taken = 0  # of that: where it lies in the file, and how much is in use

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
        if self._taken + array.nbytes > len(self._map):
            size = max(array.nbytes, _AT_ONCE)
            self._start, self._taken = self._start + len(self._map), 0
            self._file.truncate(self._start + size)
            self._map = np.asarray(np.memmap(self._file, np.uint8, "r", self._start, (size,)))
        self._file.seek(self._start + self._taken)
        # Not through the map: a full disk must be an error, and no signal.
        self._file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        self._file.flush()
        place = self._map[self._taken : self._taken + array.nbytes]
        self._taken += -(-array.nbytes // _ALIGNED) * _ALIGNED
        kept: np.ndarray = place.view(array.dtype).reshape(array.shape)
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
