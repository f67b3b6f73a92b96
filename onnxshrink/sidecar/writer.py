"""Packs are written here."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from onnxshrink.errors import SidecarError
from onnxshrink.files import replacing
from onnxshrink.kernels import entropy, filters
from onnxshrink.kernels.filters import CHUNK, Bytes
from onnxshrink.sidecar.files import THREADS, ordered
from onnxshrink.sidecar.head import preamble
from onnxshrink.sidecar.header import (
    ALIGN,
    BASE,
    BITS,
    DEFLATE,
    FLOATING,
    MAX_INTEGER,
    STORED,
    Chunk,
    Entry,
    Header,
    align,
    check_basename,
    check_name,
    nbytes,
    parse,
)
from onnxshrink.sidecar.reader import Sidecar

_PART = 100  # bytes that a part of a tensor costs in the header, on the careful side
_REFERENCE = 96  # bytes that a reference to a base costs in the header: shorter chunks are copied


class _CodedChunk(NamedTuple):
    """A chunk that is not yet in the file."""

    sha256: bytes
    crc: int
    raw: int
    payload: bytes
    method: int


class _ChunkedTensor(NamedTuple):
    """A tensor's chunks, block by block."""

    choice: entropy.Filtering
    block: int
    chunks: list[_CodedChunk]
    length: int

    @property
    def size(self) -> int:
        """Bytes, table included."""
        table = 0 if self.choice.table is None else self.choice.table.size
        return table + sum(len(chunk.payload) for chunk in self.chunks)


