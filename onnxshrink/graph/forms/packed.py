"""Models whose weights are packed: written, and made plain again.

A packed model is one file, a pack that holds its graph, too; it may be called ``model.onnx``. The
graph names its weights as external data that do not exist as a file, so that no runtime can mistake
packed bytes for weights. ``docs/sidecar.md`` describes the file.

Packs of version 1 had their graph beside them, in ``model.onnx``, whose metadata name the pack,
``model.onnx.0123456789abcdef.pack``. They are read as well.
"""

from __future__ import annotations

import contextlib
import json
import os
import weakref
from importlib import resources
from pathlib import Path
from typing import Literal

import onnx
from google.protobuf.message import DecodeError

from onnxshrink import files, sidecar
from onnxshrink.errors import BudgetMissed, ModelError, SidecarError
from onnxshrink.graph.file import tensors
from onnxshrink.graph.file.data_files import superseding
from onnxshrink.graph.file.model import Model, Storage
from onnxshrink.graph.file.reading import is_file_packed, read
from onnxshrink.graph.file.tensors import PACK_KEY
from onnxshrink.graph.rewrite.hoist import hoist_constants

#: Smaller tensors stay in the graph: their place in the pack's header would cost as much.
_PACKED_BYTES = 1024
_DATA = "weights"  # what the graph calls its external data, whatever the file is called
StrPath = str | os.PathLike[str]


def is_packed(path: StrPath) -> bool:
    """Whether a file is a packed model, of either version.

    Raises:
        ModelError: It is no file, or no ONNX model.
    """
    return is_file_packed(Path(path)) or _sidecar_name(Path(path)) is not None


def pack_path(path: StrPath) -> Path:
    """The file that holds the weights of a packed model: itself, or the sidecar of version 1.

    Raises:
        ModelError: The file is not a packed model.
        SidecarError: The name of its sidecar would lead elsewhere.
    """
    path = Path(path)
    if is_file_packed(path):
        return path
    if (name := _sidecar_name(path)) is None:
        raise ModelError(f"{path}: is not a packed model; 'onnxshrink pack' makes one")
    return sidecar.sibling(path, name)


