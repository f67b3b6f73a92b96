"""The header of a packed sidecar: what it says, and every check before it is believed.

``docs/sidecar.md`` is the specification; the C and JavaScript readers make the same checks. Nothing
in this module reads chunks or allocates by what a header claims.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

from onnxshrink.errors import SidecarError
from onnxshrink.kernels.entropy import MAX_RATIO
from onnxshrink.kernels.filters import CHUNK, MAX_BLOCK, MIN_BLOCK, Filter

MAX_INTEGER = (1 << 53) - 1  # what every JSON reader holds exactly
ALIGN = 64
"""What tensors in the unpacked data file begin at a multiple of, and stored chunks of version 1."""

_ALIGN_CODED = 8  # of the other chunks of version 1
MAX_NAME, MAX_RANK, MAX_PARTS = 4096, 64, 256
_CODING = ("unit", "bits", "gaps", "rotate", "table", "block", "chunks")

STORED, DEFLATE, BASE = 0, 1, 2
"""Methods of a chunk. 3 (zstd) and 4 (interleaved Huffman) are reserved."""

BITS = {
    "BOOL": 8, "INT2": 2, "UINT2": 2, "INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4,
    "INT8": 8, "UINT8": 8, "FLOAT8E4M3FN": 8, "FLOAT8E4M3FNUZ": 8, "FLOAT8E5M2": 8,
    "FLOAT8E5M2FNUZ": 8, "FLOAT8E8M0": 8, "INT16": 16, "UINT16": 16, "FLOAT16": 16, "BFLOAT16": 16,
    "INT32": 32, "UINT32": 32, "FLOAT": 32, "INT64": 64, "UINT64": 64, "DOUBLE": 64,
    "COMPLEX64": 64, "COMPLEX128": 128,
}  # fmt: skip
"""Bits of an element, by the name of its type in ONNX' ``TensorProto.DataType``."""

FLOATING = {"FLOAT16", "BFLOAT16", "FLOAT", "DOUBLE", "COMPLEX64", "COMPLEX128"}

_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class Chunk(NamedTuple):
    """One run of bytes of one stream.

    Attributes:
        method: ``STORED``, ``DEFLATE``, or ``BASE`` for a chunk that the base pack holds.
        offset: From the start of the chunks (version 2 has no need to say it); for ``BASE``, the
            chunk's number in the base.
        packed: Bytes in this file.
        raw: Bytes when decoded, at most ``CHUNK``.
        crc: crc32 of the raw bytes.
        sha256: Of the raw bytes, hexadecimal; only for ``BASE``, else empty.
    """

    method: int
    offset: int
    packed: int
    raw: int
    crc: int
    sha256: str = ""

    def row(self) -> list[int | str]:
        """What a header of version 2 says of it."""
        if self.method == BASE:
            return [BASE, self.offset, self.raw, self.crc, self.sha256]
        return [self.method, self.packed, self.raw, self.crc]


@dataclass(frozen=True)
class Entry:
    """One tensor.

    Attributes:
        name: A key, never a path.
        dtype: Its name in ONNX' ``TensorProto.DataType``, for instance ``"BFLOAT16"``.
        shape: Its dimensions.
        offset: Where its bytes begin in the unpacked data file.
        how: The filter.
        table: The chunk that holds the filter's table, if it has one.
        block: Symbols of a block.
        chunks: The streams of block 0, of block 1, and so on.
        packed: Bytes of its chunks in this file; shared ones are counted here too.
        parts: Of a table whose rows are dealt to parts: each part, as a tensor of bytes; the coding
            of the tensor itself is then that of a byte a row, the number of the row's part.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    how: Filter
    table: int | None
    block: int
    chunks: tuple[int, ...]
    packed: int
    parts: tuple[Entry, ...] = ()

    @property
    def dealt(self) -> Entry:
        """The part of each row, as a tensor."""
        return replace(self, dtype="UINT8", shape=self.shape[:1], parts=())

    @property
    def numbers(self) -> tuple[int, ...]:
        """All chunks that it uses, those of its parts too."""
        own = self.chunks if self.table is None else (*self.chunks, self.table)
        return sum((part.numbers for part in self.parts), own)

    @property
    def elements(self) -> int:
        """Elements of the tensor."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor when unpacked."""
        return nbytes(self.dtype, self.shape)

    @property
    def bits_per_weight(self) -> float:
        """Packed bits an element; 0 for an empty tensor."""
        return 8 * self.packed / max(self.elements, 1)


