"""The files of a run: no two of them meet, none is lost, none is seen half written.

What is in the making lies in a scratch folder beside its target, which the next run sweeps away if
its owner died. A file takes its place in one rename. A model of two files takes it in two: first
its data, under a name that says what is in them, so that they replace nothing; the model last.
Whenever a run stops, the old model or the new one stands there with its own data.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, BinaryIO

from onnxshrink.errors import OutputError

StrPath = str | os.PathLike[str]

_PREFIX = ".onnxshrink-"
_OWNER = "owner"  # the file in a scratch folder that its owner holds locked
_DAY = 86_400.0
_DIGITS = 16
_BROTLI = 9  # of 11: those above take many times as long, for one byte in a hundred, of codes ten
_GZIP = 6
# Of what is large: a fifth of the time, for up to two bytes in a hundred.
_BROTLI_OF_LARGE, _GZIP_OF_LARGE, _LARGE = 6, 1, 2**23
_MOST_SENT = 2**26  # bytes: more is hardly sent as one response, and takes long to try


def check(reads: Iterable[StrPath], writes: Iterable[StrPath]) -> None:
    """Find out, before any work, whether a run can write its files without losing another.

    Scratch folders that dead runs left beside the targets are swept away.

    Args:
        reads: Every file that the run reads.
        writes: Every file that it writes.

    Raises:
        OutputError: A target cannot be written, or is (also by way of links) another file of the
            run.
    """
    reads, seen = list(reads), list[StrPath]()
    for path in writes:
        check_target(path)
        if any(_same(path, other) for other in reads):
            raise OutputError(f"{path}: is the input, which is never modified; name another output")
        if any(_same(path, other) for other in seen):
            raise OutputError(f"{path}: two results of this run would go there; name another file")
        seen.append(path)
    for folder in {Path(path).absolute().parent for path in seen}:
        _sweep(folder)


def likely(values: Iterable[object]) -> list[str]:
    """Of the values of some options, those that name a file, also as ``file.py:function``."""
    texts = [value for value in values if isinstance(value, str)]
    texts += [text.rpartition(":")[0] for text in texts]
    return [text for text in texts if ("." in text or os.sep in text) and os.path.isfile(text)]


def check_target(path: StrPath) -> None:
    """Find out whether a file can be put somewhere; a link there is replaced, not followed.

    Raises:
        OutputError: A folder, device, pipe or socket is there, or its folder takes no files.
    """
    folder = Path(path).absolute().parent
    if os.path.isdir(path):
        raise OutputError(f"{path}: is a folder; name the file to write in it")
    if os.path.exists(path) and not os.path.isfile(path):
        raise OutputError(f"{path}: is a device, pipe or socket; name a file")
    if not folder.is_dir():
        raise OutputError(f"{path}: cannot be written: there is no folder {Path(path).parent}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{path}: cannot be written: Permission denied in {folder}")


def _same(path: StrPath, other: StrPath) -> bool:
    if os.path.realpath(path) == os.path.realpath(other):
        return True
    return os.path.exists(path) and os.path.exists(other) and os.path.samefile(path, other)


def gzip_bytes(paths: Iterable[Path]) -> int | None:
    """Bytes of some files as servers send them by default; None where these are very large."""
    paths = list(paths)
    size = sum(path.stat().st_size for path in paths)
    if size > _MOST_SENT:
        return None
    total, level = 0, _GZIP if size <= _LARGE else _GZIP_OF_LARGE
    for path in paths:
        coder = zlib.compressobj(level, wbits=31)  # 15, and 16 for the header of gzip
        with path.open("rb") as file:
            while block := file.read(2**20):
                total += len(coder.compress(block))
        total += len(coder.flush())
    return total


def brotli_bytes(paths: Iterable[Path]) -> int | None:
    """Bytes of some files as servers send them to browsers; None where these are very large."""
    import brotli

    paths = list(paths)
    size = sum(path.stat().st_size for path in paths)
    if size > _MOST_SENT:
        return None
    quality = _BROTLI if size <= _LARGE else _BROTLI_OF_LARGE
    return sum(len(brotli.compress(path.read_bytes(), quality=quality)) for path in paths)


def sent_bytes(paths: Iterable[Path]) -> tuple[int | None, int | None]:
    """:func:`gzip_bytes` and :func:`brotli_bytes` of some files, found side by side."""
    from concurrent.futures import ThreadPoolExecutor

    paths = list(paths)
    with ThreadPoolExecutor(1) as other:
        after_brotli = other.submit(brotli_bytes, paths)
        return gzip_bytes(paths), after_brotli.result()


# ------------------------------------------------------------------------ one file


@contextlib.contextmanager
def output(path: Path, *, durable: bool = True) -> Iterator[BinaryIO]:
    """A new file that takes the place of ``path`` when all of it is written, or never.

    Args:
        path: What to replace; it need not exist.
        durable: Wait until it is on the disk.

    Raises:
        OutputError: The folder does not exist, cannot be written, or the disk is full.
    """
    with writing(path), replacing(path, durable=durable) as file:
        yield file


@contextlib.contextmanager
def scratch_file(path: Path) -> Iterator[BinaryIO]:
    """A file in a scratch folder, written in place; errors like those of :func:`output`."""
    with writing(path), open(path, "wb") as file:
        yield file


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[BinaryIO]:
    """Like :func:`output`, for those who know better than this what an OSError means."""
    with scratch(path.absolute().parent) as folder:
        temporary = folder / "file"
        with new_file(temporary, durable=durable) as file:
            yield file
        place(temporary, path, durable=durable)


@contextlib.contextmanager
def writing(path: StrPath) -> Iterator[None]:
    """Say of which output it is that the system refuses something.

    Raises:
        OutputError: In place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error


