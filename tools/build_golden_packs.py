"""Writes the golden packs of format version 2, which every reader must read for ever.

They are frozen: this script is here to show how they came about, and to make the ones of the next
version; it refuses to overwrite. Their digests are those of the arrays that went in, not of what a
reader made of them.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import itertools
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from onnxshrink.kernels import entropy, filters
from onnxshrink.kernels.bits import pack as pack_bits
from onnxshrink.kernels.filters import Bytes, Filter
from onnxshrink.sidecar import Chunk, Entry, Header, pack
from onnxshrink.sidecar.head import preamble
from onnxshrink.sidecar.header import ALIGN, BITS, DEFLATE, STORED, align

FOLDER = Path(__file__).parents[1] / "tests" / "golden" / "2"
GRAPH = b"every reader hands on the graph as it is, whatever its bytes are"
BLOCK = 64  # the smallest: so that a few hundred symbols are several blocks

Tensor = tuple[str, str, tuple[int, ...], bytes]
_OF_UNIT = {2: "UINT2", 4: "INT4", 8: "INT8", 16: "BFLOAT16", 32: "FLOAT", 64: "INT64"}


def numbers(count: int, seed: int) -> Iterator[int]:
    """Numbers of 64 bits that are the same everywhere (a linear congruential generator)."""
    state = seed
    for _ in range(count):
        state = (state * 6364136223846793005 + 1442695040888963407) % (1 << 64)
        yield state >> 16


def every_filter() -> Iterator[Filter]:
    """All stages that fit each other."""
    choices = itertools.product(
        (2, 4, 8, 16, 32, 64), (1, 2, 4, 8, 16, 32, 64), ("none", "mask", "runs", "joint"),
        (False, True), (False, True),
    )  # fmt: skip
    for unit, bits, gaps, rotate, table in choices:
        try:
            yield Filter(unit, bits, gaps, rotate, table)  # type: ignore[arg-type]
        except ValueError:
            continue


class Assembler:
    """A pack put together chunk by chunk, with the smallest blocks."""

    def __init__(self) -> None:
        self.area = b""
        self.chunks: list[Chunk] = []
        self.entries: list[Entry] = []
        self.length = 0
        self.graph = self.chunk(np.frombuffer(GRAPH, np.uint8))

    def chunk(self, raw: Bytes) -> int:
        """Append a chunk, coded if that is shorter."""
        coded = entropy.deflate(raw)
        payload = raw.tobytes() if coded is None else coded
        method = STORED if coded is None else DEFLATE
        crc = zlib.crc32(raw.data)
        self.chunks.append(Chunk(method, len(self.area), len(payload), raw.size, crc))
        self.area += payload
        return len(self.chunks) - 1

    def add(self, tensor: Tensor, how: Filter, table: Bytes | None) -> None:
        """Append a tensor."""
        name, dtype, shape, data = tensor
        raw = np.frombuffer(data, np.uint8)
        step = BLOCK * how.unit // 8
        ids = [
            self.chunk(stream)
            for start in range(0, raw.size, step)
            for stream in filters.encode(raw[start : start + step], how, table)
        ]
        number = None if table is None else self.chunk(table)
        offset = align(self.length, ALIGN)
        entry = Entry(name, dtype, shape, offset, how, number, BLOCK, tuple(ids), 0)
        self.entries.append(entry)
        self.length = offset + entry.nbytes

    def header(self) -> Header:
        """What the pack says about itself."""
        return Header(
            None, (self.graph,), "golden.data", self.length, None, tuple(self.chunks),
            tuple(self.entries),
        )  # fmt: skip


def filter_tensors() -> Iterator[tuple[Tensor, Filter, Bytes | None]]:
    """One tensor for each filter: most symbols zero, one run longer than any token's."""
    for seed, how in enumerate(every_filter()):
        count = 336
        draws = list(numbers(count, seed))
        keep = [i % 4 == 0 if i < 64 else i > 320 for i in range(count)]
        if how.gaps == "none":
            keep = [True] * count
        table = None
        if how.table:
            entries = sorted({draw % (1 << how.unit) for draw in numbers(1 << how.bits, ~seed)})
            elements = [
                entries[d % len(entries)] if k else entries[0]
                for d, k in zip(draws, keep, strict=True)
            ]
            table = _bytes(entries, how.entry_bytes)
        else:
            elements = [
                draw % (1 << how.unit) if k else 0 for draw, k in zip(draws, keep, strict=True)
            ]
        data = (
            pack_bits(np.array(elements, np.uint8), how.unit)
            if how.unit < 8
            else _bytes(elements, how.unit // 8)
        )
        name = f"{how.unit}/{how.bits} {how}"
        yield (name, _OF_UNIT[how.unit], (count,), data.tobytes()), how, table


def type_tensors() -> Iterator[Tensor]:
    """Every type in several shapes: empty, 0-d, odd numbers of nibbles."""
    for seed, dtype in enumerate(BITS):
        for shape in ((), (0, 5), (3, 5, 7), (1001,)):
            size = (int(np.prod(shape)) * BITS[dtype] + 7) // 8
            data = bytes(draw & (255 if seed % 2 else 3) for draw in numbers(size, seed))
            yield f"{dtype} {list(shape)}", dtype, shape, data


def _bytes(values: Iterable[int], size: int) -> Bytes:
    return np.frombuffer(b"".join(v.to_bytes(size, "little") for v in values), np.uint8)


def _foreign(header: Header) -> bytes:
    """The same header as another writer's JSON may look: keys in another order, escapes, spaces."""

    def backwards(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: backwards(value[key]) for key in reversed(list(value))}
        return [backwards(v) for v in value] if isinstance(value, list) else value

    document = backwards(json.loads(header.dump()))
    return json.dumps(document, indent="\t", ensure_ascii=True).replace("/", "\\/").encode()


def _expectation(path: Path, tensors: list[Tensor], header: Header, base: str | None) -> Any:
    """What a reader must find in a pack."""
    graph = hashlib.sha256(GRAPH).hexdigest() if header.graph else None
    whole = bytearray(header.data_length)
    found = []
    for (name, dtype, shape, data), entry in zip(tensors, header.tensors, strict=True):
        whole[entry.offset : entry.offset + len(data)] = data
        digest = hashlib.sha256(data).hexdigest()
        found.append([digest, dtype, entry.offset, name, list(shape)])
    return {
        "file": hashlib.sha256(path.read_bytes()).hexdigest(),
        "base": base,
        "tensors": found,
        "data": [hashlib.sha256(whole).hexdigest(), header.data_name, None, graph],
    }


def build(folder: Path) -> None:
    """Write all golden packs, and what they hold, to a folder where there are none."""
    written: dict[str, Any] = {}

    def keep(name: str, tensors: list[Tensor], header: Header, base: str | None = None) -> None:
        written[name] = _expectation(folder / name, tensors, header, base)

    assembler = Assembler()
    for case in filter_tensors():
        assembler.add(*case)
    header, tensors = assembler.header(), [tensor for tensor, _, _ in filter_tensors()]
    (folder / "filters.pack").write_bytes(
        preamble(header.dump(), len(assembler.area)) + assembler.area
    )
    keep("filters.pack", tensors, header)

    odd = ["a/../b", '\u00e9\u4e2d\U0001f600 "quoted" \\ back', "x" * 4096, "C:\\w"]
    header = dataclasses.replace(
        header,
        tensors=tuple(
            dataclasses.replace(entry, name=f"{odd[i]}" if i < len(odd) else entry.name)
            for i, entry in enumerate(header.tensors)
        ),
    )
    tensors = [(e.name, *t[1:]) for e, t in zip(header.tensors, tensors, strict=True)]
    (folder / "foreign.pack").write_bytes(
        preamble(_foreign(header), len(assembler.area)) + assembler.area
    )
    keep("foreign.pack", tensors, header)

    types = list(type_tensors())
    keep("types.pack", types, pack(folder / "types.pack", types, data_name="types.data"))
    keep("empty.pack", [], pack(folder / "empty.pack", [], data_name="empty.data"))
    table = bytes(5 + d % 3 if row % 3 else d % 250 for row in range(600) for d in numbers(64, row))
    dealt: list[Tensor] = [("table", "INT8", (600, 64), table)]
    keep("table.pack", dealt, pack(folder / "table.pack", dealt, data_name="table.data"))
    sparse = bytes(d & 255 if d % 50 == 0 else 0 for d in numbers(400_000, 9))
    old: list[Tensor] = [
        ("same", "INT8", (400_000,), sparse),
        ("other", "FLOAT16", (2000,), bytes(3999) + b"a"),
    ]
    new: list[Tensor] = [
        old[0],
        ("other", "FLOAT16", (2000,), b"b" + bytes(3999)),
        ("more", "INT8", (1,), b"c"),
    ]
    base = folder / "base.pack"
    keep("base.pack", old, pack(base, old, data_name="weights", graph=GRAPH))
    header = pack(folder / "update.pack", new, data_name="weights", graph=GRAPH, base=base)
    keep("update.pack", new, header, "base.pack")
    text = json.dumps(written, indent=1, ensure_ascii=True)
    (folder / "expected.json").write_text(text + "\n", encoding="ascii")


def main() -> None:
    """Build the golden packs, unless they exist."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise SystemExit(f"{folder} is not empty: golden packs are never written twice")
    build(folder)


if __name__ == "__main__":
    main()
