"""TensorProtos: checked before anything trusts them, read and written without copies."""

from __future__ import annotations

import math
import os
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import BinaryIO

import onnx
import onnx_ir as ir

from onnxshrink.errors import ModelError
from onnxshrink.graph import preserve, wire

_COPY_BYTES = 4 * 2**20
_VALUES = (
    "raw_data", "float_data", "int32_data", "string_data", "int64_data", "double_data",
    "uint64_data",
)  # fmt: skip


class InsideTensor(ir.ExternalTensor):
    """A tensor whose bytes lie in the model file itself (see ``wire``)."""

    __slots__ = ("_file",)

    def __init__(self, tensor: ir.ExternalTensor, file: str):
        super().__init__(
            wire.INSIDE, tensor.offset, tensor.length, tensor.dtype, shape=ir.Shape(tensor.shape),
            name=tensor.name or "", doc_string=tensor.doc_string,
            metadata_props=dict(tensor.metadata_props),
        )  # fmt: skip
        self._file = file

    @property
    def path(self) -> str:
        """The model file."""
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
    """Check that a tensor's bytes in the message are as many as its shape asks for."""
    if tensor.data_type in (onnx.TensorProto.STRING, onnx.TensorProto.UNDEFINED):
        return
    expected = payload_bytes(tensor, where)
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        raise ModelError(f"{where}: tensor {tensor.name!r} lies in a file; load it with its file")
    if tensor.HasField("raw_data") and len(tensor.raw_data) != expected:
        raise ModelError(
            f"{where}: tensor {tensor.name!r} has {len(tensor.raw_data):,} bytes, but its shape "
            f"{list(tensor.dims)} asks for {expected:,}"
        )


def check_all(model: onnx.ModelProto, path: Path) -> None:
    """Check every tensor of a model file, and that external data are inside its folder.

    Raises:
        ModelError: Names the tensor and what is wrong with it.
    """
    sizes: dict[str, int] = {}
    for tensor in preserve.tensors(model):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            check_inline(tensor, str(path))
            continue
        entry = {e.key: e.value for e in tensor.external_data}
        location = entry.get("location", "")
        file = path if location == wire.INSIDE else path.parent / location
        if location not in sizes:
            sizes[location] = file_bytes(path, location)
        expected = payload_bytes(tensor, str(path))
        try:
            offset = int(entry.get("offset", 0))
            length = int(entry.get("length", expected))
        except ValueError as error:
            raise ModelError(f"{path}: tensor {tensor.name!r} has a damaged offset") from error
        if length != expected:
            raise ModelError(
                f"{path}: tensor {tensor.name!r} has {length:,} bytes, but its shape "
                f"{list(tensor.dims)} asks for {expected:,}"
            )
        if offset < 0 or offset + length > sizes[location]:
            raise ModelError(
                f"{path}: tensor {tensor.name!r} ends at byte {offset + length:,} of {file.name}, "
                f"which has {sizes[location]:,}: the file is truncated or another model's"
            )


def file_bytes(model: Path, location: str) -> int:
    """Size of an external data file, after making sure that it lies in the model's folder."""
    if location == wire.INSIDE:
        return model.stat().st_size
    windows = PureWindowsPath(location)
    parts = PurePosixPath(location).parts + windows.parts
    if not location or windows.is_absolute() or windows.drive or "/" in parts or ".." in parts:
        raise ModelError(f"{model}: external data {location!r} is outside the model's folder")
    file = model.parent / location
    if file.is_symlink() or not file.resolve().is_relative_to(model.parent.resolve()):
        raise ModelError(
            f"{model}: external data {location!r} is a link; ONNX Runtime refuses it: copy the file"
        )
    if not file.is_file():
        raise ModelError(f"{model}: external data {location!r} is missing; put it beside the model")
    return file.stat().st_size


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
    with open(file, "rb") as source:
        source.seek(int(entry.get("offset", 0)))
        data = source.read(expected)
    if len(data) < expected:
        raise ModelError(f"{file}: was cut short while it was read")
    clear_external(tensor)
    tensor.raw_data = data


def write(tensor: ir.TensorProtocol, file: BinaryIO) -> None:
    """Write a tensor's bytes, a piece at a time when they lie in a file."""
    if not isinstance(tensor, ir.ExternalTensor):
        file.write(tensor.tobytes())
        return
    left = tensor.nbytes
    with open(os.fspath(tensor.path), "rb") as source:
        source.seek(tensor.offset or 0)
        while left:
            piece = source.read(min(left, _COPY_BYTES))
            if not piece:
                raise ModelError(f"{tensor.path}: was cut short while it was read")
            file.write(piece)
            left -= len(piece)


def release(tensor: ir.TensorProtocol | None) -> None:
    """Let go of a tensor's memory map; it opens again when it is read again."""
    if isinstance(tensor, ir.ExternalTensor):
        tensor.release()