@contextlib.contextmanager
def new_file(path: Path, *, durable: bool = True) -> Iterator[BinaryIO]:
    """A file that does not exist yet; on the disk when the block ends, if that is asked for."""
    with open(path, "xb") as file:
        yield file
        file.flush()
        if durable:
            os.fsync(file.fileno())


def place(source: Path, target: Path, *, durable: bool = True) -> None:
    """Rename a finished file to where it belongs."""
    os.replace(source, target)
    if durable and os.name == "posix":  # the rename itself must reach the disk too
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


# ------------------------------------------------------------------- data by content


class Digesting:
    """Writes to a file and digests what it writes."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._sha256 = hashlib.sha256()
        self._end = 0

    def write(self, data: bytes) -> int:
        """Append some bytes."""
        self._sha256.update(data)
        self._end += len(data)
        return self._file.write(data)

    def tell(self) -> int:
        """How many bytes were written."""
        return self._end

    def hexdigest(self) -> str:
        """SHA-256 of all of them."""
        return self._sha256.hexdigest()


def data_name(model: str, digest: str, kind: str) -> str:
    """The name of a model's data: no other content has it.

    Args:
        model: Name of the model file.
        digest: SHA-256 of what decides about the data's bytes, hexadecimal.
        kind: ``data`` or ``pack``.
    """
    return f"{model}.{digest[:_DIGITS]}.{kind}"


def is_data_of(name: str, model: str) -> bool:
    """Whether a file's name says that it holds the data of a model file, and of no other."""
    stem, _, kind = name.rpartition(".")
    if kind not in ("data", "pack") or not stem.startswith(model):
        return False
    digest = stem[len(model) :]
    return not digest or (
        digest[0] == "."
        and len(digest) == _DIGITS + 1
        and set(digest[1:]) <= set("0123456789abcdef")
    )


# ----------------------------------------------------------------------- scratch


@contextlib.contextmanager
def scratch(beside: Path | None = None) -> Iterator[Path]:
    """A folder for files in the making, gone at the end; swept by a later run if this one dies.

    Args:
        beside: The folder to make it in; None is the system's temporary folder, where the first of
            a process looks for what dead runs left.
    """
    if beside is None:
        _sweep_once(Path(tempfile.gettempdir()))
    while True:
        folder = Path(tempfile.mkdtemp(dir=beside, prefix=_PREFIX))
        if (owner := _owned(folder)) is not None:
            break
    try:
        yield folder
    finally:
        owner.close()
        shutil.rmtree(folder, ignore_errors=True)


def _owned(folder: Path) -> IO[bytes] | None:
    """Mark a scratch folder as somebody's; None when a sweep took it that very moment."""
    try:
        owner = open(folder / _OWNER, "xb")  # noqa: SIM115  (locked while it is open)
    except FileNotFoundError:
        return None
    if _lock(owner) and os.path.exists(owner.name):
        return owner
    owner.close()
    return None


def _lock(file: IO[bytes]) -> bool:
    """Lock a file against other processes, without waiting; the lock ends with this one."""
    try:
        import fcntl
    except ImportError:  # Windows deletes no file that is open: that is lock enough
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@functools.cache
def _sweep_once(folder: Path) -> None:
    _sweep(folder)


def _sweep(folder: Path) -> None:
    """Remove the scratch folders whose owners are dead."""
    for entry in folder.glob(f"{_PREFIX}*"):
        if entry.is_symlink() or not entry.is_dir():
            continue
        with contextlib.suppress(OSError):  # another user's, or another run sweeps as well
            try:
                with open(entry / _OWNER, "rb") as owner:
                    if not _lock(owner):
                        continue
                    if os.name == "posix":
                        shutil.rmtree(entry)
                        continue
                os.unlink(entry / _OWNER)
            except FileNotFoundError:  # stopped before it was marked, or being made just now
                if time.time() - entry.stat().st_mtime < _DAY:
                    continue
            shutil.rmtree(entry)
