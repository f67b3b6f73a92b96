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
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxshrink.errors import BudgetMissed, UnsupportedModel
from onnxshrink.graph import read
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.forms.coded_nodes import LEAST_OPSET, LEVEL_BYTES, TENSOR_BYTES, Chains
from onnxshrink.graph.rewrite.hoist import hoist_constants, separate_inputs
from onnxshrink.graph.rewrite.opset import raise_opset
from onnxshrink.kernels import coded, coded_plan

KEY = "onnxshrink.coded"
VERSION = 1
_FEWEST = 512  # elements; nodes and names of less take more than is saved
_MOST = 2**27  # codes of one chain: its largest output has four bytes a code, and may have 2**30
_SAMPLE = 2**22  # codes that tables are chosen for
_WORTH = 0.97  # of its bytes that a tensor must go below
_MOST_VALUES = 256
_SET_OF_TABLES = 3000  # bytes that one more set of tables takes, with its nodes
_TOO_LARGE = "as ONNX Runtime would not fold nodes with outputs so large"
_IN_FUNCTION = "as the body of a function sees nothing of the graph; inlined it would be coded"
_OUTSIDE = "as an input or an output of the model"
_MANY_VALUES = f"has more than {_MOST_VALUES} different values"
_NOT_SMALLER = "would not get smaller"

_BYTES = {"INT8", "UINT8", "INT4", "UINT4", "INT2", "UINT2", "BOOL"}
_SIGNED_NARROW = {"INT4", "INT2"}
_LOOKED_UP = {"FLOAT", "FLOAT16", "DOUBLE", "INT16", "UINT16", "INT32", "UINT32", "INT64", "UINT64"}


@dataclass
class Candidate:
    """A tensor that may be coded.

    Attributes:
        value: Where it is in the graph.
        tensor: Its contents.
        codes: Flat bytes: its values in two's complement, or numbers of entries.
        entries: What numbers stand for; None: for themselves.
        counts: [256], how often each byte occurs.
    """

    value: ir.Value
    tensor: ir.TensorProtocol
    codes: np.ndarray
    entries: np.ndarray | None
    counts: np.ndarray

    @property
    def bits(self) -> float:
        """Order-0 entropy of a code."""
        return 8 * coded_plan.entropy_bytes(self.counts) / max(self.codes.size, 1)


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
        lines = [
            f"{len(self.coded)} coded tensors are rebuilt when a session is made: without graph "
            "optimization they are at every run; 'onnxshrink unpack' makes them plain"
        ]
        if self.raised:
            lines.append(f"operator set raised from {self.raised} to {LEAST_OPSET} for CumSum")
        for reason in (_TOO_LARGE, _IN_FUNCTION, _OUTSIDE):
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
    if not coding.coded or after >= plain:
        raise BudgetMissed(f"{path}: not coded: that would take {after:,} bytes, plain {plain:,}")
    return trial.save(path, durable=durable), coding


