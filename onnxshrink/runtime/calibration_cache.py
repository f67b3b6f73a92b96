"""Statistics kept in a file between runs: a model and inputs that were seen before are not run."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxshrink.errors import DataError, OutputError

if TYPE_CHECKING:
    from onnxshrink.kernels.observers import Need

_log = logging.getLogger(__name__)
#: To be counted up whenever a statistic is collected in another way.
_FORMAT = "onnxshrink calibration cache 1"
_INDEX = "index.json"


@dataclass(frozen=True)
class CacheEntry:
    """What is known of one need.

    Attributes:
        refused: Why it could not be observed; empty when it was.
        member: The member of the file that holds its sums; empty when there are none.
    """

    refused: str
    member: str


class CalibrationCache:
    """A file of statistics, each under the model, the inputs and the need that it belongs to.

    Nothing in it is ever taken for something else: what does not match is collected anew, and what
    a run did not use is left out when the file is next written.

    Args:
        path: The file; it need not exist yet.

    Raises:
        DataError: It exists, and is damaged or no such file.
        OutputError: It cannot be written there.
    """

    def __init__(self, path: Path):
        self._path = path
        self._used: set[str] = set()
        self._entries: dict[str, CacheEntry] = {}
        self._told = False
        if not path.absolute().parent.is_dir():
            raise OutputError(f"{path}: there is no folder {path.parent}")
        if path.exists():
            self._entries = self._read()

    def _read(self) -> dict[str, CacheEntry]:
        try:
            with zipfile.ZipFile(self._path) as file:
                if (broken := file.testzip()) is not None:
                    raise ValueError(f"{broken} is damaged")
                index = json.loads(file.read(_INDEX))
                if index["format"] != _FORMAT:
                    raise ValueError(f"its format is {index['format']!r}")
                names = set(file.namelist())
            found = {key: CacheEntry(str(e["refused"]), str(e["member"]))
                     for key, e in index["entries"].items()}  # fmt: skip
            if missing := {e.member for e in found.values() if e.member} - names:
                raise ValueError(f"it lacks {', '.join(sorted(missing))}")
        except OSError as error:
            raise DataError(f"{self._path}: cannot be read: {error.strerror}") from error
        except (zipfile.BadZipFile, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{self._path}: not a calibration cache, or a damaged one ({error}); delete it or "
                "name another file"
            ) from error
        return found

    def find(self, keys: Mapping[Need, str], folder: Path) -> dict[Need, Path | str]:
        """What is known of some needs: the file with the sums, put into a folder, or the refusal.

        Args:
            keys: Needs, and their keys.
            folder: Where to put the sums.
        """
        known = {need: self._entries[key] for need, key in keys.items() if key in self._entries}
        if self._entries and not known and not self._told:
            self._told = True
            _log.warning(
                "%s holds statistics of another model, other inputs or other options; they are "
                "collected anew", self._path,
            )  # fmt: skip
        found: dict[Need, Path | str] = {}
        if not known:
            return found
        with zipfile.ZipFile(self._path) as file:
            for need, entry in known.items():
                self._used.add(keys[need])
                found[need] = entry.refused
                if entry.member:
                    found[need] = Path(file.extract(entry.member, folder))
        return found

    def add(self, found: Mapping[str, Path | str]) -> None:
        """Keep more statistics, and of the old ones those that this run has used.

        Args:
            found: For every key the file with the sums, or why they were refused.

        Raises:
            OutputError: The file cannot be written.
        """
        from onnxshrink.files import output

        kept = {key: e for key, e in self._entries.items() if key in self._used - set(found)}
        entries = dict(kept)
        with (
            output(self._path) as out,
            zipfile.ZipFile(out, "w") as file,
            zipfile.ZipFile(self._path) if kept else contextlib.nullcontext() as old,
        ):
            for entry in kept.values():
                if old is not None and entry.member:
                    with old.open(entry.member) as source, file.open(entry.member, "w") as sink:
                        shutil.copyfileobj(source, sink)
            for key, what in found.items():
                refused = what if isinstance(what, str) else ""
                entries[key] = CacheEntry(refused, "" if refused else f"{key}.npz")
                if isinstance(what, Path):
                    file.write(what, entries[key].member)
            index = {key: vars(entry) for key, entry in sorted(entries.items())}
            file.writestr(_INDEX, json.dumps({"format": _FORMAT, "entries": index}))
        self._entries = entries
        self._used |= set(found)


def data_digest(feeds: Sequence[Mapping[str, np.ndarray]]) -> str:
    """SHA-256 of inputs: their names, types, shapes and values, in order."""
    hasher = hashlib.sha256()
    for feed in feeds:
        for name, array in sorted(feed.items()):
            hasher.update(f"{name}|{array.dtype}|{array.shape}|".encode())
            hasher.update(_contents(array))
        hasher.update(b"next")
    return hasher.hexdigest()


def _contents(array: np.ndarray) -> bytes:
    if array.dtype.kind == "O":
        return json.dumps([str(item) for item in array.flat]).encode()
    return np.ascontiguousarray(array).tobytes()


def keys(model: str, data: str, needs: Iterable[Need]) -> dict[Need, str]:
    """The key of each need of a model with these digests of its contents and of its inputs."""

    def key(need: Any) -> str:
        return hashlib.sha256(f"{model}|{data}|{need!r}".encode()).hexdigest()

    return {need: key(need) for need in needs}
