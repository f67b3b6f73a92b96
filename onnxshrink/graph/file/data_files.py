"""The files that hold a model's data: which they are, and when they go."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from onnxshrink import files, sidecar
from onnxshrink.graph.file import round_trip, tensors, wire


def data_files(path: Path) -> set[Path]:
    """The files beside a model that hold its data, and by their names those of no other model.

    Args:
        path: A model file, plain or packed (of version 1); whatever else it is has no such files.
    """
    try:
        # To open a pipe would be to wait for somebody; a pack has all its data in it.
        if not path.is_file() or sidecar.holds_graph(path):
            return set()
        proto = wire.read(str(path))
        notes = {entry.key: entry.value for entry in proto.metadata_props}
        note = json.loads(notes.get(tensors.PACK_KEY, "{}"))
        names = {str(note["file"])} if note else set[str]()
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return set()
    for tensor in round_trip.tensors(proto):
        names.update(entry.value for entry in tensor.external_data if entry.key == "location")
    own = (path.with_name(name) for name in names if files.is_data_of(name, path.name))
    return {file for file in own if file.is_file() and not file.is_symlink()}


@contextlib.contextmanager
def superseding(path: Path, spare: Collection[Path] = ()) -> Iterator[None]:
    """Write another model to ``path`` in this block; data that only the old one had go after it.

    A pack stays where another in its folder is an update of it; a packed model that was at ``path``
    itself stays under the name of its content.

    Args:
        path: Where the model goes.
        spare: Files to leave, whatever names them.
    """
    old = data_files(path)
    with files.writing(path):
        needed = _kept_for_updates(path)
    try:
        yield
    except BaseException:
        if needed is not None:
            needed.unlink(missing_ok=True)
        raise
    for file in old - data_files(path):
        spared = any(file.samefile(other) for other in spare if other.exists())
        if not spared and not sidecar.updates(file):
            with contextlib.suppress(OSError):  # it stays, and nobody is told that it went
                file.unlink()


@contextlib.contextmanager
def kept(path: Path, beside: Collection[Path] = ()) -> Iterator[Callable[[], bool]]:
    """Hold on to the model at a path while another is written there.

    Args:
        path: Where the model is, if there is one.
        beside: Files that belong to it, whether or not they are there.

    Yields:
        A function that puts it back, with its data, in place of the other; False where there was
        none.
    """
    if not path.is_file():
        yield lambda: False
        return
    old = [file for file in (path, *data_files(path), *beside) if file.is_file()]
    with files.scratch(path.absolute().parent) as folder:
        held = [folder / str(number) for number in range(len(old))]
        with files.writing(path):
            for file, link in zip(old, held, strict=True):
                _link(file, link)

        def put_back() -> bool:
            for file in {*data_files(path), *beside} - set(old):
                file.unlink(missing_ok=True)
            for file, link in zip(old, held, strict=True):
                os.replace(link, file)
            return True

        yield put_back


def _kept_for_updates(path: Path) -> Path | None:
    """A new name for the packed model at ``path``, if there is one and updates of it need it."""
    try:
        if not path.is_file() or path.is_symlink() or not sidecar.holds_graph(path):
            return None
    except OSError:
        return None
    if not sidecar.updates(path):
        return None
    with sidecar.Sidecar.open(path) as opened:
        link = path.with_name(files.data_name(path.name, opened.id, "pack"))
    if link.exists():
        return None
    _link(path, link)
    return link


def _link(file: Path, link: Path) -> None:
    """Another name for a file, or a copy where the file system has no such names."""
    try:
        os.link(file, link, follow_symlinks=False)
    except OSError:
        shutil.copy2(file, link, follow_symlinks=False)


def superseded(old: Collection[Path], path: Path) -> list[str]:
    """What became of the data of the model that was at ``path``, where another is now.

    Args:
        old: Its data files, before.
        path: Where the model went.
    """
    said = []
    for file in sorted(set(old) - data_files(path)):
        if not file.exists():
            said.append(f"removed {file.name}, which the model there had its data in")
        elif needed := ", ".join(each.name for each in sidecar.updates(file)):
            said.append(f"left {file.name}, the pack of the model there: base of {needed}")
    for file in sorted(set(path.parent.glob(f"{glob.escape(path.name)}.*.pack")) - set(old)):
        if files.is_data_of(file.name, path.name) and (others := sidecar.updates(file)):
            names = ", ".join(each.name for each in others)
            said.append(f"left {file.name}, the packed model that was there: base of {names}")
    return said
