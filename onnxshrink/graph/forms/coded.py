"""Coded weights: tensors of few values in 1 to 6 bits each, in one plain .onnx.

The weights are entropy coded, and standard operators in front of them rebuild them. ONNX Runtime
folds these when it loads the model: kernels, latency and answers stay what they were. A note in the
metadata names the tensors, with checksums. ``docs/coded.md`` is the specification.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

from onnxshrink.errors import BudgetMissed, UnsupportedModel
from onnxshrink.graph import read
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.forms.coded_nodes import (
    LEAST_OPSET,
    LEVEL_BYTES,
    SUM_BYTES,
    TABLE_BYTES,
    TENSOR_BYTES,
    Chains,
)
from onnxshrink.graph.rewrite.hoist import hoist_constants, lift_constants, separate_inputs
from onnxshrink.graph.rewrite.opset import raise_opset
from onnxshrink.kernels import coded, coded_plan

KEY = "onnxshrink.coded"
VERSION = 1
_FEWEST = 512  # elements; nodes and names of less take more than is saved
_MOST = 2**28  # codes of a tensor: as float32, which they nearly always become, it has 2**30 bytes
_PIECE = 840 * 1248  # codes that are written together: whole rows of tables 1 to 8 codes wide
_SAMPLE = 2**22  # codes that tables are chosen for
_WORTH = 0.97  # of its bytes that a tensor must go below
_MOST_VALUES = 256
_SET_OF_TABLES = 3000  # bytes that one more set of tables takes, with its nodes
_FEWEST_IN_TABLE = 256  # entries: the nodes of smaller tables take more than is saved
_TOO_LARGE = "as ONNX Runtime would not fold nodes with outputs so large"
_OUTSIDE = "as an input or an output of the model"
_MANY_VALUES = f"has more than {_MOST_VALUES} different values"
_NOT_SMALLER = "would not get smaller"

_BYTES = {"INT8", "UINT8", "INT4", "UINT4", "INT2", "UINT2", "BOOL"}
_SIGNED_NARROW = {"INT4", "INT2"}
_SIGNED = {"INT8", "INT16", *_SIGNED_NARROW}
_SHIFTS = (0, 4, 8)  # of 16-bit integers: how many of their bits may be kept apart
_LOOKED_UP = {
    "FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE",
    "INT16", "UINT16", "INT32", "UINT32", "INT64", "UINT64",
}  # fmt: skip


class Wide(NamedTuple):
    """What bytes leave of 16-bit integers.

    Attributes:
        shift: How many lowest bits are kept apart, as they are: 0, 4 or 8.
        low: These bits, packed.
        places: Flat positions of integers that are still wider.
        values: These integers.
    """

    shift: int
    low: np.ndarray
    places: np.ndarray
    values: np.ndarray

    @property
    def nbytes(self) -> int:
        """Bytes that they take."""
        return self.low.nbytes + self.places.nbytes + self.values.nbytes


@dataclass
class CodableTensor:
    """A tensor that may be coded.

    Attributes:
        value: Where it is in the graph.
        tensor: Its contents.
        codes: Flat bytes: its values in two's complement, or numbers of entries.
        entries: What numbers stand for; None: for themselves.
        wide: What its bytes leave of integers that need more of them.
        along: The axis along which codes are differences to the one before; None: they are not.
        counts: [256], how often each byte occurs.
        ideal: Bytes that an ideal order-0 coder takes for its values.
    """

    value: ir.Value
    tensor: ir.TensorProtocol
    codes: np.ndarray
    entries: np.ndarray | None
    wide: Wide | None
    along: int | None
    counts: np.ndarray
    ideal: float

    @property
    def bits(self) -> float:
        """Order-0 entropy of a code."""
        return 8 * coded_plan.entropy_bytes(self.counts) / max(self.codes.size, 1)

    @property
    def beside(self) -> int:
        """Bytes that it takes beside its codes."""
        more = 0 if self.wide is None else self.wide.nbytes
        more += 0 if self.along is None else SUM_BYTES
        return TENSOR_BYTES + more + (0 if self.entries is None else self.entries.nbytes)

    @property
    def is_signed(self) -> bool:
        """Whether its codes are signed bytes."""
        values = self.entries is None and self.tensor.dtype.name in _SIGNED
        return values or self.along is not None


class Part(NamedTuple):
    """Tensors whose codes are written one after the other.

    Attributes:
        tensors: Which.
        pieces: Their codes, cut: all that works on one piece stays in memory until all is done.
    """

    tensors: list[CodableTensor]
    pieces: list[coded.Coded]

    @property
    def kind(self) -> np.dtype[Any]:
        """Type of the codes: int8 where all are signed, else uint8."""
        return np.dtype(np.int8 if all(one.is_signed for one in self.tensors) else np.uint8)


@dataclass
class Coding:
    """What became of a model's tensors.

    Attributes:
        coded: Names of the coded tensors.
        plain: Tensors that stay plain, and why; those in functions as ``function/tensor``.
        raised: The operator set before it was raised; 0 where it was not.
        ideal: Bytes that an ideal order-0 coder takes for the coded tensors.
        weights: Their elements.
        nbytes: Their bytes when plain.
    """

    coded: list[str] = field(default_factory=list)
    plain: dict[str, str] = field(default_factory=dict)
    raised: int = 0
    ideal: float = 0.0
    weights: int = 0
    nbytes: int = 0

    def warnings(self) -> list[str]:
        """What readers of a report should know."""
        many = len(self.coded) != 1
        lines = [
            f"{len(self.coded)} coded tensor{'s are' if many else ' is'} rebuilt when a session is "
            f"made: without graph optimization {'they are' if many else 'it is'} at every run; "
            f"'onnxshrink unpack' makes {'them' if many else 'it'} plain"
        ]
        if self.raised:
            lines.append(f"operator set raised from {self.raised} to {LEAST_OPSET} for CumSum")
        for reason in (_TOO_LARGE, _OUTSIDE):
            names = [name for name, why in self.plain.items() if why == reason]
            if names:
                lines.append(f"left plain, {reason}: {', '.join(names)}")
        return lines


def save(model: Model, path: str | os.PathLike[str], *, durable: bool = True) -> tuple[int, Coding]:
    """Write a model with its weights coded.

    Args:
        model: Left as it is.
        path: Where the file goes.
        durable: As in :meth:`Model.save`.

    Returns:
        Bytes written, and what was coded.

    Raises:
        BudgetMissed: Coded, the model would take no fewer bytes; nothing is written.
        OutputError: The file cannot be written.
    """
    model.check_output(Path(path))
    trial = model.clone()
    coding = code(trial)
    if trial.short_names is not None:  # the file's own note names these
        trial.short_names.keep |= set(coding.coded)
    after, plain = trial.nbytes(), model.nbytes()
    if not coding.coded:
        raise BudgetMissed(f"{path}: not coded: none of its tensors would take fewer bytes")
    if after >= plain:
        raise BudgetMissed(f"{path}: not coded: that would take {after:,} bytes, plain {plain:,}")
    return trial.save(path, durable=durable), coding


def code(model: Model) -> Coding:
    """Replace tensors by chains of nodes that rebuild them, where that takes fewer bytes.

    Large constants of nodes, bodies and functions become initializers of the main graph.

    Args:
        model: Changed in place.
    """
    coding = Coding()
    if model.opset < LEAST_OPSET:
        coding.raised = model.opset
        try:
            raise_opset(model, LEAST_OPSET)
        except UnsupportedModel as error:
            coding.raised = 0
            coding.plain["all"] = str(error)
            return coding
    lift_constants(
        model,
        lambda inside, value: _candidate(f"{inside.name}/{value.name}", value, coding) is not None,
    )
    hoist_constants(model, _FEWEST)
    if model.ir.ir_version < 4:
        separate_inputs(model)
    found = _candidates(model, coding)
    notes: dict[str, list[Any]] = {}
    parts = [part for group in _groups(found) for part in _write(group, coding)]
    tables, written = _tables(parts)
    pieces = [*written, *(piece for part in parts for piece in part.pieces)]
    longest = max((piece.longest for piece in pieces), default=0)
    chains, order = Chains(model, longest), list(model.ir.graph.initializers)
    chains.give_tables(tables, written)
    for part in parts:
        _put(model, chains, part, coding, notes)
    chains.place()
    if notes:
        coding.coded = [name for name in order if name in notes]
        note = {"version": VERSION, "tensors": {name: notes[name] for name in coding.coded}}
        model.ir.metadata_props[KEY] = json.dumps(note, separators=(",", ":"))
    return coding


def _candidates(model: Model, coding: Coding) -> list[CodableTensor]:
    graph, found = model.ir.graph, []
    for name, value in graph.initializers.items():
        one = _candidate(name, value, coding)
        if one is None:
            continue
        if value.is_graph_input() or value.is_graph_output():
            coding.plain[name] = _OUTSIDE
        else:
            found.append(one)
    return found


def _is_worth_it(function: ir.Function, value: ir.Value, coding: Coding) -> bool:
    return _candidate(f"{function.name}/{value.name}", value, coding) is not None


def _candidate(name: str, value: ir.Value, coding: Coding) -> CodableTensor | None:
    """A constant that coding makes smaller; None, with the reason noted, where it does not."""
    tensor = read.constant(value)
    if tensor is None or tensor.dtype == ir.DataType.STRING or tensor.size < _FEWEST:
        return None
    if tensor.size > _MOST:
        coding.plain[name] = _TOO_LARGE
        return None
    codes = _codes(tensor)
    if isinstance(codes, str):
        coding.plain[name] = codes
        return None
    numbers, entries, wide = codes
    counts = np.bincount(numbers, minlength=256)
    ideal = coded_plan.entropy_bytes(counts)
    if wide is not None:
        ideal = coded_plan.entropy_bytes(np.unique(tensor.numpy(), return_counts=True)[1])
    along = None
    if wide is None and (apart := _differences(tensor, numbers, entries)):
        along, numbers, entries = apart
        counts = np.bincount(numbers, minlength=256)
    one = CodableTensor(value, tensor, numbers, entries, wide, along, counts, ideal)
    if one.codes.size * one.bits / 8 * 1.03 + one.beside < _WORTH * tensor.nbytes:
        return one
    coding.plain[name] = _NOT_SMALLER
    return None


def _codes(
    tensor: ir.TensorProtocol,
) -> tuple[np.ndarray, np.ndarray | None, Wide | None] | str:
    """Bytes for the elements of a tensor, and what they stand for; or why there are none."""
    kind = tensor.dtype.name
    if kind in _BYTES:
        array = np.ascontiguousarray(tensor.numpy()).reshape(-1)
        array = array.astype(np.int8 if kind in _SIGNED_NARROW else array.dtype)
        return array.view(np.uint8), None, None
    if kind not in _LOOKED_UP:
        return f"tensors of {kind.lower()} are not coded"
    array = np.ascontiguousarray(tensor.numpy()).reshape(-1)
    if kind == "INT16":
        codes, wide = min((_narrowed(array, shift) for shift in _SHIFTS), key=_bytes_of)
        return codes, None, wide
    bits = array.view(f"u{array.itemsize}")
    if np.unique(bits[: 16 * _MOST_VALUES]).size > _MOST_VALUES:  # most tensors need no more
        return _MANY_VALUES
    entries, numbers, counts = np.unique(bits, return_inverse=True, return_counts=True)
    if entries.size > _MOST_VALUES:
        return _MANY_VALUES
    order = np.argsort(-counts, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(order.size)
    return rank[numbers].astype(np.uint8).reshape(-1), entries[order].view(array.dtype), None


def _differences(
    tensor: ir.TensorProtocol, numbers: np.ndarray, entries: np.ndarray | None
) -> tuple[int, np.ndarray, np.ndarray | None] | None:
    """The axis along which codes are better differences, these, and what their sums stand for."""
    if entries is None:
        values = tensor.numpy()
    else:
        order = np.argsort(entries, kind="stable")  # by frequency, neighbours are far apart
        values = np.argsort(order).astype(np.uint8)[numbers].reshape(tensor.shape.numpy())
        entries = entries[order]
    apart = coded_plan.differences(values, SUM_BYTES)
    # Tables know runs, which entropy does not: of masks that leave little, these are fewer bytes.
    if apart is None or _alone(apart[1]) + SUM_BYTES >= _alone(numbers):
        return None
    return (*apart, entries)


def _narrowed(values: np.ndarray, shift: int) -> tuple[np.ndarray, Wide]:
    """16-bit integers as bytes, their lowest bits, and those that are wider still."""
    wide = values.astype(np.int32)
    high = (wide + (128 if shift == 8 else 0)) >> shift  # a byte of low bits is signed, a half not
    low, codes = wide - (high << shift), high.astype(np.int8)
    places = np.flatnonzero(codes != high).astype(np.int32)
    packed = coded.pack(low.astype(np.uint8), shift) if shift else np.zeros(0, np.uint8)
    return codes.view(np.uint8), Wide(shift, packed, places, values[places])


def _bytes_of(narrowed: tuple[np.ndarray, Wide]) -> float:
    codes, wide = narrowed
    return coded_plan.entropy_bytes(np.bincount(codes, minlength=256)) + wide.nbytes


def _groups(found: Sequence[CodableTensor]) -> list[list[CodableTensor]]:
    """Tensors that share tables: those whose codes are spread alike.

    Neighbours by entropy are joined while what that costs in codes is less than a set of tables.
    """
    groups = [[one] for one in sorted(found, key=lambda one: one.bits)]
    counts = [group[0].counts.astype(np.int64) for group in groups]
    alone = [coded_plan.entropy_bytes(count) for count in counts]
    joined = [coded_plan.entropy_bytes(a + b) for a, b in pairwise(counts)]
    while joined:
        costs = [both - alone[i] - alone[i + 1] for i, both in enumerate(joined)]
        at = int(np.argmin(costs))
        if costs[at] > _SET_OF_TABLES:
            break
        groups[at : at + 2] = [groups[at] + groups[at + 1]]
        counts[at : at + 2] = [counts[at] + counts[at + 1]]
        alone[at : at + 2] = [joined[at]]
        del joined[at]
        for i in (at - 1, at):
            if 0 <= i < len(joined):
                joined[i] = coded_plan.entropy_bytes(counts[i] + counts[i + 1])
    return groups


def _write(group: list[CodableTensor], coding: Coding) -> list[Part]:
    """The codes of tensors that share tables; none where that would not be smaller."""
    sizes = sum(one.codes.size for one in group)
    step = -(-sizes // _SAMPLE)
    sample = np.concatenate([one.codes[: -(-one.codes.size // step)] for one in group])
    book = coded_plan.plan(sample, LEVEL_BYTES // step)
    parts = [Part(part, _pieces([one.codes for one in part], book)) for part in _parts(group)]
    pieces = [piece for part in parts for piece in part.pieces]
    price = _price(book, pieces) + sum(one.beside for one in group)
    if price < _WORTH * sum(one.tensor.nbytes for one in group):
        return parts
    for one in group:
        coding.plain[one.value.name or ""] = _NOT_SMALLER
    return []


def _alone(codes: np.ndarray) -> int:
    """Bytes that codes take with tables of their own."""
    step = -(-codes.size // _SAMPLE)
    book = coded_plan.plan(codes[: -(-codes.size // step)], LEVEL_BYTES // step)
    return _price(book, _pieces([codes], book))


def _price(book: coded.Book, pieces: Sequence[coded.Coded]) -> int:
    """Bytes of tables, codes and nodes."""
    nodes = LEVEL_BYTES * _levels(book) * len(pieces)
    return book.nbytes + sum(piece.nbytes for piece in pieces) + nodes


def _pieces(part: Sequence[np.ndarray], book: coded.Book) -> list[coded.Coded]:
    codes = part[0] if len(part) == 1 else np.concatenate(part)
    return [coded.encode(codes[at : at + _PIECE], book) for at in range(0, codes.size, _PIECE)]


def _levels(book: coded.Book) -> int:
    return bool(book.low_bits) + sum(
        1 + (0 if level.rows is None else _levels(level.rows)) for level in book.levels
    )


def _parts(group: list[CodableTensor]) -> list[list[CodableTensor]]:
    """Tensors that are written one after the other: small ones together, large ones alone."""
    parts: list[list[CodableTensor]] = [[]]
    size = 0
    for one in group:
        if size and size + one.codes.size > _PIECE:
            parts.append([])
            size = 0
        parts[-1].append(one)
        size += one.codes.size
    return parts


def _tables(parts: Sequence[Part]) -> tuple[list[np.ndarray], list[coded.Coded]]:
    """The tables of all books that take fewer bytes coded, and their codes, one after the other."""
    found: dict[tuple[bytes, tuple[int, ...], str], np.ndarray] = {}
    for part in parts:
        for table in _tables_of(part.pieces[0].book, part.kind):
            found[table.tobytes(), table.shape, table.dtype.name] = table
    tables = [table for table in found.values() if table.size >= _FEWEST_IN_TABLE]
    if not tables:
        return [], []
    codes = np.concatenate([table.reshape(-1).view(np.uint8) for table in tables])
    book = coded_plan.plan(codes, LEVEL_BYTES)  # whose own tables stay plain
    piece = coded.encode(codes, book)
    price = book.nbytes + piece.nbytes + LEVEL_BYTES * _levels(book) + TABLE_BYTES * len(tables)
    return (tables, [piece]) if price < _WORTH * codes.size else ([], [])


def _tables_of(book: coded.Book, kind: np.dtype[Any]) -> Iterator[np.ndarray]:
    if book.low_bits:
        yield coded.low_table(book.low_bits).view(kind)
    for level in book.levels:
        yield level.table.view(kind)
        if level.rows is not None:
            yield from _tables_of(level.rows, np.dtype(np.uint8))


def _put(
    model: Model, chains: Chains, part: Part, coding: Coding, notes: dict[str, list[Any]]
) -> None:
    """Put chains in the place of tensors."""
    shapes = [tuple(one.tensor.shape.numpy()) for one in part.tensors]
    values = chains.tensors(part.pieces, [one.codes.size for one in part.tensors], part.kind)
    for one, shape, value in zip(part.tensors, shapes, values, strict=True):
        name = one.value.name or ""
        result = _typed(chains, one, value, part.kind, shape)
        notes[name] = [one.tensor.dtype.name, list(shape), checksum(one.tensor)]
        coding.ideal += one.ideal
        coding.weights += one.codes.size
        coding.nbytes += one.tensor.nbytes
        model.touch(name)
        one.value.replace_all_uses_with(result)
        model.ir.graph.initializers.pop(name)
        result.name = name


def _typed(
    chains: Chains, one: CodableTensor, value: ir.Value, came: np.dtype[Any], shape: tuple[int, ...]
) -> ir.Value:
    """Bytes as what they stand for, in the tensor's type."""
    kind = one.tensor.dtype
    if came == np.uint8 and one.is_signed:
        value, came = chains.node("Cast", value, to=ir.DataType.INT8.value), np.dtype(np.int8)
    if one.entries is not None:
        number = chains.node("Cast", chains.shaped(value, shape), to=ir.DataType.INT32.value)
        if one.along is not None:
            number = chains.summed(number, one.along)
        return chains.node("Gather", chains.constant(one.entries), number)
    if one.wide is not None:
        return chains.shaped(chains.widened(value, one.codes.size, *one.wide), shape)
    value = chains.shaped(value, shape)
    if one.along is not None:
        came = np.dtype(np.int8 if kind.name in _SIGNED else np.uint8)
        steps = chains.node("Cast", value, to=ir.DataType.INT32.value)
        value = chains.summed(steps, one.along)
        value = chains.node("Cast", value, to=ir.DataType[came.name.upper()].value)
    return value if kind.name.lower() == came.name else chains.node("Cast", value, to=kind.value)


def checksum(tensor: ir.TensorProtocol) -> str:
    """CRC-32 of a tensor's bytes."""
    return f"{zlib.crc32(tensor.tobytes()):08x}"
