"""Calibration and comparison inputs, in every form in which people have them."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import re
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxshrink.errors import DataError, UnsupportedModel
from onnxshrink.functions import each, load_function, user_code
from onnxshrink.options import nearest
from onnxshrink.runtime.decoding.steps import Step

if TYPE_CHECKING:
    from onnxshrink.graph.file.model import Model

Feed = dict[str, np.ndarray]
_Found = tuple[str, Mapping[str, Any]]

#: Most rows that go into one feed when the model takes any number of them.
CHUNK_ROWS = 32
_MOST_BYTES = 4 * 2**30
#: Feeds that one source is cut into at least: some are fitted to, others judge, none is both.
_LEAST_FEEDS = 8
_FARTHEST = 64  # times as many feeds as are wanted are looked at, to choose from

_log = logging.getLogger(__name__)
_FUNCTION = re.compile(r"(.+\.py):(\w+)")
_SPLIT_OF_FILE = re.compile(r"(.+\.npz):(\w+)")
_INDEXED_KEY = re.compile(r"(?:(\w+)\|)?(\d+)\|(.+)", re.DOTALL)
_ONNX_INPUT = re.compile(r"input_(\d+)")


@dataclass(frozen=True)
class Port:
    """What the model declares about one of its inputs.

    Attributes:
        name: The input.
        dtype: Its numpy type; strings are ``object``.
        dims: Sizes, or the symbol (None for a nameless one) of a free dimension; None when the
            model does not even declare the rank.
    """

    name: str
    dtype: np.dtype[Any]
    dims: tuple[int | str | None, ...] | None


def ports(model: Model) -> dict[str, Port]:
    """The inputs that must be fed, by name.

    Raises:
        UnsupportedModel: One of them is not a tensor.
    """
    found = {}
    for value in model.inputs:
        name = value.name or ""
        if value.dtype is None or "Tensor" not in type(value.type).__name__:
            raise UnsupportedModel(f"{model.label}: input {name!r} is not a tensor")
        if not value.dtype.value:
            raise UnsupportedModel(f"{model.label}: input {name!r} is of an undefined type")
        dims = None
        if value.shape is not None:
            dims = tuple(d if isinstance(d, int) else d.value for d in value.shape)
        found[name] = Port(name, value.dtype.numpy(), dims)
    return found


def load_inputs(
    source: object, model: Model, *, limit: int | None = None, batch: int | None = None,
    most_bytes: int | None = None,
) -> list[Feed]:  # fmt: skip
    """Read inputs for a model and hold them against what it declares.

    Args:
        source: An object with ``get_next()`` (ONNX Runtime's CalibrationDataReader); an iterable
            of dicts; a dict of stacked arrays; a ``.npz`` (keys are input names, or
            ``index|name``, or ``split|index|name``: then the ``calibration`` split, or the one
            that ``file.npz:split`` names); a ``.npy`` or ``.pb`` for a model of one input; a
            folder of such files, of one ``.npy`` for each input, or of ONNX's
            ``test_data_set_*/input_0.pb``; ``module.py:function``, which returns any of these;
            or an iterable of any of these. Stacked arrays are cut along axis 0 into feeds of the
            model's fixed batch size, else of up to 32 rows and about as many each (where they are
            all that is given, into at least 8 feeds: see :class:`onnxshrink.kernels.split.Split`);
            an array of one axis more than the input has is a stack of feeds.
        model: The model to feed.
        limit: Take no more feeds than this. They are spread over all that there are; only of
            generators and readers, which are not asked for more, they are the first.
        batch: Rows of one feed of stacked arrays, where the model takes any number.
        most_bytes: Bytes that one array of an ``.npz`` may unpack to; 4 GiB by default.

    Returns:
        Feeds with exactly the model's inputs. Arrays are cast where that loses nothing but
        rounding: float64 to float32, int32 to int64, integers in range. Rows that do not fill a
        fixed batch are left out. Names that the model does not have are dropped when it lacks
        nothing (tokenizers give more than models take).

    Raises:
        DataError: Nothing there, or no rows; a name is missing; a type, rank, fixed dimension or
            value (NaN, infinity) does not fit. The message names the file and the input.
        UnsupportedModel: The model has an input that is not a tensor.
    """
    return choose_inputs(source, model, limit=limit, batch=batch, most_bytes=most_bytes)[0]


def choose_inputs(
    source: object, model: Model, *, limit: int | None = None, batch: int | None = None,
    most_bytes: int | None = None,
) -> tuple[list[Feed], int]:  # fmt: skip
    """As :func:`load_inputs`; with the number of feeds that were there and were not taken."""
    from onnxshrink.runtime.decoding import rolling

    wanted = ports(model)
    if not wanted:
        return [{}], 0
    reader = _Reader(wanted, batch, most_bytes or _MOST_BYTES)
    with contextlib.closing(reader.read(source, "the inputs")) as found:
        taken, left = _spread(found, limit, reader)
    taken = rolling.rolled_out(model, taken, limit)
    feeds = [_fitted(feed, where, wanted, warn=not i) for i, (where, feed) in enumerate(taken)]
    for (where, _), feed in zip(taken, feeds, strict=True):
        # One empty input is a cache at its start; nothing but empty ones is no input.
        if not any(array.size for array in feed.values()):
            raise DataError(f"{where}: holds no values: every input is empty")
    if not feeds:
        label = source if isinstance(source, str | os.PathLike) else "the inputs"
        raise DataError(f"{label}: holds no inputs")
    return feeds, left


def _spread(
    found: Iterator[_Found], limit: int | None, reader: _Reader
) -> tuple[list[_Found], int]:
    """So many of what is found, at even distances, and how many were left.

    Of what may be endless, or dear to make, these are the first. Never more than twice as many are
    held: whenever that many are, every other one goes.
    """
    if limit is None:
        return list(found), 0
    kept: list[_Found] = []
    seen, stride = 0, 1
    for number, item in enumerate(itertools.islice(found, _FARTHEST * limit)):
        seen = number + 1
        if number % stride == 0:
            kept.append(item)
        if reader.streams and len(kept) == limit:
            return kept, 0
        if len(kept) == 2 * limit:
            kept, stride = kept[::2], 2 * stride
    if len(kept) > limit:
        kept = [kept[place * len(kept) // limit] for place in range(limit)]
    return kept, seen - len(kept)


def source_files(source: object) -> list[Path]:
    """The files that a source of inputs names, as far as it names any; see :func:`load_inputs`."""
    if isinstance(source, str | os.PathLike):
        text = os.fspath(source)
        found = _FUNCTION.fullmatch(text) or _SPLIT_OF_FILE.fullmatch(text)
        path = Path(found[1] if found else text)
        return [path, *(f for f in path.rglob("*") if f.is_file())] if path.is_dir() else [path]
    if isinstance(source, list | tuple):
        return [file for each in source for file in source_files(each)]
    return []


class _Reader:
    """Turns a source into feeds, one at a time, each with the place where it was found.

    Attributes:
        streams: Whether they come from a generator or a reader object.
    """

    def __init__(self, wanted: Mapping[str, Port], batch: int | None, most_bytes: int):
        self._wanted = wanted
        self._most_bytes = most_bytes
        self._batch = batch
        self._least = _LEAST_FEEDS
        self.streams = False

    def read(self, source: Any, where: str) -> Generator[_Found, None, None]:
        if isinstance(source, str | os.PathLike):
            yield from self._read_path(os.fspath(source))
        elif isinstance(source, Mapping):
            yield from self._split(source, where)
        elif hasattr(source, "get_next"):
            self.streams = True
            yield from self._read_items(iter(source.get_next, None), where)
        elif isinstance(source, np.ndarray):
            yield from self._split({self._only_name(where): source}, where)
        elif isinstance(source, Iterable):
            self.streams = self.streams or isinstance(source, Iterator)
            yield from self._read_items(source, where)
        else:
            raise DataError(f"{where}: a {type(source).__name__} is no form of inputs")

    def _read_items(self, items: Iterable[Any], where: str) -> Iterator[_Found]:
        self._least = 1  # there are others
        for index, item in enumerate(items):
            place = f"{where}, item {index}"
            if isinstance(item, Mapping):
                yield place, item
            elif isinstance(item, np.ndarray):
                yield place, {self._only_name(place): item}
            elif isinstance(item, str | os.PathLike):
                yield from self.read(item, place)
            else:
                raise DataError(f"{place}: is a {type(item).__name__}, not a dict of arrays")

    def _only_name(self, where: str) -> str:
        if len(self._wanted) != 1:
            names = ", ".join(self._wanted)
            raise DataError(f"{where}: one array, but the model has several inputs: {names}")
        return next(iter(self._wanted))

    # ---- files

    def _read_path(self, path: str) -> Iterator[_Found]:
        function = _FUNCTION.fullmatch(path)
        split = _SPLIT_OF_FILE.fullmatch(path)
        if function:
            yield from self._call(Path(function[1]), function[2])
        elif split:
            yield from self._read_numpy(Path(split[1]), split[2])
        else:
            yield from self._read_file(Path(path))

    def _read_file(self, path: Path) -> Iterator[_Found]:
        if path.is_dir():
            yield from self._read_folder(path)
        elif not path.exists():
            raise DataError(f"{path}: no such file")
        elif path.suffix in (".npz", ".npy"):
            yield from self._read_numpy(path, None)
        elif path.suffix == ".pb":
            yield from self._split({self._only_name(str(path)): _load_pb(path)}, str(path))
        else:
            raise DataError(f"{path}: not a .npz, .npy or .pb file, folder or module.py:function")

    def _read_numpy(self, path: Path, split: str | None) -> Iterator[_Found]:
        with contextlib.ExitStack() as stack:
            with _readable(path):
                file = stack.enter_context(open(path, "rb"))
                if not file.peek(2).startswith((b"PK", b"\x93N")):
                    raise ValueError("it is neither an .npz nor an .npy file")
                archive = np.load(file, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                yield from self._split({self._only_name(str(path)): archive}, str(path))
                return
            keys = [found for key in archive.files if (found := _INDEXED_KEY.fullmatch(key))]
            if not keys:
                if split is not None:
                    raise DataError(f"{path}: has no splits, only {', '.join(archive.files)}")
                arrays = {name: self._array(archive, name, path) for name in archive.files}
                yield from self._split(arrays, str(path))
                return
            splits = sorted({key[1] for key in keys if key[1]})
            if split is None and "calibration" in splits:
                split = "calibration"
            elif split is not None and split not in splits:
                raise DataError(f"{path}: has no split {split!r}; it has {', '.join(splits)}")
            feeds: dict[tuple[str, int], dict[str, str]] = {}
            for key in keys:
                if split in (None, key[1]):
                    feeds.setdefault((key[1] or "", int(key[2])), {})[key[3]] = key[0]
            for (_, index), names in sorted(feeds.items()):
                arrays = {name: self._array(archive, key, path) for name, key in names.items()}
                yield f"{path}, feed {index}", arrays

    def _array(self, archive: Any, key: str, path: Path) -> np.ndarray:
        """One array of an .npz.

        Raises:
            DataError: It cannot be read, or unpacks to more than it may.
        """
        with _readable(path):
            member = key if key in archive.zip.namelist() else f"{key}.npy"
            if (nbytes := archive.zip.getinfo(member).file_size) > self._most_bytes:
                raise DataError(
                    f"{path}: {key!r} unpacks to {nbytes:,} bytes, more than "
                    f"{self._most_bytes:,}; --data-limit allows more"
                )
            array = archive[key]
        if not isinstance(array, np.ndarray):
            raise DataError(f"{path}: {key!r} is no array of numpy")
        return array

    def _read_folder(self, folder: Path) -> Iterator[_Found]:
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
            yield str(folder), {name: _load_pb(file) for name, file in named}
            return
        by_name = {file.stem: file for file in folder.glob("*.npy")}
        if len(self._wanted) > 1 and by_name.keys() >= self._wanted.keys():
            arrays = {name: _load_npy(by_name[name]) for name in self._wanted}
            yield from self._split(arrays, str(folder))
            return
        self._least = 1
        for path in sorted(folder.iterdir(), key=_natural):
            if path.suffix in (".npz", ".npy", ".pb"):
                yield from self._read_file(path)
            elif path.is_dir() and path.name.startswith("test_data_set_"):
                yield from self._read_folder(path)

    def _call(self, path: Path, name: str) -> Iterator[_Found]:
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

    # ---- stacked arrays

    def _split(self, source: Mapping[str, Any], where: str) -> Iterator[_Found]:
        """Cut a dict of stacked arrays into feeds; a dict that is one feed stays whole."""
        arrays = {name: _as_array(value, f"{where}, {name!r}") for name, value in source.items()}
        known = {name: array for name, array in arrays.items() if name in self._wanted}
        if self._has_ranks(known, extra=1):
            lengths = {len(array) for array in known.values()}
            if len(lengths) > 1:
                raise DataError(f"{where}: stacked arrays of different lengths {sorted(lengths)}")
            for row in range(lengths.pop()):
                yield f"{where}, row {row}", {n: array[row] for n, array in known.items()}
            return
        rows = {n: a for n, a in known.items() if a.ndim and self._fixed_rows(n) != len(a)}
        lengths = {len(array) for array in rows.values()}
        fixed = {size for name in rows if (size := self._fixed_rows(name)) is not None}
        can_be_cut = self._has_ranks(known, extra=0) and len(lengths) == 1 and len(fixed) < 2
        count = lengths.pop() if can_be_cut else 0
        ends = self._ends(count, fixed)
        if ends in ([], [count]):
            yield where, arrays  # one feed; or a shape that is refused as the user knows it
            return
        for start, end in itertools.pairwise([0, *ends]):
            part = {n: array[start:end] for n, array in rows.items()}
            yield f"{where}, rows {start}-{end - 1}", {**arrays, **part}

    def _ends(self, rows: int, fixed: Collection[int]) -> list[int]:
        """Where feeds end, of so many rows; none where they do not make one."""
        if size := min(fixed, default=self._batch):
            whole = list(range(size, rows + 1, size))
            return whole if fixed or not rows % size else [*whole, rows]
        count = min(rows, max(self._least, -(-rows // CHUNK_ROWS)))
        return [rows * (number + 1) // count for number in range(count)]

    def _has_ranks(self, arrays: Mapping[str, np.ndarray], extra: int) -> bool:
        """Whether every array has ``extra`` axes more than its input; unknown ranks pass at 0."""
        dims = {name: self._wanted[name].dims for name in arrays}
        return bool(arrays) and all(
            extra == 0 if (d := dims[name]) is None else array.ndim == len(d) + extra
            for name, array in arrays.items()
        )

    def _fixed_rows(self, name: str) -> int | None:
        dims = self._wanted[name].dims
        return dims[0] if dims and isinstance(dims[0], int) else None


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
    # Also what is encrypted, of an unknown method, or has a header of nonsense.
    except (
        *(OSError, EOFError, zipfile.BadZipFile, zlib.error, struct.error, LookupError, TypeError),
        *(OverflowError, SyntaxError, RuntimeError, tokenize.TokenError),
    ) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def _load_npy(path: Path) -> np.ndarray:
    with _readable(path):
        array: np.ndarray = np.load(path, allow_pickle=False)
        return array


def _load_pb(path: Path) -> np.ndarray:
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


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sort key: file 2 before file 10."""
    return [(int(p), "") if p.isdigit() else (-1, p) for p in re.split(r"(\d+)", path.name)]


