"""Weights of a model that lost channels, fitted to what the whole model answered, layer by layer.

Making up for removed channels weight by weight leaves errors that add up on the way through the
model. Here the weights are fitted to what the whole model makes from what reaches them now. (As in
channel pruning, 1707.06168, section 3.3, in a few stages instead of one for every layer.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from onnxshrink.kernels.refit import Array, explain
from onnxshrink.runtime.probe import observe
from onnxshrink.runtime.worker import Worker

if TYPE_CHECKING:
    import onnx_ir as ir

    from onnxshrink.graph.channels.consumers import Consumer
    from onnxshrink.graph.channels.groups import Removed
    from onnxshrink.graph.channels.walk import Walk
    from onnxshrink.graph.model import Model

Feeds = Sequence[Mapping[str, np.ndarray]]

_EXACT = 1e-10  # the share of the power that rounding may lack
_ELEMENTS = 2**22  # of the inputs of several groups at once


def refine(
    walk: Walk, removed: Removed, whole: Model, consumers: Sequence[Consumer], feeds: Feeds,
    damping: float, stages: int, worker: Worker,
) -> list[ir.Value]:  # fmt: skip
    """Fit the weights of a model that was cut.

    Args:
        walk: The labels, whose model was cut.
        removed: The atoms that went.
        whole: The model before the cut.
        consumers: What may change, in execution order.
        feeds: Inputs to fit to.
        damping: How closely weights stay to what they are.
        stages: In how many parts to go through the model; both models run once for each.
        worker: Where to run.

    Returns:
        The weights and biases that have new values.
    """
    done: list[ir.Value] = []
    size = -(-len(consumers) // stages) if consumers else 1
    for start in range(0, len(consumers), size):
        part = consumers[start : start + size]
        wanted = _results(whole, part, feeds, worker)
        for consumer, lack in _lacks(walk, removed, part, wanted, whole, feeds, worker).items():
            if _apply(walk, consumer, lack, damping):
                done += [consumer.weight, *([consumer.bias] if consumer.bias is not None else [])]
    return done


def _results(
    whole: Model, part: Sequence[Consumer], feeds: Feeds, worker: Worker
) -> dict[Consumer, list[np.ndarray]]:
    """What the nodes make in the whole model, at some places, for every feed."""
    made = {value.name: value for node in whole.ir.graph for value in node.outputs}
    names = {consumer: consumer.node.outputs[0].name or "" for consumer in part}
    wanted: dict[Consumer, list[np.ndarray]] = {consumer: [] for consumer in part}
    values = [made[name] for name in names.values()]
    for number, arrays in enumerate(observe(whole, values, feeds, worker)):
        for consumer in part:
            wanted[consumer].append(consumer.results(arrays[names[consumer]], number))
    return wanted


@dataclass
class _Lack:
    """Sums over what a consumer reads now, for each of its groups.

    Attributes:
        moments: Of its inputs, with a constant 1 behind them.
        missing: Of its inputs and what its results lack.
        power: Of what they lack, and of what they should be.
    """

    moments: Array
    missing: Array
    power: Array

    @classmethod
    def of(cls, rows: np.ndarray, weights: Array, goals: Array) -> _Lack:
        """The sums of some places.

        Args:
            rows: Inputs, [places, groups, features].
            weights: [groups, outputs, features].
            goals: What the outputs should be, [places, groups, outputs].
        """
        places, groups, features = rows.shape
        moments = np.empty((groups, features + 1, features + 1))
        missing = np.empty((groups, features + 1, goals.shape[2]))
        power = np.zeros(2)
        step = max(1, _ELEMENTS // (places * (features + 1)))
        for start in range(0, groups, step):
            part = slice(start, start + step)
            full = np.ones((*rows[0, part].shape[:1], places, features + 1))
            full[..., :-1] = rows[:, part].transpose(1, 0, 2)
            goal = goals[:, part].transpose(1, 0, 2)
            lack = goal - full[..., :-1] @ weights[part].swapaxes(1, 2)
            turned = full.swapaxes(1, 2)
            moments[part], missing[part] = turned @ full, turned @ lack
            power += np.square(lack).sum(), np.square(goal).sum()
        return cls(moments, missing, power)

    def __add__(self, other: _Lack) -> _Lack:
        return _Lack(
            self.moments + other.moments, self.missing + other.missing, self.power + other.power
        )


def _lacks(
    walk: Walk, removed: Removed, part: Sequence[Consumer],
    wanted: Mapping[Consumer, list[np.ndarray]], whole: Model, feeds: Feeds, worker: Worker,
) -> dict[Consumer, _Lack]:  # fmt: skip
    """How far the results of each consumer are from the whole model's."""
    sums: dict[Consumer, _Lack] = {}
    kept = {consumer: walk.atoms.kept(consumer.outputs, removed) for consumer in part}
    offsets = {consumer: _offset(consumer, whole, kept[consumer]) for consumer in part}
    inputs = [consumer.node.inputs[0] for consumer in part]
    values = [value for value in dict.fromkeys(inputs) if value is not None]
    runs = zip(feeds, observe(walk.model, values, feeds, worker), strict=True)
    for number, (feed, arrays) in enumerate(runs):
        for consumer, x in zip(part, inputs, strict=True):
            assert x is not None
            rows, matrix = (
                consumer.rows({**feed, **arrays}[x.name or ""], number),
                consumer.matrix(),
            )
            goal = wanted[consumer][number][:, kept[consumer]] + offsets[consumer]
            groups = rows.shape[1]
            own = _Lack.of(
                rows, matrix.reshape(groups, -1, matrix.shape[1]),
                goal.reshape(len(goal), groups, -1),
            )  # fmt: skip
            sums[consumer] = sums[consumer] + own if consumer in sums else own
    return sums


def _offset(consumer: Consumer, whole: Model, kept: np.ndarray) -> Array:
    """What to add to a node's results for the product of weights and inputs alone.

    A bias that the node adds itself is in its results as it was; one behind it is not, and may be
    another by now.
    """
    inner = consumer.node.inputs[2] if len(consumer.node.inputs) > 2 else None
    if consumer.bias is None or consumer.bias is inner:
        return -_floats(inner) if inner is not None else np.zeros(int(kept.sum()))
    first = {v.name: v for v in _constants(whole)}[consumer.bias.name]
    moved: Array = consumer.sign * (_floats(first)[kept] - _floats(consumer.bias))
    return moved


def _constants(model: Model) -> Iterator[ir.Value]:
    yield from model.ir.graph.initializers.values()
    for node in model.ir.graph:
        if node.op_type == "Constant":
            yield node.outputs[0]


def _floats(value: ir.Value) -> Array:
    from onnxshrink.graph.channels.facts import stored

    tensor = stored(value)
    assert tensor is not None
    return np.asarray(tensor.numpy(), np.float64)


def _apply(walk: Walk, consumer: Consumer, lack: _Lack, damping: float) -> bool:
    """Change a weight, unless its results are what they should be; whether it was changed."""
    from onnxshrink.graph.channels.consumers import store

    if lack.power[0] <= _EXACT * lack.power[1]:
        return False
    with_bias = consumer.bias is not None
    change, shift = explain(lack.moments, lack.missing, damping, bias=with_bias)
    matrix = consumer.matrix()
    consumer.put(walk, matrix + change.reshape(matrix.shape))
    if consumer.bias is not None:
        now = _floats(consumer.bias)
        store(walk, consumer.bias, now + consumer.sign * shift.reshape(-1))
    return True
