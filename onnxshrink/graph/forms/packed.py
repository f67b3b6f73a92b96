"""Models whose weights lie in a packed sidecar: written, and made plain again.

A packed model is two files: ``model.onnx``, whose initializers name the external data that the
pack unpacks to, and ``model.onnx.pack``. No runtime can mistake packed bytes for weights: the data
file that the graph names does not exist. ``docs/sidecar.md`` describes the pack.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from importlib import resources
from pathlib import Path
from typing import Literal

import onnx

from onnxshrink import sidecar
from onnxshrink.errors import BudgetMissed, ModelError, OutputError, SidecarError
from onnxshrink.graph.file import tensors
from onnxshrink.graph.file.model import Model, Storage, atomic_write
from onnxshrink.graph.file.reading import read
from onnxshrink.graph.file.tensors import PACK_KEY
from onnxshrink.graph.rewrite.hoist import hoist_constants

#: Smaller tensors stay in the .onnx: their place in the pack's header would cost as much.
_PACKED_BYTES = 1024
StrPath = str | os.PathLike[str]


def pack_path(path: StrPath) -> Path:
    """The sidecar of a packed model."""
    return Path(path).with_name(Path(path).name + ".pack")


def save(model: Model, path: StrPath, *, base: StrPath | None = None) -> int:
    """Write a model and its sidecar.

    Args:
        model: Left as it is. Large constants in nodes and subgraphs become initializers.
        path: Where the .onnx goes; the sidecar goes beside it.
        base: A pack that every reader will have; chunks that it holds are not stored again.

    Returns:
        Bytes of both files.

    Raises:
        BudgetMissed: Packed, the model would take more bytes than plain; nothing is written.
        OutputError: A file cannot be written.
        SidecarError: The base is missing, damaged or itself an update.
    """
    path = Path(path)
    model.check_output(path)
    model.check_output(pack_path(path))
    try:
        old = None if base is None else sidecar.Sidecar.open(base)
    except OSError as error:
        raise SidecarError(f"{base}: cannot be read: {error.strerror}") from error
    try:
        with (
            contextlib.closing(old) if old is not None else contextlib.nullcontext(),
            tempfile.TemporaryDirectory(
                dir=path.absolute().parent, prefix=".onnxshrink-"
            ) as folder,
        ):
            scratch = Path(folder) / path.name
            _write(model, scratch, old)
            packed, plain = stored_bytes(scratch), model.nbytes()
            if packed >= plain:
                raise BudgetMissed(
                    f"{path}: not packed: that would take {packed:,} bytes, plain {plain:,}"
                )
            # Both are on the disk; nothing can fail between the two renames.
            os.replace(pack_path(scratch), pack_path(path))
            os.replace(scratch, path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be packed: {error.strerror or error}") from error
    return stored_bytes(path)


def _write(model: Model, path: Path, base: sidecar.Sidecar | None) -> None:
    model = model.clone()
    hoist_constants(model, _PACKED_BYTES)
    data_name = path.name + ".data"
    model.ir.metadata_props[PACK_KEY] = json.dumps({"file": pack_path(path).name, "version": 1})
    with (
        model.apart(every=True) as (proto, outside),
        sidecar.Writer(pack_path(path), data_name=data_name, base=base) as writer,
    ):
        for header in proto.graph.initializer:
            tensor = outside.get(header.name)
            if tensor is not None:
                dtype = onnx.TensorProto.DataType.Name(header.data_type)
                entry = writer.add(header.name, dtype, header.dims, tensor.tobytes())
                tensors.release(tensor)
                tensors.point_at(header, data_name, entry.offset, entry.nbytes)
        text = proto.SerializeToString(deterministic=True)
        writer.finish(model_sha256=hashlib.sha256(text).hexdigest())
    with atomic_write(path) as file:
        file.write(text)


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
    path = Path(path)
    name = pack_name(path)
    if name is None:
        raise ModelError(f"{path}: is not a packed model; 'onnxshrink pack' makes one")
    file = sidecar.sibling(path, name)
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


def write_reader(kind: Literal["c", "js"], folder: Path) -> Path:
    """Write the reader of packs for C99 (one header, over zlib) or JavaScript (one module)."""
    name = {"c": "onnxshrink_pack.h", "js": "onnxshrink_pack.mjs"}[kind]
    text = (resources.files("onnxshrink") / "readers" / name).read_bytes()
    with atomic_write(folder / name) as file:
        file.write(text)
    return folder / name


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
        if out.exists() and any(out.samefile(own) for own in (path, opened.path)):
            raise OutputError(f"{out}: is the input, which is never modified; name another output")
        proto = onnx.ModelProto.FromString(path.read_bytes())
        kept = [e for e in proto.metadata_props if e.key != PACK_KEY]
        entries = [onnx.StringStringEntryProto(key=e.key, value=e.value) for e in kept]
        del proto.metadata_props[:]
        proto.metadata_props.extend(entries)
        # The plain model is put together in a scratch folder beside the output, tensor by tensor.
        with tempfile.TemporaryDirectory(
            dir=out.absolute().parent, prefix=".onnxshrink-"
        ) as folder:
            plain = Path(folder) / path.name
            plain.write_bytes(proto.SerializeToString(deterministic=True))
            opened.unpack(Path(folder) / opened.header.data_name)
            return Model.load(plain).save(out, storage)