def _sidecar_name(path: Path) -> str | None:
    """Name of the sidecar of a packed model of version 1; None of others."""
    try:
        entry = {e.key: e.value for e in read(path)[0].metadata_props}.get(PACK_KEY)
        name = None if entry is None else json.loads(entry)["file"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: its note on the pack is damaged: {error}") from error
    if name is not None and not isinstance(name, str):
        raise ModelError(f"{path}: its note on the pack is damaged")
    return name


def save(model: Model, path: StrPath, *, base: StrPath | None = None) -> int:
    """Write a model as one packed file.

    Args:
        model: Left as it is. Large constants in nodes and subgraphs become initializers.
        path: Where it goes; any name will do.
        base: A packed model, or the pack of one, that every reader will have; chunks that it holds
            are not stored again.

    Returns:
        Bytes of the file.

    Raises:
        BudgetMissed: Packed, the model would take more bytes than plain; nothing is written.
        OutputError: The file cannot be written.
        SidecarError: The base is missing, damaged or itself an update.
    """
    path = Path(path)
    model.check_output(path)
    with contextlib.ExitStack() as stack:
        old = None if base is None else stack.enter_context(_open_base(base))
        spare = {*model.own_files, *([] if old is None else [old.path])}
        stack.enter_context(superseding(path, spare))
        stack.enter_context(files.writing(path))
        folder = stack.enter_context(files.scratch(path.absolute().parent))
        scratch = folder / "pack"
        _write(model, scratch, old)
        packed = scratch.stat().st_size
        if packed >= (plain := model.nbytes()):
            raise BudgetMissed(
                f"{path}: not packed: that would take {packed:,} bytes, plain {plain:,}"
            )
        files.place(scratch, path)
    return packed


def _open_base(base: StrPath) -> sidecar.Sidecar:
    """Open a pack by its own path, or by that of its model."""
    path = base_path(base)
    try:
        return sidecar.Sidecar.open(path)
    except OSError as error:
        raise SidecarError(f"{path}: cannot be read: {error.strerror}") from error


def base_path(base: StrPath) -> Path:
    """The pack that is meant: the file itself, or the sidecar of a packed model of version 1."""
    path = Path(base)
    return path if not path.is_file() or path.suffix == ".pack" else pack_path(path)


def _write(model: Model, path: Path, base: sidecar.Sidecar | None) -> None:
    """Write a packed model."""
    model = model.clone()
    hoist_constants(model, _PACKED_BYTES)
    with (
        model.apart(every=True) as (proto, outside),
        sidecar.Writer(path, data_name=_DATA, base=base) as writer,
    ):
        for header in proto.graph.initializer:
            tensor = outside.get(header.name)
            if tensor is not None:
                dtype = onnx.TensorProto.DataType.Name(header.data_type)
                entry = writer.add(header.name, dtype, header.dims, tensor.tobytes())
                tensors.release(tensor)
                tensors.point_at(header, _DATA, entry.offset, entry.nbytes)
        if model.short_names is not None and not model.short_names.given:
            model.short_names.keep |= set(outside)  # the pack knows these
            model.short_names.apply(proto, writer.nbytes)
        writer.finish(proto.SerializeToString(deterministic=True))


def stored_bytes(path: StrPath) -> int:
    """Bytes of a packed model, its sidecar included if it has one."""
    return sum(file.stat().st_size for file in {Path(path), pack_path(path)})


def open_pack(
    path: StrPath, *, base: StrPath | None = None, limit: int | None = None
) -> sidecar.Sidecar:
    """Open a packed model; of one of version 1 make sure that its sidecar belongs to it.

    Args:
        path: The model.
        base: The packed model that this one updates, if it does.
        limit: Bytes that it may unpack to; 16 GiB by default.

    Raises:
        ModelError: The file is not a packed model.
        SidecarError: It is damaged or hostile, or its sidecar is missing or another model's.
    """
    path, file = Path(path), pack_path(path)
    base = None if base is None else base_path(base)
    try:
        opened = sidecar.Sidecar.open(
            file, base=base, limit=sidecar.DEFAULT_LIMIT if limit is None else limit
        )
    except OSError as error:
        raise SidecarError(
            f"{file}: cannot be read: {error.strerror}; put it beside {path.name}"
        ) from error
    try:
        if opened.version == 1:
            opened.check_model(path)
        elif not opened.header.graph:
            raise SidecarError(f"{path}: holds weights, but no graph")
    except BaseException:
        opened.close()
        raise
    return opened


def graph(opened: sidecar.Sidecar, path: StrPath) -> bytes:
    """The graph of an open packed model, as an ONNX file whose external data are in the pack.

    Args:
        opened: From :func:`open_pack`.
        path: The model.

    Raises:
        SidecarError: It is damaged.
    """
    return Path(path).read_bytes() if opened.version == 1 else opened.graph()


def reader_path(kind: Literal["c", "js"], folder: Path) -> Path:
    """Where the reader of packs for C99 or JavaScript goes."""
    return folder / {"c": "onnxshrink_pack.h", "js": "onnxshrink_pack.mjs"}[kind]


def write_reader(kind: Literal["c", "js"], folder: Path) -> Path:
    """Write the reader of packs for C99 (one header, over zlib) or JavaScript (one module)."""
    path = reader_path(kind, folder)
    text = (resources.files("onnxshrink") / "readers" / path.name).read_bytes()
    with files.output(path) as file:
        file.write(text)
    return path


def unpack(
    path: StrPath, out: StrPath, storage: Storage = "auto", *, base: StrPath | None = None,
    limit: int | None = None,
) -> int:  # fmt: skip
    """Write a packed model as a plain one, its tensors bit for bit those that were packed.

    Args:
        path: The packed model.
        out: Where the plain model goes.
        storage: One file or external data.
        base: The packed model that this one updates, if it does.
        limit: Bytes that it may unpack to.

    Returns:
        Bytes written.

    Raises:
        ModelError: Not a packed model.
        SidecarError: It is damaged or hostile, or its sidecar is missing or another model's.
        OutputError: ``out`` cannot be written.
    """
    path, out = Path(path), Path(out)
    with open_pack(path, base=base, limit=limit) as opened:
        reads = [path, opened.path, *([] if base is None else [base_path(base)])]
        files.check(reads, [out])
        # The plain model is put together in a scratch folder beside the output, tensor by tensor.
        with (
            files.writing(out), superseding(out, reads),
            files.scratch(out.absolute().parent) as folder,
        ):  # fmt: skip
            return Model.load(_plain(opened, path, folder)).save(out, storage)


class _Home:
    """A scratch folder that lasts as long as this object."""

    def __init__(self) -> None:
        stack = contextlib.ExitStack()
        self.folder = stack.enter_context(files.scratch())
        weakref.finalize(self, stack.close)


class Unpacked(Model):
    """A packed model made plain to be worked on: its path is that of a plain copy.

    Args:
        plain: The copy.
        home: The folder of the copy, which goes with the last model that has it.
        path: The packed model.
        packs: The files of that.
    """

    def __init__(self, plain: Path, home: _Home, path: Path, packs: set[Path]):
        proto, repairs = read(plain)
        tensors.check_all(proto, plain)
        super().__init__(proto, plain, repairs)
        self.label, self._home, self._packs = str(path), home, packs

    @property
    def own_files(self) -> set[Path]:
        """The files of the packed model."""
        return self._packs


def load(path: StrPath) -> Unpacked:
    """Open a packed model to work on it; its weights are decoded into a temporary file.

    Raises:
        ModelError: Not a packed model.
        SidecarError: It is damaged or hostile, or its sidecar is missing or another model's.
    """
    path, home = Path(path), _Home()
    with open_pack(path) as opened:
        return Unpacked(_plain(opened, path, home.folder), home, path, {path, opened.path})


def _plain(opened: sidecar.Sidecar, path: Path, folder: Path) -> Path:
    """Put a plain model together in a folder, tensor by tensor.

    Raises:
        ModelError: What is packed is no ONNX model.
    """
    try:
        proto = onnx.ModelProto.FromString(graph(opened, path))
    except DecodeError as error:
        raise ModelError(f"{path}: what is packed is no ONNX model: {error}") from error
    for number, entry in reversed(list(enumerate(proto.metadata_props))):
        if entry.key == PACK_KEY:
            del proto.metadata_props[number]
    plain = folder / "model.onnx"
    plain.write_bytes(proto.SerializeToString(deterministic=True))
    opened.unpack(folder / opened.header.data_name)
    return plain
