"""How much each unit of a group matters, from weights and from what calibration saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxshrink.channels.groups import Group, Member
from onnxshrink.channels.labels import Walk
from onnxshrink.channels.readers import Consumer
from onnxshrink.channels.request import Importance
from onnxshrink.graph import operators, read
from onnxshrink.graph.operators import Norm
from onnxshrink.kernels.elimination import ChannelReader, eliminate
from onnxshrink.kernels.importance import Array, index_power
from onnxshrink.kernels.moments import damped, loss
from onnxshrink.kernels.refit import FeatureSums

#: Those that need inputs to run the model on.
CALIBRATED = {"activation", "variance", "hessian", "greedy"}

_DAMPING = 0.01
_LEAST = 1e-30


def score(
    walk: Walk, groups: Sequence[Group], importance: Importance,
    seen: Mapping[Consumer, FeatureSums], rng: np.random.Generator,
) -> list[Array]:  # fmt: skip
    """A score for every unit of every group; higher matters more.

    Args:
        walk: The labelled model.
        groups: Its groups.
        importance: ``auto``: ``hessian`` where a unit is read by a weight with moments, else
            ``l2``; ``l1`` and ``l2``: norms of all weights that go with a unit, those of each
            tensor relative to their mean; ``bn-gamma``: the scale that normalises its channel (l2
            where there is none); ``activation``: weights that read the unit times the root mean
            square of what they read; ``variance``: times its standard deviation; ``hessian``: the
            error that removing it leaves when the other weights make up for it; ``greedy``: the
            same of what is left after those before it went, one by one; ``random``.
        seen: Moments of what consumers read.
        rng: For ``random``.
    """
    readers: dict[ir.Value, list[Consumer]] = {}
    for consumer in seen:
        readers.setdefault(consumer.weight, []).append(consumer)
    scores = []
    for group in groups:
        if importance == "random":
            scores.append(rng.random(len(group)))
            continue
        parts: list[Array] = []
        if importance == "greedy":
            eliminated = _eliminated(walk, group, seen)
            if eliminated is not None:
                scores.append(eliminated)
                continue
        if importance == "bn-gamma":
            parts = [_spread(group, m, np.abs(_array(m))) for m in group.members if _is_gamma(m)]
        if importance in CALIBRATED or importance == "auto":
            for member in group.members:
                for consumer in readers.get(member.value, ()):
                    if consumer.weight_axis == member.axis:
                        own = _read(consumer, seen[consumer], importance)
                        parts.append(_spread(group, member, own))
        if not parts:
            order = 1 if importance == "l1" else 2
            for member in group.members:
                if len(walk.labels[member.slot]) > 1:
                    own = index_power(_array(member), member.axis, order)
                    parts.append(_spread(group, member, own))
        if not parts:
            parts = [_spread(group, m, np.abs(_array(m).reshape(-1))) for m in group.members]
        scores.append(np.mean([part / max(part.mean(), 1e-30) for part in parts], 0))
    return scores


def _eliminated(walk: Walk, group: Group, seen: Mapping[Consumer, FeatureSums]) -> Array | None:
    """Scores that grow in the order in which units go, one after the other."""
    unit = np.full(walk.atoms.count, -1)
    unit[group.atoms] = np.arange(len(group))
    readers = []
    for consumer, moments in seen.items():
        columns = _columns(walk, unit, len(group), consumer)
        if columns is None:
            continue
        h = moments.second_moments(centred=consumer.shifts)
        matrix = consumer.matrix()
        power = loss(matrix, h)
        if power > 0:  # errors are relative to what each consumer makes
            readers.append(ChannelReader(matrix / power**0.5, damped(h, _DAMPING), columns))
    if not readers:
        return None
    order, costs = eliminate(readers)
    scores = np.empty(len(group))
    # What goes first has the lowest score, also where something later costs less by then.
    ever = np.maximum.accumulate(np.maximum(costs, _LEAST))
    scores[order] = ever * (1 + 1e-9 * np.arange(len(order)))
    return scores


def _columns(
    walk: Walk, unit: npt.NDArray[np.int64], units: int, consumer: Consumer
) -> npt.NDArray[np.int64] | None:
    """The features that a consumer reads of each unit, [units, features of one].

    None where it does not read all of them alike.
    """
    positions, atoms = walk.atoms.incidence(consumer.labels)
    mine = unit[atoms] >= 0
    positions, owners = positions[mine], unit[atoms[mine]]
    counts = np.bincount(owners, minlength=units)
    if counts.min() < 1 or counts.max() > counts.min() or len(set(positions)) < len(positions):
        return None
    channels = positions[np.argsort(owners, kind="stable")].reshape(units, -1, 1)
    size = consumer.features // consumer.channels
    return np.asarray((channels * size + np.arange(size)).reshape(units, -1))


def _read(consumer: Consumer, moments: FeatureSums, importance: Importance) -> Array:
    """A score for every channel that a consumer reads."""
    squares = consumer.columns(np.square(consumer.matrix())).sum((0, 2))
    size = consumer.features // consumer.channels
    if importance in ("hessian", "auto"):
        h = damped(moments.second_moments(centred=consumer.shifts), _DAMPING)
        left = 1 / np.diagonal(np.linalg.inv(h))
        each = np.square(consumer.matrix()).sum(0) * left
        return np.asarray(each.reshape(consumer.channels, size).sum(1))
    power = moments.mean_squares() if importance == "activation" else moments.variances()
    return np.asarray(np.sqrt(squares * power.reshape(consumer.channels, size).mean(1)))


def _array(member: Member) -> np.ndarray:
    tensor = read.constant(member.value)
    assert tensor is not None
    return np.asarray(tensor.numpy(), np.float64)


def _is_gamma(member: Member) -> bool:
    rows = ((operators.of(use.node, Norm), use.idx) for use in member.value.uses())
    return any(row is not None and row.gain == index for row, index in rows)


def _spread(group: Group, member: Member, per_index: Array) -> Array:
    """From scores of an axis' indices to scores of the units that decide over them."""
    return np.bincount(member.units, per_index[member.positions], len(group)).astype(np.float64)
