"""Read and write ONNX files without holding their weights in memory.

``read`` leaves every large ``raw_data`` where it is, in the file, and describes it as external
data at that offset; a single-file model is then streamed tensor by tensor exactly like a model
with external data. ``write`` does the reverse. Both walk the protobuf wire format, whose two
rules are all that is needed: a field is ``tag, value``, and a nested message is a length and its
bytes (protobuf.dev/programming-guides/encoding).
"""

from __future__ import annotations

import mmap
import secrets
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO

import onnx
from google.protobuf.message import DecodeError

#: A location that no file can name, since it is drawn anew in every process: the tensor's bytes lie
#: in the model file itself.
INSIDE = f"\0{secrets.token_hex(8)}"

#: Smaller tensors stay in memory: a reference to the file would cost as much as they do.
STREAMED_BYTES = 4096

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_RAW_DATA, _EXTERNAL_DATA, _DATA_LOCATION = 9, 13, 14
# field number -> message type, for the messages on the way from a model to its tensors
_NESTED: dict[str, dict[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph"},
}
_LISTS = {7, 8, 9}  # of an attribute that has floats, ints or strings, and so no tensor or graph
_MODEL_GRAPH, _GRAPH_INITIALIZER = 7, 5
_GRAPH_NODE, _NODE_ATTRIBUTE, _INTS = 1, 5, 8
_LONG = 64  # numbers of a list that is written without a tag for each


def _varint(data: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError("truncated or oversized number")


def _encode(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, payload: bytes) -> bytes:
    return _encode(number << 3 | _BYTES) + _encode(len(payload)) + payload


def _fields(data: mmap.mmap, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (field number, start of the field, start of its value, end) of one message."""
    while at < end:
        start = at
        tag, at = _varint(data, at, end)
        kind = tag & 7
        if kind == _BYTES:
            length, at = _varint(data, at, end)
            stop = at + length
        elif kind == _VARINT:
            stop = _varint(data, at, end)[1]
        elif kind in (_FIXED64, _FIXED32):
            stop = at + (8 if kind == _FIXED64 else 4)
        else:
            raise ValueError(f"wire type {kind} does not occur in ONNX")
        if stop > end:
            raise ValueError("a field ends behind its message")
        yield tag >> 3, start, at, stop
        at = stop


def _slim(data: mmap.mmap, at: int, end: int, kind: str) -> bytes:
    """Copy one message, with every large raw_data inside it replaced by its place in the file."""
    out, reference = bytearray(), b""
    for number, start, value, stop in _fields(data, at, end):
        if kind == "attribute" and number in _LISTS:  # of millions of numbers, in tree ensembles
            out += data[start:end]
            break
        nested = _NESTED.get(kind, {}).get(number)
        large = stop - value >= STREAMED_BYTES
        if large and nested is not None:
            out += _field(number, _slim(data, value, stop, nested))
        elif kind == "tensor" and number == _RAW_DATA:  # of several, the last one counts
            reference = _reference(value, stop - value) if large else b""
            out += b"" if large else data[start:stop]
        else:
            out += data[start:stop]
    # The last data_location counts too, and the file may have one behind its raw_data: tensors
    # that were external once are marked as lying inside.
    return bytes(out) + reference


def _reference(offset: int, length: int) -> bytes:
    """The fields of a tensor whose bytes lie in the model file itself."""
    out = bytearray()
    for key, text in {"location": INSIDE, "offset": str(offset), "length": str(length)}.items():
        entry = onnx.StringStringEntryProto(key=key, value=text)
        out += _field(_EXTERNAL_DATA, entry.SerializeToString())
    return bytes(out) + _encode(_DATA_LOCATION << 3 | _VARINT) + b"\x01"


def read(path: str) -> onnx.ModelProto:
    """Parse a model file; tensors of 4 KiB and more become external data at ``INSIDE``.

    Raises:
        ValueError: The bytes are not a protobuf message of an ONNX model.
    """
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        slim = _slim(data, 0, len(data), "model")
    try:
        return onnx.ModelProto.FromString(slim)
    except DecodeError as error:
        raise ValueError(str(error)) from error


def _serialized(graph: onnx.GraphProto) -> bytes:
    """The bytes of a graph; long lists of its nodes' attributes go without a tag for each number.

    Every reader of protobuf takes both forms of a list (protobuf.dev, packed repeated fields).
    """
    if not any(len(each.ints) >= _LONG for node in graph.node for each in node.attribute):
        return graph.SerializeToString(deterministic=True)
    rest = onnx.GraphProto()
    rest.CopyFrom(graph)
    del rest.node[:]
    nodes = (_field(_GRAPH_NODE, _node(node)) for node in graph.node)
    return b"".join([*nodes, rest.SerializeToString(deterministic=True)])


def _node(node: onnx.NodeProto) -> bytes:
    rest = onnx.NodeProto()
    rest.CopyFrom(node)
    del rest.attribute[:]
    out = rest.SerializeToString(deterministic=True)
    for attribute in node.attribute:
        numbers = list(attribute.ints) if len(attribute.ints) >= _LONG else []
        if numbers:
            del attribute.ints[:]
        packed = b"".join(_encode(number % 2**64) for number in numbers)
        body = attribute.SerializeToString(deterministic=True)
        out += _field(_NODE_ATTRIBUTE, body + (_field(_INTS, packed) if numbers else b""))
        attribute.ints.extend(numbers)
    return out


class FileLayout:
    """A model laid out as one file: its exact size is known before a byte is written.

    Args:
        proto: The model; its main graph's initializers are taken out of it.
        payloads: For each initializer in order, None when its TensorProto is complete, else the
            number of its bytes and the function that writes them to a file.
    """

    def __init__(
        self,
        proto: onnx.ModelProto,
        payloads: Iterable[tuple[int, Callable[[BinaryIO], object]] | None],
    ):
        self._entries: list[tuple[bytes, Callable[[BinaryIO], object] | None]] = []
        body = 0
        for tensor, payload in zip(proto.graph.initializer, payloads, strict=True):
            head, length, write = tensor.SerializeToString(deterministic=True), 0, None
            if payload is not None:
                length, write = payload
                head += _encode(_RAW_DATA << 3 | _BYTES) + _encode(length)
            prefix = _encode(_GRAPH_INITIALIZER << 3 | _BYTES) + _encode(len(head) + length)
            self._entries.append((prefix + head, write))
            body += len(prefix) + len(head) + length
        del proto.graph.initializer[:]
        graph = _serialized(proto.graph)
        proto.ClearField("graph")
        self._head = (
            proto.SerializeToString(deterministic=True)
            + _encode(_MODEL_GRAPH << 3 | _BYTES)
            + _encode(len(graph) + body)
            + graph
        )
        self.nbytes = len(self._head) + body

    def write(self, file: BinaryIO) -> None:
        """Write the model, one tensor at a time."""
        file.write(self._head)
        for head, write in self._entries:
            file.write(head)
            if write is not None:
                write(file)