class Writer:
    """Writes a pack, one tensor at a time, and puts it in place only when it is whole.

    At no time does it hold more than one tensor and its coded form. Chunks wait in an unnamed file
    in the target's folder until the header is known: a killed writer leaves the old pack as it was.

    Use it as a context manager and call ``finish`` last; without it, nothing is written.

    Args:
        path: The pack to write.
        data_name: Base name of the data file that it unpacks to, as the graph calls it.
        base: A pack; chunks that it holds are referred to instead of stored.
        threads: Threads that filter and code.

    Raises:
        SidecarError: A bad name, or a base that is itself an update.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        data_name: str,
        base: Sidecar | None = None,
        threads: int = THREADS,
    ) -> None:
        self.path = Path(path)
        check_basename(self.path.name)
        self._data_name = check_basename(data_name)
        self._base = base
        self._known = {} if base is None else base.digests()
        self._pool = ThreadPoolExecutor(threads)
        self._ahead = 2 * threads
        self._spool: IO[bytes] = tempfile.TemporaryFile(dir=self.path.parent)  # noqa: SIM115
        self._end = 0
        self._chunks: list[Chunk] = []
        self._ids: dict[bytes, int] = {}
        self._entries: dict[str, Entry] = {}
        self._length = 0

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._spool.close()

    def add(self, name: str, dtype: str, shape: Iterable[int], data: Any) -> Entry:
        """Pack one tensor.

        Args:
            name: Its key.
            dtype: Its type's name in ONNX' ``TensorProto.DataType``, for instance ``"FLOAT"``.
            shape: Its dimensions.
            data: Its bytes as ONNX' ``raw_data`` holds them, narrow elements packed: anything with
                a contiguous buffer, such as bytes, memoryview or a numpy array.

        Returns:
            What was written; ``offset`` is where the bytes will be in the unpacked data file.

        Raises:
            SidecarError: The name is taken, the type cannot be packed, or the bytes do not fit.
        """
        shape = tuple(int(dim) for dim in shape)
        check_name(name, self._entries)
        raw = np.frombuffer(data, np.uint8) if memoryview(data).nbytes else np.zeros(0, np.uint8)
        if any(dim < 0 for dim in shape) or raw.size != nbytes(dtype, shape):
            raise SidecarError(f"tensor {name!r}: {raw.size} bytes for {dtype} of shape {shape}")
        unit = min(BITS[dtype], 32 if dtype == "COMPLEX64" else 64)
        floating = dtype in FLOATING
        coded, parts = self._smallest(raw, unit, floating=floating), list[_ChunkedTensor]()
        dealt = entropy.deal(raw, unit, shape[0]) if len(shape) > 1 else None
        if dealt is not None:
            found = self._deal(raw, unit, dealt, floating=floating)
            if sum(part.size + _PART for part in found) < coded.size:
                coded, *parts = found
        entry = self._entry(coded, name, dtype, shape, align(self._length, ALIGN))
        placed = tuple(self._entry(part, "", "UINT8", (part.length,)) for part in parts)
        packed = entry.packed + sum(part.packed for part in placed)
        entry = replace(entry, parts=placed, packed=packed)
        self._entries[name] = entry
        self._length = entry.offset + entry.nbytes
        return entry

    @property
    def nbytes(self) -> int:
        """Bytes of all chunks so far."""
        return self._end

    def finish(self, graph: bytes = b"") -> Header:
        """Write the header, make the file durable and put it in place of the old one.

        Args:
            graph: The ONNX model whose external data the tensors are; none for weights alone.

        Returns:
            What was written.

        Raises:
            SidecarError: The header breaks a rule that readers hold it to, its size for one.
        """
        raw = np.frombuffer(graph, np.uint8)
        parts = [raw[start : start + CHUNK] for start in range(0, raw.size, CHUNK)]
        numbers = tuple(map(self._place, ordered(self._pool, _code_chunk, parts, self._ahead)))
        header = Header(
            None, numbers, self._data_name, self._length, self._base.id if self._base else None,
            tuple(self._chunks), tuple(self._entries.values()),
        )  # fmt: skip
        text = header.dump()
        before = preamble(text, self._end)
        parse(text, 2, self._end, MAX_INTEGER)
        with replacing(self.path) as file:
            file.write(before)
            self._spool.seek(0)
            shutil.copyfileobj(self._spool, file, 1 << 20)
        return header

    def _smallest(self, raw: Bytes, unit: int, *, floating: bool) -> _ChunkedTensor:
        """Code bytes with the filter that suits them best."""
        choices = entropy.choose(raw, unit, floating=floating)
        coded = min((self._code(raw, choice) for choice in choices), key=lambda c: c.size)
        if coded.size > raw.size:
            coded = self._code(raw, entropy.plain(unit, floating=floating))
        return coded

    def _deal(self, raw: Bytes, unit: int, dealt: Bytes, *, floating: bool) -> list[_ChunkedTensor]:
        """The part of each row, coded, and then each part, all its rows coded together."""
        rows = raw.reshape(dealt.size, -1)
        parts = [rows[dealt == number].reshape(-1) for number in range(int(dealt.max()) + 1)]
        return [
            self._smallest(dealt, 8, floating=False),
            *(self._smallest(part, unit, floating=floating) for part in parts),
        ]

    def _entry(
        self, coded: _ChunkedTensor, name: str, dtype: str, shape: tuple[int, ...], offset: int = 0
    ) -> Entry:
        """Place what was coded."""
        how, values = coded.choice
        ids = tuple(self._place(chunk) for chunk in coded.chunks)
        table = None if values is None else self._place(_code_chunk(values))
        used = ids if table is None else (*ids, table)
        packed = sum(self._chunks[i].packed for i in used)
        return Entry(name, dtype, shape, offset, how, table, coded.block, ids, packed)

    def _code(self, raw: Bytes, choice: entropy.Filtering) -> _ChunkedTensor:
        """The chunks of every block."""
        how, table = choice
        block = entropy.block_symbols(raw, choice)
        step = block * how.unit // 8

        def code(start: int) -> list[_CodedChunk]:
            return [_code_chunk(s) for s in filters.encode(raw[start : start + step], how, table)]

        blocks = ordered(self._pool, code, range(0, raw.size, step), self._ahead)
        chunks = [chunk for part in blocks for chunk in part]
        return _ChunkedTensor(choice, block, chunks, raw.size)

    def _place(self, chunk: _CodedChunk) -> int:
        """The number of a chunk with these bytes: one that exists, or a new one at the end."""
        number = self._ids.get(chunk.sha256)
        if number is not None:
            return number
        at = self._known.get(chunk.sha256)
        if at is not None and len(chunk.payload) > _REFERENCE:
            row = Chunk(BASE, at, 0, chunk.raw, chunk.crc, chunk.sha256.hex())
        else:
            self._spool.write(chunk.payload)
            row = Chunk(chunk.method, self._end, len(chunk.payload), chunk.raw, chunk.crc)
            self._end += len(chunk.payload)
        self._chunks.append(row)
        self._ids[chunk.sha256] = len(self._chunks) - 1
        return len(self._chunks) - 1


def pack(
    path: str | os.PathLike[str],
    tensors: Iterable[tuple[str, str, Iterable[int], Any]],
    *,
    data_name: str,
    graph: bytes = b"",
    base: str | os.PathLike[str] | None = None,
    threads: int = THREADS,
) -> Header:
    """Write a pack from tensors that come one at a time.

    Args:
        path: The pack to write.
        tensors: (name, dtype, shape, bytes), as ``Writer.add`` takes them.
        data_name: Base name of the data file that it unpacks to, as the graph calls it.
        graph: The ONNX model whose external data the tensors are; none for weights alone.
        base: A pack that every reader of this one will have: what it holds is not stored again.
        threads: Threads that filter and code.

    Returns:
        What was written.

    Raises:
        SidecarError: A tensor or name does not fit the format, or the base is damaged.
    """
    old = None if base is None else Sidecar.open(base)
    try:
        with Writer(path, data_name=data_name, base=old, threads=threads) as writer:
            for name, dtype, shape, data in tensors:
                writer.add(name, dtype, shape, data)
            return writer.finish(graph)
    finally:
        if old is not None:
            old.close()


def _code_chunk(raw: Bytes) -> _CodedChunk:
    """Code one stream of one block."""
    payload = entropy.deflate(raw)
    method = STORED if payload is None else DEFLATE
    return _CodedChunk(
        hashlib.sha256(raw.data).digest(),
        zlib.crc32(raw.data),
        raw.size,
        raw.tobytes() if payload is None else payload,
        method,
    )
