"""TensorProtos: checked before anything trusts them, read and written without copies."""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import weakref
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import BinaryIO, TypeGuard

import onnx
import onnx_ir as ir

from onnxshrink.errors import ModelError, OutputError
from onnxshrink.files import Digesting, scratch
from onnxshrink.graph.file import round_trip, wire

#: The metadata of a packed model: what its weights are packed in (see ``packed``).
PACK_KEY = "onnxshrink.pack"
_COPY_BYTES = 4 * 2**20
LARGE_BYTES = 1024  # of a tensor that is written by itself
# Where a tensor that is not raw_data has its values; all other types are in int32_data.
_FIELD_OF: dict[int, str] = {
    onnx.TensorProto.FLOAT: "float_data", onnx.TensorProto.COMPLEX64: "float_data",
    onnx.TensorProto.DOUBLE: "double_data", onnx.TensorProto.COMPLEX128: "double_data",
    onnx.TensorProto.INT64: "int64_data",
    onnx.TensorProto.UINT32: "uint64_data", onnx.TensorProto.UINT64: "uint64_data",
}  # fmt: skip
_VALUES = (
    "raw_data", "float_data", "int32_data", "string_data", "int64_data", "double_data",
    "uint64_data",
)  # fmt: skip


class FileTensor(ir.ExternalTensor):
    """A tensor whose bytes lie in a file that :func:`check_all` let pass, by ONNX Runtime's rules.

    It stands for onnx_ir's tensor, which refuses files with links that ONNX Runtime takes.
    """

    __slots__ = ("_file",)

    def __init__(self, tensor: ir.ExternalTensor, file: Path):
        super().__init__(
            tensor.location, tensor.offset, tensor.length, tensor.dtype,
            shape=ir.Shape(tensor.shape.numpy()),
            name=tensor.name or "", doc_string=tensor.doc_string,
            metadata_props=dict(tensor.metadata_props),
        )  # fmt: skip
        self._file = os.fspath(file)

    @property
    def path(self) -> str:
        """The model file itself (see ``wire``), or its data."""
        return self._file


def payload_bytes(tensor: onnx.TensorProto, where: str) -> int:
    """Bytes that a tensor's dims and type ask for.

    Raises:
        ModelError: A negative dimension, an unknown type, or a product beyond 2**62.
    """
    if any(dim < 0 for dim in tensor.dims):
        raise ModelError(f"{where}: tensor {tensor.name!r} has a negative dimension")
    count = math.prod(tensor.dims)
    if count > 2**62:
        raise ModelError(f"{where}: the dimensions of tensor {tensor.name!r} overflow")
    try:
        bits = ir.DataType(tensor.data_type).bitwidth
    except (ValueError, TypeError) as error:
        raise ModelError(
            f"{where}: tensor {tensor.name!r} has unknown type {tensor.data_type}"
        ) from error
    return (count * bits + 7) // 8


def check_inline(tensor: onnx.TensorProto, where: str) -> None:
    """Check that a tensor in a message holds as many values as its shape asks for."""
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        raise ModelError(f"{where}: tensor {tensor.name!r} lies in a file; load it with its file")
    if tensor.data_type == onnx.TensorProto.STRING:
        found, expected, unit = len(tensor.string_data), math.prod(tensor.dims), "texts"
    elif tensor.HasField("raw_data"):
        found, expected, unit = len(tensor.raw_data), payload_bytes(tensor, where), "bytes"
    else:
        found, expected, unit = _typed_count(tensor), _typed_entries(tensor, where), "values"
    if found != expected:
        raise ModelError(
            f"{where}: tensor {tensor.name!r} has {found:,} {unit}, but its shape "
            f"{list(tensor.dims)} asks for {expected:,}"
        )


def _typed_count(tensor: onnx.TensorProto) -> int:
    return len(getattr(tensor, _FIELD_OF.get(tensor.data_type, "int32_data")))


def _typed_entries(tensor: onnx.TensorProto, where: str) -> int:
    """Entries of the typed field: several narrow values, or half a complex one, share one."""
    size, count = payload_bytes(tensor, where), math.prod(tensor.dims)
    if tensor.data_type in (onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128):
        return 2 * count
    return min(size, count)


def check_all(model: onnx.ModelProto, path: Path) -> None:
    """Check every tensor of a model file, and that external data are inside its folder.

    Raises:
        ModelError: Names the tensor and what is wrong with it.
    """
    sizes: dict[str, int] = {}
    packed = any(entry.key == PACK_KEY for entry in model.metadata_props)
    for tensor in round_trip.tensors(model):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            check_inline(tensor, str(path))
            continue
        what = f"{path}: tensor {tensor.name!r}"
        entry = {e.key: e.value for e in tensor.external_data}
        location = entry.get("location", "")
        if location not in sizes:
            if packed and not (path.parent / location).exists():
                raise ModelError(f"{path}: its weights are packed; 'onnxshrink unpack' it first")
            sizes[location] = file_bytes(path, location, what)
        expected = payload_bytes(tensor, str(path))
        try:
            offset = int(entry.get("offset", 0))
            length = int(entry.get("length", expected))
        except ValueError as error:
            raise ModelError(f"{what} has an offset or length that is no number") from error
        if length != expected:
            raise ModelError(
                f"{what} has {length:,} bytes, but its shape {list(tensor.dims)} asks for "
                f"{expected:,}"
            )
        if offset < 0:
            raise ModelError(f"{what} has a negative offset")
        if offset + length > sizes[location]:
            name = path.name if location == wire.INSIDE else location
            raise ModelError(
                f"{what} ends at byte {offset + length:,} of {name}, which has "
                f"{sizes[location]:,}: the file is truncated or another model's"
            )


