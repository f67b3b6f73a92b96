"""The files that hold a model's data: which they are, and when they go."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterator
from pathlib import Path

from onnxshrink import files
from onnxshrink.graph.file import round_trip, tensors, wire


def data_files(path: Path) -> set[Path]:
    """The files beside a model that hold its data, and by their names those of no other model.

    Args:
        path: A model file, plain or packed; whatever else it is has no such files.
    """
    try:
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

    Args:
        path: Where the model goes.
        spare: Files to leave, whatever names them.
    """
    old = data_files(path)
    yield
    for file in old - data_files(path):
        if not any(file.samefile(other) for other in spare if other.exists()):
            with contextlib.suppress(OSError):  # it stays, and nobody is told that it went
                file.unlink()
