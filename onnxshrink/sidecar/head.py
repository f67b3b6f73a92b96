"""What stands before the chunks of a pack: which version it is, and its header's text.

A pack of version 2 begins with a small ONNX model, the stub, whose last field holds the rest. So
the file may be called ``model.onnx``: a runtime that opens it says what it is and what to do.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from typing import NamedTuple

from onnxshrink.errors import SidecarError
from onnxshrink.kernels import entropy

MAGIC = {1: b"ONXSPAK1", 2: b"ONXSPAK2"}
MAX_HEADER = 1 << 24
MAX_HEADER_RATIO = 64
"""A deflated header of version 2 holds at most this many times its bytes: no bomb fits."""

FIRST = struct.Struct("<8sIIQII")  # magic, version, flags, header length, header crc32, zero
HEAD = struct.Struct("<8sIIIIQ")  # magic, flags, deflated length, length, crc32, zero
assert FIRST.size == HEAD.size

_TELLS = b"this model is packed: 'onnxshrink unpack' makes it plain, onnxshrink's readers open it"
# A ModelProto: IR 3, one node whose type runtimes name when they do not know it, and field 50000,
# which parsers skip.
_STUB = (
    b"\x08\x03\x12\nonnxshrink\x1a\x11format of packs 2:~\ng\x12\x01y\"V" + _TELLS +
    b":\nonnxshrink\x12\x06packedb\x0b\n\x01y\x12\x06\n\x04\x08\x01\x12\x00"
    b"B\x04\n\x00\x10\x07B\x0e\n\nonnxshrink\x10\x01\x82\xb5\x18"
)  # fmt: skip
_LENGTH = 5  # bytes of the length of the last field
STUB = len(_STUB) + _LENGTH
_MOST_SAID = 2 ** (7 * _LENGTH) - 1


class Head(NamedTuple):
    """The first bytes of a pack, checked.

    Attributes:
        version: Of the format.
        at: Where head and header begin: what comes before is the stub.
        text: Where the header's text begins.
        length: Bytes of the text.
        stored: Bytes that it takes in the file: deflated in version 2.
        crc: The crc32 of these.
        start: Where the chunks begin.
    """

    version: int
    at: int
    text: int
    length: int
    stored: int
    crc: int
    start: int


def stub(rest: int) -> bytes:
    """The ONNX model that a pack begins with.

    Args:
        rest: Bytes of the file behind it.
    """
    left, said = min(rest, _MOST_SAID), bytearray()
    for _ in range(_LENGTH):
        said.append(left & 127 | 128)
        left >>= 7
    said[-1] &= 127
    return _STUB + bytes(said)


def is_pack(start: bytes) -> bool:
    """Whether a file that starts so is a pack that holds its graph.

    Args:
        start: Its first bytes, :data:`STUB` and eight or more.
    """
    return start[STUB : STUB + 8] == MAGIC[2]


def read_head(read: Callable[[int, int], bytes], size: int) -> Head:
    """Check the first bytes of a pack.

    Args:
        read: Gives the bytes of the file from an offset, as many as are asked for.
        size: Bytes of the file.

    Raises:
        SidecarError: Not a pack, another version, or longer than the file or the limit.
    """
    if size < HEAD.size:
        raise SidecarError(f"{size} bytes are too few for a packed sidecar")
    head = read(0, HEAD.size)
    if head.startswith(MAGIC[1]):
        _, version, flags, length, crc, zero = FIRST.unpack(head)
        if version != 1:
            raise SidecarError(f"version {version} of the format; this reader knows 1 and 2")
        found = Head(1, 0, HEAD.size, length, length, crc, _aligned(HEAD.size + length))
    else:
        begins = read(0, STUB + HEAD.size) if size >= STUB + HEAD.size else b""
        if not is_pack(begins):
            raise SidecarError("not a packed sidecar (model.onnx.pack) nor a packed model")
        if begins[:STUB] != stub(size - STUB):
            raise SidecarError("what runtimes see of it is not what a packed model shows them")
        _, flags, stored, length, crc, zero = HEAD.unpack(begins[STUB:])
        text = STUB + HEAD.size
        found = Head(2, STUB, text, length, stored, crc, text + stored)
        if length > MAX_HEADER_RATIO * stored:
            raise SidecarError(f"a header of {length} bytes does not come from {stored}")
    if flags or zero:
        raise SidecarError(f"unknown flags {flags:#x}, {zero:#x}: a newer onnxshrink may know them")
    if max(found.length, found.stored) > MAX_HEADER or found.start > size:
        raise SidecarError(f"a header of {found.length} bytes does not fit {size} bytes")
    return found


def header_text(head: Head, stored: bytes) -> bytes:
    """The header's text.

    Args:
        head: What stands before it.
        stored: Its bytes in the file.

    Raises:
        SidecarError: It is damaged.
    """
    if zlib.crc32(stored) != head.crc:
        raise SidecarError("the header is damaged: its checksum differs")
    try:
        return stored if head.version == 1 else entropy.inflate(stored, head.length)
    except ValueError as error:
        raise SidecarError(f"the header is damaged: {error}") from error


def preamble(text: bytes, area: int) -> bytes:
    """All that stands before the chunks of a pack of version 2.

    Args:
        text: The header.
        area: Bytes of all chunks.

    Raises:
        SidecarError: The header is too long.
    """
    if len(text) > MAX_HEADER:
        raise SidecarError("too many tensors for one pack: leave the small ones in the graph")
    stored = _deflated(text, zlib.Z_DEFAULT_STRATEGY)
    if len(text) > MAX_HEADER_RATIO * len(stored):
        stored = _deflated(text, zlib.Z_HUFFMAN_ONLY)  # no code is shorter than an eighth
    head = HEAD.pack(MAGIC[2], 0, len(stored), len(text), zlib.crc32(stored), 0)
    return stub(len(head) + len(stored) + area) + head + stored


def _deflated(text: bytes, strategy: int) -> bytes:
    coder = zlib.compressobj(9, zlib.DEFLATED, -15, 9, strategy)
    return coder.compress(text) + coder.flush()


def _aligned(offset: int) -> int:
    """The next multiple of 64."""
    return -(-offset // 64) * 64