def file_bytes(model: Path, location: str, what: str = "") -> int:
    """Size of an external data file, after making sure that it lies in the model's folder.

    Args:
        model: The model file.
        location: Where a tensor says that its data are.
        what: The tensor, for messages; the model when it does not matter which.

    Raises:
        ModelError: The location is outside the folder of the model, and of what the model is a link
            to, or it is no file.
    """
    what = what or str(model)
    if location == wire.INSIDE:
        return model.stat().st_size
    windows = PureWindowsPath(location)
    parts = PurePosixPath(location).parts + windows.parts
    rooted = windows.root or windows.drive or PurePosixPath(location).is_absolute()
    if not parts or rooted or ".." in parts or "\0" in location:
        raise ModelError(f"{what}: external data {location!r} is outside the model's folder")
    file = model.parent / location
    try:
        # What ONNX Runtime allows. Hubs keep a model and its data as links into a folder of blobs.
        roofs = (model.parent.resolve(), model.resolve().parent)
        if not any(file.resolve().is_relative_to(roof) for roof in roofs):
            raise ModelError(
                f"{what}: external data {location!r} is a link to outside the model's folder, "
                "which ONNX Runtime refuses too: copy the file to where the link is"
            )
        if not file.is_file():
            raise ModelError(
                f"{what}: external data {location!r} is missing: put it beside the model"
            )
        return file.stat().st_size
    except OSError as error:
        raise ModelError(f"{what}: external data cannot be read: {error.strerror}") from error


def without_linked_data(path: Path) -> onnx.ModelProto | None:
    """A model file whose external data are links, without its larger tensors; None for others.

    ONNX's checker refuses such data, though ONNX Runtime reads them. :func:`check_all` has held
    the tensors against their files.
    """
    proto = wire.read(os.fspath(path))
    outside = [t for t in round_trip.tensors(proto) if t.data_location == onnx.TensorProto.EXTERNAL]
    places = {e.value for t in outside for e in t.external_data if e.key == "location"}
    files = [path.parent / place for place in places - {wire.INSIDE}]
    if not any(file.is_symlink() or file.stat().st_nlink > 1 for file in files):
        return None
    for tensor in outside:
        clear_external(tensor)
        tensor.dims[:] = [0]
    return proto


def is_large(tensor: ir.TensorProtocol | None) -> TypeGuard[ir.TensorProtocol]:
    """Whether an initializer is worth writing by itself; strings have no fixed size."""
    return (
        tensor is not None and tensor.dtype != ir.DataType.STRING and tensor.nbytes >= LARGE_BYTES
    )


def clear_external(tensor: onnx.TensorProto) -> None:
    """Forget where a tensor's bytes lie."""
    del tensor.external_data[:]
    tensor.ClearField("data_location")


def point_at(tensor: onnx.TensorProto, location: str, offset: int, length: int) -> None:
    """Make a tensor name its bytes in a file."""
    clear_external(tensor)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))


def clear_values(tensor: onnx.TensorProto) -> None:
    """Forget a tensor's values, whichever field they are in."""
    for name in _VALUES:
        tensor.ClearField(name)


def inline(tensor: onnx.TensorProto, file: Path) -> None:
    """Read a tensor's bytes from their file into the message."""
    entry = {e.key: e.value for e in tensor.external_data}
    expected = payload_bytes(tensor, str(file))
    data = b"".join(_pieces(str(file), int(entry.get("offset", 0)), expected))
    clear_external(tensor)
    tensor.raw_data = data


def write(tensor: ir.TensorProtocol, file: BinaryIO | Digesting) -> None:
    """Write a tensor's bytes, a piece at a time when they lie in a file."""
    if not isinstance(tensor, ir.ExternalTensor):
        file.write(tensor.tobytes())
        return
    for piece in _pieces(os.fspath(tensor.path), tensor.offset or 0, tensor.nbytes):
        file.write(piece)


def _pieces(path: str, offset: int, length: int) -> Iterator[bytes]:
    """A part of a file, read without holding more than a piece of it.

    Raises:
        ModelError: The file ended early, or cannot be read any more.
    """
    try:
        with open(path, "rb") as source:
            source.seek(offset)
            while length:
                piece = source.read(min(length, _COPY_BYTES))
                if not piece:
                    raise ModelError(f"{path}: was cut short while it was read")
                length -= len(piece)
                yield piece
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error


class Spill:
    """A file for tensors that are too much for memory; it goes with the last model that has it."""

    def __init__(self) -> None:
        stack = contextlib.ExitStack()
        self.file = stack.enter_context(scratch()) / secrets.token_hex(8)
        weakref.finalize(self, stack.close)

    def put(self, tensor: ir.TensorProtocol, name: str) -> ir.ExternalTensor:
        """Append a tensor to the file.

        Raises:
            OutputError: There is no room for it.
        """
        try:
            with open(self.file, "ab") as file:
                offset = file.tell()
                file.write(tensor.tobytes())
        except OSError as error:
            raise OutputError(
                f"{self.file.parent}: cannot hold temporary weights: {error.strerror}; "
                "TMPDIR names another folder"
            ) from error
        return ir.ExternalTensor(
            self.file.name, offset, tensor.nbytes, tensor.dtype,
            shape=ir.Shape(tensor.shape.numpy()),
            name=name, base_dir=self.file.parent,
        )  # fmt: skip


def release(tensor: ir.TensorProtocol | None) -> None:
    """Let go of a tensor's memory map; it opens again when it is read again."""
    if isinstance(tensor, ir.ExternalTensor):
        tensor.release()
