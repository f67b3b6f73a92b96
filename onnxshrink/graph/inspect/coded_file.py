"""What is in a model file whose weights may be coded: the weights, and what coding them saves."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnxshrink.graph import operators
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.forms import coded_read
from onnxshrink.graph.inspect.findings import CodedTensor, Inspection
from onnxshrink.graph.inspect.statistics import inspect_model
from onnxshrink.kernels import coded_plan
from onnxshrink.report import size

_HEADER = 16  # bytes of a constant besides its data and its name, about


def inspect_file(
    path: str | os.PathLike[str], shapes: Mapping[str, Sequence[int]] | None = None
) -> Inspection:
    """Look into a model file; coded weights are shown as what they are rebuilt to.

    Args:
        path: The .onnx.
        shapes: As for :func:`inspect_model`.

    Raises:
        ModelError: Not an ONNX model, or a coded tensor is damaged.
        DataError: ``shapes`` do not fit the model's inputs.
    """
    model, names = coded_read.load(path)
    found = inspect_model(model, shapes=shapes)
    if not names:
        return found
    known = {name: model.ir.graph.initializers[name].const_value for name in names}
    tensors = [one for group in _groups(Model.load(path), known) for one in _shared_out(*group)]
    tensors.sort(key=lambda one: -one.nbytes)
    elements = sum(one.parameters for one in tensors)
    stored = sum(one.coded for one in tensors)
    ideal = sum(one.parameters * one.entropy_bits for one in tensors)
    nbytes = sum(one.nbytes for one in tensors)
    note = (
        f"{len(names)} tensors of {size(nbytes)} are coded in {size(int(stored))}, tables and "
        f"nodes included: {8 * stored / elements:.3f} bits a weight, {ideal / elements:.3f} "
        f"of entropy; the file has {size(found.file_bytes)}, the plain model is shown"
    )
    return replace(
        found, file_bytes=model.nbytes(), notes=(note, *found.notes), coded=tuple(tensors)
    )


def _groups(
    model: Model, known: Mapping[str, ir.TensorProtocol | None]
) -> Iterator[tuple[list[ir.TensorProtocol], float]]:
    """Tensors whose chains have nodes in common, and the bytes of these chains.

    Args:
        model: The model with its chains.
        known: Its coded tensors by name.
    """
    ends = {v.name: v for node in model.ir.graph for v in node.outputs}
    groups: list[_Chain] = []
    for name, tensor in known.items():
        assert tensor is not None
        joined = _chain(ends[name], tensor)
        apart = [group for group in groups if not group.nodes & joined.nodes]
        for group in (group for group in groups if group.nodes & joined.nodes):
            joined = _Chain(
                group.tensors + joined.tensors, group.nodes | joined.nodes,
                group.constants | joined.constants,
            )  # fmt: skip
        groups = [*apart, joined]
    readers = Counter(value for group in groups for value in group.constants)
    for group in groups:
        nodes = sum(ir.to_proto(node).ByteSize() for node in group.nodes)
        constants = sum(_nbytes(value) / readers[value] for value in group.constants)
        yield group.tensors, nodes + constants


@dataclass(frozen=True)
class _Chain:
    """The nodes and constants that rebuild some tensors."""

    tensors: list[ir.TensorProtocol]
    nodes: set[ir.Node]
    constants: set[ir.Value]


def _chain(end: ir.Value, tensor: ir.TensorProtocol) -> _Chain:
    found, waiting = _Chain([tensor], set(), set()), [end]
    while waiting:
        value = waiting.pop()
        node = value.producer()
        if node is None:
            found.constants.add(value)
        elif node not in found.nodes and operators.of(node, operators.Series) is None:
            # A series is one for all chains, and belongs to none.
            found.nodes.add(node)
            waiting += [each for each in node.inputs if each is not None]
    return found


def _nbytes(value: ir.Value) -> int:
    assert value.const_value is not None
    return value.const_value.nbytes + len(value.name or "") + _HEADER


def _shared_out(group: Sequence[ir.TensorProtocol], nbytes: float) -> Iterator[CodedTensor]:
    """What each tensor takes of the bytes of chains that they have in common."""
    ideal = [coded_plan.entropy_bytes(_counts(tensor)) for tensor in group]
    parts = ideal if any(ideal) else [float(tensor.size) for tensor in group]
    for tensor, least, part in zip(group, ideal, parts, strict=True):
        yield CodedTensor(
            name=tensor.name or "", dtype=tensor.dtype.name, shape=tuple(tensor.shape.numpy()),
            parameters=tensor.size, nbytes=tensor.nbytes, coded=nbytes * part / sum(parts),
            entropy_bits=8 * least / max(tensor.size, 1),
        )  # fmt: skip


def _counts(tensor: ir.TensorProtocol) -> np.ndarray:
    _, counts = np.unique(tensor.numpy().reshape(-1), return_counts=True)
    return counts
