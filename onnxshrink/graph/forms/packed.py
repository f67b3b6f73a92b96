"""Models whose weights lie in a packed sidecar: written, and made plain again.

A packed model is two files: ``model.onnx``, whose initializers name the external data that the
pack unpacks to, and the pack, whose name the model knows and which says what is in it:
``model.onnx.0123456789abcdef.pack``. No runtime can mistake packed bytes for weights: the data
file that the graph names does not exist. ``docs/sidecar.md`` describes the pack.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from importlib import resources
from pathlib import Path
from typing import Literal

import onnx

from onnxshrink import files, sidecar
from onnxshrink.errors import BudgetMissed, ModelError, SidecarError
from onnxshrink.graph.file import tensors
from onnxshrink.graph.file.data_files import superseding
from onnxshrink.graph.file.model import Model, Storage
from onnxshrink.graph.file.reading import read
from onnxshrink.graph.file.tensors import PACK_KEY
from onnxshrink.graph.rewrite.hoist import hoist_constants

#: Smaller tensors stay in the .onnx: their place in the pack's header would cost as much.
_PACKED_BYTES = 1024
StrPath = str | os.PathLike[str]


def pack_path(path: StrPath) -> Path:
    """The sidecar of a packed model.

    Raises:
        ModelError: The file is not a packed model.
        SidecarError: The name of its pack would lead elsewhere.
    """
    path = Path(path)
    if (name := pack_name(path)) is None:
        raise ModelError(f"{path}: is not a packed model; 'onnxshrink pack' makes one")
    return sidecar.sibling(path, name)


def save(model: Model, path: StrPath, *, base: StrPath | None = None) -> int:
    """Write a model and its sidecar.

    Args:
        model: Left as it is. Large constants in nodes and subgraphs become initializers.
        path: Where the .onnx goes; the sidecar goes beside it.
        base: A pack, or a packed model, that every reader will have; chunks that it holds are not
            stored again.

    Returns:
        Bytes of both files.

    Raises:
        BudgetMissed: Packed, the model would take more bytes than plain; nothing is written.
        OutputError: A file cannot be written.
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
        name = _write(model, path.name, folder, old)
        packed = (folder / path.name).stat().st_size + (folder / name).stat().st_size
        if packed >= (plain := model.nbytes()):
            raise BudgetMissed(
                f"{path}: not packed: that would take {packed:,} bytes, plain {plain:,}"
            )
        files.place(folder / name, path.with_name(name))
        files.place(folder / path.name, path)
    return packed


def _open_base(base: StrPath) -> sidecar.Sidecar:
    """Open a pack by its own path, or by that of its model."""
    path = base_path(base)
    try:
        return sidecar.Sidecar.open(path)
    except OSError as error:
        raise SidecarError(f"{path}: cannot be read: {error.strerror}") from error


def base_path(base: StrPath) -> Path:
    """The pack that is meant: the file itself, or the sidecar of the packed model."""
    path = Path(base)
    if not path.is_file() or path.suffix == ".pack":
        return path
    return pack_path(path)


def _write(model: Model, name: str, folder: Path, base: sidecar.Sidecar | None) -> str:
    """Write both files into a folder; the name of the pack."""
    model = model.clone()
    hoist_constants(model, _PACKED_BYTES)
    data_name = name + ".data"
    scratch = folder / "pack"
    with (
        model.apart(every=True) as (proto, outside),
        sidecar.Writer(scratch, data_name=data_name, base=base) as writer,
    ):
        for header in proto.graph.initializer:
            tensor = outside.get(header.name)
            if tensor is not None:
                dtype = onnx.TensorProto.DataType.Name(header.data_type)
                entry = writer.add(header.name, dtype, header.dims, tensor.tobytes())
                tensors.release(tensor)
                tensors.point_at(header, data_name, entry.offset, entry.nbytes)
        if model.short_names is not None and not model.short_names.given:
            model.short_names.keep |= set(outside)  # the pack knows these
            model.short_names.apply(proto, writer.nbytes)
        # The graph decides about the pack as well: its digest is in there.
        graph = proto.SerializeToString(deterministic=True)
        digest = hashlib.sha256(writer.digest.encode() + graph).hexdigest()
        pack = files.data_name(name, digest, "pack")
        _note(proto, json.dumps({"file": pack, "version": 1}))
        text = proto.SerializeToString(deterministic=True)
        writer.finish(model_sha256=hashlib.sha256(text).hexdigest())
    os.replace(scratch, folder / pack)
    with files.new_file(folder / name) as file:
        file.write(text)
    return pack


def _note(proto: onnx.ModelProto, text: str | None) -> None:
    """Let a model name its pack, or none."""
    kept = {e.key: e.value for e in proto.metadata_props if e.key != PACK_KEY}
    if text is not None:
        kept[PACK_KEY] = text
    del proto.metadata_props[:]
    for key, value in kept.items():
        proto.metadata_props.add(key=key, value=value)


def stored_bytes(path: StrPath) -> int:
    """Bytes of a packed model, its pack included."""
    return Path(path).stat().st_size + pack_path(path).stat().st_size


def open_pack(
    path: StrPath, *, base: StrPath | None = None, limit: int | None = None
) -> sidecar.Sidecar:
    """Open the sidecar of a packed model and make sure that the two belong together.

    Args:
        path: The .onnx.
        base: The pack that this one updates, if it does.
        limit: Bytes that it may unpack to; 16 GiB by default.

    Raises:
        ModelError: The file is not a packed model.
        SidecarError: The pack is missing, damaged, hostile, or another model's.
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
        opened.check_model(path)
    except BaseException:
        opened.close()
        raise
    return opened


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


def pack_name(path: Path) -> str | None:
    """Name of the sidecar of a packed model; None when the model is not packed.

    Raises:
        ModelError: The file is not an ONNX model.
    """
    try:
        entry = {e.key: e.value for e in read(path)[0].metadata_props}.get(PACK_KEY)
        name = None if entry is None else json.loads(entry)["file"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: its note on the pack is damaged: {error}") from error
    if name is not None and not isinstance(name, str):
        raise ModelError(f"{path}: its note on the pack is damaged")
    return name


def unpack(
    path: StrPath, out: StrPath, storage: Storage = "auto", *, base: StrPath | None = None,
    limit: int | None = None,
) -> int:  # fmt: skip
    """Write a packed model as a plain one, its tensors bit for bit those that were packed.

    Args:
        path: The .onnx; its pack lies beside it.
        out: Where the plain model goes.
        storage: One file or external data.
        base: The pack that this one updates, if it does.
        limit: Bytes that the pack may unpack to.

    Returns:
        Bytes written.

    Raises:
        ModelError: Not a packed model.
        SidecarError: The pack is missing, damaged, hostile, or another model's.
        OutputError: ``out`` cannot be written.
    """
    path, out = Path(path), Path(out)
    with open_pack(path, base=base, limit=limit) as opened:
        reads = [path, opened.path, *([] if base is None else [base_path(base)])]
        files.check(reads, [out])
        proto = onnx.ModelProto.FromString(path.read_bytes())
        _note(proto, None)
        # The plain model is put together in a scratch folder beside the output, tensor by tensor.
        with (
            files.writing(out), superseding(out, reads),
            files.scratch(out.absolute().parent) as folder,
        ):  # fmt: skip
            plain = folder / path.name
            plain.write_bytes(proto.SerializeToString(deterministic=True))
            opened.unpack(folder / opened.header.data_name)
            return Model.load(plain).save(out, storage)
