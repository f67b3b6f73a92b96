"""Packs are opened, checked and decoded here."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np

from onnxshrink.errors import SidecarError
from onnxshrink.files import replacing
from onnxshrink.kernels import entropy, filters
from onnxshrink.kernels.filters import Bytes
from onnxshrink.sidecar.files import THREADS, open_plain, ordered
from onnxshrink.sidecar.head import HEAD, STUB, header_text, is_pack, read_head
from onnxshrink.sidecar.header import BASE, DEFLATE, Entry, parse

DEFAULT_LIMIT = 1 << 34
"""Bytes that a pack may unpack to, unless the caller says otherwise: 16 GiB."""


class Sidecar:
    """An open pack. Iterate over it for (entry, bytes) in the order of the file.

    Attributes:
        path: The file.
        version: Of the format, 1 or 2.
        header: Everything that it says; checked.
        entries: Its tensors by name.
        id: sha256 of head and header: what an update names as its base.
    """

    def __init__(
        self, path: Path, file: BinaryIO, limit: int, base: Sidecar | None, threads: int
    ) -> None:
        """Use ``Sidecar.open``."""
        self.path = path
        self._file = file
        self._lock = threading.Lock()
        size = os.fstat(file.fileno()).st_size
        head = read_head(self._bytes, size)
        stored = self._bytes(head.text, head.stored)
        self.version = head.version
        self._header_end, self._start = head.text + head.stored, head.start
        text = header_text(head, stored)
        self.header = parse(text, head.version, size - self._start, limit)
        self.entries = {entry.name: entry for entry in self.header.tensors}
        self.id = hashlib.sha256(self._bytes(head.at, head.text - head.at) + stored).hexdigest()
        self._base = base
        if base is not None:
            self._check_base(base)
        self._pool = ThreadPoolExecutor(threads)
        self._ahead = 2 * threads

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        limit: int = DEFAULT_LIMIT,
        base: str | os.PathLike[str] | None = None,
        threads: int = THREADS,
    ) -> Sidecar:
        """Open a pack and check its header; no tensor is decoded yet.

        Args:
            path: The pack: a plain file, not a link.
            limit: Most bytes to accept: of the unpacked data file and the graph.
            base: The pack that this one updates.
            threads: Threads that decode.

        Returns:
            The open pack; close it, or use it as a context manager.

        Raises:
            SidecarError: The file is damaged, hostile, over the limit, or another base's update.
            OSError: It cannot be read.
        """
        path = Path(path)
        old = None if base is None else cls.open(base, limit=limit, threads=threads)
        file = None
        try:
            file = open_plain(path)
            return cls(path, file, limit, old, threads)
        except BaseException as error:
            for opened in (file, old):
                if opened is not None:
                    opened.close()
            if isinstance(error, SidecarError):
                raise SidecarError(f"{path}: {error}") from error
            raise

    def __enter__(self) -> Sidecar:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file, and the base's."""
        self._pool.shutdown(cancel_futures=True)
        self._file.close()
        if self._base is not None:
            self._base.close()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tensors, in the order of the unpacked data file."""
        return tuple(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[tuple[Entry, Bytes]]:
        for entry in self.header.tensors:
            yield entry, self.read(entry.name)

    def read(self, name: str, out: Bytes | None = None) -> Bytes:
        """Decode one tensor.

        Args:
            name: Its name.
            out: Where to put it: uint8 of exactly ``nbytes``; by default a new array.

        Returns:
            The tensor's bytes, as ONNX' ``raw_data`` would hold them. Beyond them, memory is needed
            only for the few blocks that are being decoded.

        Raises:
            SidecarError: There is no such tensor, it is damaged, or the base is missing or damaged.
            ValueError: ``out`` is not what it must be.
        """
        if name not in self.entries:
            raise SidecarError(f"{self.path}: no tensor {name!r}")
        entry = self.entries[name]
        if out is None:
            out = np.empty(entry.nbytes, np.uint8)
        if out.dtype != np.uint8 or out.shape != (entry.nbytes,):
            raise ValueError(f"out must be {entry.nbytes} uint8, not {out.dtype} {out.shape}")
        if entry.parts:
            self._gather(entry, out)
        else:  # each thread puts its blocks in place itself, so none waits for another's
            deque(self._blocks(entry, out), maxlen=0)
        return out

    def graph(self) -> bytes:
        """The ONNX model whose external data the tensors are; empty where the pack has none.

        Raises:
            SidecarError: It is damaged, or the base is missing or damaged.
        """
        numbers = self.header.graph
        parts = ordered(self._pool, self._chunk, numbers, self._ahead)
        return b"".join(part.tobytes() for part in parts)

    def verify(self, model: str | os.PathLike[str] | None = None) -> None:
        """Decode everything, checking every checksum and the padding between chunks.

        Args:
            model: The .onnx file of a pack of version 1; it must be the one that it was made with.

        Raises:
            SidecarError: Something is damaged, or the model is another one.
        """
        if model is not None:
            self.check_model(model)
        end, start = self._header_end, self._start
        for chunk in self.header.chunks:
            if chunk.method != BASE:
                self._check_padding(end, start + chunk.offset)
                end = start + chunk.offset + chunk.packed
        self._check_padding(end, max(end, start))
        self.graph()
        for entry in self.header.tensors:
            deque(self._pieces(entry), maxlen=0)

    def check_model(self, model: str | os.PathLike[str]) -> None:
        """Refuse a model that is not the one that the pack, of version 1, was made with.

        Raises:
            SidecarError: Its sha256 differs, or the pack names none.
            OSError: It cannot be read.
        """
        digest = hashlib.sha256()
        with open(model, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        if digest.hexdigest() != self.header.model:
            raise SidecarError(f"{self.path} was not packed with {model}: pack that model again")

    def unpack(self, path: str | os.PathLike[str]) -> None:
        """Write the unpacked data file, whole or not at all.

        Args:
            path: Where; its folder must exist. ``header.data_name`` is the name the model expects.

        Raises:
            SidecarError: A tensor is damaged, or the base is missing.
        """
        with replacing(Path(path)) as file:
            for entry in self.header.tensors:
                file.write(bytes(entry.offset - file.tell()))
                for block in self._pieces(entry):
                    file.write(block.data)

    def digests(self) -> dict[bytes, int]:
        """The number of each chunk by the sha256 of its raw bytes, for an update to refer to.

        Raises:
            SidecarError: The pack is itself an update, or damaged.
        """
        if self.header.base is not None:
            raise SidecarError(f"{self.path} is an update itself: use the full pack as the base")
        numbers = range(len(self.header.chunks))
        raws = ordered(self._pool, self._chunk, numbers, self._ahead)
        return {hashlib.sha256(raw.data).digest(): number for number, raw in enumerate(raws)}

    def _pieces(self, entry: Entry) -> Iterator[Bytes]:
        """The bytes of a tensor in order, not all at once unless its rows are dealt to parts."""
        if entry.parts:
            yield self.read(entry.name)
        else:
            yield from self._blocks(entry)

    def _gather(self, entry: Entry, out: Bytes) -> None:
        """Decode the parts of a tensor and put each of their rows in its place."""
        dealt = np.concatenate(list(self._blocks(entry.dealt)))
        rows = out.reshape(dealt.size, -1)
        if dealt.max() >= len(entry.parts):
            raise SidecarError(f"{self.path}: tensor {entry.name!r}: a row of no part")
        for number, part in enumerate(entry.parts):
            places = np.flatnonzero(dealt == number)
            if places.size * rows.shape[1] != part.nbytes:
                raise SidecarError(f"{self.path}: tensor {entry.name!r}: a part of other rows")
            if places.size:
                values = np.concatenate(list(self._blocks(part)))
                rows[places] = values.reshape(places.size, -1)

    def _blocks(self, entry: Entry, out: Bytes | None = None) -> Iterator[Bytes]:
        """The bytes of a tensor, decoded block by block, in order; also put into ``out``."""
        how = entry.how
        table = None if entry.table is None else self._chunk(entry.table)
        step = entry.block * how.unit // 8

        def decode(start: int) -> Bytes:
            first = start // step * how.streams
            streams = [self._chunk(i) for i in entry.chunks[first : first + how.streams]]
            place = None if out is None else out[start : start + step]
            return filters.decode(streams, how, min(step, entry.nbytes - start), table, place)

        try:
            yield from ordered(self._pool, decode, range(0, entry.nbytes, step), self._ahead)
        except ValueError as error:
            raise SidecarError(f"{self.path}: tensor {entry.name!r}: {error}") from error

    def _chunk(self, number: int) -> Bytes:
        """The raw bytes of a chunk, checked."""
        chunk = self.header.chunks[number]
        if chunk.method == BASE:
            if self._base is None:
                raise SidecarError(
                    f"{self.path} is an update: give the pack it updates as the base"
                )
            raw = self._base._chunk(chunk.offset)
            if hashlib.sha256(raw.data).hexdigest() != chunk.sha256:
                raise SidecarError(f"{self.path}: chunk {number} is not what the base holds")
            return raw
        payload = self._bytes(self._start + chunk.offset, chunk.packed)
        try:
            data = entropy.inflate(payload, chunk.raw) if chunk.method == DEFLATE else payload
        except ValueError as error:
            raise SidecarError(f"{self.path}: chunk {number}: {error}") from error
        if zlib.crc32(data) != chunk.crc:
            raise SidecarError(f"{self.path}: chunk {number} is damaged: its checksum differs")
        return np.frombuffer(data, np.uint8)

    def _check_base(self, base: Sidecar) -> None:
        """Refuse a base that is not the one this pack was made against."""
        if self.header.base != base.id:
            wanted = self.header.base or "no base at all"
            raise SidecarError(f"{base.path} is not its base: it needs {wanted}, not {base.id}")
        if base.header.base is not None:
            raise SidecarError(f"its base {base.path} is an update itself")
        for number, chunk in enumerate(self.header.chunks):
            if chunk.method == BASE:
                there = base.header.chunks[chunk.offset : chunk.offset + 1]
                if not there or (there[0].raw, there[0].crc) != (chunk.raw, chunk.crc):
                    raise SidecarError(f"chunk {number} is not in the base {base.path}")

    def _check_padding(self, start: int, end: int) -> None:
        if any(self._bytes(start, end - start)):
            raise SidecarError(f"{self.path}: the padding at byte {start} is not zero")

    def _bytes(self, offset: int, length: int) -> bytes:
        """Bytes of the file; safe to call from several threads."""
        with self._lock:
            self._file.seek(offset)
            data = self._file.read(length)
        if len(data) != length:
            raise SidecarError(f"the file ends at byte {offset + len(data)}: it was cut short")
        return data


def holds_graph(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a pack that holds its graph: a whole model.

    Raises:
        OSError: It cannot be read.
    """
    with open(path, "rb") as file:
        return is_pack(file.read(STUB + HEAD.size))


def updates(pack: Path) -> list[Path]:
    """The packs in the folder of a pack that are updates of it: they cannot be read without it.

    Args:
        pack: A pack; what is damaged, or none, has no updates.
    """
    bases: dict[Path, str | None] = {}
    for path in sorted(pack.parent.iterdir()):
        with contextlib.suppress(SidecarError, OSError):
            if path.suffix == ".pack" or (path.is_file() and holds_graph(path)):
                with Sidecar.open(path) as opened:
                    bases[path] = opened.id if path == pack else opened.header.base
    own = bases.pop(pack, None)
    return [path for path, base in bases.items() if own is not None and base == own]