@dataclass(frozen=True)
class Header:
    """Everything that a pack says about itself.

    Attributes:
        model: Of version 1: sha256 of the .onnx file that this pack belongs to, or None.
        graph: Of version 2: the chunks of the ONNX model whose external data the tensors are;
            empty in a pack of weights alone.
        data_name: Base name of the unpacked data file, as the graph calls it.
        data_length: Bytes of the unpacked data file.
        base: sha256 of the head and header of the pack that this one updates, or None.
        chunks: In the order of the file.
        tensors: In the order of the unpacked data file.
    """

    model: str | None
    graph: tuple[int, ...]
    data_name: str
    data_length: int
    base: str | None
    chunks: tuple[Chunk, ...]
    tensors: tuple[Entry, ...]

    @property
    def graph_length(self) -> int:
        """Bytes of the graph."""
        return sum(self.chunks[number].raw for number in self.graph)

    def dump(self) -> bytes:
        """The header of version 2 as JSON; the same header always gives the same bytes."""
        document = {
            "base": self.base,
            "graph": self.graph,
            "data": {"name": self.data_name, "length": self.data_length},
            "chunks": [chunk.row() for chunk in self.chunks],
            "tensors": [
                {
                    "name": t.name, "dtype": t.dtype, "shape": t.shape, "offset": t.offset,
                    **_coding_of(t),
                    "parts": [{"length": p.nbytes, **_coding_of(p)} for p in t.parts],
                }
                for t in self.tensors
            ],
        }  # fmt: skip
        return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


def _coding_of(entry: Entry) -> dict[str, object]:
    how = entry.how
    return {
        "unit": how.unit, "bits": how.bits, "gaps": how.gaps, "rotate": how.rotate,
        "table": entry.table, "block": entry.block, "chunks": entry.chunks,
    }  # fmt: skip


def nbytes(dtype: str, shape: Sequence[int]) -> int:
    """Bytes of a tensor; narrow elements are packed, the last byte padded.

    Raises:
        SidecarError: A type that this format does not know.
    """
    if dtype not in BITS:
        raise SidecarError(f"element type {dtype!r} cannot be packed; leave it in the .onnx file")
    return (math.prod(shape) * BITS[dtype] + 7) // 8


def check_basename(name: str) -> str:
    """Refuse a name that is not a plain file name beside the model.

    Raises:
        SidecarError: It is empty, too long, not text, or leads elsewhere.
    """
    if (
        not 0 < len(_text(name).encode()) <= 255
        or name in (".", "..")
        or any(c in name for c in "/\\:")
        or _CONTROL.search(name)
    ):
        raise SidecarError(f"{name!r} is not the plain name of a file beside the model")
    return name


def check_name(name: str, taken: Container[str]) -> None:
    """Refuse a tensor's name that another has, or that not every reader can hold.

    Raises:
        SidecarError: It is taken, empty, too long, or has characters that are not text.
    """
    if name in taken:
        raise SidecarError(f"two tensors have the name {name!r}")
    if not 0 < len(_text(name).encode()) <= MAX_NAME or _CONTROL.search(name):
        raise SidecarError(f"a tensor's name is empty, too long, or not text: {name[:40]!r}")


def align(offset: int, to: int) -> int:
    """The next multiple of ``to``."""
    return -(-offset // to) * to


def parse(raw: bytes, version: int, area: int, limit: int) -> Header:
    """Read a header and check everything in it.

    Args:
        raw: The header's bytes.
        version: Of the format.
        area: Bytes of the file from where the chunks begin.
        limit: Most bytes to accept: of the unpacked data file and the graph.

    Returns:
        The header; all offsets, lengths and references in it hold.

    Raises:
        SidecarError: It is damaged, or breaks a rule of the format or the limit.
    """
    try:
        document = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_distinct,
            parse_int=_integer,
            parse_float=_no_number,
            parse_constant=_no_number,
        )
    except (ValueError, RecursionError) as error:
        raise SidecarError(f"the header is not the JSON it must be: {error}") from error
    own = "model" if version == 1 else "graph"
    top = _keys(document, "the header", own, "base", "data", "chunks", "tensors")
    data = _keys(top["data"], "data", "name", "length")
    length = _int(data["length"], "data.length")
    base = _sha256(top["base"], "base")
    chunks = _chunks(top["chunks"], area, base is not None, version)
    graph = () if version == 1 else _numbers(top["graph"], "the graph", chunks)
    whole = length + sum(chunks[number].raw for number in graph)
    if whole > limit:
        raise SidecarError(
            f"it unpacks to {whole:,} bytes, over the limit of {limit:,}; raise the limit if you "
            "trust the file"
        )
    tensors = tuple(_tensors(top["tensors"], chunks, version))
    end = 0
    for entry in tensors:
        if entry.offset < end:
            raise SidecarError(f"tensor {entry.name!r} overlaps the one before it")
        end = entry.offset + entry.nbytes
    if end != length:
        raise SidecarError(f"the tensors end at byte {end} of a data file of {length}")
    return Header(
        model=_sha256(top["model"], "model") if version == 1 else None,
        graph=graph,
        data_name=check_basename(_str(data["name"], "data.name")),
        data_length=length,
        base=base,
        chunks=chunks,
        tensors=tensors,
    )


