"""What is in a packed model: how each tensor is coded, how tightly, and what that saves.

Tensors are decoded one by one and let go, so a large model takes little memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from onnxshrink.graph.forms import packed
from onnxshrink.graph.inspect.findings import by, count
from onnxshrink.kernels import entropy
from onnxshrink.report import Table, size, times
from onnxshrink.sidecar import Entry, Sidecar

_ROWS = 25  # of a table for people
_COLUMNS = (
    "tensor", "type", "shape", "plain", "packed", "bits a weight", "entropy", "filter", "saving",
)  # fmt: skip


@dataclass(frozen=True)
class PackedTensor:
    """One tensor of a pack.

    Attributes:
        name: Its name.
        dtype: Its name in ONNX' ``TensorProto.DataType``.
        shape: Its dimensions.
        parameters: Number of its elements.
        nbytes: Its bytes when unpacked.
        packed: Bytes of its chunks in the file; those that an earlier tensor uses are not counted
            again.
        entropy_bits: Order-0 entropy an element, of wide elements byte by byte; None for a tensor
            whose bytes lie in a base.
        filter: The stages that it went through.
        same_as: An earlier tensor with the same bytes; empty when there is none.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    parameters: int
    nbytes: int
    packed: int
    entropy_bits: float | None
    filter: str
    same_as: str = ""

    @property
    def bits_per_weight(self) -> float:
        """Packed bits an element."""
        return 8 * self.packed / max(self.parameters, 1)

    @property
    def saving(self) -> float:
        """Share of its bytes that packing saved."""
        return 1 - self.packed / self.nbytes if self.nbytes else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "bits_per_weight": self.bits_per_weight, "saving": self.saving}


@dataclass(frozen=True)
class PackInspection:
    """What ``inspect_pack`` found.

    Attributes:
        name: The model.
        pack: Name of its sidecar, if it is of version 1; else its own.
        graph_bytes: Bytes of the graph, with constants too small to pack.
        graph_packed: Bytes that it takes in the files; those in a base count as nothing.
        file_bytes: Size of the file, or of both files of version 1.
        base: sha256 of the pack that this one updates, if it does.
        tensors: The largest in the pack first.
    """

    name: str
    pack: str
    graph_bytes: int
    graph_packed: int
    file_bytes: int
    base: str | None
    tensors: tuple[PackedTensor, ...]

    @property
    def plain_bytes(self) -> int:
        """Its size when unpacked, without padding."""
        return self.graph_bytes + sum(tensor.nbytes for tensor in self.tensors)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "name": self.name,
            "pack": self.pack,
            "file_bytes": self.file_bytes,
            "plain_bytes": self.plain_bytes,
            "graph_bytes": self.graph_bytes,
            "graph_packed": self.graph_packed,
            "base": self.base,
            "total": _sum("total", self.tensors).to_dict(),
            "tensors": [tensor.to_dict() for tensor in self.tensors],
        }

    def tables(self, rows: int = _ROWS) -> list[Table]:
        """For people: the file, then the tensors.

        Args:
            rows: The most rows of tensors; the rest is summed up in one.
        """
        whole = _sum("total", self.tensors)
        files = Table("packed model", ("what", "figure"))
        files.add("model", f"{self.name}, {size(self.file_bytes)}")
        if self.pack != os.path.basename(self.name):
            files.add("of which in", self.pack)
        files.add("graph", f"{size(self.graph_bytes)}, packed {size(self.graph_packed)}")
        files.add("header", size(self.file_bytes - self.graph_packed - whole.packed))
        saved = times(self.plain_bytes, self.file_bytes)
        files.add("unpacked", f"{size(self.plain_bytes)}, {saved} the packed size")
        files.add("tensors", len(self.tensors))
        files.add("parameters", count(whole.parameters))
        if self.base is not None:
            files.add("update of", f"the pack with id {self.base}; chunks in it count as nothing")
        tensors = Table("packed tensors", _COLUMNS)
        for tensor in self.tensors[:rows]:
            _add(tensors, tensor)
        if rest := self.tensors[rows:]:
            _add(tensors, _sum(f"{len(rest)} more", rest))
        _add(tensors, whole)
        return [files, tensors]


def inspect_pack(path: str | os.PathLike[str]) -> PackInspection:
    """Look into a packed model; every tensor is decoded once, for its entropy.

    Args:
        path: The packed model.

    Raises:
        ModelError: Not a packed model.
        SidecarError: It is damaged or hostile, or its sidecar is missing or another model's.
    """
    path = Path(path)
    with packed.open_pack(path) as opened:
        tensors = sorted(_tensors(opened), key=lambda tensor: -tensor.packed)
        header, outside = opened.header, path.stat().st_size  # of version 1: the graph
        first = opened.version == 1
        return PackInspection(
            name=os.fspath(path),
            pack=opened.path.name,
            graph_bytes=outside if first else header.graph_length,
            graph_packed=outside if first else sum(header.chunks[i].packed for i in header.graph),
            file_bytes=packed.stored_bytes(path),
            base=opened.header.base,
            tensors=tuple(tensors),
        )


def _tensors(opened: Sidecar) -> Iterator[PackedTensor]:
    counted: set[int] = set()
    first: dict[tuple[object, ...], str] = {}
    for entry in opened.header.tensors:
        same_as = first.setdefault((entry.numbers, entry.how), entry.name)
        numbers = set(entry.numbers)
        chunks = [opened.header.chunks[number] for number in sorted(numbers - counted)]
        counted |= numbers
        yield PackedTensor(
            name=entry.name,
            dtype=entry.dtype,
            shape=entry.shape,
            parameters=entry.elements,
            nbytes=entry.nbytes,
            packed=sum(chunk.packed for chunk in chunks),
            entropy_bits=_entropy(opened, entry),
            filter=f"{len(entry.parts)} parts of rows" if entry.parts else str(entry.how),
            same_as="" if same_as == entry.name or not entry.chunks else same_as,
        )


def _entropy(opened: Sidecar, entry: Entry) -> float | None:
    if opened.header.base is not None:
        return None
    # A table dealt to parts is held against one histogram of all its elements, which it may beat.
    how = entry.parts[0].how if entry.parts else entry.how
    return entropy.ideal_bits(opened.read(entry.name), how) / max(entry.elements, 1)


def _sum(name: str, tensors: Sequence[PackedTensor]) -> PackedTensor:
    """All of them as if they were one."""
    parameters = sum(tensor.parameters for tensor in tensors)
    bits = [tensor.entropy_bits for tensor in tensors]
    known = [b * t.parameters for b, t in zip(bits, tensors, strict=True) if b is not None]
    return PackedTensor(
        name=name,
        dtype="",
        shape=(),
        parameters=parameters,
        nbytes=sum(tensor.nbytes for tensor in tensors),
        packed=sum(tensor.packed for tensor in tensors),
        entropy_bits=sum(known) / max(parameters, 1) if len(known) == len(bits) else None,
        filter="",
    )


def _add(table: Table, tensor: PackedTensor) -> None:
    bits = tensor.entropy_bits
    table.add(
        tensor.name, tensor.dtype.lower(), by(tensor.shape) if tensor.dtype else "",
        size(tensor.nbytes), size(tensor.packed), f"{tensor.bits_per_weight:.3f}",
        "-" if bits is None else f"{bits:.3f}",
        f"same as {tensor.same_as}" if tensor.same_as else tensor.filter, f"{tensor.saving:.1%}",
    )  # fmt: skip
