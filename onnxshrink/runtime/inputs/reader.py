"""The reader of sources: it tells what each of them is, and who makes feeds of it."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from onnxshrink.errors import DataError
from onnxshrink.functions import each, load_function, user_code
from onnxshrink.options import nearest_file
from onnxshrink.reading import Reading
from onnxshrink.runtime.inputs import pictures, sentences, sounds, stored, tables
from onnxshrink.runtime.inputs.fitting import renamed
from onnxshrink.runtime.inputs.ports import Found, Port
from onnxshrink.runtime.inputs.showing import Maker
from onnxshrink.runtime.inputs.stacks import Stacks

FUNCTION = re.compile(r"(.+\.py):(\w+)")
SPLIT_OF_FILE = re.compile(r"(.+\.npz):(\w+)")
_ONNX_INPUT = re.compile(r"input_(\d+)")
_ARRAYS = (".npz", ".npy", ".pb")
#: What is looked for in a folder without arrays, at any depth; the first that is there is taken.
_KINDS = {
    "pictures": pictures.SUFFIXES, "sounds": sounds.SUFFIXES, "texts": sentences.SUFFIXES,
    "tables": tables.SUFFIXES,
}  # fmt: skip
_TEXTS = ("text", "sentence", "content")
_FOREIGN = {
    ".onnx": "is a model; name inputs for it",
    **dict.fromkeys((".mp3", ".flac", ".ogg", ".m4a"), "of sounds .wav is taken; convert it"),
    **dict.fromkeys((".mp4", ".mov", ".avi"), "of videos pictures are taken; extract some"),
    **dict.fromkeys((".xlsx", ".xls"), "of tables .csv and .parquet are taken; export it"),
    **dict.fromkeys((".json", ".jsonl"), "of texts one in a line of a .txt is taken; write it so"),
    **dict.fromkeys((".zip", ".tar", ".gz"), "is an archive; unpack it and name its folder"),
}
_KNOWN = (
    "a .npz, .npy or .pb file, pictures, .wav, .txt, .csv or .parquet, a folder or "
    "module.py:function"
)


def files_of(path: str) -> list[Path]:
    """The files that a path or a pattern names; the path itself where there is such a file."""
    if os.path.exists(path) or not glob.has_magic(path):
        return [Path(path)]
    return sorted(map(Path, glob.glob(path, recursive=True)), key=natural)


class Reader:
    """Turns a source into feeds, one at a time, each with the place where it was found.

    Attributes:
        streams: Whether they come from a generator or a reader object.
        maker: Who made feeds of pictures, sentences or sounds, if these were given.
        notes: What was taken for granted, or left out, each once.

    Args:
        wanted: The model's inputs.
        batch: Rows of one feed of stacked arrays, where the model takes any number.
        most_bytes: Bytes that one array of an .npz may unpack to.
        limit: How many feeds are wanted.
        reading: What the user says of pictures, sentences, sounds and tables.
    """

    def __init__(
        self, wanted: Mapping[str, Port], batch: int | None, most_bytes: int, limit: int | None,
        reading: Reading,
    ):  # fmt: skip
        self._wanted = wanted
        self._most_bytes = most_bytes
        self._limit = limit
        self._stacks = Stacks(wanted, batch)
        self.streams = False
        self.maker: Maker | None = None
        self.notes: dict[str, None] = {}
        self._pictures = pictures.Pictures(wanted, reading, self.note)
        self._sentences = sentences.Sentences(wanted, reading, self.note)
        self._sounds = sounds.Sounds(wanted, reading)

    def note(self, line: str) -> None:
        """Remember what the user must know of how inputs were read."""
        self.notes[line] = None

    def read(self, source: Any, where: str) -> Generator[Found, None, None]:
        """The feeds of a source.

        Raises:
            DataError: It is of no form that is known, or what it names cannot be read.
        """
        if isinstance(source, str | os.PathLike):
            yield from self._read_path(os.fspath(source))
        elif isinstance(source, Mapping):
            yield from self._cut(source, where)
        elif hasattr(source, "get_next"):
            self.streams = True
            yield from self._read_items(iter(source.get_next, None), where)
        elif isinstance(source, np.ndarray):
            yield from self._cut({self._only_name(where): source}, where)
        elif hasattr(source, "columns") and hasattr(source, "to_numpy"):  # a frame of pandas
            yield from self._table({str(c): source[c].to_numpy() for c in source.columns}, where)
        elif hasattr(source, "__getitem__") and not isinstance(source, Iterable):
            # A data set of torch: it ends with its length, not by iteration.
            yield from self._read_items((source[i] for i in range(len(source))), where)
        elif isinstance(source, Iterable):
            self.streams = self.streams or isinstance(source, Iterator)
            yield from self._read_items(source, where)
        else:
            raise DataError(f"{where}: a {type(source).__name__} is no form of inputs")

    def _read_items(self, items: Iterable[Any], where: str) -> Iterator[Found]:
        self._stacks.least = 1  # there are others
        if isinstance(items, list) and (files := _all_pictures(items)):
            found = self._pictures.read(files, self._limit)
            yield from self._made(self._pictures, found, files[0])
            return
        for index, item in enumerate(items):
            place = f"{where}, item {index}"
            if isinstance(item, str | os.PathLike):
                yield from self.read(item, place)
            else:
                yield place, self._item(item, place)

    def _item(self, item: Any, where: str) -> Mapping[str, Any]:
        """The feed that an item of a list, a data set or a loader is."""
        if isinstance(item, list | tuple) and item and isinstance(item[0], Mapping):
            item = item[0]  # of loaders that give a batch and its labels
        if isinstance(item, Mapping):
            return self._stacks.one(self._plain(item, where), where)
        if _is_picture(item):
            return self._of_picture(item, where)
        if _is_array(item):
            return self._stacks.one({self._only_name(where): item}, where)
        if isinstance(item, list | tuple) and item and all(map(_is_array, item)):
            if len(item) < len(self._wanted):
                names = ", ".join(self._wanted)
                raise DataError(f"{where}: {len(item)} arrays for the inputs {names}")
            if left := len(item) - len(self._wanted):
                self.note(f"items hold {left} arrays more than the model has inputs; ignored")
            return self._stacks.one(dict(zip(self._wanted, item, strict=False)), where)
        raise DataError(f"{where}: is a {type(item).__name__}, not a dict of arrays")

    def _plain(self, item: Mapping[str, Any], where: str) -> Mapping[str, Any]:
        """An item whose pictures and sentences are arrays of the inputs that take them."""
        images = [key for key, value in item.items() if _is_picture(value)]
        texts = [key for key, value in item.items() if isinstance(value, str)]
        lacking = self._wanted.keys() - item.keys()
        if len(images) == 1:
            (key,) = images
            return _without(item, key) | self._of_picture(item[key], where)
        if lacking and texts:
            self.maker = self._sentences
            key = next((name for name in _TEXTS if name in texts), texts[0])
            return _without(item, key) | self._sentences.feed([item[key]], where)
        return renamed(item, self._wanted, self.note)

    def _of_picture(self, image: Any, where: str) -> dict[str, np.ndarray]:
        self.maker = self._pictures
        return {self._pictures.frame.port.name: self._pictures.array(image, where)}

    def _cut(self, arrays: Mapping[str, Any], where: str) -> Iterator[Found]:
        yield from self._stacks.cut(renamed(arrays, self._wanted, self.note), where)

    def _table(self, columns: Mapping[str, np.ndarray], where: str) -> Iterator[Found]:
        yield from self._cut(tables.gathered(columns, where, self._wanted, self.note), where)

    def _only_name(self, where: str) -> str:
        if len(self._wanted) != 1:
            names = ", ".join(self._wanted)
            raise DataError(f"{where}: one array, but the model has several inputs: {names}")
        return next(iter(self._wanted))

    # ---- files

    def _read_path(self, path: str) -> Iterator[Found]:
        function = FUNCTION.fullmatch(path)
        split = SPLIT_OF_FILE.fullmatch(path)
        files = files_of(path)
        if function:
            yield from self._call(Path(function[1]), function[2])
        elif split:
            yield from self._read_numpy(Path(split[1]), split[2])
        elif not files:
            raise DataError(f"{path}: no file is named like this")
        elif len(files) == 1:
            yield from self._read_file(files[0])
        else:
            yield from self._read_items(files, path)

    def _read_file(self, path: Path) -> Iterator[Found]:
        suffix = path.suffix.lower()
        if path.is_dir():
            yield from self._read_folder(path)
        elif not path.exists():
            raise DataError(f"{path}: no such file{nearest_file(path)}")
        elif suffix in (".npz", ".npy"):
            yield from self._read_numpy(path, None)
        elif suffix == ".pb":
            yield from self._cut({self._only_name(str(path)): stored.load_pb(path)}, str(path))
        elif suffix in pictures.SUFFIXES:
            found = self._pictures.read([path], self._limit)
            yield from self._made(self._pictures, found, path)
        elif suffix in sounds.SUFFIXES:
            yield from self._made(self._sounds, self._sounds.read(path), path)
        elif suffix in sentences.SUFFIXES:
            yield from self._made(self._sentences, self._sentences.read(path), path)
        elif suffix in tables.SUFFIXES:
            yield from self._table(tables.read(path), str(path))
        else:
            raise DataError(f"{path}: {_FOREIGN.get(path.suffix.lower(), f'not {_KNOWN}')}")

    def _made(self, maker: Maker, found: Iterator[Found], path: Path) -> Iterator[Found]:
        """What somebody makes of a file; whatever is wrong is said of that file."""
        self.maker = maker
        try:
            yield from found
        except DataError as error:
            if str(path) in str(error):
                raise
            raise DataError(f"{path}: {error}") from error

    def _read_numpy(self, path: Path, split: str | None) -> Iterator[Found]:
        with stored.opened(path) as archive:
            if isinstance(archive, np.ndarray):
                yield from self._cut({self._only_name(str(path)): archive}, str(path))
                return

            def array(key: str) -> np.ndarray:
                return stored.array_of(archive, key, path, self._most_bytes)

            feeds = stored.indexed(archive, split, path)
            if feeds is None:
                yield from self._cut({name: array(name) for name in archive.files}, str(path))
                return
            for (_, index), names in feeds.items():
                yield f"{path}, feed {index}", {name: array(key) for name, key in names.items()}

    def _read_folder(self, folder: Path) -> Iterator[Found]:
        numbered = {
            int(found[1]): file
            for file in folder.glob("input_*.pb")
            if (found := _ONNX_INPUT.fullmatch(file.stem))
        }
        if numbered:  # ONNX's test data: the inputs of one feed, in the model's order
            files = [file for _, file in sorted(numbered.items())]
            if len(files) > len(self._wanted):
                raise DataError(f"{folder}: {len(files)} files for {len(self._wanted)} inputs")
            named = zip(self._wanted, files, strict=False)
            yield str(folder), {name: stored.load_pb(file) for name, file in named}
            return
        by_name = {file.stem: file for file in folder.glob("*.npy")}
        if len(self._wanted) > 1 and by_name.keys() >= self._wanted.keys():
            arrays = {name: stored.load_npy(by_name[name]) for name in self._wanted}
            yield from self._cut(arrays, str(folder))
            return
        self._stacks.least = 1
        entries = sorted(folder.iterdir(), key=natural)
        plain = [path for path in entries if path.suffix.lower() in _ARRAYS]
        sets = [p for p in entries if p.is_dir() and p.name.startswith("test_data_set_")]
        for path in plain or sets:
            yield from self._read_file(path)
        if not plain and not sets:
            yield from self._read_tree(folder)

    def _read_tree(self, folder: Path) -> Iterator[Found]:
        """Pictures, sounds, texts or tables of a folder, at any depth."""
        files = sorted((file for file in folder.rglob("*") if file.is_file()), key=natural)
        seen = Counter(file.suffix.lower() or "no suffix" for file in files)
        for kind, suffixes in _KINDS.items():
            if not (found := [file for file in files if file.suffix.lower() in suffixes]):
                continue
            if left := len(files) - len(found):
                self.note(f"{folder}: {left} files that are no {kind} are left out")
            yield from self._read_items(found, str(folder))
            return
        held = ", ".join(f"{count} {suffix}" for suffix, count in seen.most_common(5))
        raise DataError(f"{folder}: holds no inputs, but {held or 'nothing'}; it takes {_KNOWN}")

    def _call(self, path: Path, name: str) -> Iterator[Found]:
        where = f"{path}:{name}"
        function = load_function(where)
        with user_code(where):
            source = function()
        if source is None:
            raise DataError(f"{where}: returned None")
        # A generator runs when it is asked; what is read in between is ours.
        if isinstance(source, Iterator) or hasattr(source, "get_next"):
            items = iter(source.get_next, None) if hasattr(source, "get_next") else source
            source = each(items, where)
        yield from self.read(source, where)


def natural(path: Path) -> list[tuple[int, str]]:
    """Sort key: file 2 before file 10."""
    return [(int(p), "") if p.isdigit() else (-1, p) for p in re.split(r"(\d+)", str(path))]


def _all_pictures(items: list[Any]) -> list[Path]:
    """The files of a list that names nothing but pictures; none where it names others."""
    if not all(isinstance(item, str | os.PathLike) for item in items):
        return []
    files = [file for item in items for file in files_of(os.fspath(item))]
    are = all(file.suffix.lower() in pictures.SUFFIXES and file.is_file() for file in files)
    return files if are else []


def _is_picture(value: Any) -> bool:
    """Whether it is a picture of Pillow."""
    return hasattr(value, "getbands") and hasattr(value, "convert")


def _is_array(value: Any) -> bool:
    """Whether it is an array of numpy, torch or another that numpy knows."""
    return hasattr(value, "__array__") and hasattr(value, "shape")


def _without(item: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in item.items() if name != key}