def _chunks(rows: object, area: int, based: bool, version: int) -> tuple[Chunk, ...]:
    """The chunk table: in the order of the file, gapless but for the alignment of version 1."""
    chunks: list[Chunk] = []
    end = 0
    for number, row in enumerate(_list(rows, "chunks")):
        where = f"chunk {number}"
        chunk = _chunk(_list(row, where), where, end, version)
        method, offset, packed, raw, crc, sha256 = chunk
        chunks.append(chunk)
        if raw > CHUNK or crc >= 1 << 32:
            raise SidecarError(f"{where}: raw length or checksum out of range")
        if method == BASE:
            if not based or not sha256 or packed:
                raise SidecarError(f"{where} refers to a base that the pack does not name")
            continue
        if method == STORED:
            fits, aligned = packed == raw, ALIGN
        elif method == DEFLATE:
            fits, aligned = 0 < packed < raw <= MAX_RATIO * packed, _ALIGN_CODED
        else:
            raise SidecarError(f"{where}: unknown method {method}")
        if not fits or offset != align(end, aligned if version == 1 else 1):
            raise SidecarError(f"{where}: offset or lengths break the format")
        end = offset + packed
        if end > area:
            raise SidecarError(f"{where} ends {end - area} bytes after the end of the file")
    if end != area:
        raise SidecarError(f"{area - end} bytes after the last chunk")
    return tuple(chunks)


def _chunk(fields: list[object], where: str, end: int, version: int) -> Chunk:
    """One row of the chunk table; what version 2 leaves out follows from the chunks before."""
    in_base = bool(fields) and fields[0] == BASE
    if len(fields) != (5 if version == 1 else 4) + in_base:
        raise SidecarError(f"{where} has {len(fields)} fields")
    sha256 = (_sha256(fields[-1], where) or "") if in_base else ""
    numbers = [_int(field, where) for field in (fields[:-1] if in_base else fields)]
    if version == 1:
        method, offset, packed, raw, crc = numbers
    elif in_base:
        (method, offset, raw, crc), packed = numbers, 0
    else:
        (method, packed, raw, crc), offset = numbers, end
    return Chunk(method, offset, packed, raw, crc, sha256)


def _tensors(rows: object, chunks: tuple[Chunk, ...], version: int) -> Iterable[Entry]:
    """The tensors: each one's blocks cover exactly its bytes."""
    names: set[str] = set()
    own = ("name", "dtype", "shape", "offset") + (("parts",) if version == 2 else ())
    for row in _list(rows, "tensors"):
        fields = _keys(row, "a tensor", *own, *_CODING)
        name = _str(fields["name"], "a tensor's name")
        where = f"tensor {name!r}"
        check_name(name, names)
        names.add(name)
        shape = tuple(_int(dim, where) for dim in _list(fields["shape"], where))
        dtype = _str(fields["dtype"], where)
        if len(shape) > MAX_RANK or dtype not in BITS or nbytes(dtype, shape) > MAX_INTEGER:
            raise SidecarError(f"{where}: unknown type {dtype!r}, or its shape overflows")
        parts = [_part(part, where, chunks) for part in _list(fields.get("parts", []), where)]
        size = nbytes(dtype, shape)
        if parts:
            _check_parts(where, shape, size, parts)
        entry = _coded(fields, where, shape[0] if parts else size, chunks)
        yield replace(
            entry, name=name, dtype=dtype, shape=shape, offset=_int(fields["offset"], where),
            packed=entry.packed + sum(part.packed for part in parts), parts=tuple(parts),
        )  # fmt: skip


def _part(row: object, where: str, chunks: tuple[Chunk, ...]) -> Entry:
    """Some rows of a tensor, coded together."""
    fields = _keys(row, f"a part of {where}", "length", *_CODING)
    return _coded(fields, where, _int(fields["length"], where), chunks)