def _as_array(value: Any, where: str) -> np.ndarray:
    try:
        return np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:  # ragged lists, tensors with gradients
        raise DataError(f"{where}: not an array: {error}") from error


def _fitted(feed: Mapping[str, Any], where: str, wanted: Mapping[str, Port], warn: bool) -> Feed:
    """The feed with the model's inputs, each checked and cast."""
    if isinstance(feed, Step):
        return feed
    surplus = [str(name) for name in feed if name not in wanted]
    for name in wanted:
        if name not in feed:
            given = ", ".join(map(repr, feed)) or "nothing"
            raise DataError(
                f"{where}: input {name!r} is missing; given: {given}{nearest(name, surplus)}"
            )
    if surplus and warn:
        _log.warning("%s: the model has no input %s; ignored", where, ", ".join(surplus))
    fitted = {name: fit(feed[name], port, where) for name, port in wanted.items()}
    if not any(array.size for array in fitted.values() if array.ndim):
        shapes = ", ".join(f"{name!r} {list(array.shape)}" for name, array in fitted.items())
        if any(array.ndim for array in fitted.values()):
            raise DataError(f"{where}: holds no rows ({shapes}): nothing can be seen on them")
    return fitted


def fit(value: Any, port: Port, where: str) -> np.ndarray:
    """An array as an input takes it, or an error that names both."""
    where = f"{where}: input {port.name!r}"
    array = _cast(_as_array(value, where), port.dtype, where)
    if port.dims is not None and (
        array.ndim != len(port.dims)
        or any(isinstance(d, int) and d != n for n, d in zip(array.shape, port.dims, strict=True))
    ):
        dims = ", ".join("?" if dim is None else str(dim) for dim in port.dims)
        raise DataError(f"{where} has shape {list(array.shape)}, but the model takes [{dims}]")
    if array.dtype.kind not in "biuO" and not np.isfinite(array).all():
        raise DataError(f"{where} holds NaN or infinity")
    return array


def _cast(array: np.ndarray, dtype: np.dtype[Any], where: str) -> np.ndarray:
    """Change the type where that loses nothing, or only the rounding of a float."""
    if array.dtype == dtype and dtype.kind != "O":
        return array
    if array.dtype.kind == "V" and array.dtype.itemsize == dtype.itemsize:
        return array.view(dtype)  # .npy files forget that bits are a bfloat16
    if dtype.kind == "O":
        if array.dtype.kind in "USOT" and all(isinstance(v, str | bytes) for v in array.flat):
            return array.astype(str).astype(object)
    elif array.dtype.kind in "biu" and dtype.kind in "biu":
        cast = array.astype(dtype)
        if (cast == array).all():
            return cast
        raise DataError(f"{where} holds values that do not fit {dtype}")
    elif (array.dtype.kind == "f" and dtype.kind in "fV") or np.can_cast(array.dtype, dtype):
        with np.errstate(over="ignore"):
            cast = array.astype(dtype)
        if np.isfinite(cast).all() or not np.isfinite(array).all():
            return cast
        raise DataError(f"{where} holds values that do not fit {dtype}")
    wanted = "strings" if dtype.kind == "O" else dtype
    raise DataError(f"{where} is {array.dtype}, but the model takes {wanted}")
