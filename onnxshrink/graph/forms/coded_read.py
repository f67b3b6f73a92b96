"""Coded weights made plain again: the chains in front of them are computed here, with numpy.

Every other part of onnxshrink sees the weights, not the chains. What is read may be damaged or
hostile: only the operators that chains are made of are computed, every output has bounded size, and
every tensor has a checksum.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir

from onnxshrink.errors import ModelError
from onnxshrink.graph import read, surgery
from onnxshrink.graph.file import reading, tensors
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.forms import packed
from onnxshrink.graph.forms.coded import KEY, VERSION, checksum

_LARGEST = 2**33  # bytes of an output
_DEEPEST = 10_000  # nodes of one chain


@dataclass(frozen=True)
class Noted:
    """What a model's note says of one coded tensor."""

    dtype: str
    shape: tuple[int, ...]
    crc: str


def note(proto: onnx.ModelProto, label: str) -> dict[str, Noted]:
    """The coded tensors of a model by name; none where it has no note.

    Raises:
        ModelError: The note is damaged, or of a later version.
    """
    text = {entry.key: entry.value for entry in proto.metadata_props}.get(KEY)
    if text is None:
        return {}
    try:
        data = json.loads(text)
        if data["version"] != VERSION:
            raise ModelError(
                f"{label}: its weights are coded in version {data['version']!r}; this reads "
                f"{VERSION}"
            )
        return {
            name: Noted(str(dtype), tuple(map(int, shape)), str(crc))
            for name, (dtype, shape, crc) in data["tensors"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{label}: its note on coded weights is damaged: {error}") from error


def names(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Names of the coded tensors of a model file; a packed one has none.

    Raises:
        ModelError: Not an ONNX model, or its note is damaged.
    """
    if reading.is_file_packed(Path(path)):
        return ()
    return tuple(note(reading.read(Path(path))[0], str(path)))


def form_of(path: str | os.PathLike[str]) -> tuple[Literal["", "coded", "packed"], str]:
    """How the weights of a model file are stored beyond plain; and words for that.

    Raises:
        ModelError: Not an ONNX model, or its note is damaged.
    """
    if packed.is_packed(path):
        return "packed", "the packed input was"
    if found := names(path):
        return "coded", f"the input's {len(found)} coded tensors were"
    return "", ""


def verify(path: str | os.PathLike[str]) -> int:
    """Decode every coded tensor of a model file and check its checksum.

    Returns:
        How many there are.

    Raises:
        ModelError: One is damaged, and which; or there is none.
    """
    found = note(reading.read(Path(path))[0], str(path))
    if not found:
        raise ModelError(f"{path}: has no coded weights; 'onnxshrink pack --form graph' codes them")
    return sum(1 for _ in decoded(Model.load(path), found))


def load(path: str | os.PathLike[str]) -> tuple[Model, tuple[str, ...]]:
    """Open a model file with its coded weights, if it has any, made plain; a packed one as well.

    Returns:
        The model, and the names of the tensors that were coded.

    Raises:
        ModelError: As for :meth:`Model.load`; or a coded tensor is damaged, and which.
        SidecarError: It is packed, and damaged or hostile.
    """
    path = Path(path)
    if reading.is_file_packed(path):
        return packed.load(path), ()
    proto, repairs = reading.read(path)
    if any(entry.key == tensors.PACK_KEY for entry in proto.metadata_props):
        return packed.load(path), ()
    found = note(proto, str(path))
    tensors.check_all(proto, path)
    if not found:
        return Model(proto, path, repairs), ()
    kept = [entry for entry in proto.metadata_props if entry.key != KEY]
    kept = [onnx.StringStringEntryProto(key=entry.key, value=entry.value) for entry in kept]
    del proto.metadata_props[:]
    proto.metadata_props.extend(kept)
    model = Model(proto, path, repairs)
    make_plain(model, found)
    return model, tuple(found)


def make_plain(model: Model, noted: dict[str, Noted]) -> None:
    """Put coded tensors back as initializers, bit for bit, and their chains out of the graph.

    Raises:
        ModelError: A tensor is damaged; says which.
    """
    graph = model.ir.graph
    outputs, ends = _outputs(graph), list[ir.Node]()
    for name, tensor in decoded(model, noted):
        old = outputs[name]
        producer = old.producer()
        assert producer is not None
        value = ir.Value(
            name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape.numpy()),
            const_value=tensor,
        )  # fmt: skip
        model.touch(name)
        old.replace_all_uses_with(value)
        old.name = None
        graph.register_initializer(value)
        ends.append(producer)
    _remove(model, ends)


def decoded(model: Model, noted: dict[str, Noted]) -> Iterator[tuple[str, ir.TensorProtocol]]:
    """Every coded tensor with its name, checked.

    Raises:
        ModelError: A tensor is damaged; says which.
    """
    outputs = _outputs(model.ir.graph)
    known: dict[ir.Value, np.ndarray] = {}
    for name, what in noted.items():
        try:
            kind = ir.DataType[what.dtype]
            array = _computed(outputs[name], known)
            array = array.astype(kind.numpy(), copy=False)
        except (KeyError, IndexError, ValueError, TypeError, OverflowError) as error:
            raise ModelError(f"{model.label}: coded tensor {name!r} is damaged: {error}") from error
        tensor = ir.Tensor(np.ascontiguousarray(array).reshape(array.shape), dtype=kind, name=name)
        if array.shape != what.shape or checksum(tensor) != what.crc:
            raise ModelError(
                f"{model.label}: coded tensor {name!r} is damaged: its checksum is wrong"
            )
        yield name, tensor


def _outputs(graph: ir.Graph) -> dict[str, ir.Value]:
    return {value.name: value for node in graph for value in node.outputs if value.name}


def _remove(model: Model, ends: Sequence[ir.Node]) -> None:
    """Take nodes out that nothing uses any more, and what they alone used."""
    graph, waiting = model.ir.graph, list(ends)
    while waiting:
        node = waiting.pop()
        if node.graph is not graph or any(v.uses() or v.is_graph_output() for v in node.outputs):
            continue
        before = [value for value in node.inputs if value is not None]
        surgery.remove(model, node)
        waiting += [maker for value in before if (maker := value.producer()) is not None]
        for value in before:
            surgery.forget(model, value)


# ------------------------------------------------------------------ operators


def _computed(value: ir.Value, known: dict[ir.Value, np.ndarray]) -> np.ndarray:
    """The value of a chain's end; what was computed before is taken from ``known``."""
    waiting, steps = [value], 0
    while waiting:
        steps += 1
        if steps > _DEEPEST:
            raise ValueError("its chain has no end")
        now = waiting[-1]
        if now in known:
            waiting.pop()
            continue
        node = now.producer()
        if node is None:
            if now.const_value is None or now.is_graph_input():
                raise ValueError(f"{now.name!r} is not constant")
            known[now] = now.const_value.numpy()
            continue
        missing = [each for each in node.inputs if each is not None and each not in known]
        if missing:
            waiting += missing
            continue
        operator = _OPERATORS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if operator is None:
            raise ValueError(f"{node.op_type} is not an operator of chains")
        inputs = [known[each] for each in node.inputs if each is not None]
        results = operator(node, *inputs)
        if sum(result.nbytes for result in results) > _LARGEST:
            raise ValueError("is too large")
        known.update(zip(node.outputs, results, strict=True))
    return known[value]


def _cast(node: ir.Node, values: np.ndarray) -> list[np.ndarray]:
    return [values.astype(ir.DataType(read.integer(node, "to", 0)).numpy())]


def _gather(node: ir.Node, table: np.ndarray, numbers: np.ndarray) -> list[np.ndarray]:
    axis = read.integer(node, "axis", 0)
    if numbers.size * table.nbytes // max(table.shape[axis], 1) > _LARGEST:
        raise ValueError("is too large")
    return [np.asarray(np.take(table, numbers, axis))]


def _range(node: ir.Node, start: np.ndarray, end: np.ndarray, step: np.ndarray) -> list[Any]:
    if not 0 <= int(end) - int(start) <= _LARGEST // end.itemsize or step != 1:
        raise ValueError("is too large")
    return [np.arange(int(start), int(end), dtype=end.dtype)]


def _compress(node: ir.Node, values: np.ndarray, flags: np.ndarray) -> list[np.ndarray]:
    return [values[: flags.size][flags]]


def _scatter(
    node: ir.Node, values: np.ndarray, places: np.ndarray, updates: np.ndarray
) -> list[np.ndarray]:
    if places.shape != updates.shape or values.shape[:-1] != places.shape[:-1]:
        raise ValueError("its escapes do not add up")
    result = values.copy()
    np.put_along_axis(result, places, updates, -1)
    return [result]


def _reshape(node: ir.Node, values: np.ndarray, shape: np.ndarray) -> list[np.ndarray]:
    return [values.reshape(shape.tolist())]


def _slice(node: ir.Node, values: np.ndarray, *ends: np.ndarray) -> list[np.ndarray]:
    start, end, axis = (int(each.item()) for each in ends)
    if axis != -1:
        raise ValueError("is cut along an axis that is not the last")
    return [values[..., start:end]]


def _split(node: ir.Node, values: np.ndarray, *sizes: np.ndarray) -> list[np.ndarray]:
    parts = sizes[0].tolist() if sizes else list(node.attributes["split"].as_ints())
    axis = read.integer(node, "axis", 0)
    if sum(parts) != values.shape[axis]:
        raise ValueError("its parts do not add up")
    return np.split(values, np.cumsum(parts)[:-1].tolist(), axis)


def _integers(node: ir.Node, factors: np.ndarray, rows: np.ndarray) -> list[np.ndarray]:
    return [factors.astype(np.int32) @ rows.astype(np.int32)]


def _sums(node: ir.Node, values: np.ndarray, axis: np.ndarray) -> list[np.ndarray]:
    if read.integer(node, "exclusive", 0) or read.integer(node, "reverse", 0):
        raise ValueError("CumSum is not that of all up to a place")
    return [np.cumsum(values, int(axis), dtype=values.dtype)]


def _byte_sum(node: ir.Node, *inputs: np.ndarray) -> list[np.ndarray]:
    ones, pair = inputs[0], inputs[3]
    if len(inputs) != 8 or ones.shape != (1, 2) or pair.ndim != 2 or not (ones == 1).all():
        raise ValueError("QLinearMatMul is not the sum of two rows")
    return [pair[:1] + pair[1:]]


_OPERATORS: dict[str, Callable[..., list[np.ndarray]]] = {
    "Cast": _cast,
    "Gather": _gather,
    "Equal": lambda node, a, b: [np.asarray(a == b)],
    "Range": _range,
    "Compress": _compress,
    "ScatterElements": _scatter,
    "CumSum": _sums,
    "Add": lambda node, a, b: [a + b],
    "Reshape": _reshape,
    "Slice": _slice,
    "Split": _split,
    "Concat": lambda node, *parts: [np.concatenate(parts, read.integer(node, "axis", 0))],
    "QLinearMatMul": _byte_sum,
    "MatMulInteger": _integers,
}