def _check_parts(where: str, shape: tuple[int, ...], size: int, parts: list[Entry]) -> None:
    """Refuse parts that are not rows of a tensor, all of them."""
    if not shape or not size or size % shape[0] or not 2 <= len(parts) <= MAX_PARTS:
        raise SidecarError(f"{where} has no rows that could be dealt to {len(parts)} parts")
    row = size // shape[0]
    if sum(part.nbytes for part in parts) != size or any(part.nbytes % row for part in parts):
        raise SidecarError(f"the parts of {where} do not hold its rows")


def _coded(fields: dict[str, object], where: str, size: int, chunks: tuple[Chunk, ...]) -> Entry:
    """How so many bytes are coded, as a tensor without a name."""
    if type(fields["rotate"]) is not bool:
        raise SidecarError(f"{where}: rotate is not true or false")
    table = None if fields["table"] is None else _int(fields["table"], where)
    ids = _numbers(fields["chunks"], where, chunks)
    if table is not None and table >= len(chunks):
        raise SidecarError(f"{where} refers to a chunk that does not exist")
    used = [chunks[i] for i in ids]
    packed = sum(c.packed for c in used) + (0 if table is None else chunks[table].packed)
    try:
        how = Filter(
            unit=_int(fields["unit"], where),
            bits=_int(fields["bits"], where),
            gaps=cast(Any, _str(fields["gaps"], where)),
            rotate=fields["rotate"],
            table=table is not None,
        )
        block = _int(fields["block"], where)
        entry = Entry("", "UINT8", (size,), 0, how, table, block, ids, packed)
        _check_blocks(entry, used)
        if table is not None:
            how.check_table(chunks[table].raw)
    except ValueError as error:
        raise SidecarError(f"{where}: {error}") from error
    return entry


def _check_blocks(entry: Entry, chunks: list[Chunk]) -> None:
    """Refuse chunks that cannot hold the tensor, by their lengths alone."""
    how, block = entry.how, entry.block
    if not MIN_BLOCK <= block <= MAX_BLOCK or block & (block - 1):
        raise ValueError(f"blocks of {block} symbols")
    total = how.symbols_of(entry.nbytes)
    blocks = -(-total // block)
    if len(chunks) != blocks * how.streams:
        raise ValueError(f"{len(chunks)} chunks for {blocks} blocks of {how.streams} streams")
    for number in range(blocks):
        used = chunks[number * how.streams : (number + 1) * how.streams]
        how.check_lengths(min(block, total - number * block), [chunk.raw for chunk in used])


def _numbers(value: object, where: str, chunks: tuple[Chunk, ...]) -> tuple[int, ...]:
    """Numbers of chunks that exist."""
    numbers = tuple(_int(number, where) for number in _list(value, where))
    if max(numbers, default=-1) >= len(chunks):
        raise SidecarError(f"{where} refers to a chunk that does not exist")
    return numbers


def _distinct(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a key occurs twice")
    return fields


def _integer(digits: str) -> int:
    if len(digits) > 16 or not 0 <= int(digits) <= MAX_INTEGER or digits == "-0":
        raise ValueError(f"{digits[:20]} is not between 0 and 2**53 - 1")
    return int(digits)


def _no_number(text: str) -> object:
    raise ValueError(f"{text[:20]} is not an integer")


def _keys(value: object, where: str, *keys: str) -> dict[str, object]:
    if not isinstance(value, dict) or set(value) != set(keys):
        raise SidecarError(f"{where} must have exactly the keys {', '.join(keys)}")
    return value


def _list(value: object, where: str) -> list[object]:
    if not isinstance(value, list):
        raise SidecarError(f"{where}: a list is missing")
    return value


def _int(value: object, where: str) -> int:
    if type(value) is not int:
        raise SidecarError(f"{where}: {value!r} is not an integer")
    return value


def _str(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise SidecarError(f"{where}: {value!r} is not text")
    return _text(value)


def _text(value: str) -> str:
    """Refuse half of a surrogate pair, which UTF-8 cannot hold."""
    if any("\ud800" <= c <= "\udfff" for c in value):
        raise SidecarError(f"{value[:40]!a} is not text")
    return value


def _sha256(value: object, where: str) -> str | None:
    if value is not None and not (isinstance(value, str) and _SHA256.match(value)):
        raise SidecarError(f"{where}: not a sha256")
    return value
