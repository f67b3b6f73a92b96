"""What is known of a graph's values before channels are labelled: sizes and constants.

Sizes come from running the model twice with different sizes of its free axes: an axis of the same
length in both runs is static, any other dynamic. Numbers that are computed from shapes alone and
came out the same are constants, though the graph computes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxshrink.graph.model import Model
from onnxshrink.graph.weights import constant

#: Sizes in the first and in the second run.
Pair = tuple[int, int]

_SHAPES = {"Shape", "Size"}
_RANDOM = {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli"}
_LARGEST_PARAMETER = 2**16


@dataclass(frozen=True)
class Seen:
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
class Runs:
    """Two runs of a model with all intermediate values watched.

    Attributes:
        seen: By name of the value.
        varied: Whether every free axis of the inputs had another length in the second run. If
            not, numbers that the graph computes from shapes are not taken for constants.
    """

    seen: Mapping[str, Seen] = field(default_factory=dict)
    varied: bool = True

    @classmethod
    def of(
        cls, first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray], varied: bool
    ) -> Runs:
        """Sort what came out of two runs.

        Args:
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
            seen[name] = Seen(tuple(zip(a.shape, b.shape, strict=True)), a.dtype, values)
        return cls(seen, varied)


def watched(model: Model) -> list[ir.Value]:
    """Every value of the main graph that a node makes."""
    return [value for node in model.ir.graph for value in node.outputs if value.name]


def exposed(model: Model, values: Sequence[ir.Value]) -> Model:
    """A copy of a model that also returns some of its intermediate values."""
    names = {value.name for value in model.ir.graph.outputs}
    copy = model.clone()
    made = {v.name: v for node in copy.ir.graph for v in node.outputs}
    wanted = [value.name for value in values if value.name in made and value.name not in names]
    for name in dict.fromkeys(wanted):
        copy.ir.graph.outputs.append(made[name])
        copy.touch(name)
    return copy


class Facts:
    """Sizes and constants of the values of a main graph.

    Args:
        model: The model, which is only read.
        runs: What two runs of it showed.
    """

    def __init__(self, model: Model, runs: Runs):
        self._runs = runs
        self._computed: set[ir.Value] = set()
        self._from_shapes: set[ir.Value] = set()
        self._dynamic_inputs = {
            value
            for value in model.ir.graph.inputs
            if value.name not in model.ir.graph.initializers
        }
        for node in model.ir.graph:
            inputs = [value for value in node.inputs if value is not None]
            known = all(self._is_known(value) for value in inputs)
            if node.op_type in _SHAPES or (known and node.op_type not in _RANDOM):
                self._computed.update(node.outputs)
                shaped = any(value in self._from_shapes for value in inputs)
                if node.op_type in _SHAPES or shaped:
                    self._from_shapes.update(node.outputs)

    def _is_known(self, value: ir.Value) -> bool:
        return value in self._computed or stored(value) is not None

    def sizes(self, value: ir.Value) -> tuple[Pair, ...] | None:
        """Length of every axis in both runs; None when the value was not seen."""
        tensor = stored(value)
        if tensor is not None:
            return tuple((n, n) for n in dims(tensor))
        seen = self._runs.seen.get(value.name or "")
        return None if seen is None else seen.sizes

    def dtype(self, value: ir.Value) -> np.dtype[Any] | None:
        """The numpy type of a value, where it is known."""
        seen = self._runs.seen.get(value.name or "")
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
        tensor = stored(value)
        if tensor is not None:
            array = tensor.numpy()
            return array, array
        seen = self._runs.seen.get(value.name or "")
        return None if seen is None else seen.values

    def constant(self, value: ir.Value | None) -> np.ndarray | None:
        """A value that is the same in every run, if it is known to be."""
        values = self.values(value)
        if value is None or values is None:
            return None
        if stored(value) is None:
            trusted = self._runs.varied or value not in self._from_shapes
            if value not in self._computed or not trusted:
                return None
        return values[0] if np.array_equal(*values) else None


def dims(tensor: ir.TensorProtocol) -> tuple[int, ...]:
    """The shape of a tensor as plain integers."""
    return tuple(tensor.shape.numpy())


def stored(value: ir.Value) -> ir.TensorProtocol | None:
    """The tensor behind an initializer or a Constant node; None for other values."""
    node, found = value.producer(), constant(value)
    if found is not None or node is None or node.op_type != "Constant" or node.domain:
        return found
    plain = next(iter(node.attributes.values()), None)
    if plain is None or not plain.name.startswith("value_"):
        return None
    kinds: dict[str, Any] = {"value_int": np.int64, "value_ints": np.int64}
    kinds |= {"value_float": np.float32, "value_floats": np.float32}
    kind = kinds.get(plain.name)
    return None if kind is None else ir.Tensor(np.array(plain.value, kind))


def nbytes_of(value: ir.Value) -> int:
    """Stored bytes of a constant."""
    tensor = stored(value)
    return 0 if tensor is None else tensor.nbytes