def code(model: Model) -> Coding:
    """Replace tensors by chains of nodes that rebuild them, where that takes fewer bytes.

    Large constants of nodes and bodies become initializers of the main graph, as when packed.

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
    hoist_constants(model, _FEWEST)
    if model.ir.ir_version < 4:
        separate_inputs(model)
    found = _candidates(model, coding)
    notes: dict[str, list[Any]] = {}
    chains, order = Chains(model), list(model.ir.graph.initializers)
    for group in _groups(found):
        _code_group(model, chains, group, coding, notes)
    chains.place()
    if notes:
        coding.coded = [name for name in order if name in notes]
        note = {"version": VERSION, "tensors": {name: notes[name] for name in coding.coded}}
        model.ir.metadata_props[KEY] = json.dumps(note, separators=(",", ":"))
    return coding


def _candidates(model: Model, coding: Coding) -> list[Candidate]:
    graph, found = model.ir.graph, []
    for name, value in graph.initializers.items():
        one = _candidate(name, value, coding)
        if one is None:
            continue
        if value.is_graph_input() or value.is_graph_output():
            coding.plain[name] = _OUTSIDE
        else:
            found.append(one)
    for function in model.ir.functions.values():
        for value in _constants(function):
            name = f"{function.name}/{value.name}"
            if _candidate(name, value, coding) is not None:
                coding.plain[name] = _IN_FUNCTION
    return found


def _constants(function: ir.Function) -> Iterator[ir.Value]:
    for scope in (function, *function.subgraphs()):
        if isinstance(scope, ir.Graph):
            yield from scope.initializers.values()
        yield from (node.outputs[0] for node in scope if read.is_constant(node))


def _candidate(name: str, value: ir.Value, coding: Coding) -> Candidate | None:
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
    numbers, entries = codes
    one = Candidate(value, tensor, numbers, entries, np.bincount(numbers, minlength=256))
    table = 0 if entries is None else entries.nbytes
    if one.codes.size * one.bits / 8 * 1.03 + TENSOR_BYTES + table < _WORTH * tensor.nbytes:
        return one
    coding.plain[name] = _NOT_SMALLER
    return None


def _codes(tensor: ir.TensorProtocol) -> tuple[np.ndarray, np.ndarray | None] | str:
    """Bytes for the elements of a tensor, and what they stand for; or why there are none."""
    kind = tensor.dtype.name
    if kind in _BYTES:
        array = np.ascontiguousarray(tensor.numpy()).reshape(-1)
        return array.astype(np.int8 if kind in _SIGNED_NARROW else array.dtype).view(np.uint8), None
    if kind not in _LOOKED_UP:
        return f"tensors of {kind.lower()} are not coded"
    array = np.ascontiguousarray(tensor.numpy()).reshape(-1)
    bits = array.view(f"u{array.itemsize}")
    if np.unique(bits[: 16 * _MOST_VALUES]).size > _MOST_VALUES:  # most tensors need no more
        return _MANY_VALUES
    entries, numbers, counts = np.unique(bits, return_inverse=True, return_counts=True)
    if entries.size > _MOST_VALUES:
        return _MANY_VALUES
    order = np.argsort(-counts, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(order.size)
    return rank[numbers].astype(np.uint8).reshape(-1), entries[order].view(array.dtype)


def _groups(found: Sequence[Candidate]) -> list[list[Candidate]]:
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


def _code_group(
    model: Model, chains: Chains, group: list[Candidate], coding: Coding,
    notes: dict[str, list[Any]],
) -> None:  # fmt: skip
    sizes = sum(one.codes.size for one in group)
    step = -(-sizes // _SAMPLE)
    sample = np.concatenate([one.codes[: -(-one.codes.size // step)] for one in group])
    book, _ = coded_plan.plan(sample, LEVEL_BYTES // step)
    written = [(part, coded.encode(_joined(part), book)) for part in _parts(group)]
    price = book.nbytes + LEVEL_BYTES * _levels(book) + sum(each.nbytes for _, each in written)
    price += TENSOR_BYTES * len(group)
    if price >= _WORTH * sum(one.tensor.nbytes for one in group):
        for one in group:
            coding.plain[one.value.name or ""] = _NOT_SMALLER
        return
    for part, each in written:
        values = chains.tensors(each, [tuple(one.tensor.shape.numpy()) for one in part])
        results = [_typed(chains, one, value) for one, value in zip(part, values, strict=True)]
        for one, result in zip(part, results, strict=True):
            name = one.value.name or ""
            shape = list(one.tensor.shape.numpy())
            notes[name] = [one.tensor.dtype.name, shape, checksum(one.tensor)]
            coding.ideal += one.codes.size * one.bits / 8
            coding.weights += one.codes.size
            coding.nbytes += one.tensor.nbytes
            model.touch(name)
            one.value.replace_all_uses_with(result)
            model.ir.graph.initializers.pop(name)
            result.name = name


def _levels(book: coded.Book) -> int:
    return bool(book.low_bits) + sum(
        1 + (0 if level.rows is None else _levels(level.rows)) for level in book.levels
    )


def _joined(part: Sequence[Candidate]) -> np.ndarray:
    return part[0].codes if len(part) == 1 else np.concatenate([one.codes for one in part])


def _parts(group: list[Candidate]) -> list[list[Candidate]]:
    """Tensors in chains of bounded length; ONNX Runtime folds no node with a larger output."""
    parts: list[list[Candidate]] = [[]]
    size = 0
    for one in group:
        if size and size + one.codes.size > _MOST:
            parts.append([])
            size = 0
        parts[-1].append(one)
        size += one.codes.size
    return parts


def _typed(chains: Chains, one: Candidate, value: ir.Value) -> ir.Value:
    """Bytes as what they stand for, in the tensor's type."""
    kind = one.tensor.dtype
    if one.entries is not None:
        number = chains.node("Cast", value, to=ir.DataType.INT32.value)
        return chains.node("Gather", chains.constant(one.entries), number)
    if kind.name in _SIGNED_NARROW:
        value = chains.node("Cast", value, to=ir.DataType.INT8.value)
    return value if kind == ir.DataType.UINT8 else chains.node("Cast", value, to=kind.value)


def checksum(tensor: ir.TensorProtocol) -> str:
    """CRC-32 of a tensor's bytes."""
    return f"{zlib.crc32(tensor.tobytes()):08x}"
