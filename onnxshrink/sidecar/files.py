"""Files that are opened safely, and work on their parts in threads."""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, TypeVar

from onnxshrink.errors import SidecarError
from onnxshrink.sidecar.header import check_basename

THREADS = min(8, os.cpu_count() or 1)

T = TypeVar("T")
R = TypeVar("R")


def sibling(model: str | os.PathLike[str], name: str) -> Path:
    """The file of this name beside a model.

    Raises:
        SidecarError: The name is not a plain file name: it would lead elsewhere.
    """
    return Path(model).parent / check_basename(name)


def open_plain(path: Path) -> BinaryIO:
    """Open a file for reading, if it is one: no link, no pipe, no device.

    Raises:
        SidecarError: It is something else.
    """
    flags = os.O_RDONLY
    for flag in (
        "O_BINARY",
        "O_CLOEXEC",
        "O_NOFOLLOW",
        "O_NONBLOCK",
    ):  # as far as the system has them
        flags |= getattr(os, flag, 0)
    if path.is_symlink():
        raise SidecarError("a packed sidecar must be a plain file, not a link: copy it here")
    descriptor = os.open(path, flags)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise SidecarError("a packed sidecar must be a plain file")
    return open(descriptor, "rb", buffering=0)


def ordered(
    pool: ThreadPoolExecutor, work: Callable[[T], R], items: Sequence[T], ahead: int
) -> Iterator[R]:
    """Map in threads, in order, with no more than ``ahead`` results waiting."""
    if len(items) < 2:
        yield from map(work, items)
        return
    waiting: deque[Future[R]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) == ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
