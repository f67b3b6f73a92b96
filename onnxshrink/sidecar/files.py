"""Files that are opened, replaced and worked on safely."""

from __future__ import annotations

import os
import secrets
import stat
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
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


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file that takes the place of ``path`` when all of it is on the disk, or never."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    if os.name == "posix":  # the rename itself must reach the disk too
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


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
