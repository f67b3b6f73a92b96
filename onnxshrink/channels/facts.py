"""What is known of a graph's values before channels are labelled: sizes and constants.

Sizes come from running the model twice with different sizes of its free axes: an axis of the same
length in both runs is static, any other dynamic. Numbers that are computed from shapes alone and
came out the same are constants, though the graph computes them. What bodies of If, Loop and Scan
hold is not run but inferred, from what they are given in each run: so branches are known that
were not taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxshrink.graph import operators, read
from onnxshrink.graph.analysis import shapes
from onnxshrink.graph.analysis.ranked import exposed
from onnxshrink.graph.file.model import Model

#: Sizes in the first and in the second run.
Pair = tuple[int, int]
#: The sizes of an axis in a body that are not known, or change from iteration to iteration.
_UNKNOWN: Pair = (0, 1)

_LARGEST_PARAMETER = 2**16


@dataclass(frozen=True)
class Observed:
    """One value as it came out of the runs.

    Attributes:
        sizes: For every axis, its length in both runs.
        dtype: Its numpy type.
        values: What it was in both runs, kept for small integers only.
    """

    sizes: tuple[Pair, ...]
    dtype: np.dtype[Any]
    values: tuple[np.ndarray, np.ndarray] | None = None


@dataclass(frozen=True)
class ShapeOnly:
    """A value of which only the shape is looked at.

    Attributes:
        name: Its name.
        dtype: Its numpy type.
    """

    name: str
    dtype: np.dtype[Any]

    def stand_in(self, shape: np.ndarray) -> np.ndarray:
        """Zeros of this shape, which take no memory."""
        return np.broadcast_to(np.zeros((), self.dtype), tuple(shape.tolist()))


@dataclass(frozen=True)
class Runs:
    """Two runs of a model with all intermediate values watched.

    Attributes:
        seen: By name of the value.
        inside: What was inferred of values in bodies, in the order of ``inner``.
        varied: Whether every free axis of the inputs had another length in the second run. If
            not, numbers that the graph computes from shapes are not taken for constants.
    """

    seen: Mapping[str, Observed] = field(default_factory=dict)
    inside: Sequence[Observed | None] = ()
    varied: bool = True

    @classmethod
    def of(
        cls, model: Model, first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray],
        varied: bool,
    ) -> Runs:  # fmt: skip
        """Sort what came out of two runs.

        Args:
            model: The model that was run.
            first: Arrays by name of the value.
            second: The same values of the other run.
            varied: See the class.
        """
        seen = {}
        for name, a in first.items():
            b = second.get(name)
            if b is None or a.ndim != b.ndim:
                continue
            small = a.dtype.kind in "iub" and a.size <= _LARGEST_PARAMETER
            values = (a, b) if small else None
            seen[name] = Observed(tuple(zip(a.shape, b.shape, strict=True)), a.dtype, values)
        return cls(seen, _inferred(model, first, second), varied)


def inner(model: Model) -> list[ir.Value]:
    """Every value that bodies get or make, in an order that clones share."""
    return [
        value
        for graph in model.ir.graph.subgraphs()
        for value in (*graph.inputs, *(made for node in graph for made in node.outputs))
    ]


def _inferred(
    model: Model, first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]
) -> list[Observed | None]:
    """What follows for the values in bodies."""
    values = inner(model)
    if not values:
        return []
    outer = [*model.ir.graph.inputs, *watched(model)]
    one, other = (
        shapes.walk(model, seen={v: run[v.name] for v in outer if v.name and v.name in run})
        for run in (first, second)
    )

    def seen(value: ir.Value) -> Observed | None:
        a, b, kind = one.shapes.get(value), other.shapes.get(value), one.elements.get(value)
        if a is None or b is None or len(a) != len(b) or not kind:
            return None
        sizes = tuple(
            _UNKNOWN if m is None or n is None else (m, n) for m, n in zip(a, b, strict=True)
        )
        known = None
        if value in one.known and value in other.known and one.known[value].dtype.kind in "iub":
            known = one.known[value], other.known[value]
        return Observed(sizes, ir.DataType(kind).numpy(), known)

    return list(map(seen, values))


def watched(model: Model) -> list[ir.Value]:
    """Every value of the main graph that a node makes."""
    return [value for node in model.ir.graph for value in node.outputs if value.name]


def measured(model: Model, values: Sequence[ir.Value]) -> tuple[Model, dict[str, ShapeOnly]]:
    """A copy of a model that returns values, but of floats the shapes only: they are large.

    Args:
        model: The model.
        values: Values of its main graph.

    Returns:
        The copy, and by the name of an output whose shape it is that of which value.
    """
    kinds = shapes.walk(model).elements
    floats = [v for v in values if kinds.get(v) and ir.DataType(kinds[v]).is_floating_point()]
    copy = exposed(model, [value.name or "" for value in values if value not in set(floats)])
    given = {value.name for value in model.ir.graph.outputs}
    made = {v.name: v for node in copy.ir.graph for v in node.outputs}
    found = {}
    for value in floats:
        if value.name not in given and value.name in made:
            node = ir.node("Shape", [made[value.name]], name="")
            size = node.outputs[0]
            size.name = copy.unused_name(f"{value.name}.shape")
            size.type = ir.TensorType(ir.DataType.INT64)
            copy.ir.graph.append(node)
            copy.ir.graph.outputs.append(size)
            copy.touch_node(node)
            found[size.name] = ShapeOnly(value.name or "", ir.DataType(kinds[value]).numpy())
    return copy, found


class Facts:
    """Sizes and constants of the values of a main graph and of the bodies in it.

    Args:
        model: The model, which is only read.
        runs: What two runs of it, or of one that it is a clone of, showed.
    """

    def __init__(self, model: Model, runs: Runs):
        self._runs = runs
        self._inside = dict(zip(inner(model), runs.inside, strict=False))
        self._computed: set[ir.Value] = set()
        self._from_shapes: set[ir.Value] = set()
        for node in model.ir.graph.all_nodes():
            inputs = [value for value in node.inputs if value is not None]
            known = all(self._is_known(value) for value in inputs) and not any(read.bodies(node))
            measures = operators.of(node, operators.ShapeOf) is not None
            if measures or (known and operators.of(node, operators.Random) is None):
                self._computed.update(node.outputs)
                shaped = any(value in self._from_shapes for value in inputs)
                if measures or shaped:
                    self._from_shapes.update(node.outputs)

    def _is_known(self, value: ir.Value) -> bool:
        return value in self._computed or read.constant(value) is not None

    def _seen(self, value: ir.Value) -> Observed | None:
        if value in self._inside:
            return self._inside[value]
        return self._runs.seen.get(value.name or "")

    def sizes(self, value: ir.Value) -> tuple[Pair, ...] | None:
        """Length of every axis in both runs; None when the value was not seen."""
        tensor = read.constant(value)
        if tensor is not None:
            return tuple((n, n) for n in read.shape(tensor))
        seen = self._seen(value)
        return None if seen is None else seen.sizes

    def dtype(self, value: ir.Value) -> np.dtype[Any] | None:
        """The numpy type of a value, where it is known."""
        seen = self._seen(value)
        if seen is not None:
            return seen.dtype
        return None if value.dtype is None else value.dtype.numpy()

    def computed(self, value: ir.Value) -> bool:
        """Whether a value depends on constants and on the shapes of other values alone."""
        return value in self._computed

    def values(self, value: ir.Value | None) -> tuple[np.ndarray, np.ndarray] | None:
        """What a small integer value was in both runs."""
        if value is None:
            return None
        tensor = read.constant(value)
        if tensor is not None:
            array = tensor.numpy()
            return array, array
        seen = self._seen(value)
        return None if seen is None else seen.values

    def constant(self, value: ir.Value | None) -> np.ndarray | None:
        """A value that is the same in every run, if it is known to be."""
        values = self.values(value)
        if value is None or values is None:
            return None
        if read.constant(value) is None:
            trusted = self._runs.varied or value not in self._from_shapes
            if value not in self._computed or not trusted:
                return None
        return values[0] if np.array_equal(*values) else None


def nbytes_of(value: ir.Value) -> int:
    """Stored bytes of a constant."""
    tensor = read.constant(value)
    return 0 if tensor is None else tensor.nbytes
